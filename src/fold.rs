//! Folding: moving the deltas of finished epochs into totals.
//!
//! # How it works
//! Everything of one lane happens in one transaction, under the lane's lease. The log's index
//! yields the deltas in the order (epoch, name), so they are summed up as they come: a fold needs
//! memory for one counter, however many there are. Totals and state are changed through the heap
//! directly; only the holder of the lease writes them, so there is nobody to wait for.
//!
//! # Invariants
//! - Rows are read with a snapshot that was taken after all writers of their epochs had ended. An
//!   older one would mark rows as folded that it did not see.
//! - The sum of totals and unfolded rows is the same before and after, for every snapshot.
//! - The gate is above all epochs in the logs, and above what is folded: see `lease.rs`.

use crate::catalog::{self, LaneRels, SharedRels, Unusable};
use crate::lease::Lease;
use crate::pg::error::{in_server_encoding, log};
use crate::pg::insert::form_row;
use crate::pg::memory::{MemoryArena, MemoryScope, MemorySwitch};
use crate::pg::number;
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key, Row, TableScan};
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::pg::spot::Spot;
use crate::pg::varlena::{NameText, text_datum};
use crate::read::{self, column};
use crate::shape::{self, Refusal};
use crate::totals;
use crate::worker;
use counterx_core::gate::{Gate, Origin, Side};
use counterx_core::lane::NameHash;
use counterx_core::schedule::Folded;
use counterx_core::tally::Tally;
use pgrx::{FromDatum, pg_sys};

/// The gate of a lane that is about to be folded, above all epochs in the logs and above all that is
/// folded. It is so, unless somebody has brought rows in by force, past the triggers that refuse them.
pub fn sound_gate(lane: usize, lease: &Lease) -> Gate {
    let gate = lease.gate();
    let folded = folded_epoch(lane);
    let newest = newest_epoch(lease.rels(), Side::A).max(newest_epoch(lease.rels(), Side::B));
    // A delta of the current epoch is no surprise.
    if gate.epoch >= newest && gate.epoch > folded {
        return gate;
    }
    let lifted = lease.lift(newest.max(folded));
    log(format!(
        "counterx: the gate of lane {lane} was at epoch {}, below what its tables hold; it is lifted to epoch {}",
        gate.epoch, lifted.epoch
    ));
    lifted
}

/// How far a lane is folded, as far as it is committed or done by this transaction.
pub fn folded_epoch(lane: usize) -> i64 {
    read::lane_state(&catalog::shared(), lane, snapshot::self_snapshot()).folded
}

/// May folds write to the tables of totals and states? Locks both to the end of the transaction, so that
/// it stays so.
///
/// # Errors
/// [`Refusal`] when they may not.
pub fn check_tables() -> Result<(), Refusal> {
    let shared = catalog::shared();
    for table in [shared.total, shared.state] {
        let Some(table) = Relation::open_until_commit(table, ROW_EXCLUSIVE) else {
            Unusable::NotInstalled.raise()
        };
        shape::check_foldable(&table)?;
    }
    Ok(())
}

/// Is there anything in the lane's logs that is not folded, committed or not, or a late delta?
///
/// Looks at row versions whatever became of them: an increment that is just being committed
/// counts, so a worker that is about to go cannot overlook it.
pub fn has_pending(lane: usize, rels: &LaneRels) -> bool {
    let shared = catalog::shared();
    let folded = read::lane_state(&shared, lane, snapshot::self_snapshot()).folded;
    Side::BOTH
        .into_iter()
        .any(|side| newest_epoch(rels, side) > folded)
        || has_late(lane, &shared)
}

fn has_late(lane: usize, shared: &SharedRels) -> bool {
    let late = read::open(shared.late);
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
fn is_of(lane: usize, row: &Row) -> bool {
    NameHash::of(row.text(column::late::NAME)).lane() == lane
}

/// The highest epoch of any row version in a log, visible or not; 0 for an empty log.
pub fn newest_epoch(rels: &LaneRels, side: Side) -> i64 {
    newest_epoch_in(&read::open_log_table(rels.log(side)))
}

/// The same of an open log.
pub fn newest_epoch_in(log: &Relation) -> i64 {
    if log.blocks() == 0 {
        return 0;
    }
    let index = read::index_of(log, &column::log::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(log, &index, snapshot::any_snapshot(), 0) };
    scan.seek(&[]);
    scan.next(Direction::Backward)
        .map_or(0, |row| row.int8(column::log::EPOCH))
}

/// The number of index entries that wait in a lane's logs, counted up to `limit`. In both: what was
/// written before the last change of logs may wait still.
pub fn count_pending_entries(lane: usize, rels: &LaneRels, limit: u64) -> u64 {
    let shared = catalog::shared();
    let folded = read::lane_state(&shared, lane, snapshot::self_snapshot()).folded;
    let mut count = 0;
    for side in Side::BOTH {
        let (log, index) = read::open_log(rels, side);
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

/// Folds all epochs through this one, whose writers have all ended.
///
/// The caller holds the lease, in a READ COMMITTED transaction, in which [`check_tables`] said yes.
pub fn fold(lane: usize, lease: &Lease, through: i64) -> Folded {
    let started = now();
    let shared = catalog::shared();
    let folded = read::lane_state(&shared, lane, snapshot::self_snapshot()).folded;
    failpoint!("fold.settled");
    // After all writers of these epochs have ended.
    let latest = LatestSnapshot::take();
    failpoint!("fold.snapshot_taken");
    // SAFETY: nothing allocated in the scope leaves this function.
    let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
    let origin = origin(lane, &shared);
    let mut totals = Totals::open(&shared, origin.gen_of(through));
    let mut deltas = fold_late(lane, &shared, &latest, &mut totals);
    for side in Side::BOTH {
        deltas += fold_log(lease.rels(), side, (folded, through), &latest, &mut totals);
    }
    let busiest = totals.busiest;
    drop(totals);
    failpoint!("fold.totals_written");
    save_state(lane, &shared, |state| {
        state.origin = origin;
        state.folded_epoch = state.folded_epoch.max(through);
        state.folds += 1;
        state.deltas_folded += deltas;
        state.last_fold_at = Some(started);
        state.last_fold_us = Some(now() - started);
    });
    next_command();
    failpoint!("fold.state_saved");
    Folded {
        deltas: deltas.unsigned_abs(),
        busiest,
    }
}

/// What was written so far may be written again, and is seen by a second fold.
fn next_command() {
    // SAFETY: we are in a transaction, outside of any parallel operation.
    unsafe { pg_sys::CommandCounterIncrement() }
}

fn fold_log(
    rels: &LaneRels,
    side: Side,
    (after, through): (i64, i64),
    latest: &LatestSnapshot,
    totals: &mut Totals,
) -> i64 {
    let (log, index) = read::open_log(rels, side);
    if log.blocks() == 0 {
        return 0;
    }
    // SAFETY: the snapshot outlives the scan.
    let mut scan = unsafe { IndexScan::new(&log, &index, latest.as_ptr(), 2) };
    scan.seek(&[Key::int8_gt(1, after), Key::int8_le(1, through)]);
    let mut deltas = 0;
    let mut epoch = None;
    // Rows come by epoch, then by name, so each change of the name ends a counter's sum.
    while let Some(row) = scan.next(Direction::Forward) {
        let row_epoch = row.int8(column::log::EPOCH);
        if epoch.is_some_and(|epoch| epoch != row_epoch) {
            // The same counters may come again.
            totals.flush();
            next_command();
        }
        epoch = Some(row_epoch);
        totals.add(row.text(column::log::NAME), read::log_tally(&row));
        deltas += 1;
        worker::make_way();
        pgrx::check_for_interrupts!();
    }
    totals.flush();
    next_command();
    deltas
}

/// Late deltas come in the order of their names, so each change of the name ends a counter's sum.
fn fold_late(
    lane: usize,
    shared: &SharedRels,
    latest: &LatestSnapshot,
    totals: &mut Totals,
) -> i64 {
    let Some(late) = Relation::open_until_commit(shared.late, ROW_EXCLUSIVE) else {
        Unusable::NotInstalled.raise()
    };
    shape::check(&late);
    if late.blocks() == 0 {
        return 0;
    }
    let index = read::index_of(&late, &column::late::KEY);
    let mut deltas = 0;
    {
        // SAFETY: the snapshot outlives the scan.
        let mut scan = unsafe { IndexScan::new(&late, &index, latest.as_ptr(), 0) };
        scan.seek(&[]);
        while let Some(row) = scan.next(Direction::Forward) {
            pgrx::check_for_interrupts!();
            worker::make_way();
            if !is_of(lane, &row) {
                continue;
            }
            totals.add(row.text(column::late::NAME), read::late_tally(&row));
            let mut tid = row.tid();
            // SAFETY: a visible row, which only the holder of this lane's lease deletes. The scan's
            // snapshot goes on to see it.
            unsafe { pg_sys::simple_heap_delete(late.as_ptr(), &mut tid) };
            deltas += 1;
        }
    }
    failpoint!("fold.late_deleted");
    totals.flush();
    next_command();
    deltas
}

/// The table of totals, open for changing, and the sum of the counter that deltas arrive for.
struct Totals {
    // Ended before its relations are closed.
    scan: IndexScan,
    table: Relation,
    _index: Relation,
    indexes: pg_sys::CatalogIndexState,
    generation: i64,
    name: Vec<u8>,
    sum: Option<Tally>,
    /// Deltas in that sum.
    run: u64,
    /// The most deltas that a sum had.
    busiest: u64,
    /// For what one counter takes.
    arena: MemoryArena,
}

impl Totals {
    fn open(shared: &SharedRels, generation: i64) -> Self {
        let Some(table) = Relation::open_until_commit(shared.total, ROW_EXCLUSIVE) else {
            Unusable::NotInstalled.raise()
        };
        let index = read::index_of(&table, &column::total::KEY);
        totals::remember_many();
        // SAFETY: an ordinary table, open; the snapshot is a static.
        unsafe {
            Self {
                scan: IndexScan::new(&table, &index, snapshot::self_snapshot(), 1),
                indexes: pg_sys::CatalogOpenIndexes(table.as_ptr()),
                table,
                _index: index,
                generation,
                name: Vec::new(),
                sum: None,
                run: 0,
                busiest: 0,
                arena: MemoryArena::below(pg_sys::CurrentMemoryContext),
            }
        }
    }

    fn add(&mut self, name: &[u8], tally: Tally) {
        if self.name != name {
            self.flush();
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        self.sum = Some(self.sum.unwrap_or_default() + tally);
        self.run += 1;
    }

    /// Adds the sum that waits to its counter's total. A total that comes to nothing, as a dropped
    /// counter's does, is removed: having none means the same.
    fn flush(&mut self) {
        let Some(sum) = self.sum.take() else { return };
        self.busiest = self.busiest.max(std::mem::take(&mut self.run));
        let name = NameText::new(&self.name);
        // SAFETY: the scan has memory of its own, and nothing else is kept from one counter to the next.
        let _switch = unsafe {
            self.arena.reset();
            MemorySwitch::to(self.arena.as_ptr())
        };
        let hash = NameHash::of(&self.name);
        let old = self.find(hash, &name);
        let (mut tid, mut generation, mut tally) = (None, self.generation, sum);
        if let Some(old) = old {
            tid = Some(old.tid);
            generation = generation.max(old.generation);
            tally += old.tally;
        }
        if tally.is_zero() {
            if let Some(mut tid) = tid {
                // SAFETY: a visible row, which only the holder of this lane's lease changes.
                unsafe { pg_sys::simple_heap_delete(self.table.as_ptr(), &mut tid) };
            }
            return;
        }
        let values = [
            name.datum(),
            generation.into(),
            number::numeric(tally.value),
            tally.uses.into(),
        ]
        .map(Some);
        // SAFETY: the indexes are those of this table.
        if let Some(address) = unsafe { write_row(&self.table, self.indexes, tid, values) } {
            totals::remember(hash, Spot::of_new_row(&self.table, address));
        }
        failpoint!("fold.total_written");
    }

    fn find(&mut self, hash: NameHash, name: &NameText) -> Option<OldTotal> {
        let snapshot = snapshot::self_snapshot();
        // SAFETY: the snapshot is a static, and sees one version of a row.
        let known = unsafe { totals::find_at_spot(hash, &self.name, &self.table, snapshot) };
        if let Some(row) = known {
            let generation = row.get(column::total::GEN)?.value() as i64;
            return Some(OldTotal {
                tid: row.tid(),
                generation,
                tally: totals::tally_at_spot(&row),
            });
        }
        self.scan.seek(&[Key::text_eq(1, name.datum())]);
        let (row, spot) = self.scan.next_with_spot(Direction::Backward)?;
        totals::remember(hash, spot);
        Some(OldTotal {
            tid: row.tid(),
            generation: row.int8(column::total::GEN),
            tally: totals::tally(&row),
        })
    }
}

/// A counter's total before a fold.
struct OldTotal {
    tid: pg_sys::ItemPointerData,
    generation: i64,
    tally: Tally,
}

impl Drop for Totals {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by us.
            unsafe { pg_sys::CatalogCloseIndexes(self.indexes) };
        }
    }
}

/// Inserts a row, or puts it in another's place, with its index entries. Returns its address, if a chain
/// of versions begins with it.
///
/// # Safety
/// The values fit the table's columns, and the indexes are the table's.
unsafe fn write_row<const N: usize>(
    table: &Relation,
    indexes: pg_sys::CatalogIndexState,
    tid: Option<pg_sys::ItemPointerData>,
    values: [Option<pg_sys::Datum>; N],
) -> Option<pg_sys::ItemPointerData> {
    let nulls = values.map(|value| value.is_none());
    let datums = values.map(|value| value.unwrap_or(pg_sys::Datum::from(0)));
    // SAFETY: the caller's promise.
    unsafe {
        let tuple = form_row(table, &datums, &nulls);
        match tid {
            Some(mut tid) => {
                pg_sys::CatalogTupleUpdateWithInfo(table.as_ptr(), &mut tid, tuple, indexes);
            }
            None => pg_sys::CatalogTupleInsertWithInfo(table.as_ptr(), tuple, indexes),
        }
        let in_place = u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
        let address = (*tuple).t_self;
        pg_sys::heap_freetuple(tuple);
        (!in_place).then_some(address)
    }
}

/// A row of `state`.
struct State {
    origin: Origin,
    folded_epoch: i64,
    folds: i64,
    deltas_folded: i64,
    last_fold_at: Option<i64>,
    last_fold_us: Option<i64>,
    /// A text.
    last_error: Option<pg_sys::Datum>,
    last_error_at: Option<i64>,
}

/// The one that the lane's rows have, or a new one for those that come.
fn origin(lane: usize, shared: &SharedRels) -> Origin {
    let table = read::open(shared.state);
    let index = read::index_of(&table, &column::state::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::int4_eq(1, lane as i32)]);
    scan.next(Direction::Backward)
        .map_or_else(|| State::first().origin, |row| State::read(&row).origin)
}

fn save_state(lane: usize, shared: &SharedRels, change: impl FnOnce(&mut State)) {
    let Some(table) = Relation::open_until_commit(shared.state, ROW_EXCLUSIVE) else {
        Unusable::NotInstalled.raise()
    };
    let index = read::index_of(&table, &column::state::KEY);
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { IndexScan::new(&table, &index, snapshot::self_snapshot(), 1) };
    scan.seek(&[Key::int4_eq(1, lane as i32)]);
    let old = scan.next(Direction::Backward);
    let mut state = old.as_ref().map_or_else(State::first, State::read);
    change(&mut state);
    let old_gen = old.as_ref().map_or(0, |row| row.int8(column::state::GEN));
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
    ];
    // SAFETY: the nine columns of sql/tables.sql; the indexes are closed again.
    unsafe {
        let indexes = pg_sys::CatalogOpenIndexes(table.as_ptr());
        write_row(&table, indexes, tid, values);
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
        }
    }

    fn read(row: &Row) -> Self {
        let number = |column| row.get(column).map(|datum| datum.value() as i64);
        Self {
            origin: Origin::of_gen(row.int8(column::state::GEN)),
            folded_epoch: row.int8(column::state::FOLDED_EPOCH),
            folds: row.int8(4),
            deltas_folded: row.int8(5),
            last_fold_at: number(6),
            last_fold_us: number(7),
            last_error: row.get(8),
            last_error_at: number(9),
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
    let _gate = read::open(catalog::lane(lane).gate);
    let table = read::open(catalog::shared().state);
    // Where no error can be noted, the reason for it is the one to be shown.
    let unnoted = shape::check_foldable(&table).err();
    let index = read::index_of(&table, &column::state::KEY);
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
        state.last_error_at = Some(now());
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
        state.last_error_at = Some(now());
    });
}

fn is_state_refused(shared: &SharedRels) -> bool {
    Relation::open_until_commit(shared.state, ROW_EXCLUSIVE)
        .is_some_and(|state| shape::check_foldable(&state).is_err())
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
