//! Where histories begin in a lane, and where they begin anew as they could not be written.

use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key};
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::store::catalog;
use crate::store::columns;
use crate::store::history::{self, Series};
use crate::store::shape;
use crate::store::tables;
use counterx_core::history::Begin;
use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    /// History is being written. When an error ends that, it stays so until [`take_failure`].
    static AT_IT: Cell<bool> = const { Cell::new(false) };
}

/// Has an error ended a fold in the midst of its history?
pub fn take_failure() -> bool {
    AT_IT.take()
}

/// History is being written as long as this lives.
pub struct AtIt;

impl AtIt {
    /// From now on.
    pub fn begin() -> Self {
        AT_IT.set(true);
        Self
    }
}

impl Drop for AtIt {
    fn drop(&mut self) {
        // An error unwinds without a panic of ours, or is one.
        if !std::thread::panicking() {
            AT_IT.set(false);
        }
    }
}

/// Opens a table of history for a fold.
///
/// # Errors
/// Raises 0A000 where triggers or indexes of others are in the way: the fold is left for later, as with totals.
pub fn open_for_writing(oid: pg_sys::Oid) -> Relation {
    let Some(table) = Relation::open_until_commit(oid, ROW_EXCLUSIVE) else {
        catalog::gone()
    };
    if let Err(refusal) = shape::check_foldable(&table) {
        refusal.raise()
    }
    table
}

/// A fold through this epoch leaves history out, as it cannot be written: it begins anew in the lane, and what was
/// counted so far in no bucket stays so. Counting is not held up.
pub fn begin_anew(lane: usize, through: i64, clock: i64, latest: &LatestSnapshot) {
    let _at_it = AtIt::begin();
    // SAFETY: the snapshot is active.
    let all = unsafe { history::series(&catalog::shared(), None, latest.as_ptr()) };
    let mut notes = Notes::open(lane);
    for series in &all {
        let begin = Begin {
            epoch: through.saturating_add(1),
            at: clock,
            since: None,
        };
        notes.write(series, begin);
    }
}

/// Where series begin in a lane, to be written.
pub struct Notes {
    // Ended before its relations are closed.
    scan: IndexScan,
    indexes: pg_sys::CatalogIndexState,
    _index: Relation,
    table: Relation,
    lane: i32,
}

impl Notes {
    /// Those of a lane.
    pub fn open(lane: usize) -> Self {
        use columns::history_lane::KEY;
        let table = open_for_writing(catalog::relation_of("history_lane"));
        let index = tables::index_of(&table, &KEY);
        // SAFETY: an ordinary table, open; the snapshot is a static.
        unsafe {
            Self {
                scan: IndexScan::new(&table, &index, snapshot::self_snapshot(), 2),
                indexes: pg_sys::CatalogOpenIndexes(table.as_ptr()),
                _index: index,
                table,
                lane: lane as i32,
            }
        }
    }

    /// Where this one begins.
    pub fn write(&mut self, series: &Series, begin: Begin) {
        self.scan
            .seek(&[Key::int8_eq(1, series.id), Key::int4_eq(2, self.lane)]);
        let tid = self.scan.next(Direction::Forward).map(|row| row.tid());
        let values = [
            Some(series.id.into()),
            Some(self.lane.into()),
            Some(begin.epoch.into()),
            Some(begin.at.into()),
            begin.since.map(Into::into),
        ];
        // SAFETY: the columns of history_lane; the indexes are those of this table.
        unsafe { tables::write_row(&self.table, self.indexes, tid, values) };
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by us.
            unsafe { pg_sys::CatalogCloseIndexes(self.indexes) };
        }
    }
}
