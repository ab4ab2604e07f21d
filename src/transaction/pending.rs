//! The running transaction's increments that are not written yet.
//!
//! There is a map for each [`Part`] of them. A counter may be in several: in those of both kinds when it was
//! counted and set, in those of both sources when its type came to be tracked meanwhile: its calls are refused
//! then, its rows are not.

use crate::pg::room;
use counterx_core::lane::NameHash;
use counterx_core::pending::{PendingMap, Refused, Row};
use counterx_core::room::NoMemory;
use counterx_core::tally::Tally;
use std::cell::{Cell, RefCell};

thread_local! {
    /// Of each part.
    static MAPS: [RefCell<PendingMap>; PARTS.len()] = Default::default();
    /// Rows were written before the end: the transaction holds its epochs until it ends.
    /// Where: the level of the outermost (sub)transaction that has done so; 0: none.
    pub static FLUSHED_EARLY_AT: Cell<u32> = const { Cell::new(0) };
    /// All that it has written early drops the counters of types. Of no meaning where it has written nothing.
    pub static ONLY_DROPS: Cell<bool> = const { Cell::new(false) };
    /// See [`Phase`].
    pub static PHASE: Cell<Phase> = const { Cell::new(Phase::Running) };
}

/// Where the transaction stands. Callbacks of other extensions run after ours and may change
/// counters still: such increments are written at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Increments wait for its end.
    Running,
    /// They are written to the logs.
    Committing,
    /// They are late: PREPARE TRANSACTION.
    Preparing,
}

/// By what a counter was changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Calls of functions.
    Calls,
    /// Rows of tracked tables.
    Rows,
}

/// Why it was changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something was counted, or rows came or went.
    Increment,
    /// Nothing was: it was set, reset, dropped, renamed, merged; rows are tracked from now on or no more, or
    /// were counted anew.
    Adjustment,
}

/// What a map has.
pub type Part = (Source, Kind);

/// In the order of their maps.
const PARTS: [Part; 4] = [
    (Source::Calls, Kind::Increment),
    (Source::Calls, Kind::Adjustment),
    (Source::Rows, Kind::Increment),
    (Source::Rows, Kind::Adjustment),
];

/// What is pending of a counter in one of the maps.
pub struct Change<'a> {
    /// Which one.
    pub part: Part,
    /// What it has.
    pub row: Row<'a>,
}

/// Changes one of the maps.
///
/// # Errors
/// Those of the change.
pub fn change(
    (source, kind): Part,
    how: impl FnOnce(&mut PendingMap) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let place = source as usize * 2 + kind as usize;
    debug_assert!(PARTS[place] == (source, kind));
    MAPS.with(|maps| how(&mut maps[place].borrow_mut()))
}

/// Drops a counter on behalf of the subtransaction at `level`: see [`PendingMap::drop_counter`].
///
/// # Errors
/// Those of [`PendingMap::drop_counter`]; then what was pending may be forgotten.
pub fn drop_counter(
    level: u32,
    hash: NameHash,
    name: &[u8],
    written: Tally,
) -> Result<(), Refused> {
    for part in PARTS {
        change(part, |map| match map.get(hash, name) {
            Some(_) => map.drop_counter(level, hash, name, Tally::default()),
            None => Ok(()),
        })?;
    }
    change((Source::Calls, Kind::Adjustment), |map| {
        map.drop_counter(level, hash, name, written)
    })
}

/// A counter's history goes, on behalf of the subtransaction at `level`.
///
/// # Errors
/// Those of [`PendingMap::purge`].
pub fn purge(level: u32, hash: NameHash, name: &[u8]) -> Result<(), Refused> {
    change((Source::Calls, Kind::Adjustment), |map| {
        map.purge(level, hash, name)
    })
}

/// Does the history of any counter go?
pub fn purges() -> bool {
    MAPS.with(|maps| {
        maps.iter()
            .any(|map| map.borrow().rows().any(|row| row.purges))
    })
}

/// The memory that writing frees, in bytes, nearly.
pub fn bytes() -> usize {
    MAPS.with(|maps| maps.iter().map(|map| map.borrow().bytes()).sum())
}

/// Is nothing pending?
pub fn is_empty() -> bool {
    MAPS.with(|maps| maps.iter().all(|map| map.borrow().is_empty()))
}

/// Calls `write` with all that is pending, in no particular order. The maps are only borrowed for reading
/// meanwhile: should the session be terminated in the midst of that, no unwinding takes place, and
/// [`after_end`] finds them borrowed.
pub fn write(write: impl FnOnce(Vec<Change>)) {
    MAPS.with(|maps| {
        let maps = maps.each_ref().map(RefCell::borrow);
        let mut changes = Vec::new();
        for (part, map) in PARTS.into_iter().zip(&maps) {
            for row in map.rows() {
                room::push(&mut changes, Change { part, row });
            }
        }
        write(changes);
    });
}

/// All was written on behalf of the subtransaction at `level`.
///
/// # Errors
/// [`NoMemory`].
pub fn clear_written(level: u32) -> Result<(), NoMemory> {
    MAPS.with(|maps| {
        maps.iter()
            .try_for_each(|map| map.borrow_mut().clear_written(level))
    })
}

/// The subtransaction at `level` was released.
pub fn release_subxact(level: u32) {
    MAPS.with(|maps| {
        for map in maps {
            map.borrow_mut().release_subxact(level);
        }
    });
}

/// The subtransaction at `level` was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    for_each_free(|map| map.abort_subxact(level));
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end() {
    for_each_free(PendingMap::reset);
    FLUSHED_EARLY_AT.set(0);
    PHASE.set(Phase::Running);
}

/// Maps are borrowed only when the session ends in mid-flush; then nobody will look again.
fn for_each_free(how: impl Fn(&mut PendingMap)) {
    MAPS.with(|maps| {
        for map in maps {
            if let Ok(mut map) = map.try_borrow_mut() {
                how(&mut map);
            }
        }
    });
}

/// What the running transaction has changed of a counter and not written yet.
pub fn pending_tally(hash: NameHash, name: &[u8]) -> Option<Tally> {
    MAPS.with(|maps| {
        maps.iter()
            .filter_map(|map| map.borrow().get(hash, name))
            .reduce(|a, b| a + b)
    })
}

/// Would all that the running transaction has added to a counter and not written yet fit a bigint, with `delta`?
pub fn fits(hash: NameHash, name: &[u8], delta: i64) -> bool {
    let sum = pending_tally(hash, name).unwrap_or_default().value + i128::from(delta);
    i64::try_from(sum).is_ok()
}

/// Calls `visit` with each counter that the running transaction has changed and not written yet: once for each
/// part that there is of it.
pub fn for_each_pending(mut visit: impl FnMut(&[u8], Tally)) {
    for_each_change(|change| visit(change.row.name, change.row.tally()));
}

/// Calls `visit` with what each part has of one counter.
pub fn for_each_change_of(hash: NameHash, name: &[u8], mut visit: impl FnMut(&Change)) {
    MAPS.with(|maps| {
        for (part, map) in PARTS.into_iter().zip(maps) {
            if let Some(row) = map.borrow().row(hash, name) {
                visit(&Change { part, row });
            }
        }
    });
}

/// Calls `visit` with all that is pending, part by part.
pub fn for_each_change(mut visit: impl FnMut(&Change)) {
    MAPS.with(|maps| {
        for (part, map) in PARTS.into_iter().zip(maps) {
            for row in map.borrow().rows() {
                visit(&Change { part, row });
            }
        }
    });
}

/// Has the running transaction written rows already, and so holds its epochs?
pub fn has_flushed_early() -> bool {
    FLUSHED_EARLY_AT.get() != 0
}

/// The same, but for what was written to drop the counters of a type.
pub fn has_flushed_changes() -> bool {
    has_flushed_early() && !ONLY_DROPS.get()
}
