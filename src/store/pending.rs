//! What is in the logs, whoever sees it.

use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot;
use crate::store::catalog::{self, LaneRels, SharedRels};
use crate::store::columns;
use crate::store::state;
use crate::store::tables;
use counterx_core::gate::Side;
use counterx_core::lane::NameHash;

/// Is there anything in the lane's logs that is not folded, committed or not, or a late delta?
///
/// Looks at row versions whatever became of them: an increment that is just being committed
/// counts, so a worker that is about to go cannot overlook it.
pub fn has_pending(lane: usize, rels: &LaneRels) -> bool {
    let shared = catalog::shared();
    let folded = state::newest(&shared, lane).folded;
    Side::BOTH
        .into_iter()
        .any(|side| newest_epoch(rels, side) > folded)
        || has_late(lane, &shared)
}

fn has_late(lane: usize, shared: &SharedRels) -> bool {
    let late = tables::open(shared.late);
    if late.blocks() == 0 {
        return false;
    }
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { TableScan::new(&late, snapshot::self_snapshot()) };
    while let Some(row) = scan.next() {
        pgrx::check_for_interrupts!();
        if is_of(lane, &row) {
            return true;
        }
    }
    false
}

/// Is a late delta of this lane? Its name says it: a dump takes the row to a database of another encoding.
pub fn is_of(lane: usize, row: &Row) -> bool {
    NameHash::of(row.text(columns::late::NAME)).lane() == lane
}

/// The highest epoch of any row version in a log, visible or not; 0 for an empty log.
pub fn newest_epoch(rels: &LaneRels, side: Side) -> i64 {
    newest_epoch_in(&tables::open_log_table(rels.log(side)))
}

/// The same of an open log.
pub fn newest_epoch_in(log: &Relation) -> i64 {
    if log.blocks() == 0 {
        return 0;
    }
    let index = tables::index_of(log, &columns::log::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(log, &index, snapshot::any_snapshot(), 0) };
    scan.seek(&[]);
    scan.next(Direction::Backward)
        .map_or(0, |row| row.int8(columns::log::EPOCH))
}

/// The number of index entries that wait in a lane's logs, counted up to `limit`. In both: what was
/// written before the last change of logs may wait still.
pub fn count_pending_entries(lane: usize, rels: &LaneRels, limit: u64) -> u64 {
    let shared = catalog::shared();
    let folded = state::newest(&shared, lane).folded;
    let mut count = 0;
    for side in Side::BOTH {
        let (log, index) = tables::open_log(rels, side);
        if log.blocks() == 0 {
            continue;
        }
        // SAFETY: the snapshot is a static.
        let mut scan = unsafe { IndexScan::new(&log, &index, snapshot::any_snapshot(), 1) };
        scan.seek(&[Key::int8_gt(1, folded)]);
        count += scan.count_entries(limit - count);
    }
    count
}
