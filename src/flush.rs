//! From the pending map to the logs.
//!
//! Runs in the last moments of a transaction, where no snapshot is set and the memory context is
//! not ours; rows go straight to the heap and the index, without executor and without waiting.

use crate::catalog::{self, LaneRels};
use crate::lease;
use crate::pg::error::{raise, report};
use crate::pg::memory::MemoryScope;
use crate::pg::ports;
use crate::pg::relation::{ACCESS_SHARE, ROW_EXCLUSIVE, Relation};
use crate::pg::varlena::NameText;
use counterx_core::pending::{PendingMap, Row};
use pgrx::{PgSqlErrorCode, pg_sys};

/// Writes all pending rows to the active logs of their lanes. The caller clears the map.
///
/// # Errors
/// Raises what an insertion can raise, 40001 in a serializable transaction, and an error when
/// the extension is gone.
pub fn to_logs(pending: &PendingMap) {
    let rows = in_order(pending);
    let _scope = scope();
    let anchor = SerializableAnchor::open();
    for rows in rows.chunk_by(|a, b| a.hash.lane() == b.hash.lane()) {
        let writer = LogWriter::open(catalog::lane(rows[0].hash.lane()));
        for row in rows {
            writer.insert(row);
        }
    }
    anchor.check_writes(&rows);
    // SAFETY: the rows shall be visible to later commands of this transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Writes all pending rows to the table of late deltas: no gate is locked, so a transaction that
/// stays prepared for days holds up no lane.
///
/// # Errors
/// As of [`to_logs`].
pub fn to_late(pending: &PendingMap) {
    let rows = in_order(pending);
    let _scope = scope();
    let anchor = SerializableAnchor::open();
    let inserter = Inserter::open(catalog::shared().late);
    for row in &rows {
        let name = NameText::new(row.name);
        inserter.insert([
            pg_sys::Datum::from(row.hash.lane() as i32),
            name.datum(),
            pg_sys::Datum::from(row.delta),
            inserter.now,
        ]);
    }
    anchor.check_writes(&rows);
}

/// Lanes ascending, so that gates are always locked in one order; names ascending, for the index.
fn in_order(pending: &PendingMap) -> Vec<Row<'_>> {
    let mut rows: Vec<Row> = pending.rows().collect();
    rows.sort_unstable_by(|a, b| (a.hash.lane(), a.name).cmp(&(b.hash.lane(), b.name)));
    rows
}

fn scope() -> MemoryScope {
    // SAFETY: we are inside a transaction, whose context outlives the flush.
    unsafe { MemoryScope::enter(pg_sys::TopTransactionContext) }
}

fn open(oid: pg_sys::Oid) -> Relation {
    match Relation::open_until_commit(oid, ROW_EXCLUSIVE) {
        Some(relation) => relation,
        None => {
            catalog::forget();
            catalog::Unusable::NotInstalled.raise()
        }
    }
}

/// Inserts rows into one table. 4 columns are all that our insert-only tables have.
struct Inserter {
    table: Relation,
    command: pg_sys::CommandId,
    now: pg_sys::Datum,
}

impl Inserter {
    fn open(table: pg_sys::Oid) -> Self {
        // SAFETY: marks the command as one that writes; reads the clock.
        unsafe {
            Self {
                table: open(table),
                command: pg_sys::GetCurrentCommandId(true),
                now: pg_sys::Datum::from(pg_sys::GetCurrentTimestamp()),
            }
        }
    }

    fn insert(&self, mut values: [pg_sys::Datum; 4]) -> pg_sys::ItemPointerData {
        let mut nulls = [false; 4];
        // SAFETY: the table has these four columns, all NOT NULL; the tuple is ours to free.
        // HEAP_INSERT_NO_LOGICAL: a publication FOR ALL TABLES must not ship the row.
        unsafe {
            let tuple = pg_sys::heap_form_tuple(
                self.table.tuple_desc(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::heap_insert(
                self.table.as_ptr(),
                tuple,
                self.command,
                pg_sys::HEAP_INSERT_NO_LOGICAL as i32,
                std::ptr::null_mut(),
            );
            let tid = (*tuple).t_self;
            pg_sys::heap_freetuple(tuple);
            tid
        }
    }
}

/// One lane's active log, behind its gate.
struct LogWriter {
    _gate: Relation,
    log: Inserter,
    indexes: Vec<Index>,
    epoch: i64,
}

impl LogWriter {
    fn open(rels: LaneRels) -> Self {
        // The order is the whole point: first the lock, then the epoch.
        let gate = open(rels.gate);
        let value = lease::read_gate(&gate);
        let log = Inserter::open(rels.log(value.side));
        let oids = log.table.index_oids();
        let indexes = oids
            .into_iter()
            .filter_map(|oid| Index::open(open(oid)))
            .collect();
        Self {
            _gate: gate,
            log,
            indexes,
            epoch: value.epoch,
        }
    }

    fn insert(&self, row: &Row) {
        let name = NameText::new(row.name);
        let values = [
            pg_sys::Datum::from(self.epoch),
            self.log.now,
            pg_sys::Datum::from(row.delta),
            name.datum(),
        ];
        let mut tid = self.log.insert(values);
        for index in &self.indexes {
            index.insert(&self.log.table, &values, &mut tid);
        }
    }
}

/// An index of a log. There is one, and a second while REINDEX CONCURRENTLY builds it: that one
/// has to get what is inserted meanwhile.
struct Index {
    index: Relation,
    info: *mut pg_sys::IndexInfo,
}

impl Index {
    /// None: it is not ready for insertions.
    fn open(index: Relation) -> Option<Self> {
        // SAFETY: the index is open; the result lives in our memory scope.
        let info = unsafe { pg_sys::BuildIndexInfo(index.as_ptr()) };
        // SAFETY: just made.
        let (ready, plain) = unsafe {
            let info = &*info;
            let plain = info.ii_Expressions.is_null()
                && info.ii_Predicate.is_null()
                && info.ii_ExclusionOps.is_null()
                && !info.ii_Unique;
            (info.ii_ReadyForInserts, plain)
        };
        if !plain {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "logs of counterx cannot have unique, partial or expression indexes",
                )
                .set_hint("Drop the index that was added to a table of the schema counterx."),
            );
        }
        ready.then_some(Self { index, info })
    }

    fn insert(
        &self,
        log: &Relation,
        values: &[pg_sys::Datum; 4],
        tid: &mut pg_sys::ItemPointerData,
    ) {
        let mut keys = [pg_sys::Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: a plain index of this log: its columns are some of the row's four, none null.
        unsafe {
            let columns = (*self.info).ii_NumIndexAttrs as usize;
            for (key, &column) in keys
                .iter_mut()
                .zip(&(&(*self.info).ii_IndexAttrNumbers)[..columns])
            {
                *key = values[column as usize - 1];
            }
            pg_sys::index_insert(
                self.index.as_ptr(),
                keys.as_mut_ptr(),
                nulls.as_mut_ptr(),
                tid,
                log.as_ptr(),
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                false,
                self.info,
            );
        }
    }
}

/// The writer's half of what makes SERIALIZABLE right; see `read.rs` for the reader's.
struct SerializableAnchor(Option<Relation>);

impl SerializableAnchor {
    fn open() -> Self {
        Self(ports::isolation_is_serializable().then(|| {
            Relation::open_until_commit(catalog::shared().anchor, ACCESS_SHARE)
                .unwrap_or_else(|| catalog::Unusable::NotInstalled.raise())
        }))
    }

    /// After the rows were inserted: a reader that locks a counter only now will visit its row.
    fn check_writes(&self, rows: &[Row]) {
        let Some(anchor) = &self.0 else { return };
        for row in rows {
            let (block, offset) = row.hash.anchor_address();
            let tid = ports::item_pointer(block, offset);
            // SAFETY: the anchor is open.
            unsafe { ports::check_for_serializable_conflict_in(anchor.as_ptr(), tid) };
        }
    }
}
