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
//!   rows may have been missed. The truncation waits for all snapshots of the primary, which need not
//!   look; for one of a standby without hot_standby_feedback nobody waits. A snapshot knows that it
//!   was taken on a standby, also when that has been promoted since.
//! - What the own transaction has changed by a counter's latest value (set, reset, drop) goes with
//!   that value alone. A snapshot taken before, such as that of the same statement or of an open
//!   cursor in READ COMMITTED, may see an older one: such a counter is read by its latest value.
//!   So is a bounded one whose changes such a snapshot does not bear: it would be beyond its bounds.
//! - Whoever reads in a SERIALIZABLE transaction locks the counter's page in the anchor
//!   relation *before* reading the gate. A writer inserts and then checks for that lock. So either
//!   the writer meets the lock, or the reader visits the writer's row.

use crate::catalog::{self, LaneRels, SharedRels, Unusable};
use crate::escrow;
use crate::holds;
use crate::lease;
use crate::notes;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::pg::relation::{Relation, Replaying};
use crate::pg::room;
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::spot::Spot;
use crate::pg::varlena::NameText;
use crate::shape;
use crate::since;
use crate::totals::{self, TotalsByName};
use crate::types;
use crate::xact;
use counterx_core::escrow::Seen;
use counterx_core::gate::{Gate, Side};
use counterx_core::lane::{LANES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::probe::{self, Probes};
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Duration;

/// Column numbers, as of `sql/tables.sql`.
pub mod column {
    /// `log_*`: epoch, at, delta, name.
    pub mod log {
        pub const KEY: [i16; 2] = [1, 4];
        pub const EPOCH: usize = 1;
        pub const DELTA: usize = 3;
        pub const NAME: usize = 4;
        pub const USES: usize = 5;
    }
    /// `total`: name, gen, value, uses.
    pub mod total {
        pub const KEY: [i16; 2] = [1, 2];
        pub const NAME: usize = 1;
        pub const GEN: usize = 2;
        pub const VALUE: usize = 3;
        pub const USES: usize = 4;
        pub const COLUMNS: usize = 4;
        /// The value index: greatest value first, then by name.
        pub const BY_VALUE: [i16; 2] = [-3, 1];
    }
    /// `state`: lane, gen, folded_epoch, folds, deltas_folded, last_fold_at, last_fold_us, last_error,
    /// last_error_at.
    pub mod state {
        pub const COLUMNS: usize = 9;
        pub const KEY: [i16; 2] = [1, 2];
        pub const LANE: usize = 1;
        pub const GEN: usize = 2;
        pub const FOLDED_EPOCH: usize = 3;
    }
    /// `late`: name, delta, at, uses.
    pub mod late {
        pub const KEY: [i16; 1] = [1];
        pub const NAME: usize = 1;
        pub const DELTA: usize = 2;
        pub const USES: usize = 4;
    }
    /// `token`: token, name, delta, value, at, hold.
    pub mod token {
        pub const KEY: [i16; 1] = [1];
        pub const BY_AGE: [i16; 1] = [5];
        pub const NAME: usize = 2;
        pub const DELTA: usize = 3;
        pub const VALUE: usize = 4;
        pub const AT: usize = 5;
        pub const HOLD: usize = 6;
    }
}

/// What a row of a log says.
pub fn log_tally(row: &Row) -> Tally {
    use column::log::{DELTA, USES};
    Tally::of(row.int8(DELTA), uses(row, USES))
}

/// What a row of `late` says.
pub fn late_tally(row: &Row) -> Tally {
    use column::late::{DELTA, USES};
    Tally::of(row.int8(DELTA), uses(row, USES))
}

/// Null is one use.
fn uses(row: &Row, column: usize) -> i64 {
    row.get(column).map_or(1, |datum| datum.value() as i64)
}

/// Reads one counter with the running query's snapshot.
pub fn tally(name: &[u8]) -> Tally {
    tally_at(name, snapshot::active_or_latest().as_ptr())
}

/// Reads one counter with this snapshot, which is active or registered.
pub fn tally_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    let own = xact::pending_tally(NameHash::of(name), name).unwrap_or_default();
    // SAFETY: the caller's snapshot is a live one.
    let command = unsafe { (*snapshot).curcid };
    let latest = || {
        let latest = LatestSnapshot::take();
        written_at(name, latest.as_ptr()) + own
    };
    if notes::was_changed_by_value_since(name, command) {
        return latest();
    }
    let tally = written_at(name, snapshot) + own;
    if escrow::was_changed_since(name, command) && is_out_of_bounds(name, tally) {
        return latest();
    }
    tally
}

fn is_out_of_bounds(name: &[u8], tally: Tally) -> bool {
    types::limits_of(name).is_some_and(|limits| !limits.bounds.contain(tally.value))
}

/// What the latest value of a counter has on that of this snapshot.
fn since(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    let latest = LatestSnapshot::take();
    written_at(name, latest.as_ptr()) - written_at(name, snapshot)
}

/// The part of a counter that is not in the running transaction's memory.
pub fn written_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Tally {
    written(name, snapshot, OwnRows::Visible)
}

/// Do the rows count that the running transaction has written?
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnRows {
    /// From their insertion on.
    Visible,
    /// The snapshot hides them.
    Hidden,
}

fn written(name: &[u8], snapshot: pg_sys::Snapshot, own: OwnRows) -> Tally {
    let hash = NameHash::of(name);
    let mut reader = Reader::open_with(Lanes::Of(&[hash]), snapshot, own);
    let mut tally = Tally::default();
    for lane in &reader.lanes {
        tally += lane.sum_of(&NameText::new(name), reader.logs_snapshot.as_ptr());
    }
    tally += reader.totals().get(name);
    late_of(
        &reader.shared,
        &NameText::new(name),
        reader.snapshot,
        |row| tally += late_tally(row),
    );
    reader.finish();
    tally
}

/// What others see of a counter at this moment, and what is on hold of it at the time `clock`. What
/// the running transaction has done does not count, written or not.
pub fn seen_by_others(name: &[u8], clock: i64) -> Seen {
    // A tool that puts another table in the place of the holds makes its last rows in that moment. So the
    // table is locked before the snapshot is taken; and before that the gate, as always.
    let _gate = open(catalog::lane(NameHash::of(name).lane()).gate);
    let _holds = open(catalog::shared().hold);
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    unsafe { seen_at(name, clock, latest.as_ptr()) }
}

/// The same for this snapshot. A serializable transaction does not note that it has looked.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn seen_at(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> Seen {
    // SAFETY: the caller's promise.
    unsafe {
        let mut others = hidden(snapshot);
        Seen {
            value: written(name, others.as_ptr(), OwnRows::Hidden).value,
            held: holds::held(name, clock, others.as_ptr()),
            clock,
        }
    }
}

/// Does a counter exist for others at this moment? What the running transaction has done does not count.
pub fn exists_for_others(name: &[u8]) -> bool {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let mut others = unsafe { OwnRowsVisible::hidden(latest.as_ptr()) };
    written(name, others.as_ptr(), OwnRows::Hidden).exists()
}

/// # Safety
/// As of [`OwnRowsVisible::hidden`].
unsafe fn hidden(snapshot: pg_sys::Snapshot) -> OwnRowsVisible {
    // SAFETY: the caller's promise.
    let others = unsafe { OwnRowsVisible::hidden(snapshot) };
    if ports::isolation_is_serializable() {
        others.quiet()
    } else {
        others
    }
}

/// The latest value of a counter, with what the running transaction has done, likewise.
pub fn latest_quietly(name: &[u8]) -> i128 {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let mut quiet = unsafe { OwnRowsVisible::same(latest.as_ptr()) }.quiet();
    tally_at(name, quiet.as_ptr()).value
}

/// What others have taken from a counter, and added to it, in transactions that have committed and
/// that this snapshot does not see.
///
/// # Safety
/// The snapshot is active or registered, and one of the running transaction's own.
pub unsafe fn unseen(name: &[u8], clock: i64, snapshot: pg_sys::Snapshot) -> (i128, i128) {
    let latest = LatestSnapshot::take();
    // SAFETY: the caller's promise; and `latest` is active. The gate is read after both were taken.
    unsafe {
        let (mut known, mut all) = (hidden(snapshot), hidden(latest.as_ptr()));
        let hashes = [NameHash::of(name)];
        // What the snapshot knows as folded, it sees; the rest is in the logs as long as it lives.
        let reader = Reader::open_with(Lanes::Of(&hashes), known.as_ptr(), OwnRows::Hidden);
        let (mut taken, mut added) = (0, 0);
        let text = NameText::new(name);
        for lane in &reader.lanes {
            for (snapshot, sign) in [(all.as_ptr(), 1), (known.as_ptr(), -1)] {
                lane.each_of(&text, snapshot, |row| {
                    let delta = log_tally(row).value;
                    taken += sign * -delta.min(0);
                    added += sign * delta.max(0);
                });
            }
        }
        reader.finish();
        (taken + holds::unseen(name, clock, snapshot), added)
    }
}

/// Which counters a [`Reader`] is for.
pub enum Lanes<'a> {
    /// Those with these hashes.
    Of(&'a [NameHash]),
    /// All.
    All,
}

/// The lanes of some counters, open for reading with one snapshot.
///
/// Open it before the totals are read: gates are locked before anything else. And
/// [finish](Self::finish) it when all is read.
pub struct Reader {
    shared: SharedRels,
    snapshot: pg_sys::Snapshot,
    /// The same snapshot, as the logs are read with it.
    logs_snapshot: OwnRowsVisible,
    lanes: Vec<LaneReader>,
}

/// Of so many names, serializable transactions lock each; beyond, all counters at once.
const MAX_NAME_LOCKS: usize = 64;

impl Reader {
    /// Opens the lanes. The snapshot is active or registered.
    pub fn open(lanes: Lanes, snapshot: pg_sys::Snapshot) -> Self {
        Self::open_with(lanes, snapshot, OwnRows::Visible)
    }

    fn open_with(lanes: Lanes, snapshot: pg_sys::Snapshot, own: OwnRows) -> Self {
        refuse_parallel_worker();
        let shared = catalog::shared();
        // SAFETY: the caller's snapshot is active or registered, or our copy of such a one.
        unsafe { since::check(snapshot) };
        let wanted = match lanes {
            Lanes::All => None,
            Lanes::Of(hashes) => Some(hashes),
        };
        // What escrow looks at does not make transactions depend on each other: see `escrow.rs`.
        if own == OwnRows::Visible {
            lock_for_serializable(
                &shared,
                snapshot,
                wanted.filter(|hashes| hashes.len() <= MAX_NAME_LOCKS),
            );
        }
        let mut chosen = [wanted.is_none(); LANES];
        for hash in wanted.into_iter().flatten() {
            chosen[hash.lane()] = true;
        }
        let lanes = (0..LANES).filter(|&lane| chosen[lane]);
        Self {
            lanes: open_lanes(lanes, &shared, snapshot),
            // SAFETY: the caller's snapshot is active or registered.
            logs_snapshot: unsafe {
                match own {
                    OwnRows::Visible => OwnRowsVisible::copy(snapshot),
                    OwnRows::Hidden => OwnRowsVisible::hidden(snapshot),
                }
            },
            shared,
            snapshot,
        }
    }

    /// The totals, for this reader's snapshot.
    pub fn totals(&self) -> TotalsByName {
        // SAFETY: whoever opened the reader keeps the snapshot.
        unsafe { TotalsByName::open(self.snapshot) }
    }

    /// All that is pending of the names in a range: logs, late deltas and the own transaction's.
    pub fn pending_in(&mut self, range: &NameRange) -> Sums {
        let mut sums = Sums::default();
        self.for_each_pending(range, |name, tally| room::granted(sums.add(name, tally)));
        sums
    }

    /// Visits each pending delta of the names in a range.
    pub fn for_each_pending(&mut self, range: &NameRange, mut visit: impl FnMut(&[u8], Tally)) {
        let snapshot = self.logs_snapshot.as_ptr();
        for lane in &self.lanes {
            lane.for_each(range, snapshot, |row| {
                visit(row.text(column::log::NAME), log_tally(row))
            });
        }
        self.for_each_late(|row| {
            let name = row.text(column::late::NAME);
            if range.contains(name) {
                visit(name, late_tally(row));
            }
        });
        xact::for_each_pending(|name, tally| {
            if range.contains(name) {
                visit(name, tally);
            }
        });
        for name in self.outrun() {
            if range.contains(&name) {
                visit(&name, since(&name, self.snapshot));
            }
        }
    }

    /// Counters of which this snapshot is too old for what the transaction has done.
    fn outrun(&self) -> Vec<Box<[u8]>> {
        // SAFETY: whoever opened the reader keeps the snapshot.
        let command = unsafe { (*self.snapshot).curcid };
        let mut names = notes::changed_by_value_since(command);
        let noted = names.len();
        for name in escrow::changed_since(command) {
            let own = xact::pending_tally(NameHash::of(&name), &name).unwrap_or_default();
            if names[..noted].binary_search(&name).is_err()
                && is_out_of_bounds(&name, written_at(&name, self.snapshot) + own)
            {
                names.push(name);
            }
        }
        names
    }

    /// All that is pending of these names, which are in ascending order, each once.
    pub fn pending_of(&mut self, names: &[Vec<u8>]) -> Sums {
        let mut sums = Sums::default();
        let mut of_lane: [Vec<&[u8]>; LANES] = Default::default();
        for name in names {
            room::push(&mut of_lane[NameHash::of(name).lane()], &**name);
        }
        let snapshot = self.logs_snapshot.as_ptr();
        for lane in &self.lanes {
            lane.add_sums_of(&of_lane[lane.lane], snapshot, &mut sums);
        }
        let wanted = |name: &[u8]| names.binary_search_by(|known| (**known).cmp(name)).is_ok();
        self.for_each_late(|row| {
            let name = row.text(column::late::NAME);
            if wanted(name) {
                room::granted(sums.add(name, late_tally(row)));
            }
        });
        xact::for_each_pending(|name, tally| {
            if wanted(name) {
                room::granted(sums.add(name, tally));
            }
        });
        for name in self.outrun() {
            if wanted(&name) {
                room::granted(sums.add(&name, since(&name, self.snapshot)));
            }
        }
        sums
    }

    fn for_each_late(&self, visit: impl FnMut(&Row)) {
        scan_late(&self.shared, self.snapshot, visit);
    }

    /// To be called when all is read.
    ///
    /// # Errors
    /// Raises 40001 when something was truncated meanwhile that the snapshot needs.
    pub fn finish(self) {
        // SAFETY: whoever opened the reader keeps the snapshot.
        if !unsafe { (*self.snapshot).takenDuringRecovery } {
            return;
        }
        for lane in &self.lanes {
            lane.check_nothing_was_truncated();
        }
    }
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
    let [reader] = &open_lanes([lane].into_iter(), &shared, snapshot)[..] else {
        unreachable!("one was opened");
    };
    // SAFETY: it is the active one.
    let mut own_rows_visible = unsafe { OwnRowsVisible::copy(snapshot) };
    let mut deltas = 0;
    reader.for_each(&NameRange::all(), own_rows_visible.as_ptr(), |_| {
        deltas += 1;
    });
    scan_late(&shared, snapshot, |row| {
        if NameHash::of(row.text(column::late::NAME)).lane() == lane {
            deltas += 1;
        }
    });
    let blocks: u32 = Side::BOTH
        .into_iter()
        .map(|side| open_log(&reader.rels, side))
        .map(|(log, index)| log.blocks() + index.blocks())
        .sum();
    LaneStatus {
        epoch: reader.bound.epoch,
        folded: reader.folded,
        deltas,
        log_bytes: i64::from(blocks) * i64::from(pg_sys::BLCKSZ),
    }
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
    let relation = Relation::open_for_read(oid).unwrap_or_else(|| {
        catalog::forget();
        Unusable::NotInstalled.raise()
    });
    shape::check(&relation);
    relation
}

/// Opens one of a lane's logs and its index for reading.
pub fn open_log(rels: &LaneRels, side: Side) -> (Relation, Relation) {
    let log = open_log_table(rels.log(side));
    let index = index_of(&log, &column::log::KEY);
    (log, index)
}

/// A reader on a standby that waits for the replay of a TRUNCATE, which waits for the reader's
/// snapshot: nobody but `max_standby_streaming_delay` would end that, and -1 does not.
pub fn open_log_table(log: pg_sys::Oid) -> Relation {
    if !ports::recovery_in_progress() {
        return open(log);
    }
    // SAFETY: a plain read of a variable of the backend: as long as a deadlock may take elsewhere.
    let milliseconds = unsafe { pg_sys::DeadlockTimeout };
    let patience = Duration::from_millis(u64::from(milliseconds.unsigned_abs()));
    match Relation::open_replayed(log, patience) {
        Ok(Some(log)) => {
            shape::check(&log);
            log
        }
        Ok(None) => {
            catalog::forget();
            Unusable::NotInstalled.raise()
        }
        Err(Replaying) => raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "counter deltas that this snapshot may need are being truncated by the replay on this standby",
            )
            .set_hint("Retry the transaction."),
        ),
    }
}

/// Opens one of a lane's logs and its index for reading. None: it is empty, as one of two mostly is.
fn open_log_with_rows(rels: &LaneRels, side: Side) -> Option<(Relation, Relation)> {
    let log = open_log_table(rels.log(side));
    (log.blocks() > 0).then(|| {
        let index = index_of(&log, &column::log::KEY);
        (log, index)
    })
}

/// Opens the index of one of our tables.
pub fn index_of(table: &Relation, key: &[i16]) -> Relation {
    table.open_index(key).unwrap_or_else(|| {
        let hint = format!(
            "REINDEX SCHEMA counterx makes invalid indexes valid again. One that was dropped is made by {}.",
            shape::index_definition(table, key)
        );
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "an index of the extension counterx is missing or invalid",
            )
            .set_hint(hint),
        )
    })
}

/// See the module's invariants. Without names, all counters are locked.
fn lock_for_serializable(
    shared: &SharedRels,
    snapshot: pg_sys::Snapshot,
    names: Option<&[NameHash]>,
) {
    // SAFETY: the snapshot is the caller's, who reads with it.
    if !ports::isolation_is_serializable() || unsafe { snapshot::is_quiet(snapshot) } {
        return;
    }
    let anchor = open(shared.anchor);
    // SAFETY: the relation is open, the snapshot is the transaction's.
    unsafe {
        let Some(names) = names else {
            return ports::predicate_lock_relation(anchor.as_ptr(), snapshot);
        };
        for hash in names {
            ports::predicate_lock_page(anchor.as_ptr(), hash.anchor_page(), snapshot);
        }
    }
}

/// Visits all late deltas. They are normally none.
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
        pgrx::check_for_interrupts!();
        visit(&row);
    }
}

/// Visits the late deltas of one counter.
fn late_of(
    shared: &SharedRels,
    name: &NameText,
    snapshot: pg_sys::Snapshot,
    mut visit: impl FnMut(&Row),
) {
    let late = open(shared.late);
    if late.blocks() == 0 {
        return;
    }
    let index = index_of(&late, &column::late::KEY);
    // SAFETY: the caller's snapshot outlives this call.
    let mut scan = unsafe { IndexScan::new(&late, &index, snapshot, 1) };
    scan.seek(&[Key::text_eq(1, name.datum())]);
    while let Some(row) = scan.next(Direction::Forward) {
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
    // SAFETY: the caller's snapshot outlives this call.
    let mut states = unsafe { LaneStates::open(shared, snapshot) };
    states.by_index(lane).0
}

thread_local! {
    /// Where this backend has found the lanes' states last. What is found there is held against the lane.
    static SPOT: [Cell<Spot>; LANES] = const { [const { Cell::new(Spot::NONE) }; LANES] };
}

/// The states of all lanes.
struct LaneStates {
    // Ended before its relations are closed.
    scan: Option<IndexScan>,
    index: Option<Relation>,
    table: Relation,
    snapshot: pg_sys::Snapshot,
}

impl LaneStates {
    /// # Safety
    /// The snapshot lives as long as this.
    unsafe fn open(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Self {
        Self {
            scan: None,
            index: None,
            table: open(shared.state),
            snapshot,
        }
    }

    /// The folded epoch.
    fn folded(&mut self, lane: usize) -> i64 {
        let spot = SPOT.with(|spots| spots[lane].get());
        self.folded_at(spot, lane).unwrap_or_else(|| {
            let (state, spot) = self.by_index(lane);
            SPOT.with(|spots| spots[lane].set(spot));
            state.folded
        })
    }

    /// A snapshot sees one row of a lane, so any that it sees is the right one.
    fn folded_at(&self, spot: Spot, lane: usize) -> Option<i64> {
        use column::state::{COLUMNS, FOLDED_EPOCH, LANE};
        // SAFETY: whoever opened this keeps the snapshot.
        let row = unsafe { spot.find::<COLUMNS>(&self.table, self.snapshot) }?;
        let is_it = row.get(LANE)?.value() as i32 == lane as i32;
        let folded = row.get(FOLDED_EPOCH)?.value() as i64;
        is_it.then_some(folded)
    }

    fn by_index(&mut self, lane: usize) -> (LaneState, Spot) {
        let index = (self.index).get_or_insert_with(|| index_of(&self.table, &column::state::KEY));
        let scan = self.scan.get_or_insert_with(|| {
            // SAFETY: whoever opened this keeps the snapshot.
            unsafe { IndexScan::new(&self.table, index, self.snapshot, 1) }
        });
        scan.seek(&[Key::int4_eq(1, lane as i32)]);
        match scan.next_with_spot(Direction::Backward) {
            Some((row, spot)) => {
                let state = LaneState {
                    folded: row.int8(column::state::FOLDED_EPOCH),
                    xmin: Some(row.xmin()),
                };
                (state, spot)
            }
            None => {
                let never = LaneState {
                    folded: 0,
                    xmin: None,
                };
                (never, Spot::NONE)
            }
        }
    }
}

/// A look-up of one name in a lane's logs takes as long as reading about so many deltas in a row.
const READS_PER_LOOKUP: usize = 16;

/// One lane, as one snapshot sees it. Its gate stays locked, and so the lane stays; its logs are
/// opened when they are read, as the server has a quick way for some 16 locks at a time.
struct LaneReader {
    lane: usize,
    rels: LaneRels,
    gate: Relation,
    folded: i64,
    bound: Gate,
}

/// Opens lanes for reading.
fn open_lanes(
    lanes: impl Iterator<Item = usize>,
    shared: &SharedRels,
    snapshot: pg_sys::Snapshot,
) -> Vec<LaneReader> {
    let mut lanes: Vec<LaneReader> = lanes
        .map(|lane| {
            let rels = catalog::lane(lane);
            let gate = open(rels.gate);
            LaneReader {
                lane,
                rels,
                bound: lease::read_gate(&gate),
                gate,
                folded: 0,
            }
        })
        .collect();
    // SAFETY: the caller's snapshot outlives this call.
    let mut states = unsafe { LaneStates::open(shared, snapshot) };
    for lane in &mut lanes {
        lane.folded = states.folded(lane.lane);
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
            .filter_map(|side| open_log_with_rows(&self.rels, side))
    }

    /// What is pending of one counter in the logs.
    fn sum_of(&self, name: &NameText, snapshot: pg_sys::Snapshot) -> Tally {
        let mut sum = Tally::default();
        self.each_of(name, snapshot, |row| sum += log_tally(row));
        sum
    }

    /// Visits the pending deltas of one counter in the logs.
    fn each_of(&self, name: &NameText, snapshot: pg_sys::Snapshot, mut visit: impl FnMut(&Row)) {
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
    fn for_each(&self, range: &NameRange, snapshot: pg_sys::Snapshot, mut visit: impl FnMut(&Row)) {
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
                    let name = row.text(column::log::NAME);
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
    fn add_sums_of(&self, names: &[&[u8]], snapshot: pg_sys::Snapshot, sums: &mut Sums) {
        let mut budget = READS_PER_LOOKUP * names.len();
        let mut found = Vec::new();
        let complete = self.try_for_each(&NameRange::all(), snapshot, |row| {
            let name = row.text(column::log::NAME);
            if names.binary_search(&name).is_ok() {
                room::push(&mut found, (name.to_vec(), log_tally(row)));
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

    fn check_nothing_was_truncated(&self) {
        if lease::read_truncated(&self.gate) > self.folded {
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
