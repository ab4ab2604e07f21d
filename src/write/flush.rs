//! From the pending maps to the logs.
//!
//! Runs in the last moments of a transaction, where no snapshot is set and the memory context is
//! not ours; rows go straight to the heap and the index, without executor and without waiting.

use crate::bounds::unchanged;
use crate::figures::local::{Figure, count, count_failure};
use crate::pg::clock;
use crate::pg::insert::Inserter;
use crate::pg::memory::{MemoryScope, MemorySwitch};
use crate::pg::ports;
use crate::pg::relation::{ACCESS_SHARE, ROW_EXCLUSIVE, Relation};
use crate::pg::varlena::NameText;
use crate::store::catalog::{self, LaneRels};
use crate::store::columns;
use crate::store::gate;
use crate::store::pending;
use crate::store::shape;
use crate::store::state;
use crate::store::tables;
use crate::transaction::pending::{Change, Kind};
use counterx_core::gate::Side;
use counterx_core::pending::Row;
use counterx_core::room::give_spare;
use pgrx::pg_sys;

/// Writes all that is pending to the active logs of its lanes. The caller clears the maps.
///
/// # Errors
/// Raises what an insertion can raise, 40001 in a serializable transaction, and an error when
/// the extension is gone.
pub fn to_logs(changes: Vec<Change>) {
    let changes = in_order(changes);
    let _scope = scope(changes.len());
    let anchor = SerializableAnchor::open();
    for changes in changes.chunk_by(|a, b| a.row.hash.lane() == b.row.hash.lane()) {
        let mut writer = LogWriter::open(changes[0].row.hash.lane());
        for change in changes {
            writer.insert(change);
        }
        if changes.iter().any(|change| change.row.purges) {
            writer.end_epoch();
        }
        failpoint!("flush.lane_written");
    }
    count(Figure::RowsFlushed, changes.len() as u64);
    unchanged::check_unchanged(&changes);
    anchor.check_writes(&changes);
    // SAFETY: the rows shall be visible to later commands of this transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Writes it to the table of late deltas: no gate is locked, so a transaction that
/// stays prepared for days holds up no lane.
///
/// # Errors
/// As of [`to_logs`].
pub fn to_late(changes: Vec<Change>) {
    let changes = in_order(changes);
    let _scope = scope(changes.len());
    let anchor = SerializableAnchor::open();
    let mut late = inserter(catalog::shared().late);
    tables::keep_restorers_waiting();
    let now = now();
    for change in &changes {
        let name = NameText::new(change.row.name);
        let values = [
            Some(name.datum()),
            Some(change.row.delta.into()),
            Some(now),
            uses(&change.row),
            kind(change, false),
        ];
        // SAFETY: the columns of `late`, see sql/tables.sql.
        unsafe { late.insert(values) };
    }
    count(Figure::RowsFlushed, changes.len() as u64);
    unchanged::check_unchanged(&changes);
    anchor.check_writes(&changes);
}

/// So many take as much as the spare at least.
const MANY: usize = 4096;

/// Lanes ascending, so that gates are always locked in one order; names ascending, for the index.
fn in_order(mut changes: Vec<Change>) -> Vec<Change> {
    if changes.len() > MANY {
        // What the server needs to insert them, it cannot ask for: an error there must find some memory.
        give_spare();
    }
    // What takes a counter's history with it comes first: the rest of the transaction is what comes after.
    changes.sort_unstable_by(|Change { row: a, .. }, Change { row: b, .. }| {
        (a.hash.lane(), a.name, !a.purges).cmp(&(b.hash.lane(), b.name, !b.purges))
    });
    changes
}

/// What an insertion leaves allocated is little, and goes with the transaction; many have a context of
/// their own.
fn scope(changes: usize) -> (Option<MemoryScope>, MemorySwitch) {
    const FEW: usize = 16;
    // SAFETY: we are inside a transaction, whose context outlives the flush.
    unsafe {
        let switch = MemorySwitch::to(pg_sys::TopTransactionContext);
        let scope = (changes > FEW).then(|| MemoryScope::enter(pg_sys::TopTransactionContext));
        // Dropped in this order.
        (scope, switch)
    }
}

fn inserter(table: pg_sys::Oid) -> Inserter {
    let inserter = Inserter::open(table).unwrap_or_else(|| catalog::gone());
    shape::check(inserter.table());
    inserter
}

fn now() -> pg_sys::Datum {
    clock::now().into()
}

/// The column `uses`: null is one use, what nearly all rows are, and takes no space.
fn uses(row: &Row) -> Option<pg_sys::Datum> {
    (row.uses != 1).then(|| row.uses.into())
}

/// The column `kind`: null is an increment, and takes no space. `is_early`: what is written is a subtransaction.
fn kind(change: &Change, is_early: bool) -> Option<pg_sys::Datum> {
    use columns::kind::{ADJUSTMENT, EARLY, EARLY_ADJUSTMENT, PURGE};
    let kind = match change.part {
        _ if change.row.purges => PURGE,
        (_, Kind::Increment) if is_early => EARLY,
        (_, Kind::Increment) => return None,
        (_, Kind::Adjustment) if is_early => EARLY_ADJUSTMENT,
        (_, Kind::Adjustment) => ADJUSTMENT,
    };
    Some(kind.into())
}

/// Makes sure that what is written to a lane is above all that is folded: see `store/gate.rs`. Nobody is waited
/// for: where somebody truncates a log, say, the next writer looks again.
fn lift_gate(lane: usize, rels: &LaneRels, gate: &Relation) {
    let Some(_state) = Relation::open_for_read_if_free(catalog::shared().state) else {
        return;
    };
    let folded = state::folded_epoch(lane);
    let newest = Side::BOTH.map(|side| {
        let log = Relation::open_for_read_if_free(rels.log(side))?;
        Some(pending::newest_epoch_in(&log))
    });
    let known = newest.into_iter().flatten().fold(folded, i64::max);
    let value = gate::read_gate(gate);
    if value.epoch <= folded || value.epoch < known {
        gate::lift(gate, known);
    }
    if newest.iter().all(Option::is_some) {
        catalog::note_gate_seen(lane);
    }
}

/// One lane's active log, behind its gate.
struct LogWriter {
    gate: Relation,
    rels: LaneRels,
    log: Inserter,
    epoch: i64,
    now: pg_sys::Datum,
    /// The rows' xmin is not the transaction's id.
    is_early: bool,
}

impl LogWriter {
    fn open(lane: usize) -> Self {
        let rels = catalog::lane(lane);
        // The order is the whole point: first the lock, then the epoch.
        let gate = Relation::open_until_commit(rels.gate, ROW_EXCLUSIVE)
            .unwrap_or_else(|| catalog::gone());
        failpoint!("flush.gate_locked");
        if !catalog::gate_was_seen(lane) {
            lift_gate(lane, &rels, &gate);
        }
        let value = gate::read_gate(&gate);
        failpoint!("flush.epoch_read");
        Self {
            gate,
            rels,
            log: inserter(rels.log(value.side)),
            epoch: value.epoch,
            now: now(),
            is_early: ports::xact_nest_level() > 1,
        }
    }

    /// What a purge takes with it is what has its epoch or an earlier one. Whoever counts from here on has another.
    fn end_epoch(&self) {
        gate::publish(&self.rels, &self.gate, false);
    }

    fn insert(&mut self, change: &Change) {
        let row = &change.row;
        let name = NameText::new(row.name);
        let values = [
            Some(self.epoch.into()),
            Some(self.now),
            Some(row.delta.into()),
            Some(name.datum()),
            uses(row),
            kind(change, self.is_early),
        ];
        // SAFETY: the columns of a log, see sql/tables.sql.
        unsafe { self.log.insert(values) };
    }
}

/// The writer's half of what makes SERIALIZABLE right; see `read/reader.rs` for the reader's.
struct SerializableAnchor(Option<Relation>);

impl SerializableAnchor {
    fn open() -> Self {
        Self(ports::isolation_is_serializable().then(|| {
            Relation::open_until_commit(catalog::shared().anchor, ACCESS_SHARE)
                .unwrap_or_else(|| catalog::gone())
        }))
    }

    /// After the rows were inserted: a reader that locks a counter only now will visit its row.
    fn check_writes(&self, changes: &[Change]) {
        let Some(anchor) = &self.0 else { return };
        // The server's error, so nobody else hears of it.
        count_failure(Figure::SerializationConflicts, || {
            for change in changes {
                let page = change.row.hash.anchor_page();
                // SAFETY: the anchor is open.
                unsafe { ports::check_for_serializable_conflict_in(anchor.as_ptr(), page) };
            }
        });
    }
}
