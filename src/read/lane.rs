//! One lane, as one snapshot sees it.

use crate::pg::error::{raise, report};
use crate::pg::relation::Relation;
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, Row};
use crate::pg::snapshot::{self, OwnRowsVisible};
use crate::pg::varlena::NameText;
use crate::store::catalog::{self, LaneRels, SharedRels};
use crate::store::columns;
use crate::store::gate;
use crate::store::state::LaneStates;
use crate::store::tables;
use crate::store::totals;
use counterx_core::gate::{Gate, Side};
use counterx_core::lane::{LANES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::probe::{self, Probes};
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ops::ControlFlow;

/// One lane's figures, for the running query's snapshot.
pub struct LaneStatus {
    /// The current epoch.
    pub epoch: i64,
    /// The folded epoch.
    pub folded: i64,
    /// Deltas that are not folded yet.
    pub deltas: i64,
    /// Size of both logs with their indexes, in bytes.
    pub log_bytes: i64,
}

/// See [`LaneStatus`].
pub fn lane_status(lane: usize) -> LaneStatus {
    let Some(snapshot) = snapshot::active() else {
        unreachable!("a table function runs in a query");
    };
    let shared = catalog::shared();
    let [reader] = &open_lanes([lane].into_iter(), &shared, snapshot)[..] else {
        unreachable!("one was opened");
    };
    // SAFETY: it is the active one.
    let mut own_rows_visible = unsafe { OwnRowsVisible::copy(snapshot) };
    let mut deltas = 0;
    reader.for_each(&NameRange::all(), own_rows_visible.as_ptr(), |_| {
        deltas += 1;
    });
    tables::scan_late(&shared, snapshot, |row| {
        if NameHash::of(row.text(columns::late::NAME)).lane() == lane {
            deltas += 1;
        }
    });
    let blocks: u32 = Side::BOTH
        .into_iter()
        .map(|side| tables::open_log(&reader.rels, side))
        .map(|(log, index)| log.blocks() + index.blocks())
        .sum();
    LaneStatus {
        epoch: reader.bound.epoch,
        folded: reader.folded,
        deltas,
        log_bytes: i64::from(blocks) * i64::from(pg_sys::BLCKSZ),
    }
}

/// The time through which all lanes are sealed, for the running query's snapshot; None: one never was.
pub fn sealed_until() -> Option<i64> {
    let current = snapshot::active_or_latest();
    let lanes = open_lanes(0..LANES, &catalog::shared(), current.as_ptr());
    lanes.iter().map(|lane| lane.sealed).min().flatten()
}

/// A look-up of one name in a lane's logs takes as long as reading about so many deltas in a row.
const READS_PER_LOOKUP: usize = 16;

/// One lane, as one snapshot sees it. Its gate stays locked, and so the lane stays; its logs are
/// opened when they are read, as the server has a quick way for some 16 locks at a time.
pub struct LaneReader {
    /// Its number.
    pub lane: usize,
    rels: LaneRels,
    gate: Relation,
    folded: i64,
    /// The time through which it is sealed.
    pub sealed: Option<i64>,
    bound: Gate,
}

/// Opens lanes for reading.
pub fn open_lanes(
    lanes: impl Iterator<Item = usize>,
    shared: &SharedRels,
    snapshot: pg_sys::Snapshot,
) -> Vec<LaneReader> {
    let mut lanes: Vec<LaneReader> = lanes
        .map(|lane| {
            let rels = catalog::lane(lane);
            let gate = tables::open(rels.gate);
            LaneReader {
                lane,
                rels,
                bound: gate::read_gate(&gate),
                gate,
                folded: 0,
                sealed: None,
            }
        })
        .collect();
    // SAFETY: the caller's snapshot outlives this call.
    let mut states = unsafe { LaneStates::open(shared, snapshot) };
    for lane in &mut lanes {
        (lane.folded, lane.sealed) = states.folded_and_sealed(lane.lane);
    }
    lanes
}

impl LaneReader {
    fn logs(&self) -> impl Iterator<Item = (Relation, Relation)> {
        // An epoch belongs to one side. Mostly the current one is the only one that is not folded.
        let all = self.bound.epoch > self.folded + 1;
        let sides = Side::BOTH.into_iter();
        sides
            .filter(move |&side| all || side == self.bound.side)
            .filter_map(|side| tables::open_log_with_rows(&self.rels, side))
    }

    /// What is pending of one counter in the logs.
    pub fn sum_of(&self, name: &NameText, snapshot: pg_sys::Snapshot) -> Tally {
        let mut sum = Tally::default();
        self.each_of(name, snapshot, |row| sum += tables::log_tally(row));
        sum
    }

    /// Visits the pending deltas of one counter in the logs.
    pub fn each_of(
        &self,
        name: &NameText,
        snapshot: pg_sys::Snapshot,
        mut visit: impl FnMut(&Row),
    ) {
        for (log, index) in self.logs() {
            let mut drain = |scan: &mut IndexScan| {
                while let Some(row) = scan.next(Direction::Forward) {
                    visit(&row);
                }
            };
            match probe::plan(self.folded, self.bound.epoch) {
                Probes::None => {}
                Probes::Each(first, last) => {
                    // SAFETY: the snapshot outlives the scan.
                    let mut scan = unsafe { IndexScan::new(&log, &index, snapshot, 2) };
                    for epoch in first..=last {
                        scan.seek(&[Key::int8_eq(1, epoch), Key::text_eq(2, name.datum())]);
                        drain(&mut scan);
                    }
                }
                Probes::Range(after, through) => {
                    // SAFETY: as above.
                    let mut scan = unsafe { IndexScan::new(&log, &index, snapshot, 3) };
                    scan.seek(&[
                        Key::int8_gt(1, after),
                        Key::int8_le(1, through),
                        Key::text_eq(2, name.datum()),
                    ]);
                    drain(&mut scan);
                }
            }
        }
    }

    /// Visits the pending deltas of the lane's logs whose names are in a range.
    pub fn for_each(
        &self,
        range: &NameRange,
        snapshot: pg_sys::Snapshot,
        mut visit: impl FnMut(&Row),
    ) {
        let end: ControlFlow<()> = self.try_for_each(range, snapshot, |row| {
            visit(row);
            ControlFlow::Continue(())
        });
        debug_assert!(end.is_continue());
    }

    /// The same, until told to stop.
    fn try_for_each(
        &self,
        range: &NameRange,
        snapshot: pg_sys::Snapshot,
        mut visit: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for (log, index) in self.logs() {
            // False: what follows in this scan is past the range.
            let mut drain = |scan: &mut IndexScan, in_order: bool| {
                while let Some(row) = scan.next(Direction::Forward) {
                    pgrx::check_for_interrupts!();
                    let name = row.text(columns::log::NAME);
                    if range.contains(name) {
                        visit(&row)?;
                    } else if in_order && range.is_past(name) {
                        break;
                    }
                }
                ControlFlow::Continue(())
            };
            match probe::plan(self.folded, self.bound.epoch) {
                Probes::Each(first, last) if !range.is_all() => {
                    let from = NameText::new(totals::first_bytes(range));
                    // SAFETY: the snapshot outlives the scan.
                    let mut scan = unsafe { IndexScan::new(&log, &index, snapshot, 2) };
                    for epoch in first..=last {
                        scan.seek(&[Key::int8_eq(1, epoch), Key::text_ge(2, from.datum())]);
                        drain(&mut scan, true)?;
                    }
                }
                _ => {
                    // SAFETY: as above.
                    let mut scan = unsafe { IndexScan::new(&log, &index, snapshot, 2) };
                    scan.seek(&[
                        Key::int8_gt(1, self.folded),
                        Key::int8_le(1, self.bound.epoch),
                    ]);
                    drain(&mut scan, false)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Adds what is pending in the logs of these names, in ascending order, which belong to the lane.
    ///
    /// Few deltas are all read at once; when there are many more than names, each name is looked up.
    pub fn add_sums_of(&self, names: &[&[u8]], snapshot: pg_sys::Snapshot, sums: &mut Sums) {
        let mut budget = READS_PER_LOOKUP * names.len();
        let mut found = Vec::new();
        let complete = self.try_for_each(&NameRange::all(), snapshot, |row| {
            let name = row.text(columns::log::NAME);
            if names.binary_search(&name).is_ok() {
                room::push(&mut found, (name.to_vec(), tables::log_tally(row)));
            }
            match budget.checked_sub(1) {
                Some(rest) => {
                    budget = rest;
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            }
        });
        if complete.is_continue() {
            for (name, tally) in found {
                room::granted(sums.add(&name, tally));
            }
            return;
        }
        for name in names {
            let sum = self.sum_of(&NameText::new(name), snapshot);
            if !sum.is_zero() {
                room::granted(sums.add(name, sum));
            }
        }
    }

    /// To be called when all is read.
    ///
    /// # Errors
    /// Raises 40001 when deltas are gone that the snapshot needs.
    pub fn check_nothing_was_truncated(&self) {
        if gate::read_truncated(&self.gate) > self.folded {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    "counter deltas that this snapshot needs have been truncated",
                )
                .set_hint("Retry the transaction. hot_standby_feedback keeps the primary from truncating what a standby still reads."),
            );
        }
    }
}
