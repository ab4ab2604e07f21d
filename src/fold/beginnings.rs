//! Where histories begin in a lane, and where they begin anew as they could not be written.

use crate::fold::at_it::AtIt;
use crate::fold::history_table::Table;
use crate::pg::scan::{Direction, Key};
use crate::pg::snapshot::LatestSnapshot;
use crate::store::catalog;
use crate::store::columns;
use crate::store::history::{self, Series};
use crate::store::tables;
use counterx_core::history::Begin;
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
pub fn at_it() -> AtIt {
    AtIt::begin(&AT_IT)
}

/// A fold through this epoch leaves history out, as it cannot be written: it begins anew in the lane, and what was
/// counted so far in no bucket stays so. Counting is not held up.
pub fn begin_anew(lane: usize, through: i64, clock: i64, latest: &LatestSnapshot) {
    let _at_it = at_it();
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
    table: Table,
    lane: i32,
}

impl Notes {
    /// Those of a lane.
    pub fn open(lane: usize) -> Self {
        use columns::history_lane::KEY;
        Self {
            table: Table::open(catalog::relation_of("history_lane"), &KEY, 2),
            lane: lane as i32,
        }
    }

    /// Where this one begins.
    pub fn write(&mut self, series: &Series, begin: Begin) {
        let scan = &mut self.table.scan;
        scan.seek(&[Key::int8_eq(1, series.id), Key::int4_eq(2, self.lane)]);
        let tid = scan.next(Direction::Forward).map(|row| row.tid());
        let values = [
            Some(series.id.into()),
            Some(self.lane.into()),
            Some(begin.epoch.into()),
            Some(begin.at.into()),
            begin.since.map(Into::into),
        ];
        // SAFETY: the columns of history_lane; the indexes are those of this table.
        unsafe { tables::write_row(&self.table.table, self.table.indexes, tid, values) };
    }
}
