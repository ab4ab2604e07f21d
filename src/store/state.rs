//! The state of each lane: how far it is folded, and how its folds went.

use crate::pg::error::{in_server_encoding, unquoted};
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key, Row};
use crate::pg::snapshot::{self, LatestSnapshot, OwnRowsVisible};
use crate::pg::spot::Spot;
use crate::pg::varlena::text_datum;
use crate::store::catalog::{self, SharedRels};
use crate::store::columns;
use crate::store::gate;
use crate::store::shape;
use crate::store::tables;
use counterx_core::gate::Origin;
use counterx_core::lane::LANES;
use pgrx::{FromDatum, pg_sys};
use std::cell::Cell;

/// A lane's newest state that the snapshot sees.
pub struct LaneState {
    /// All epochs up to this one are in the totals.
    pub folded: i64,
    /// Folds so far.
    pub folds: i64,
    /// The time through which it is sealed, in microseconds since 2000; None: never.
    pub sealed: Option<i64>,
    /// The greatest time at which anything was counted that history has.
    pub counted: Option<i64>,
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
pub struct LaneStates {
    // Ended before its relations are closed.
    scan: Option<IndexScan>,
    index: Option<Relation>,
    table: Relation,
    snapshot: pg_sys::Snapshot,
}

impl LaneStates {
    /// # Safety
    /// The snapshot lives as long as this.
    pub unsafe fn open(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Self {
        Self {
            scan: None,
            index: None,
            table: tables::open(shared.state),
            snapshot,
        }
    }

    /// The folded epoch, and the time through which the lane is sealed.
    pub fn folded_and_sealed(&mut self, lane: usize) -> (i64, Option<i64>) {
        let spot = SPOT.with(|spots| spots[lane].get());
        self.at_spot(spot, lane).unwrap_or_else(|| {
            let (state, spot) = self.by_index(lane);
            SPOT.with(|spots| spots[lane].set(spot));
            (state.folded, state.sealed)
        })
    }

    /// A snapshot sees one row of a lane, so any that it sees is the right one.
    fn at_spot(&self, spot: Spot, lane: usize) -> Option<(i64, Option<i64>)> {
        use columns::state::{COLUMNS, FOLDED_EPOCH, LANE, SEALED};
        // SAFETY: whoever opened this keeps the snapshot.
        let row = unsafe { spot.find::<COLUMNS>(&self.table, self.snapshot) }?;
        let is_it = row.get(LANE)?.value() as i32 == lane as i32;
        let folded = row.get(FOLDED_EPOCH)?.value() as i64;
        let sealed = row.get(SEALED).map(|datum| datum.value() as i64);
        is_it.then_some((folded, sealed))
    }

    fn by_index(&mut self, lane: usize) -> (LaneState, Spot) {
        let index =
            (self.index).get_or_insert_with(|| tables::index_of(&self.table, &columns::state::KEY));
        let scan = self.scan.get_or_insert_with(|| {
            // SAFETY: whoever opened this keeps the snapshot.
            unsafe { IndexScan::new(&self.table, index, self.snapshot, 1) }
        });
        scan.seek(&[Key::int4_eq(1, lane as i32)]);
        match scan.next_with_spot(Direction::Backward) {
            Some((row, spot)) => (LaneState::read(&row), spot),
            None => (LaneState::never(), Spot::NONE),
        }
    }
}

impl LaneState {
    fn read(row: &Row) -> Self {
        Self {
            folded: row.int8(columns::state::FOLDED_EPOCH),
            folds: row.int8(columns::state::FOLDS),
            sealed: sealed(row),
            counted: counted(row),
            xmin: Some(row.xmin()),
        }
    }

    fn never() -> Self {
        Self {
            folded: 0,
            folds: 0,
            sealed: None,
            counted: None,
            xmin: None,
        }
    }
}

/// Reads the row of a lane as far as it is committed or done by this transaction. None: it was never folded.
///
/// Who does not hold the lease may look at the new version before its fold has committed, and at the old one after
/// that, and see neither. So where nothing is found it is looked again, by a snapshot that sees one of them.
fn find<T>(lane: usize, table: &Relation, read: impl Fn(&Row) -> T) -> Option<T> {
    let index = tables::index_of(table, &columns::state::KEY);
    let look = |snapshot| {
        // SAFETY: a static snapshot, or a copy of an active one, which outlives this call.
        let mut scan = unsafe { IndexScan::new(table, &index, snapshot, 1) };
        scan.seek(&[Key::int4_eq(1, lane as i32)]);
        scan.next(Direction::Backward).map(|row| read(&row))
    };
    look(snapshot::self_snapshot()).or_else(|| {
        let latest = LatestSnapshot::take();
        // SAFETY: active, and so longer than the copy. Only the own rows of the holder of the lease are there.
        let mut copy = unsafe { OwnRowsVisible::copy(latest.as_ptr()) }.quiet();
        look(copy.as_ptr())
    })
}

/// A lane's newest state, as far as it is committed or done by this transaction.
pub fn newest(shared: &SharedRels, lane: usize) -> LaneState {
    find(lane, &tables::open(shared.state), LaneState::read).unwrap_or_else(LaneState::never)
}

fn sealed(row: &Row) -> Option<i64> {
    row.get(columns::state::SEALED)
        .map(|datum| datum.value() as i64)
}

fn counted(row: &Row) -> Option<i64> {
    row.get(columns::state::COUNTED)
        .map(|datum| datum.value() as i64)
}

/// The greatest time at which anything was counted that the history of any lane has, for a snapshot.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn counted_until(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Option<i64> {
    // SAFETY: the caller's promise.
    let mut states = unsafe { LaneStates::open(shared, snapshot) };
    (0..LANES)
        .filter_map(|lane| states.by_index(lane).0.counted)
        .max()
}

/// The time through which all lanes are sealed, for a snapshot; None where one never was.
///
/// # Safety
/// The snapshot is active or registered.
pub unsafe fn sealed_until(shared: &SharedRels, snapshot: pg_sys::Snapshot) -> Option<i64> {
    // SAFETY: the caller's promise.
    let mut states = unsafe { LaneStates::open(shared, snapshot) };
    (0..LANES)
        .map(|lane| states.folded_and_sealed(lane).1)
        .min()
        .flatten()
}

/// How far a lane is folded, as far as it is committed or done by this transaction.
pub fn folded_epoch(lane: usize) -> i64 {
    newest(&catalog::shared(), lane).folded
}

/// A row of `state`.
pub struct State {
    /// What all `gen` of the lane begin with.
    pub origin: Origin,
    /// All epochs up to this one are in the totals.
    pub folded_epoch: i64,
    /// Folds so far.
    pub folds: i64,
    /// Deltas folded so far.
    pub deltas_folded: i64,
    /// When the last fold began, a timestamptz.
    pub last_fold_at: Option<i64>,
    /// The duration of the last fold in microseconds.
    pub last_fold_us: Option<i64>,
    /// A text.
    pub last_error: Option<pg_sys::Datum>,
    /// When it was noted, a timestamptz.
    pub last_error_at: Option<i64>,
    /// The time through which the lane is sealed.
    pub sealed: Option<i64>,
    /// The greatest time at which anything was counted that history has.
    pub counted: Option<i64>,
}

/// A lane's whole state, likewise. Where it was never folded, the first one.
pub fn current(lane: usize, shared: &SharedRels) -> State {
    let read = |row: &Row| State {
        // In the row, which goes with the scan.
        last_error: None,
        ..State::read(row)
    };
    find(lane, &tables::open(shared.state), read).unwrap_or_else(State::first)
}

/// Writes a lane's state, changed. The caller holds the lease.
pub fn save_state(lane: usize, shared: &SharedRels, change: impl FnOnce(&mut State)) {
    let Some(table) = Relation::open_until_commit(shared.state, ROW_EXCLUSIVE) else {
        catalog::gone()
    };
    let index = tables::index_of(&table, &columns::state::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::int4_eq(1, lane as i32)]);
    let old = scan.next(Direction::Backward);
    let mut state = old.as_ref().map_or_else(State::first, State::read);
    change(&mut state);
    let old_gen = old.as_ref().map_or(0, |row| row.int8(columns::state::GEN));
    let tid = old.map(|row| row.tid());
    let values = [
        Some((lane as i32).into()),
        Some(state.origin.gen_of(state.folded_epoch).max(old_gen).into()),
        Some(state.folded_epoch.into()),
        Some(state.folds.into()),
        Some(state.deltas_folded.into()),
        state.last_fold_at.map(Into::into),
        state.last_fold_us.map(Into::into),
        state.last_error,
        state.last_error_at.map(Into::into),
        state.sealed.map(Into::into),
        state.counted.map(Into::into),
    ];
    // SAFETY: the columns of sql/tables.sql; the indexes are closed again.
    unsafe {
        let indexes = pg_sys::CatalogOpenIndexes(table.as_ptr());
        tables::write_row(&table, indexes, tid, values);
        pg_sys::CatalogCloseIndexes(indexes);
    }
}

impl State {
    /// Of a lane that was never folded.
    fn first() -> Self {
        Self {
            origin: Origin::of_random(ports::random()),
            folded_epoch: 0,
            folds: 0,
            deltas_folded: 0,
            last_fold_at: None,
            last_fold_us: None,
            last_error: None,
            last_error_at: None,
            sealed: None,
            counted: None,
        }
    }

    fn read(row: &Row) -> Self {
        let number = |column| row.get(column).map(|datum| datum.value() as i64);
        Self {
            origin: Origin::of_gen(row.int8(columns::state::GEN)),
            folded_epoch: row.int8(columns::state::FOLDED_EPOCH),
            folds: row.int8(columns::state::FOLDS),
            deltas_folded: row.int8(5),
            last_fold_at: number(6),
            last_fold_us: number(7),
            last_error: row.get(8),
            last_error_at: number(9),
            sealed: sealed(row),
            counted: counted(row),
        }
    }
}

/// How a lane's folds went.
pub struct Status {
    /// Folds so far.
    pub folds: i64,
    /// Deltas folded so far.
    pub deltas_folded: i64,
    /// When the last fold began, a timestamptz.
    pub last_fold_at: Option<i64>,
    /// The duration of the last fold in microseconds.
    pub last_fold_us: Option<i64>,
    /// The last error, a text in the database's encoding.
    pub last_error: Option<Box<[u8]>>,
    /// When it was noted, a timestamptz.
    pub last_error_at: Option<i64>,
}

/// How a lane's folds went, for the running query's snapshot; None when there were none.
///
/// By the newest version first, which no plan for the same in SQL is sure to do.
pub fn status(lane: usize) -> Option<Status> {
    let latest = snapshot::active_or_latest();
    let _gate = tables::open(catalog::lane(lane).gate);
    let table = tables::open(catalog::shared().state);
    // Where no error can be noted, the reason for it is the one to be shown.
    let unnoted = shape::check_foldable(&table).err();
    let index = tables::index_of(&table, &columns::state::KEY);
    // SAFETY: the snapshot is active or registered as long as `latest` lives.
    let mut scan = unsafe { IndexScan::new(&table, &index, latest.as_ptr(), 1) };
    scan.seek(&[Key::int4_eq(1, lane as i32)]);
    let row = scan.next(Direction::Backward);
    if row.is_none() && unnoted.is_none() {
        return None;
    }
    let mut state = row.as_ref().map_or_else(State::first, State::read);
    if let Some(refusal) = unnoted {
        let message = refusal.message();
        state.last_error = Some(text_datum(in_server_encoding(&message).as_bytes()));
        state.last_error_at = Some(ports::now());
    }
    Some(Status {
        folds: state.folds,
        deltas_folded: state.deltas_folded,
        last_fold_at: state.last_fold_at,
        last_fold_us: state.last_fold_us,
        // SAFETY: a text, copied while the scan stands on its row.
        last_error: unsafe {
            state
                .last_error
                .and_then(|text| <&[u8]>::from_datum(text, false))
                .map(Into::into)
        },
        last_error_at: state.last_error_at,
    })
}

/// That nothing was folded since a lane's last failure.
pub struct Failing {
    /// Folds before it.
    pub folds: i64,
    /// The error, as it is noted.
    pub error: String,
}

/// Does a lane's folding fail, as far as it is committed? None: it was folded since, or has not failed.
pub fn failing(lane: usize) -> Option<Failing> {
    let _gate = gate::open(lane);
    let table = tables::open(catalog::shared().state);
    let unnoted = shape::check_foldable(&table).err();
    let noted = |row: &Row| {
        let state = State::read(row);
        // SAFETY: a text, copied while the scan stands on its row.
        let error = (state.last_error)
            .and_then(|text| unsafe { <&[u8]>::from_datum(text, false) })
            .filter(|_| state.last_error_at > Some(state.last_fold_at.unwrap_or(i64::MIN)));
        (state.folds, error.map(unquoted))
    };
    let (folds, error) = find(lane, &table, noted).unwrap_or_default();
    let error = unnoted.map(|refusal| refusal.message()).or(error)?;
    Some(Failing { folds, error })
}

/// Notes a failed tick where `counterx.workers` shows it. The message is cut to what fits a row. The
/// caller holds the lease.
pub fn save_error(lane: usize, message: &str) {
    const MAX_CHARS: usize = 400;
    let shared = catalog::shared();
    // Else `counterx.workers` shows what keeps it from being noted; see `status`.
    if is_state_refused(&shared) {
        return;
    }
    // A transaction that writes to a table with a TOAST table has to have one.
    let _latest = LatestSnapshot::take();
    let cut: String = message.chars().take(MAX_CHARS).collect();
    let text = in_server_encoding(&cut);
    save_state(lane, &shared, |state| {
        state.last_error = Some(text_datum(text.as_bytes()));
        state.last_error_at = Some(ports::now());
    });
}

fn is_state_refused(shared: &SharedRels) -> bool {
    Relation::open_until_commit(shared.state, ROW_EXCLUSIVE)
        .is_some_and(|state| shape::check_foldable(&state).is_err())
}
