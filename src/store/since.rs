//! Which snapshots are too old for what is installed.
//!
//! `ALTER EXTENSION counterx UPDATE` can put rows into tables anew. A snapshot that was taken before does
//! not see those, and would have counters without them. (Nobody has read counters with it: the library
//! has refused to, with the older objects that it sees.) So a snapshot counts only when it sees the
//! extension's row in `pg_extension` as it is.

use crate::pg::error::{raise, report};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;

thread_local! {
    /// The transaction that has written that row; 0 when every snapshot sees it.
    static WRITTEN_BY: Cell<u32> = const { Cell::new(0) };
}

/// The row was found in `pg_extension`, as it is now.
///
/// # Safety
/// A row of a heap.
pub unsafe fn note(row: pg_sys::HeapTuple) {
    // SAFETY: the caller's promise; a row in a table has this form of header.
    let (flags, xmin) = unsafe {
        let header = (*row).t_data;
        (
            u32::from((*header).t_infomask),
            (*header).t_choice.t_heap.t_xmin.into_inner(),
        )
    };
    let frozen = flags & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN;
    WRITTEN_BY.set(if frozen { 0 } else { xmin });
}

/// Looks whether counters can be read with a snapshot.
///
/// # Errors
/// Raises 40001 when it was taken before the extension was installed or updated.
///
/// # Safety
/// The snapshot is active or registered, or a copy of such a one.
pub unsafe fn check(snapshot: pg_sys::Snapshot) {
    let xid = WRITTEN_BY.get();
    // SAFETY: the caller's promise; a variable of the backend.
    let (oldest, kind, xmin) = unsafe {
        let snapshot = &*snapshot;
        (
            pg_sys::TransactionXmin.into_inner(),
            snapshot.snapshot_type,
            snapshot.xmin.into_inner(),
        )
    };
    if xid < pg_sys::FirstNormalTransactionId.into_inner() {
        return;
    }
    if precedes(xid, oldest) {
        // No snapshot of this session is older. Not kept for longer, as numbers of transactions come
        // round again.
        WRITTEN_BY.set(0);
        return;
    }
    if kind != pg_sys::SnapshotType::SNAPSHOT_MVCC || precedes(xid, xmin) {
        return;
    }
    let xid = pg_sys::TransactionId::from_inner(xid);
    // SAFETY: a number of a transaction, and the caller's promise.
    let unseen = unsafe {
        !pg_sys::TransactionIdIsCurrentTransactionId(xid)
            && pg_sys::XidInMVCCSnapshot(xid, snapshot)
    };
    if unseen {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "could not read counters, as the extension \"counterx\" was installed or updated after this snapshot was taken",
            )
            .set_hint("Run the transaction again."),
        )
    }
}

/// `TransactionIdPrecedes()` of two normal numbers; false for others.
fn precedes(a: u32, b: u32) -> bool {
    b >= pg_sys::FirstNormalTransactionId.into_inner() && (a.wrapping_sub(b) as i32) < 0
}
