//! Opening our tables and indexes, what their rows say, and writing one.

use crate::pg::error::{raise, report};
use crate::pg::insert::form_row;
use crate::pg::ports;
use crate::pg::relation::{ROW_SHARE, Relation, Replaying};
use crate::pg::scan::{Row, TableScan};
use crate::store::catalog::{self, LaneRels, SharedRels};
use crate::store::columns;
use crate::store::shape;
use counterx_core::gate::Side;
use counterx_core::history::{Change, Kind};
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::time::Duration;

/// What a row of a log says.
pub fn log_tally(row: &Row) -> Tally {
    use columns::log::{DELTA, USES};
    Tally::of(row.int8(DELTA), uses(row, USES))
}

/// What a row of `late` says.
pub fn late_tally(row: &Row) -> Tally {
    use columns::late::{DELTA, USES};
    Tally::of(row.int8(DELTA), uses(row, USES))
}

/// What a row of a log says for history.
pub fn log_change(row: &Row) -> Change {
    use columns::log::{AT, DELTA, KIND};
    change(row, AT, DELTA, KIND)
}

/// What a row of `late` says for history.
pub fn late_change(row: &Row) -> Change {
    use columns::late::{AT, DELTA, KIND};
    change(row, AT, DELTA, KIND)
}

fn change(row: &Row, at: usize, delta: usize, kind: usize) -> Change {
    use columns::kind::{EARLY, EARLY_ADJUSTMENT, PURGE, RESTORED};
    let letter = row.get(kind).map(|datum| datum.value() as i8);
    let kind = match letter {
        None | Some(EARLY) => Kind::Increment,
        Some(PURGE) => Kind::Purge,
        Some(RESTORED) => Kind::Restored,
        Some(_) => Kind::Adjustment,
    };
    Change {
        at: row.int8(at),
        delta: row.int8(delta).into(),
        kind,
        xid: ports::full_xid(row.xmin()),
        is_of_transaction: !matches!(letter, Some(EARLY | EARLY_ADJUSTMENT | RESTORED)),
    }
}

/// Null is one use.
fn uses(row: &Row, column: usize) -> i64 {
    row.get(column).map_or(1, |datum| datum.value() as i64)
}

/// Opens a relation of ours for reading.
pub fn open(oid: pg_sys::Oid) -> Relation {
    let relation = Relation::open_for_read(oid).unwrap_or_else(|| catalog::gone());
    shape::check(&relation);
    relation
}

/// Opens one of a lane's logs and its index for reading.
pub fn open_log(rels: &LaneRels, side: Side) -> (Relation, Relation) {
    let log = open_log_table(rels.log(side));
    let index = index_of(&log, &columns::log::KEY);
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
            catalog::gone()
        }
        Err(Replaying) => raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "counters that this snapshot may need are being removed by the replay on this standby",
            )
            .set_hint("Retry the transaction."),
        ),
    }
}

/// Opens one of a lane's logs and its index for reading. None: it is empty, as one of two mostly is.
pub fn open_log_with_rows(rels: &LaneRels, side: Side) -> Option<(Relation, Relation)> {
    let log = open_log_table(rels.log(side));
    (log.blocks() > 0).then(|| {
        let index = index_of(&log, &columns::log::KEY);
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

/// Inserts a row, or puts it in another's place, with its index entries. Returns its address, if a chain
/// of versions begins with it.
///
/// # Safety
/// The values fit the table's columns, and the indexes are the table's.
pub unsafe fn write_row<const N: usize>(
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

/// Who writes holds, or late deltas, is waited for by those who have restored bounded counters: see
/// `lock_counters` in `api/types.rs`. Restores take no such lock, so they do not wait for each other.
pub fn keep_restorers_waiting() {
    if Relation::open_until_commit(catalog::shared().anchor, ROW_SHARE).is_none() {
        catalog::gone()
    }
}
