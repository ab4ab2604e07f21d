//! Reading: exact for the snapshot, at every isolation level.
//!
//! # How it works
//! With one snapshot: the lane's folded epoch (newest state), the counter's total (newest total),
//! and every log row of a later epoch; the late deltas; and what the own transaction has not
//! written yet. A fold moves rows from one side of that sum to the other in one transaction, so
//! whatever a snapshot sees of it, the sum is the same.
//!
//! # Invariants
//! - The gate is read after the snapshot was taken: no epoch that the snapshot sees is higher.
//! - Totals and state have one live row a key, the one of the highest `gen`; under a snapshot
//!   that holds dead versions back they are found from there without visiting those.
//! - The truncated-through epoch is read after the scan. If the snapshot still needed that epoch,
//!   rows may have been missed. The truncation waits for such snapshots on the primary; a standby
//!   without hot_standby_feedback has nobody to wait for it.
//! - Whoever reads in a SERIALIZABLE transaction locks the counter's address in the anchor
//!   relation *before* reading the gate. A writer inserts and then checks for that lock. So either
//!   the writer meets the lock, or the reader visits the writer's row.

use crate::catalog::{self, LaneRels, SharedRels, Unusable};
use crate::lease;
use crate::pg::error::{raise, report};
use crate::pg::number;
use crate::pg::ports;
use crate::pg::relation::Relation;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::varlena::NameText;
use crate::xact;
use counterx_core::gate::Side;
use counterx_core::lane::{LANES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::probe::{self, Probes};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::collections::HashMap;

/// Column numbers, as of `sql/tables.sql`.
pub mod column {
    /// `log_*`: epoch, at, delta, name.
    pub mod log {
        pub const KEY: [i16; 2] = [1, 4];
        pub const EPOCH: usize = 1;
        pub const DELTA: usize = 3;
        pub const NAME: usize = 4;
    }
    /// `total`: name, gen, value.
    pub mod total {
        pub const KEY: [i16; 2] = [1, 2];
        pub const NAME: usize = 1;
        pub const GEN: usize = 2;
        pub const VALUE: usize = 3;
    }
    /// `state`: lane, gen, folded_epoch, ...
    pub mod state {
        pub const KEY: [i16; 2] = [1, 2];
        pub const GEN: usize = 2;
        pub const FOLDED_EPOCH: usize = 3;
    }
    /// `late`: lane, name, delta, at.
    pub mod late {
        pub const LANE: usize = 1;
        pub const NAME: usize = 2;
        pub const DELTA: usize = 3;
    }
}

/// A counter's value, as the running query sees it.
pub struct Value {
    /// The folded part, a numeric in the current memory context.
    total: Option<pg_sys::Datum>,
    pending: i128,
}

impl Value {
    /// As a numeric.
    pub fn numeric(&self) -> pg_sys::Datum {
        match self.total {
            None => number::numeric(self.pending),
            Some(total) if self.pending == 0 => total,
            // SAFETY: both are numerics.
            Some(total) => unsafe { number::add(total, number::numeric(self.pending)) },
        }
    }

    /// As a bigint, if it fits.
    pub fn bigint(&self) -> Option<i64> {
        match self.total {
            None => i64::try_from(self.pending).ok(),
            // SAFETY: it is a numeric.
            Some(_) => unsafe { number::to_bigint(self.numeric()) },
        }
    }
}

/// Reads one counter with the running query's snapshot. None: it does not exist.
pub fn value(name: &[u8]) -> Option<Value> {
    match snapshot::active() {
        Some(snapshot) => value_at(name, snapshot),
        None => {
            let latest = LatestSnapshot::take();
            value_at(name, latest.as_ptr())
        }
    }
}

/// Reads one counter with this snapshot, which is active or registered.
pub fn value_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Option<Value> {
    refuse_parallel_worker();
    let hash = NameHash::of(name);
    let shared = catalog::shared();
    lock_for_serializable(&shared, snapshot, Some(hash));
    let lane = LaneReader::open(hash.lane(), catalog::lane(hash.lane()), &shared, snapshot);
    let text = NameText::new(name);
    let mut pending = Sum::default();
    lane.sum_of(&text, &mut pending);
    let total = lane.total_of(&shared, &text, snapshot);
    scan_late(&shared, snapshot, |row| {
        if row.text(column::late::NAME) == name {
            pending.add(row.int8(column::late::DELTA));
        }
    });
    lane.check_nothing_was_truncated();
    if let Some(delta) = xact::pending_delta(hash, name) {
        pending.add(delta);
    }
    (total.is_some() || pending.seen).then_some(Value {
        total,
        pending: pending.sum,
    })
}

/// All pending deltas of the names in a range, by name: logs, late deltas and the own
/// transaction's, seen with this snapshot.
pub fn pending_in(range: &NameRange, snapshot: pg_sys::Snapshot) -> HashMap<Box<[u8]>, i128> {
    refuse_parallel_worker();
    let shared = catalog::shared();
    let only = range.only_name().map(NameHash::of);
    lock_for_serializable(&shared, snapshot, only);
    let lanes: Vec<LaneReader> = (0..LANES)
        .filter(|&lane| only.is_none_or(|hash| hash.lane() == lane))
        .map(|lane| LaneReader::open(lane, catalog::lane(lane), &shared, snapshot))
        .collect();
    let mut sums: HashMap<Box<[u8]>, i128> = HashMap::new();
    let mut add = |name: &[u8], delta: i128| {
        if !range.contains(name) {
            return;
        }
        match sums.get_mut(name) {
            Some(sum) => *sum += delta,
            None => {
                sums.insert(name.into(), delta);
            }
        }
    };
    for lane in &lanes {
        match range.only_name() {
            Some(name) => {
                let mut sum = Sum::default();
                lane.sum_of(&NameText::new(name), &mut sum);
                if sum.seen {
                    add(name, sum.sum);
                }
            }
            None => lane.for_each(&mut |name, delta| add(name, delta.into())),
        }
    }
    scan_late(&shared, snapshot, |row| {
        add(
            row.text(column::late::NAME),
            row.int8(column::late::DELTA).into(),
        );
    });
    for lane in &lanes {
        lane.check_nothing_was_truncated();
    }
    xact::for_each_pending(|name, delta| add(name, delta.into()));
    sums
}

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
    let reader = LaneReader::open(lane, catalog::lane(lane), &shared, snapshot);
    let mut deltas = 0;
    reader.for_each(&mut |_, _| deltas += 1);
    scan_late(&shared, snapshot, |row| {
        if row.int4(column::late::LANE) == lane as i32 {
            deltas += 1;
        }
    });
    let blocks: u32 = reader
        .logs
        .iter()
        .map(|(log, index)| log.blocks() + index.blocks())
        .sum();
    LaneStatus {
        epoch: reader.bound,
        folded: reader.folded,
        deltas,
        log_bytes: i64::from(blocks) * i64::from(pg_sys::BLCKSZ),
    }
}

#[derive(Default)]
struct Sum {
    sum: i128,
    seen: bool,
}

impl Sum {
    fn add(&mut self, delta: i64) {
        self.sum += i128::from(delta);
        self.seen = true;
    }
}

fn own_rows_visible(snapshot: pg_sys::Snapshot) -> OwnRowsVisible {
    // SAFETY: callers hand in a snapshot that is active or registered.
    unsafe { OwnRowsVisible::copy(snapshot) }
}

/// The transaction's own increments are in the leader's memory: a worker would miss them.
fn refuse_parallel_worker() {
    if ports::is_parallel_worker() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE,
                "cannot read counters in a parallel worker",
            )
            .set_hint("Mark the calling function PARALLEL RESTRICTED."),
        );
    }
}

/// Opens a relation of ours for reading.
pub fn open(oid: pg_sys::Oid) -> Relation {
    Relation::open_for_read(oid).unwrap_or_else(|| {
        catalog::forget();
        Unusable::NotInstalled.raise()
    })
}

/// Opens one of a lane's logs and its index for reading.
pub fn open_log(rels: &LaneRels, side: Side) -> (Relation, Relation) {
    let log = open(rels.log(side));
    let index = index_of(&log, &column::log::KEY);
    (log, index)
}

/// Opens the index of one of our tables.
pub fn index_of(table: &Relation, key: &[i16]) -> Relation {
    table.open_index(key).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "an index of the extension counterx is missing or invalid",
            )
            .set_hint("Look at the tables of the schema counterx; REINDEX SCHEMA counterx makes invalid indexes valid again."),
        )
    })
}

/// See the module's invariants. Without a name, all counters are locked.
fn lock_for_serializable(shared: &SharedRels, snapshot: pg_sys::Snapshot, name: Option<NameHash>) {
    if !ports::isolation_is_serializable() {
        return;
    }
    let anchor = open(shared.anchor);
    // SAFETY: the relation is open, the snapshot is the transaction's.
    unsafe {
        match name {
            Some(hash) => {
                let (block, offset) = hash.anchor_address();
                let tid = ports::item_pointer(block, offset);
                ports::predicate_lock_tid(anchor.as_ptr(), tid, snapshot);
            }
            None => ports::predicate_lock_relation(anchor.as_ptr(), snapshot),
        }
    }
}

/// Late deltas are normally none, and always read in full.
///
/// With the plain snapshot, unlike the logs: what an own `compact()` has taken from here within the
/// running command, it has added to a total that the command does not see either.
pub fn scan_late(shared: &SharedRels, snapshot: pg_sys::Snapshot, mut visit: impl FnMut(&Row)) {
    let late = open(shared.late);
    if late.blocks() == 0 {
        return;
    }
    // SAFETY: the caller's snapshot outlives this call.
    let mut scan = unsafe { TableScan::new(&late, snapshot) };
    while let Some(row) = scan.next() {
        visit(&row);
    }
}

/// A lane's newest state that the snapshot sees.
pub struct LaneState {
    /// All epochs up to this one are in the totals.
    pub folded: i64,
    /// The xid of the fold that said so; None when nothing was ever folded.
    pub xmin: Option<pg_sys::TransactionId>,
}

/// Reads a lane's newest state.
pub fn lane_state(shared: &SharedRels, lane: usize, snapshot: pg_sys::Snapshot) -> LaneState {
    let table = open(shared.state);
    let index = index_of(&table, &column::state::KEY);
    // SAFETY: the caller's snapshot outlives this call.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
    scan.seek(&[Key::int4_eq(1, lane as i32)]);
    match scan.next(Direction::Backward) {
        Some(row) => LaneState {
            folded: row.int8(column::state::FOLDED_EPOCH),
            xmin: Some(row.xmin()),
        },
        None => LaneState {
            folded: 0,
            xmin: None,
        },
    }
}

/// One lane, through one snapshot.
struct LaneReader {
    _gate: Relation,
    truncated: Relation,
    logs: [(Relation, Relation); 2],
    snapshot: std::cell::RefCell<OwnRowsVisible>,
    folded: i64,
    bound: i64,
}

impl LaneReader {
    fn open(lane: usize, rels: LaneRels, shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Self {
        let gate = open(rels.gate);
        let bound = lease::read_gate(&gate).epoch;
        let folded = lane_state(shared, lane, snapshot).folded;
        Self {
            _gate: gate,
            truncated: open(rels.truncated),
            logs: Side::BOTH.map(|side| open_log(&rels, side)),
            snapshot: own_rows_visible(snapshot).into(),
            folded,
            bound,
        }
    }

    /// Adds up what is pending of one counter.
    fn sum_of(&self, name: &NameText, sum: &mut Sum) {
        let mut snapshot = self.snapshot.borrow_mut();
        for (log, index) in &self.logs {
            if log.blocks() == 0 {
                continue;
            }
            let mut drain = |scan: &mut IndexScan| {
                while let Some(row) = scan.next(Direction::Forward) {
                    sum.add(row.int8(column::log::DELTA));
                }
            };
            match probe::plan(self.folded, self.bound) {
                Probes::None => {}
                Probes::Each(first, last) => {
                    // SAFETY: the snapshot outlives the scan.
                    let mut scan = unsafe { IndexScan::new(log, index, snapshot.as_ptr(), 2) };
                    for epoch in first..=last {
                        scan.seek(&[Key::int8_eq(1, epoch), Key::text_eq(2, name.datum())]);
                        drain(&mut scan);
                    }
                }
                Probes::Range(after, through) => {
                    // SAFETY: as above.
                    let mut scan = unsafe { IndexScan::new(log, index, snapshot.as_ptr(), 3) };
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

    /// Visits every pending delta of the lane's logs.
    fn for_each(&self, visit: &mut impl FnMut(&[u8], i64)) {
        let mut snapshot = self.snapshot.borrow_mut();
        for (log, index) in &self.logs {
            if log.blocks() == 0 {
                continue;
            }
            // SAFETY: the snapshot outlives the scan.
            let mut scan = unsafe { IndexScan::new(log, index, snapshot.as_ptr(), 2) };
            scan.seek(&[Key::int8_gt(1, self.folded), Key::int8_le(1, self.bound)]);
            while let Some(row) = scan.next(Direction::Forward) {
                pgrx::check_for_interrupts!();
                visit(row.text(column::log::NAME), row.int8(column::log::DELTA));
            }
        }
    }

    /// The folded value, copied to the current memory context.
    fn total_of(
        &self,
        shared: &SharedRels,
        name: &NameText,
        snapshot: pg_sys::Snapshot,
    ) -> Option<pg_sys::Datum> {
        let table = open(shared.total);
        let index = index_of(&table, &column::total::KEY);
        // SAFETY: the caller's snapshot outlives this call.
        let mut scan = unsafe { IndexScan::new(&table, &index, snapshot, 1) };
        scan.seek(&[Key::text_eq(1, name.datum())]);
        let row = scan.next(Direction::Backward)?;
        let value = row.get(column::total::VALUE)?;
        // SAFETY: a varlena datum.
        Some(unsafe { pg_sys::Datum::from(pg_sys::pg_detoast_datum_copy(value.cast_mut_ptr())) })
    }

    fn check_nothing_was_truncated(&self) {
        if lease::read_cell(&self.truncated) > self.folded {
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
