//! How much waits to be folded, and since when, nearly: from a few pages of each log, however much it is.

use crate::pg::ports;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, TableScan};
use crate::pg::snapshot;
use crate::pg::tree;
use crate::store::catalog::{self, LaneRels};
use crate::store::columns;
use crate::store::gate;
use crate::store::shape;
use crate::store::state;
use crate::store::tables;
use counterx_core::gate::Side;
use counterx_core::lane::LANES;
use pgrx::pg_sys;

/// It cannot be known now: an index is missing, or a log is locked.
pub struct Unknown;

/// Is a lock of somebody's waited for?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Where there is one, it is [`Unknown`] what is pending.
    No,
    /// On a primary.
    Yes,
}

/// One of a lane's logs.
fn open_log(rels: &LaneRels, side: Side, waits: Waits) -> Result<Relation, Unknown> {
    if waits == Waits::Yes && !ports::recovery_in_progress() {
        return Ok(tables::open_log_table(rels.log(side)));
    }
    let log = Relation::open_for_read_if_free(rels.log(side)).ok_or(Unknown)?;
    shape::check(&log);
    Ok(log)
}

/// The same and its index. None: it is empty, as one of two mostly is.
fn open_log_with_rows(
    rels: &LaneRels,
    side: Side,
    waits: Waits,
) -> Result<Option<(Relation, Relation)>, Unknown> {
    let log = open_log(rels, side, waits)?;
    if log.blocks() == 0 {
        return Ok(None);
    }
    let index = match waits {
        Waits::Yes => log.open_index(&columns::log::KEY),
        Waits::No => log.open_index_if_free(&columns::log::KEY),
    };
    Ok(Some((log, index.ok_or(Unknown)?)))
}

/// How many deltas of a lane's logs are not folded yet, nearly; whatever becomes of the transactions that have
/// written them. A few are counted exactly.
///
/// # Errors
/// [`Unknown`].
pub fn pending(lane: usize) -> Result<u64, Unknown> {
    count(lane, Waits::Yes)
}

fn count(lane: usize, waits: Waits) -> Result<u64, Unknown> {
    let _gate = gate::open(lane);
    let rels = catalog::lane(lane);
    let folded = state::folded_epoch(lane);
    let mut pending = 0;
    for side in Side::BOTH {
        if let Some((_log, index)) = open_log_with_rows(&rels, side, waits)? {
            pending += tree::entries_beyond(&index, folded);
        }
    }
    Ok(pending)
}

/// The same where it may be this many: as many rows fit into the pages of the logs. None: it is less. Nobody is waited
/// for who has a log locked, such as the one that is not written to: the caller is about to commit.
///
/// # Errors
/// [`Unknown`].
pub fn pending_if(lane: usize, many: u64) -> Result<Option<u64>, Unknown> {
    /// `MaxHeapTuplesPerPage`, of rows that have no columns.
    const ROWS: u64 = (pg_sys::BLCKSZ as u64 - 24) / (24 + 4);
    let _gate = gate::open(lane);
    let rels = catalog::lane(lane);
    let mut pages = 0;
    for side in Side::BOTH {
        pages += u64::from(open_log(&rels, side, Waits::No)?.blocks());
    }
    match pages * ROWS < many {
        true => Ok(None),
        false => count(lane, Waits::No).map(Some),
    }
}

/// The same of all lanes.
///
/// # Errors
/// [`Unknown`].
pub fn pending_in_all() -> Result<u64, Unknown> {
    (0..LANES).map(pending).sum()
}

/// When the oldest of them was written, nearly, as a timestamptz: the oldest of those that stand first in the log, and
/// of those that are folded first. Of both some are looked at. None: there are none.
///
/// # Errors
/// [`Unknown`].
pub fn oldest() -> Result<Option<i64>, Unknown> {
    let mut oldest: Option<i64> = None;
    for lane in 0..LANES {
        let _gate = gate::open(lane);
        let rels = catalog::lane(lane);
        let folded = state::folded_epoch(lane);
        for side in Side::BOTH {
            if let Some((log, index)) = open_log_with_rows(&rels, side, Waits::Yes)? {
                let found = [
                    first_folded(&log, &index, folded),
                    first_written(&log, folded),
                ];
                oldest = oldest.into_iter().chain(found.into_iter().flatten()).min();
            }
        }
    }
    Ok(oldest)
}

/// Of those that are folded first: of the same epoch, the first by name.
fn first_folded(log: &Relation, index: &Relation, folded: i64) -> Option<i64> {
    const SAMPLE: usize = 32;
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(log, index, snapshot::any_snapshot(), 1) };
    scan.seek(&[Key::int8_gt(1, folded)]);
    let rows = std::iter::from_fn(|| {
        let row = scan.next(Direction::Forward)?;
        Some(row.int8(columns::log::AT))
    });
    rows.take(SAMPLE).min()
}

/// What a few pages of a log have.
#[derive(Default)]
struct Pages {
    /// Rows.
    any: bool,
    /// The time of the oldest that is not folded.
    oldest: Option<i64>,
}

fn look(log: &Relation, pages: (u32, u32), folded: i64) -> Pages {
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { TableScan::of_pages(log, snapshot::any_snapshot(), pages) };
    let mut found = Pages::default();
    while let Some(row) = scan.next() {
        found.any = true;
        if row.int8(columns::log::EPOCH) > folded {
            let at = row.int8(columns::log::AT);
            found.oldest = Some(found.oldest.map_or(at, |oldest| oldest.min(at)));
        }
    }
    found
}

/// Of those that stand first. Rows are only added to a log, so what is not folded stands behind what is, nearly; and a
/// page without any was made for rows to come.
fn first_written(log: &Relation, folded: i64) -> Option<i64> {
    const SAMPLE: u32 = 4;
    let blocks = log.blocks();
    let (mut low, mut high) = (0, blocks);
    while low < high {
        let middle = low + (high - low) / 2;
        let found = look(log, (middle, 1), folded);
        if found.any && found.oldest.is_none() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let pages = SAMPLE.min(blocks - low);
    (pages > 0)
        .then(|| look(log, (low, pages), folded).oldest)
        .flatten()
}
