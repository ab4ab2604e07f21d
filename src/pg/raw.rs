//! Functions of the server without a guard of their own.
//!
//! The bindings wrap each function in a guard that catches the server's errors, some 130 instructions
//! a call: more than many of these do. Where several are called in a row, one guard for all is enough,
//! as long as nothing in between has to be dropped when an error jumps over it. All callers are
//! [`pg_guard_ffi_boundary`](pgrx::pg_sys::ffi::pg_guard_ffi_boundary) closures of plain values.

use super::compat::FileNumbers;
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    // storage/lmgr.h
    pub fn LockRelationOid(relation: pg_sys::Oid, mode: pg_sys::LOCKMODE);
    pub fn UnlockRelationOid(relation: pg_sys::Oid, mode: pg_sys::LOCKMODE);
    // utils/relcache.h, pgstat.h
    pub fn RelationIdGetRelation(relation: pg_sys::Oid) -> pg_sys::Relation;
    pub fn pgstat_init_relation(relation: pg_sys::Relation);

    // storage/bufmgr.h
    pub fn ReadBuffer(relation: pg_sys::Relation, block: pg_sys::BlockNumber) -> pg_sys::Buffer;
    pub fn ReadRecentBuffer(
        numbers: FileNumbers,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        buffer: pg_sys::Buffer,
    ) -> bool;
    pub fn LockBuffer(buffer: pg_sys::Buffer, mode: core::ffi::c_int);
    pub fn ReleaseBuffer(buffer: pg_sys::Buffer);
    pub fn UnlockReleaseBuffer(buffer: pg_sys::Buffer);

    // access/heapam.h, access/htup_details.h
    pub fn heap_hot_search_buffer(
        tid: pg_sys::ItemPointer,
        relation: pg_sys::Relation,
        buffer: pg_sys::Buffer,
        snapshot: pg_sys::Snapshot,
        tuple: pg_sys::HeapTuple,
        all_dead: *mut bool,
        first_call: bool,
    ) -> bool;
    pub fn heap_page_prune_opt(relation: pg_sys::Relation, buffer: pg_sys::Buffer);
    pub fn heap_deform_tuple(
        tuple: pg_sys::HeapTuple,
        columns: pg_sys::TupleDesc,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );
    pub fn heap_form_tuple(
        columns: pg_sys::TupleDesc,
        values: *const pg_sys::Datum,
        nulls: *const bool,
    ) -> pg_sys::HeapTuple;
    pub fn heap_insert(
        relation: pg_sys::Relation,
        tuple: pg_sys::HeapTuple,
        command: pg_sys::CommandId,
        options: core::ffi::c_int,
        bulk: pg_sys::BulkInsertState,
    );
    pub fn heap_freetuple(tuple: pg_sys::HeapTuple);

    // executor/tuptable.h
    pub fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, column: core::ffi::c_int);

    // access/genam.h, access/skey.h
    pub fn ScanKeyInit(
        entry: pg_sys::ScanKey,
        column: pg_sys::AttrNumber,
        strategy: pg_sys::StrategyNumber,
        procedure: pg_sys::RegProcedure,
        argument: pg_sys::Datum,
    );
    pub fn index_rescan(
        scan: pg_sys::IndexScanDesc,
        keys: pg_sys::ScanKey,
        nkeys: core::ffi::c_int,
        orderbys: pg_sys::ScanKey,
        norderbys: core::ffi::c_int,
    );
    pub fn index_endscan(scan: pg_sys::IndexScanDesc);
    pub fn index_getnext_tid(
        scan: pg_sys::IndexScanDesc,
        direction: pg_sys::ScanDirection::Type,
    ) -> pg_sys::ItemPointer;
    pub fn index_fetch_heap(scan: pg_sys::IndexScanDesc, slot: *mut pg_sys::TupleTableSlot)
    -> bool;

    // access/itup.h
    pub fn index_deform_tuple(
        tuple: pg_sys::IndexTuple,
        columns: pg_sys::TupleDesc,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );

    // access/visibilitymap.h
    pub fn visibilitymap_get_status(
        relation: pg_sys::Relation,
        block: pg_sys::BlockNumber,
        map: *mut pg_sys::Buffer,
    ) -> u8;

    // access/generic_xlog.h
    pub fn GenericXLogStart(relation: pg_sys::Relation) -> *mut pg_sys::GenericXLogState;
    pub fn GenericXLogRegisterBuffer(
        state: *mut pg_sys::GenericXLogState,
        buffer: pg_sys::Buffer,
        flags: core::ffi::c_int,
    ) -> pg_sys::Page;
    pub fn GenericXLogFinish(state: *mut pg_sys::GenericXLogState) -> pg_sys::XLogRecPtr;

    // executor/tuptable.h
    pub fn ExecDropSingleTupleTableSlot(slot: *mut pg_sys::TupleTableSlot);
}

/// `access/visibilitymapdefs.h`
pub const VISIBILITYMAP_ALL_VISIBLE: u8 = 0x01;
