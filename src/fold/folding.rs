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
//! - The gate is above all epochs in the logs, and above what is folded: see `store/gate.rs`.

use crate::figures::local::{Figure, count_if_committed, elapsed};
use crate::fold::beginnings;
use crate::fold::history;
use crate::fold::sealing::Seal;
use crate::fold::stream;
use crate::fold::totals::Totals;
use crate::fold::way;
use crate::pg::error::log;
use crate::pg::memory::MemoryScope;
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::scan::{Direction, IndexScan, Key};
use crate::pg::snapshot::LatestSnapshot;
use crate::store::catalog::{self, LaneRels, SharedRels};
use crate::store::columns;
use crate::store::gate::Lease;
use crate::store::pending;
use crate::store::shape::{self, Refusal};
use crate::store::state;
use crate::store::tables;
use counterx_core::gate::{Gate, Side};
use counterx_core::history::ends_bucket;
use counterx_core::schedule::Folded;
use pgrx::pg_sys;

/// The gate of a lane that is about to be folded, above all epochs in the logs and above all that is
/// folded. It is so, unless somebody has brought rows in by force, past the triggers that refuse them.
pub fn sound_gate(lane: usize, lease: &Lease) -> Gate {
    let gate = lease.gate();
    let folded = state::folded_epoch(lane);
    let newest = pending::newest_epoch(lease.rels(), Side::A)
        .max(pending::newest_epoch(lease.rels(), Side::B));
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

/// May folds write to the tables of totals and states? Locks both to the end of the transaction, so that
/// it stays so.
///
/// # Errors
/// [`Refusal`] when they may not.
pub fn check_tables() -> Result<(), Refusal> {
    let shared = catalog::shared();
    for table in [shared.total, shared.state] {
        let Some(table) = Relation::open_until_commit(table, ROW_EXCLUSIVE) else {
            catalog::gone()
        };
        shape::check_foldable(&table)?;
    }
    Ok(())
}

/// What a fold does not write, as it could not be written before.
#[derive(Clone, Copy, Default)]
pub struct LeftOut {
    /// History: see [`beginnings::begin_anew`].
    pub history: bool,
    /// Changes for streams: see [`stream::leave_out`].
    pub streams: bool,
    /// And states of alerts, which need neither the streams nor their tables.
    pub alerts: bool,
}

/// Folds all epochs through this one, whose writers have all ended.
///
/// The caller holds the lease, in a READ COMMITTED transaction, in which [`check_tables`] said yes. What could not be
/// written before is left out.
pub fn fold(lane: usize, lease: &Lease, through: i64, seal: Seal, left_out: LeftOut) -> Folded {
    let started = ports::now();
    let shared = catalog::shared();
    let before = state::current(lane, &shared);
    failpoint!("fold.settled");
    // After all writers of these epochs have ended.
    let latest = LatestSnapshot::take();
    failpoint!("fold.snapshot_taken");
    // SAFETY: nothing allocated in the scope leaves this function.
    let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
    let history = if left_out.history {
        beginnings::begin_anew(lane, through, seal.clock, &latest);
        None
    } else {
        history::Writer::open(lane, &shared, &latest, (before.sealed, before.counted))
    };
    let number = before.folds + 1;
    if left_out.streams {
        stream::leave_out(lane, number);
    }
    let stream = match left_out {
        LeftOut { streams: false, .. } => stream::Writer::open(lane, &shared, &latest, number),
        LeftOut { alerts: false, .. } => stream::Writer::of_alerts(lane, &shared, &latest, number),
        _ => None,
    };
    let mut totals = Totals::open(&shared, before.origin.gen_of(through), history, stream);
    let epochs = (before.folded_epoch, through);
    let mut deltas = fold_late(lane, &shared, &latest, &mut totals);
    // The older one first: for history, what is before a purge or a beginning has to be.
    let active = lease.gate().side;
    for side in [active.other(), active] {
        deltas += fold_log(lease.rels(), side, epochs, &latest, &mut totals);
    }
    let busiest = totals.busiest;
    let ended = (before.last_fold_at).map(|at| at + before.last_fold_us.unwrap_or_default());
    let (history, stream) = totals.finish();
    if let Some(stream) = stream {
        stream.finish();
    }
    let written = history.map(|history| history.finish(seal, through, ended));
    failpoint!("fold.totals_written");
    if let Some(written) = &written
        && ends_bucket(before.sealed, written.sealed)
    {
        // Whoever reads that a bucket is sealed may go by that: it has to survive a crash.
        // SAFETY: sets a flag of the transaction.
        unsafe { pg_sys::ForceSyncCommit() };
    }
    let took = ports::now() - started;
    state::save_state(lane, &shared, |state| {
        state.origin = before.origin;
        state.folded_epoch = state.folded_epoch.max(through);
        state.folds += 1;
        state.deltas_folded += deltas;
        state.last_fold_at = Some(started);
        state.last_fold_us = Some(took);
        if let Some(written) = written {
            state.sealed = Some(written.sealed);
            state.counted = written.counted;
        }
    });
    next_command();
    count_if_committed(Figure::Folds, 1);
    count_if_committed(Figure::DeltasFolded, deltas.unsigned_abs());
    count_if_committed(Figure::FoldTime, elapsed(took));
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
    let (log, index) = tables::open_log(rels, side);
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
        let row_epoch = row.int8(columns::log::EPOCH);
        if epoch.is_some_and(|epoch| epoch != row_epoch) {
            // The same counters may come again.
            totals.flush();
            next_command();
        }
        epoch = Some(row_epoch);
        let name = row.text(columns::log::NAME);
        if totals.add(name, tables::log_tally(&row), || {
            (tables::log_change(&row), Some(row_epoch))
        }) {
            next_command();
        }
        deltas += 1;
        way::make_way();
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
        catalog::gone()
    };
    shape::check(&late);
    if late.blocks() == 0 {
        return 0;
    }
    let index = tables::index_of(&late, &columns::late::KEY);
    let mut deltas = 0;
    {
        // SAFETY: the snapshot outlives the scan.
        let mut scan = unsafe { IndexScan::new(&late, &index, latest.as_ptr(), 0) };
        scan.seek(&[]);
        while let Some(row) = scan.next(Direction::Forward) {
            pgrx::check_for_interrupts!();
            way::make_way();
            if !pending::is_of(lane, &row) {
                continue;
            }
            let name = row.text(columns::late::NAME);
            if totals.add(name, tables::late_tally(&row), || {
                (tables::late_change(&row), None)
            }) {
                next_command();
            }
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
