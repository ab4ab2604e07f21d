//! Calls that depend on a counter's value: set, reset, drop, rename, merge.
//!
//! # How it works
//! The counter's name is locked to the end of the transaction, and *then* its value is read with a
//! new snapshot: of two such calls the second waits, and sees what the first has done. The
//! difference goes to the log like any increment. Increments take no such lock; those that commit
//! meanwhile are not part of what was read, so they stay.
//!
//! In a REPEATABLE READ or SERIALIZABLE transaction the value must not have changed since its
//! snapshot, as the transaction goes on to see that. Else it is 40001, as of an UPDATE of a row.

use super::args::{self, Text};
use crate::notes;
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::NameLock;
use crate::pg::ports;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::read;
use crate::xact;
use counterx_core::lane::NameHash;
use counterx_core::tally::Tally;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

/// A counter whose name this transaction has locked.
struct Held<'a> {
    name: &'a [u8],
    /// What others can see, or will when this transaction commits; not what is in its memory.
    written: Tally,
}

impl<'a> Held<'a> {
    fn lock(name: &'a [u8]) -> Self {
        NameLock::take(name);
        let seen = snapshot::active()
            .filter(|_| ports::isolation_uses_xact_snapshot())
            .map(|snapshot| read::written_at(name, snapshot));
        if seen.is_none() {
            notes::note_change_by_value(name);
        }
        let latest = LatestSnapshot::take();
        let written = read::written_at(name, latest.as_ptr());
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
        Self { name, written }
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
        let own = xact::pending_tally(NameHash::of(self.name), self.name);
        self.written + own.unwrap_or_default()
    }

    fn set(&self, value: i64) -> i64 {
        let old = self.tally();
        let delta = i128::from(value) - old.value;
        if delta != 0 || !old.exists() {
            xact::add(self.name, in_range(self.name, delta));
        }
        in_range(self.name, old.value)
    }

    fn drop_counter(&self) {
        // The change is a delta, and so has to be one.
        in_range(self.name, -self.written.value);
        xact::drop_counter(self.name, self.written);
    }

    fn must_exist(&self) {
        if !self.tally().exists() {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                    format!("counter {} does not exist", quoted(self.name)),
                )
                .set_hint("Counters exist from their first increment on. SELECT * FROM counter_list() shows them."),
            );
        }
    }
}

/// What one delta can change.
fn in_range(name: &[u8], change: i128) -> i64 {
    i64::try_from(change).unwrap_or_else(|_| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "change of counter {} is out of range for type bigint",
                    quoted(name)
                ),
            )
            .set_hint("Bring its value nearer to zero first, with counter_incr() or counter_decr() in transactions of their own."),
        )
    })
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

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_set(name: Option<Text>, value: Option<i64>) -> i64 {
    xact::check_may_write(c"counter_set()");
    let name = args::name(name);
    let value = args::required("counter value", value);
    Held::lock(name).set(value)
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_reset(name: Option<Text>) -> i64 {
    xact::check_may_write(c"counter_reset()");
    let held = Held::lock(args::name(name));
    // A counter that does not exist is not made to.
    if held.tally().exists() {
        held.set(0)
    } else {
        0
    }
}

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_drop(name: Option<Text>) -> bool {
    xact::check_may_write(c"counter_drop()");
    let held = Held::lock(args::name(name));
    let existed = held.tally().exists();
    if existed {
        held.drop_counter();
    }
    existed
}

#[pg_extern(volatile, parallel_unsafe, cost = 400)]
fn counter_rename(old_name: Option<Text>, new_name: Option<Text>) {
    xact::check_may_write(c"counter_rename()");
    let (old, new) = (args::name(old_name), args::name(new_name));
    must_differ(old, new, "rename a counter to");
    let (old, new) = Held::lock_both(old, new);
    old.must_exist();
    if new.tally().exists() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("counter {} already exists", quoted(new.name)),
            )
            .set_hint("counter_merge() adds one counter to another."),
        );
    }
    move_value(&old, &new);
}

#[pg_extern(volatile, parallel_unsafe, cost = 400)]
fn counter_merge(into_name: Option<Text>, from_name: Option<Text>) {
    xact::check_may_write(c"counter_merge()");
    let (into, from) = (args::name(into_name), args::name(from_name));
    must_differ(into, from, "merge a counter into");
    let (into, from) = Held::lock_both(into, from);
    from.must_exist();
    move_value(&from, &into);
}

fn move_value(from: &Held, to: &Held) {
    let value = in_range(from.name, from.tally().value);
    from.drop_counter();
    xact::add(to.name, value);
}
