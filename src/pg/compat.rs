//! Every difference between the server versions that we support.

use pgrx::pg_sys;

/// Which files are a relation's: 16 calls it a locator.
#[cfg(feature = "pg15")]
pub type FileNumbers = pg_sys::RelFileNode;
/// Which files are a relation's.
#[cfg(not(feature = "pg15"))]
pub type FileNumbers = pg_sys::RelFileLocator;

/// See [`FileNumbers`].
///
/// # Safety
/// The relation is open.
pub unsafe fn file_numbers(relation: pg_sys::Relation) -> FileNumbers {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*relation).rd_node;
        #[cfg(not(feature = "pg15"))]
        return (*relation).rd_locator;
    }
}

/// A backend, and the number of a transaction in it; 17 calls a backend by the number of its process.
pub fn parts_of_virtual_xact(xact: &pg_sys::VirtualTransactionId) -> (i32, u32) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    return (xact.backendId, xact.localTransactionId);
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    return (xact.procNumber, xact.localTransactionId);
}

/// `index_beginscan()`: 18 counts searches in a structure of the executor's.
///
/// # Safety
/// The relations are open, the snapshot outlives the scan.
pub unsafe fn index_beginscan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return pg_sys::index_beginscan(table, index, snapshot, keys, 0);
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), keys, 0);
    }
}

/// A table's columns, dropped ones too: 18 keeps them in another place.
///
/// # Safety
/// The descriptor is a live one, and stays so as long as the result is used.
pub unsafe fn attributes<'a>(columns: pg_sys::TupleDesc) -> Vec<&'a pg_sys::FormData_pg_attribute> {
    // SAFETY: the caller's promise.
    unsafe {
        let natts = (*columns).natts as usize;
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return (*columns).attrs.as_slice(natts).iter().collect();
        #[cfg(feature = "pg18")]
        return (0..natts)
            .map(|at| &*pg_sys::TupleDescAttr(columns, at as i32))
            .collect();
    }
}

/// The number of the running transaction among all of this process: 17 has moved it.
pub fn local_transaction() -> u32 {
    // SAFETY: the process's own entry, which it has from its start on.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let transaction = (*pg_sys::MyProc).lxid;
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let transaction = (*pg_sys::MyProc).vxid.lxid;
        transaction
    }
}

/// Lets go of a slot's row: `ExecClearTuple()`, which is an inline function in all versions.
///
/// # Safety
/// The slot is a live one.
pub unsafe fn clear_slot(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: every slot has this operation.
    unsafe {
        if let Some(clear) = (*(*slot).tts_ops).clear {
            pg_sys::ffi::pg_guard_ffi_boundary(|| clear(slot));
        }
    }
}

/// `ExecuteTruncateGuts()` of one table, not announced to logical decoding: 16 got a further
/// argument.
///
/// # Safety
/// The table is open and locked by AccessExclusiveLock.
pub unsafe fn truncate(table: pg_sys::Relation, oid: pg_sys::Oid) {
    // SAFETY: the caller's promise; the lists live in the current context.
    unsafe {
        let tables = pg_sys::lappend(std::ptr::null_mut(), table.cast());
        let oids = pg_sys::lappend_oid(std::ptr::null_mut(), oid);
        let logged = std::ptr::null_mut();
        let restrict = pg_sys::DropBehavior::DROP_RESTRICT;
        #[cfg(feature = "pg15")]
        pg_sys::ExecuteTruncateGuts(tables, oids, logged, restrict, false);
        #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
        pg_sys::ExecuteTruncateGuts(tables, oids, logged, restrict, false, false);
    }
}

/// `LockHeldByMe()` of just this mode: 17 got a further argument.
pub fn holds_lock(tag: &pg_sys::LOCKTAG, mode: pg_sys::LOCKMODE) -> bool {
    // SAFETY: takes any tag, and looks it up in a table of the process.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        return pg_sys::LockHeldByMe(tag, mode);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        return pg_sys::LockHeldByMe(tag, mode, false);
    }
}

/// Settings that end a session or its transaction from outside, beyond those of 15: 17 has one more.
pub const FURTHER_TIMEOUTS: &[&core::ffi::CStr] = &[
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    c"transaction_timeout",
];

/// Sets a signal handler: 18 has two families of the function.
pub fn set_signal_handler(signal: u32, handler: unsafe extern "C-unwind" fn(core::ffi::c_int)) {
    // SAFETY: the handlers are the server's own.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        pg_sys::pqsignal(signal as i32, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal as i32, Some(handler));
    }
}

/// What an FDW says of a way to scan its table.
pub struct ForeignPathCost {
    /// Rows that come out.
    pub rows: f64,
    /// Before the first row.
    pub startup: f64,
    /// For all rows.
    pub total: f64,
}

/// `create_foreignscan_path()` of a base relation, unordered: 17 and 18 got a further argument
/// each.
///
/// # Safety
/// Called by the planner for this relation.
pub unsafe fn create_foreignscan_path(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    cost: &ForeignPathCost,
    required_outer: pg_sys::Relids,
) -> *mut pg_sys::ForeignPath {
    use std::ptr::null_mut;
    let ForeignPathCost {
        rows,
        startup,
        total,
    } = *cost;
    // SAFETY: the caller's promise; the target, the order, the outer path and the lists may be
    // missing.
    unsafe {
        // 18 has the number of disabled nodes before the costs, 17 and 18 a list of restrictions at the end.
        pg_sys::create_foreignscan_path(
            root,
            rel,
            null_mut(),
            rows,
            #[cfg(feature = "pg18")]
            0,
            startup,
            total,
            null_mut(),
            required_outer,
            null_mut(),
            null_mut(),
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            null_mut(),
        )
    }
}

/// What `pg_stat_activity` says that a process waits for. 17 got names of extensions' own; before, all of
/// them are `Extension`.
pub struct WaitEvent {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    name: &'static core::ffi::CStr,
    /// The number that the server has given it; 0 before this process has asked.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    number: std::sync::atomic::AtomicU32,
}

impl WaitEvent {
    /// An event of this name.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    pub const fn new(_name: &'static core::ffi::CStr) -> Self {
        Self {}
    }

    /// An event of this name.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub const fn new(name: &'static core::ffi::CStr) -> Self {
        let number = std::sync::atomic::AtomicU32::new(0);
        Self { name, number }
    }

    /// Its number.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    pub fn number(&self) -> u32 {
        pg_sys::PG_WAIT_EXTENSION
    }

    /// Its number. The first call in a process takes locks for a moment.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub fn number(&self) -> u32 {
        use std::sync::atomic::Ordering;
        let known = self.number.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        // SAFETY: a name that ends with a zero and lives for ever. The same name gets the same number.
        let number = unsafe { pg_sys::WaitEventExtensionNew(self.name.as_ptr()) };
        self.number.store(number, Ordering::Relaxed);
        number
    }
}

/// Does a user own a relation, or is he a member of the role that does? 16 has one function for all kinds of
/// objects.
///
/// # Safety
/// In a transaction.
pub unsafe fn owns_relation(relation: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    // SAFETY: takes any ids.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_class_ownercheck(relation, user);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, user);
    }
}

/// What the server's processes show of themselves, as of the first look in a transaction.
pub fn backend_statuses<'a>() -> impl Iterator<Item = &'a pg_sys::PgBackendStatus> {
    // SAFETY: reads a copy that the server keeps to the end of the transaction.
    let count = unsafe { pg_sys::pgstat_fetch_stat_numbackends() };
    (1..=count).filter_map(|at| {
        // SAFETY: one of so many.
        unsafe {
            #[cfg(feature = "pg15")]
            let entry = pg_sys::pgstat_fetch_stat_local_beentry(at);
            #[cfg(not(feature = "pg15"))]
            let entry = pg_sys::pgstat_get_local_beentry_by_index(at);
            entry.as_ref().map(|entry| &entry.backendStatus)
        }
    })
}
