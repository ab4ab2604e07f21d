//! Calls that depend on a counter's value: set, reset, drop, rename, merge.
//!
//! # How it works
//! The counter's name is locked to the end of the transaction, and *then* its value is read with a
//! new snapshot: of two such calls the second waits, and sees what the first has done. The
//! difference goes to the log like any increment, but is marked as an adjustment there. Increments take
//! no such lock; those that commit meanwhile are not part of what was read, so they stay.
//!
//! In a REPEATABLE READ or SERIALIZABLE transaction the value must not have changed since its
//! snapshot, as the transaction goes on to see that. Else it is 40001, as of an UPDATE of a row.
//!
//! A delta is a bigint, and a value need not be: anybody who may count can take one there. So a change
//! is made by as many deltas as it takes, each written before the next one: at most as many as have
//! made the value.

use super::args;
use super::args::{SameVersion, Text};
use crate::bounds::types;
use crate::bounds::windows::Place;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::NameLock;
use crate::pg::ports;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::read::reader;
use crate::store::gate;
use crate::transaction::notes;
use crate::transaction::pending;
use crate::write::change;
use crate::write::writing;
use counterx_core::lane::NameHash;
use counterx_core::tally::Tally;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;
use std::borrow::Cow;

/// A counter whose name this transaction has locked.
struct Held<'a> {
    /// As it is stored.
    name: Cow<'a, [u8]>,
    /// What others can see, or will when this transaction commits; not what is in its memory.
    written: Tally,
}

impl<'a> Held<'a> {
    fn lock(name: &'a [u8]) -> Self {
        gate::enter_to_change();
        NameLock::take(name);
        loop {
            // Of the moment at which it is locked.
            let place = types::window_of(name).map(|windowed| {
                // The transaction goes by the type from here on.
                types::known_limits_of(name);
                Place::of(name, &windowed)
            });
            let stored = match &place {
                Some(place) => Cow::Owned(place.name().to_vec()),
                None => Cow::Borrowed(name),
            };
            let written = Self::read(name, &stored);
            if place.is_none_or(|place| !place.is_left()) {
                return Self {
                    name: stored,
                    written,
                };
            }
        }
    }

    /// What others can see of a counter whose name is locked, by the name that it is stored as.
    fn read(name: &[u8], stored: &[u8]) -> Tally {
        let seen = snapshot::active()
            .filter(|_| ports::isolation_uses_xact_snapshot())
            .map(|snapshot| reader::written_at(stored, snapshot));
        if seen.is_none() {
            notes::note_change_by_value(stored);
        }
        let latest = LatestSnapshot::take();
        let written = reader::written_at(stored, latest.as_ptr());
        if seen.is_some_and(|seen| seen != written) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    format!(
                        "could not serialize access due to concurrent change of counter {}",
                        quoted(name)
                    ),
                )
                .set_hint("Retry the transaction. In READ COMMITTED the latest value is taken."),
            );
        }
        written
    }

    /// In the order that all such calls lock in.
    fn lock_both(a: &'a [u8], b: &'a [u8]) -> (Self, Self) {
        if NameHash::of(a).get() <= NameHash::of(b).get() {
            let a = Self::lock(a);
            (a, Self::lock(b))
        } else {
            let b = Self::lock(b);
            (Self::lock(a), b)
        }
    }

    fn tally(&self) -> Tally {
        self.written + self.own().unwrap_or_default()
    }

    fn own(&self) -> Option<Tally> {
        pending::pending_tally(NameHash::of(&self.name), &self.name)
    }

    /// Returns the old value; None for one that does not fit.
    fn set(&mut self, value: i64) -> Option<i64> {
        let old = self.tally();
        let change = i128::from(value) - old.value;
        if change != 0 || !old.exists() {
            self.add(change);
        }
        i64::try_from(old.value).ok()
    }

    fn add(&mut self, change: i128) {
        let own = self.own().unwrap_or_default();
        match (i64::try_from(change), i64::try_from(own.value + change)) {
            (Ok(delta), Ok(_)) => change::adjust(&self.name, delta),
            _ => self.add_in_parts(change),
        }
    }

    fn add_in_parts(&mut self, change: i128) {
        let mut rest = change;
        while rest != 0 {
            pgrx::check_for_interrupts!();
            self.write_pending();
            let part = i64::try_from(rest).unwrap_or(match rest < 0 {
                true => -i64::MAX,
                false => i64::MAX,
            });
            change::adjust(&self.name, part);
            if self.own().is_none() {
                // In the last moments of a transaction all is written at once.
                self.written += Tally::of(part, 1);
            }
            rest -= i128::from(part);
        }
        self.write_pending();
    }

    /// Writes what is pending, and makes it part of what is known to be written.
    fn write_pending(&mut self) {
        let own = self.own().unwrap_or_default();
        writing::write_early();
        self.written += own;
    }

    fn drop_counter(&mut self) {
        // The change is a delta, and so has to be one.
        if i64::try_from(-self.written.value).is_err() {
            self.add_in_parts(-self.tally().value);
        }
        change::drop_counter(&self.name, self.written);
    }

    fn must_exist(&self) {
        if !self.tally().exists() {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                    format!("counter {} does not exist", quoted(&self.name)),
                )
                .set_hint("Counters exist from their first increment on. SELECT * FROM counter_list() shows them."),
            );
        }
    }
}

fn must_differ(a: &[u8], b: &[u8], what: &str) {
    if a == b {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("cannot {what} itself: {}", quoted(a)),
            )
            .set_hint("Give two different names."),
        );
    }
}

/// What a counter has come to in one window belongs to that window.
///
/// # Errors
/// Raises 0A000 where one of them has windows.
fn must_have_no_windows(names: [&[u8]; 2], function: &str) {
    if let Some(name) = names
        .into_iter()
        .find(|name| types::window_of(name).is_some())
    {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("{function} cannot move counters of a type with a window"),
            )
            .set_detail(format!(
                "Counter {} begins anew with each window.",
                quoted(name)
            ))
            .set_hint("counter_set() sets what it has in the running one."),
        );
    }
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_set(name: Option<Text>, value: Option<i64>) -> Option<i64> {
    change::check_may_write(c"counter_set()");
    let name = args::name(name);
    let value = args::required("counter value", value);
    Held::lock(name).set(value)
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_reset(name: Option<Text>) -> Option<i64> {
    change::check_may_write(c"counter_reset()");
    let mut held = Held::lock(args::name(name));
    // A counter that does not exist is not made to.
    if held.tally().exists() {
        held.set(0)
    } else {
        Some(0)
    }
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_drop(
    _same: SameVersion,
    name: Option<Text>,
    purge: default!(Option<bool>, "false"),
) -> bool {
    change::check_may_write(c"counter_drop()");
    let purge = args::required("purge", purge);
    let mut held = Held::lock(args::name(name));
    let existed = held.tally().exists();
    if existed {
        held.drop_counter();
    }
    // One that was dropped before may have left a history.
    if purge {
        change::purge(&held.name);
    }
    existed
}

#[pg_extern(volatile, parallel_unsafe, cost = 400)]
fn counter_rename(old_name: Option<Text>, new_name: Option<Text>) -> bool {
    change::check_may_write(c"counter_rename()");
    let (old, new) = (args::name(old_name), args::name(new_name));
    must_differ(old, new, "rename a counter to");
    must_have_no_windows([old, new], "counter_rename()");
    let names = [old, new];
    let (mut old, mut new) = Held::lock_both(old, new);
    // The type may have got one while these were waited for.
    must_have_no_windows(names, "counter_rename()");
    old.must_exist();
    if new.tally().exists() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("counter {} already exists", quoted(&new.name)),
            )
            .set_hint("counter_merge() adds one counter to another."),
        );
    }
    move_value(&mut old, &mut new);
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 400)]
fn counter_merge(into_name: Option<Text>, from_name: Option<Text>) -> bool {
    change::check_may_write(c"counter_merge()");
    let (into, from) = (args::name(into_name), args::name(from_name));
    must_differ(into, from, "merge a counter into");
    must_have_no_windows([into, from], "counter_merge()");
    let names = [into, from];
    let (mut into, mut from) = Held::lock_both(into, from);
    must_have_no_windows(names, "counter_merge()");
    from.must_exist();
    move_value(&mut from, &mut into);
    true
}

fn move_value(from: &mut Held, to: &mut Held) {
    let value = from.tally().value;
    from.drop_counter();
    to.add(value);
}
