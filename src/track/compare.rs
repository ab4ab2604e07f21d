//! What the rows of a tracked table come to, and what its counters say, by one snapshot.
//!
//! # Why adding the difference makes a track exact for good
//! Say that from some moment on each transaction that changes rows changes the counters with them, and that
//! all who did not have ended. Then for every later snapshot the difference between rows and counters is the
//! same, group by group: what the snapshot sees of such transactions adds the same to both. So the
//! difference by any of these snapshots, added once, makes it zero in all that see the addition.

use crate::pg::memory::{MemoryArena, MemoryScope, MemorySwitch};
use crate::pg::relation::Relation;
use crate::pg::room;
use crate::pg::scan::TableScan;
use crate::pg::user::ActingAs;
use crate::read::reader::{Lanes, Reader};
use crate::store::catalog;
use crate::store::totals::{self, Order};
use crate::track::row::{self, Counting, type_of};
use counterx_core::names::NameRange;
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::ops::ControlFlow;

/// A group whose counter does not agree with its rows.
pub struct Difference {
    /// The counter.
    pub name: Vec<u8>,
    /// What its rows come to: their sum, or their number, and their number.
    pub counted: Tally,
    /// What the counter says.
    pub recorded: Tally,
}

/// The names of a type's counters.
pub fn names_of(type_name: &[u8]) -> NameRange {
    let mut range = NameRange::all();
    range.starting_with(&[type_name, b":"].concat());
    range
}

/// A row trigger of a table, or partition, that counts in counters of this type.
///
/// # Safety
/// The trigger is looked at only as long as the table is open, and nobody rebuilds its description.
unsafe fn trigger_of<'a>(
    table: &Relation,
    function: pg_sys::Oid,
    type_name: &[u8],
) -> Option<&'a pg_sys::Trigger> {
    // SAFETY: the table is open, and so are its triggers' descriptions.
    unsafe {
        let triggers = (*table.as_ptr()).trigdesc;
        if triggers.is_null() {
            return None;
        }
        let triggers = std::slice::from_raw_parts(
            (*triggers).triggers,
            (*triggers).numtriggers.unsigned_abs() as usize,
        );
        triggers.iter().find(|trigger| {
            trigger.tgfoid == function && type_of(trigger).as_deref() == Some(type_name)
        })
    }
}

/// The way in which the rows of a table, or partition, are counted: by any row trigger of that type.
///
/// # Safety
/// As of [`Counting::of_trigger`].
pub unsafe fn counting_of(
    table: &Relation,
    function: pg_sys::Oid,
    type_name: &[u8],
    memory: pg_sys::MemoryContext,
) -> Option<Counting> {
    // SAFETY: the caller's promise; the trigger is not kept.
    unsafe {
        trigger_of(table, function, type_name).map(|trigger| Counting::of_trigger(trigger, memory))
    }
}

/// The column that is the first part of the key of a track, as of [`row::leading_column`].
pub fn leading_column(table: &Relation, function: pg_sys::Oid, type_name: &[u8]) -> Option<i16> {
    // SAFETY: the trigger is not kept.
    unsafe {
        trigger_of(table, function, type_name).and_then(|trigger| row::leading_column(trigger))
    }
}

/// Adds up the rows of a table, or partition, that a snapshot sees. The expressions run as the table's owner.
/// Returns how many rows it has seen.
///
/// # Errors
/// Those of the expressions.
pub fn add_up(
    table: &Relation,
    function: pg_sys::Oid,
    type_name: &[u8],
    snapshot: pg_sys::Snapshot,
    sums: &mut Sums,
    mut seen: impl FnMut(u64),
) -> Option<u64> {
    if !table.has_rows_here() {
        return None;
    }
    let _owner = ActingAs::owner_of(table);
    // SAFETY: the current context outlives this call; the caller's snapshot is active.
    unsafe {
        let _scope = MemoryScope::enter(pg_sys::CurrentMemoryContext);
        let mut counting = counting_of(table, function, type_name, pg_sys::CurrentMemoryContext)?;
        let mut scan = TableScan::new(table, snapshot);
        // What is unpacked of a row.
        let arena = MemoryArena::below(pg_sys::CurrentMemoryContext);
        let mut rows = 0_u64;
        while let Some(row) = scan.next() {
            rows += 1;
            if rows.is_multiple_of(1024) {
                pgrx::check_for_interrupts!();
                seen(rows);
            }
            // Parts of keys may be of a megabyte each.
            if rows.is_multiple_of(16) {
                arena.reset();
            }
            let _switch = MemorySwitch::to(arena.as_ptr());
            if let Some(share) = counting.share(row.slot()) {
                room::granted(sums.add(share.name, Tally::of(share.value, 1)));
            }
        }
        Some(rows)
    }
}

/// All counters of a type, by a snapshot, which is active.
pub fn recorded(type_name: &[u8], snapshot: pg_sys::Snapshot) -> Vec<(Vec<u8>, Tally)> {
    recorded_in(&names_of(type_name), snapshot)
}

/// All counters whose names are in a range; likewise.
pub fn recorded_in(range: &NameRange, snapshot: pg_sys::Snapshot) -> Vec<(Vec<u8>, Tally)> {
    catalog::shared();
    let mut reader = Reader::open(Lanes::All, snapshot);
    let mut pending = reader.pending_in(range);
    let mut counters = Vec::new();
    let mut keep = |name: &[u8], tally: Tally| {
        if !tally.is_zero() {
            room::push(&mut counters, (name.to_vec(), tally));
        }
    };
    // SAFETY: the caller's snapshot is active.
    let _all = unsafe {
        totals::visit(range, Order::ByName, snapshot, |name, row| {
            keep(name, totals::tally(row) + pending.take(name));
            ControlFlow::Continue(())
        })
    };
    for (name, tally) in pending {
        keep(&name, tally);
    }
    reader.finish();
    counters
}

/// Where counters and rows differ, in the order of names.
pub fn differences(mut counted: Sums, recorded: Vec<(Vec<u8>, Tally)>) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut keep = |name: Vec<u8>, counted: Tally, recorded: Tally| {
        if counted != recorded {
            room::push(
                &mut all,
                Difference {
                    name,
                    counted,
                    recorded,
                },
            );
        }
    };
    for (name, recorded) in recorded {
        let counted = counted.take(&name);
        keep(name, counted, recorded);
    }
    for (name, counted) in counted {
        keep(name.into_vec(), counted, Tally::default());
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    all
}
