//! Firing AFTER ROW triggers for rows that were written without the executor.

use super::ports;
use super::relation::Relation;
use pgrx::pg_sys;

/// A row was inserted here.
///
/// # Safety
/// The address is that of a row that this transaction has just inserted; the table is open.
pub unsafe fn after_insert(table: &Relation, tid: pg_sys::ItemPointerData) {
    let mut tid = tid;
    // SAFETY: the caller's promise; the slot belongs to the state's list of slots.
    unsafe {
        fire(table, |state, relation| {
            let slots = &raw mut (*state).es_tupleTable;
            let slot = pg_sys::table_slot_create(table.as_ptr(), slots);
            if ports::fetch_any_version(table.as_ptr(), &mut tid, slot) {
                let none = std::ptr::null_mut();
                pg_sys::ExecARInsertTriggers(state, relation, slot, none, std::ptr::null_mut());
            }
        });
    }
}

/// The row was deleted that was here.
///
/// # Safety
/// The address is that of a row that this transaction has just deleted; the table is open.
pub unsafe fn after_delete(table: &Relation, tid: pg_sys::ItemPointerData) {
    let mut tid = tid;
    // SAFETY: the caller's promise.
    unsafe {
        fire(table, |state, relation| {
            let none = std::ptr::null_mut();
            pg_sys::ExecARDeleteTriggers(
                state,
                relation,
                &mut tid,
                none,
                std::ptr::null_mut(),
                false,
            );
        });
    }
}

/// What a statement of the table's owner has around its triggers. An error leaves all of it to the end
/// of the (sub)transaction, which gives the user back as well.
///
/// # Safety
/// The table is open.
unsafe fn fire(
    table: &Relation,
    queue: impl FnOnce(*mut pg_sys::EState, *mut pg_sys::ResultRelInfo),
) {
    // SAFETY: what is allocated belongs to the state, which is freed at the end; the order is that of the
    // server's own apply worker.
    unsafe {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let owner = (*(*table.as_ptr()).rd_rel).relowner;
        let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(owner, context | local);

        let state = pg_sys::CreateExecutorState();
        let size = size_of::<pg_sys::ResultRelInfo>();
        let relation: *mut pg_sys::ResultRelInfo =
            pg_sys::MemoryContextAllocZero((*state).es_query_cxt, size).cast();
        (*relation).type_ = pg_sys::NodeTag::T_ResultRelInfo;
        pg_sys::InitResultRelInfo(relation, table.as_ptr(), 1, std::ptr::null_mut(), 0);
        pg_sys::AfterTriggerBeginQuery();
        queue(state, relation);
        pg_sys::AfterTriggerEndQuery(state);
        pg_sys::ExecCloseResultRelations(state);
        pg_sys::ExecResetTupleTable((*state).es_tupleTable, false);
        pg_sys::FreeExecutorState(state);

        pg_sys::SetUserIdAndSecContext(user, context);
    }
}
