//! What the bindings do not have: functions of headers that they leave out, declared under their
//! C names, and functions that cannot raise an error, declared without the guard that costs each
//! call of the bindings' own a `sigsetjmp`.

use pgrx::pg_sys;
use std::cell::Cell;

unsafe extern "C-unwind" {
    /// `storage/predicate.h`. Raises 40001.
    fn CheckForSerializableConflictIn(
        relation: pg_sys::Relation,
        tid: pg_sys::ItemPointer,
        blkno: pg_sys::BlockNumber,
    );
    /// `storage/predicate.h`. Raises 40001.
    fn CheckTableForSerializableConflictIn(relation: pg_sys::Relation);
    /// `storage/predicate.h`. Raises errors.
    fn PredicateLockPage(
        relation: pg_sys::Relation,
        blkno: pg_sys::BlockNumber,
        snapshot: pg_sys::Snapshot,
    );
    /// `storage/predicate.h`. Raises errors.
    fn PredicateLockRelation(relation: pg_sys::Relation, snapshot: pg_sys::Snapshot);

    /// `tcop/tcopprot.h`: the handler itself. The bindings wrap it, and a wrapper is no handler.
    pub fn die(signal: core::ffi::c_int);
    /// `postmaster/interrupt.h`: likewise.
    pub fn SignalHandlerForConfigReload(signal: core::ffi::c_int);
    /// `postmaster/interrupt.h`: likewise.
    pub fn SignalHandlerForShutdownRequest(signal: core::ffi::c_int);

    /// `executor/tuptable.h`. Raises an error only for a column that the slot does not have.
    fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, columns: core::ffi::c_int);

    /// `commands/sequence.h`. Raises errors.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;

    /// `utils/builtins.h`. Writes up to 20 bytes and a zero, and returns how many bytes that are.
    fn pg_lltoa(value: i64, to: *mut core::ffi::c_char) -> core::ffi::c_int;

    fn GetCurrentCommandId(used: bool) -> pg_sys::CommandId;
    fn GetCurrentTransactionNestLevel() -> core::ffi::c_int;
    fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    fn IsInParallelMode() -> bool;
    fn RecoveryInProgress() -> bool;
}

/// The server's clock, in microseconds.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// A transaction's number with the one that says how often these have come round: that of one that began no more than
/// two billion transactions ago.
pub fn full_xid(xid: pg_sys::TransactionId) -> i64 {
    thread_local! {
        /// One that was handed out next once: reading it takes a lock that all need who begin to write.
        static KNOWN: Cell<u64> = const { Cell::new(0) };
    }
    /// So far from it the distance is sure.
    const NEAR: u32 = 1 << 30;
    let distance = |known: u64| (xid.into_inner().wrapping_sub(known as u32)).cast_signed();
    let mut known = KNOWN.get();
    if known == 0 || distance(known).unsigned_abs() > NEAR {
        // SAFETY: reads a variable of shared memory.
        known = unsafe { pg_sys::ReadNextFullTransactionId() }.value;
        KNOWN.set(known);
    }
    known.cast_signed() + i64::from(distance(known))
}

/// The running transaction's number, likewise; 0: it has none so far.
pub fn full_xid_if_any() -> i64 {
    // SAFETY: reads variables of the backend.
    unsafe { pg_sys::GetTopFullTransactionIdIfAny() }
        .value
        .cast_signed()
}

/// Random bits, not for secrets.
pub fn random() -> u64 {
    // SAFETY: the generator is the process's own, and seeded when it starts.
    unsafe { pg_sys::pg_prng_uint64(&raw mut pg_sys::pg_global_prng_state) }
}

/// Room for a number in decimal.
pub type Digits = [u8; 21];

/// A number in decimal.
pub fn decimal(value: i64, to: &mut Digits) -> &[u8] {
    // SAFETY: there is room for the longest one; it cannot raise an error.
    let length = unsafe { pg_lltoa(value, to.as_mut_ptr().cast()) };
    &to[..length.unsigned_abs() as usize]
}

/// The nesting level of the current transaction: 1 outside of any subtransaction.
pub fn xact_nest_level() -> u32 {
    // SAFETY: reads a static of xact.c; it cannot raise an error.
    let level = unsafe { GetCurrentTransactionNestLevel() };
    level.unsigned_abs()
}

/// The subtransaction that runs.
pub fn subtransaction() -> pg_sys::SubTransactionId {
    // SAFETY: reads a static of xact.c; it cannot raise an error.
    unsafe { GetCurrentSubTransactionId() }
}

/// The command that runs, which writes from now on.
pub fn writing_command() -> pg_sys::CommandId {
    // SAFETY: reads and marks statics of xact.c; it cannot raise an error.
    unsafe { GetCurrentCommandId(true) }
}

/// Is this a parallel worker, or a leader that has workers?
pub fn in_parallel_mode() -> bool {
    // SAFETY: reads a static of xact.c; it cannot raise an error.
    unsafe { IsInParallelMode() }
}

/// Is this a standby, or a server that is still recovering?
pub fn recovery_in_progress() -> bool {
    // SAFETY: reads a flag; when recovery has just ended it initializes variables of the process. It
    // cannot raise an error.
    unsafe { RecoveryInProgress() }
}

/// Is this a parallel worker?
pub fn is_parallel_worker() -> bool {
    // SAFETY: a plain read of a variable that is set once, before any of our code runs.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// `IsolationIsSerializable()`
pub fn isolation_is_serializable() -> bool {
    // SAFETY: a plain read of a backend-local variable.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}

/// `IsolationUsesXactSnapshot()`: REPEATABLE READ or SERIALIZABLE.
pub fn isolation_uses_xact_snapshot() -> bool {
    // SAFETY: a plain read of a backend-local variable.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Is the transaction read-only, as all are on a standby?
pub fn xact_read_only() -> bool {
    // SAFETY: a plain read of a backend-local variable.
    unsafe { pg_sys::XactReadOnly }
}

/// A serializable transaction writes what others may have read under this page's number.
///
/// # Safety
/// `relation` is open.
pub unsafe fn check_for_serializable_conflict_in(relation: pg_sys::Relation, page: u32) {
    // SAFETY: the caller's promise; the guard turns the server's error into an unwind.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            CheckForSerializableConflictIn(relation, std::ptr::null_mut(), page)
        })
    }
}

/// A serializable transaction writes what others may have read under any page's number.
///
/// # Safety
/// `relation` is open.
pub unsafe fn check_table_for_serializable_conflict_in(relation: pg_sys::Relation) {
    // SAFETY: the caller's promise; the guard turns the server's error into an unwind.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| CheckTableForSerializableConflictIn(relation));
    }
}

/// A serializable transaction reads what stands for this page's number, whether it exists or not.
///
/// A page and not a row: who writes a row that it has read loses its lock on it, as the server
/// counts on the next writer of that row to wait and to fail. Our writers insert, so none would.
///
/// # Safety
/// `relation` is open and `snapshot` is one of the running transaction.
pub unsafe fn predicate_lock_page(
    relation: pg_sys::Relation,
    page: u32,
    snapshot: pg_sys::Snapshot,
) {
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| PredicateLockPage(relation, page, snapshot));
    }
}

/// A serializable transaction reads whatever the relation may stand for.
///
/// # Safety
/// As of [`predicate_lock_page`].
pub unsafe fn predicate_lock_relation(relation: pg_sys::Relation, snapshot: pg_sys::Snapshot) {
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| PredicateLockRelation(relation, snapshot));
    }
}

/// `RelationGetNumberOfBlocks()`
///
/// # Safety
/// `relation` is open and has storage.
pub unsafe fn relation_blocks(relation: pg_sys::Relation) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Puts the row version at this address into the slot, whatever became of it:
/// `table_tuple_fetch_row_version()` with `SnapshotAny`. False when there is none any more.
///
/// # Safety
/// The table is open, and the slot fits it.
pub unsafe fn fetch_any_version(
    table: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: every table's access method has this operation.
    unsafe {
        let Some(fetch) = (*(*table).rd_tableam).tuple_fetch_row_version else {
            return false;
        };
        let any = &raw mut pg_sys::SnapshotAnyData;
        pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(table, tid, any, slot))
    }
}

/// Does the snapshot see the row version in the slot? `table_tuple_satisfies_snapshot()`
///
/// # Safety
/// The table is open, the slot holds a row of it with its page, the snapshot is a live one.
pub unsafe fn satisfies_snapshot(
    table: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    snapshot: pg_sys::Snapshot,
) -> bool {
    // SAFETY: every table's access method has this operation.
    unsafe {
        let satisfies = (*(*table).rd_tableam).tuple_satisfies_snapshot;
        satisfies.is_some_and(|satisfies| {
            pg_sys::ffi::pg_guard_ffi_boundary(|| satisfies(table, slot, snapshot))
        })
    }
}

/// Has a transaction committed that the snapshot does not know to have? Not the running one.
pub fn has_committed_unseen(xid: pg_sys::TransactionId, snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the snapshot is an MVCC one that lives; both take any xid.
    !is_own_xid(xid)
        && unsafe {
            pg_sys::XidInMVCCSnapshot(xid, snapshot) && pg_sys::TransactionIdDidCommit(xid)
        }
}

/// Reads the first so many columns of a slot's row: `slot_getsomeattrs()`.
///
/// # Safety
/// The slot holds a heap tuple, and has so many columns.
pub unsafe fn slot_columns(slot: *mut pg_sys::TupleTableSlot, columns: usize) {
    // SAFETY: the caller's promise. Taking a heap tuple apart cannot fail.
    unsafe {
        if usize::from((*slot).tts_nvalid.unsigned_abs()) < columns {
            slot_getsomeattrs_int(slot, columns as i32);
        }
    }
}

/// `heap_attisnull()` of a column from 1 on that has no default: a row made before the column has a
/// null there.
///
/// # Safety
/// The tuple is a live one.
pub unsafe fn column_is_null(tuple: pg_sys::HeapTuple, column: u32) -> bool {
    // SAFETY: the caller's promise; the bitmap has a bit for each column that the tuple has.
    unsafe {
        let header = (*tuple).t_data;
        let at = column as usize - 1;
        let has_nulls = u32::from((*header).t_infomask) & pg_sys::HEAP_HASNULL != 0;
        let columns = u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let bits = (&raw const (*header).t_bits).cast::<u8>();
        column > columns || (has_nulls && *bits.add(at / 8) & (1 << (at % 8)) == 0)
    }
}

/// `HeapTupleHeaderGetXmin()`
///
/// # Safety
/// The header is that of a stored tuple.
pub unsafe fn heap_tuple_xmin(tuple: pg_sys::HeapTupleHeader) -> pg_sys::TransactionId {
    const FROZEN: u32 = pg_sys::HEAP_XMIN_FROZEN;
    // SAFETY: the caller's promise.
    unsafe {
        if u32::from((*tuple).t_infomask) & FROZEN == FROZEN {
            pg_sys::FrozenTransactionId
        } else {
            (*tuple).t_choice.t_heap.t_xmin
        }
    }
}

/// The next number of a sequence, whoever the current user is.
pub fn next_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: raises an error for what is no sequence; the guard turns it into an unwind.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}

/// Sets a sequence. The current user has to be allowed to.
pub fn set_value(sequence: pg_sys::Oid, value: i64) {
    let function = pg_sys::Oid::from(pg_sys::F_SETVAL_REGCLASS_INT8);
    // SAFETY: the server's own function, with its two arguments.
    unsafe {
        pg_sys::OidFunctionCall2Coll(
            function,
            pg_sys::InvalidOid,
            pg_sys::Datum::from(sequence),
            pg_sys::Datum::from(value),
        )
    };
}

/// Is it the xid of the running transaction, or of one of its subtransactions?
pub fn is_own_xid(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: takes any xid.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
}

/// Waits for the end of a transaction. Interruptible, and seen by the deadlock detector.
pub fn wait_for_xact(xid: pg_sys::TransactionId) {
    // SAFETY: a valid xid that is not our own; without a relation there is no context line.
    unsafe {
        pg_sys::XactLockTableWait(
            xid,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            pg_sys::XLTW_Oper::XLTW_None,
        );
    }
}

/// Sleeps until the time is over or the process's latch is set, and then does what the server asks for. `event`: what
/// `pg_stat_activity` says meanwhile.
///
/// # Errors
/// Raises 57014 and its like when the session is cancelled or ended.
pub fn wait(time: std::time::Duration, event: u32) {
    let milliseconds = time.as_millis().clamp(1, 3_600_000) as core::ffi::c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, event);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// Sleeps, up to the next signal.
pub fn pause(time: std::time::Duration) {
    let us = core::ffi::c_long::try_from(time.as_micros()).unwrap_or(core::ffi::c_long::MAX);
    // SAFETY: sleeps.
    unsafe { pg_sys::pg_usleep(us) };
}
