//! An open relation.

use super::owner::XactOwned;
use super::ports;
use super::raw;
use pgrx::pg_sys;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// A lock mode, `AccessShareLock` to `AccessExclusiveLock`.
pub type LockMode = pg_sys::LOCKMODE;

/// Reading.
pub const ACCESS_SHARE: LockMode = pg_sys::AccessShareLock as LockMode;
/// Writing.
pub const ROW_EXCLUSIVE: LockMode = pg_sys::RowExclusiveLock as LockMode;
/// Being there, for those who want nobody to be; changing a counter by its value, when taken on a gate.
pub const ROW_SHARE: LockMode = pg_sys::RowShareLock as LockMode;
/// The lease on a lane, when taken on its gate.
pub const SHARE_UPDATE_EXCLUSIVE: LockMode = pg_sys::ShareUpdateExclusiveLock as LockMode;
/// Keeping writers out; making an index, one at a time.
pub const SHARE_ROW_EXCLUSIVE: LockMode = pg_sys::ShareRowExclusiveLock as LockMode;
/// Keeping out all but those who read.
pub const EXCLUSIVE: LockMode = pg_sys::ExclusiveLock as LockMode;
/// Truncating, dropping.
pub const ACCESS_EXCLUSIVE: LockMode = pg_sys::AccessExclusiveLock as LockMode;

const NO_LOCK: LockMode = pg_sys::NoLock as LockMode;

/// A table, index or sequence, open and locked.
pub struct Relation {
    ptr: NonNull<pg_sys::RelationData>,
    unlock: LockMode,
}

/// Replay has locked a relation of a standby.
pub struct Replaying;

impl Relation {
    /// Opens a relation for reading; the lock goes with this value. None when it does not exist.
    pub fn open_for_read(oid: pg_sys::Oid) -> Option<Self> {
        Self::open(oid, ACCESS_SHARE, ACCESS_SHARE)
    }

    /// The same if that needs no waiting. None when somebody has a conflicting lock, or the relation does not
    /// exist.
    pub fn open_for_read_if_free(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: a lock on an OID that may not exist (any more) is harmless.
        unsafe { pg_sys::ConditionalLockRelationOid(oid, ACCESS_SHARE) }
            .then(|| Self::open(oid, NO_LOCK, ACCESS_SHARE))
            .flatten()
    }

    /// The same on a standby, where it waits no longer than that for replay to unlock the relation.
    ///
    /// Replay keeps the lock of a TRUNCATE up to its commit, and may have to wait before that for
    /// this very transaction's snapshot. It waits in no queue of locks, so no deadlock is detected.
    ///
    /// # Errors
    /// [`Replaying`] when replay has kept it locked.
    pub fn open_replayed(oid: pg_sys::Oid, patience: Duration) -> Result<Option<Self>, Replaying> {
        const PAUSE_US: core::ffi::c_long = 2_000;
        let started = Instant::now();
        // SAFETY: a lock on an OID that may not exist (any more) is harmless.
        while !unsafe { pg_sys::ConditionalLockRelationOid(oid, ACCESS_SHARE) } {
            if started.elapsed() >= patience {
                return Err(Replaying);
            }
            // SAFETY: sleeps, up to the next signal.
            unsafe { pg_sys::pg_usleep(PAUSE_US) };
            pgrx::check_for_interrupts!();
        }
        Ok(Self::open(oid, NO_LOCK, ACCESS_SHARE))
    }

    /// Opens a relation and keeps the lock to the end of the (sub)transaction: see [`XactOwned`].
    pub fn open_until_commit(oid: pg_sys::Oid, mode: LockMode) -> Option<Self> {
        Self::open(oid, mode, NO_LOCK)
    }

    /// Locks a relation if that needs no waiting, and keeps the lock to the end of the
    /// (sub)transaction. None when somebody has a conflicting lock, or the relation does not exist.
    pub fn open_if_free(oid: pg_sys::Oid, mode: LockMode) -> Option<Self> {
        let free = {
            let _owner = XactOwned::enter();
            // SAFETY: a lock on an OID that may not exist (any more) is harmless.
            unsafe { pg_sys::ConditionalLockRelationOid(oid, mode) }
        };
        free.then(|| Self::open(oid, NO_LOCK, NO_LOCK)).flatten()
    }

    fn open(oid: pg_sys::Oid, mode: LockMode, unlock: LockMode) -> Option<Self> {
        // The lock that stays is the transaction's; the reference goes with this value.
        let owner = (unlock == NO_LOCK && mode != NO_LOCK).then(XactOwned::enter);
        // SAFETY: takes any OID. This is try_relation_open() without a look into the system cache: the
        // relation cache has NULL for what does not exist. One guard for all: nothing has to be dropped.
        let relation = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                if mode != NO_LOCK {
                    raw::LockRelationOid(oid, mode);
                }
                let relation = match &owner {
                    Some(owner) => owner.outside(|| raw::RelationIdGetRelation(oid)),
                    None => raw::RelationIdGetRelation(oid),
                };
                if !relation.is_null() {
                    raw::pgstat_init_relation(relation);
                } else if mode != NO_LOCK {
                    raw::UnlockRelationOid(oid, mode);
                }
                relation
            })
        };
        NonNull::new(relation).map(|ptr| Self { ptr, unlock })
    }

    /// Opens the valid btree of this table on just these columns, in this order, for reading: negative
    /// numbers are of columns in descending order, and names are in the order of their bytes. None:
    /// there is none.
    ///
    /// The table is locked, so the index stays as long as the table is open, even while REINDEX
    /// CONCURRENTLY replaces it.
    pub fn open_index(&self, columns: &[i16]) -> Option<Self> {
        self.index_oids()
            .into_iter()
            .filter_map(Self::open_for_read)
            .find(|index| index.is_btree_on(columns))
    }

    /// The same of indexes that can be locked without waiting.
    pub fn open_index_if_free(&self, columns: &[i16]) -> Option<Self> {
        self.index_oids()
            .into_iter()
            .filter_map(Self::open_for_read_if_free)
            .find(|index| index.is_btree_on(columns))
    }

    /// Is it a table whose rows are stored by this server? A foreign table has none to be scanned.
    pub fn has_rows_here(&self) -> bool {
        // SAFETY: an open relation has its pg_class row.
        let kind = unsafe { (*(*self.ptr.as_ptr()).rd_rel).relkind };
        kind as u8 == pg_sys::RELKIND_RELATION
    }

    /// Are there triggers of this very relation that statements under way have yet to fire, or the end of the
    /// transaction has?
    pub fn has_pending_triggers(&self) -> bool {
        // SAFETY: takes any OID, inside a transaction.
        unsafe { pg_sys::AfterTriggerPendingOnRel(self.oid()) }
    }

    /// Does this session use it beyond this value: an open cursor, a running statement, triggers that have yet to
    /// fire? The server refuses to alter it then.
    pub fn is_used_elsewhere(&self) -> bool {
        // SAFETY: the relation is open.
        let references = unsafe { (*self.as_ptr()).rd_refcnt };
        references > 1 || self.has_pending_triggers()
    }

    /// Whose it is.
    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*(*self.as_ptr()).rd_rel).relowner }
    }

    /// All indexes of this table, valid or not.
    pub fn index_oids(&self) -> Vec<pg_sys::Oid> {
        // SAFETY: the relation is open; the cache's list is read at once, before anything can change it,
        // and a copy is ours to free.
        unsafe {
            if (*self.as_ptr()).rd_indexvalid {
                return oids_of((*self.as_ptr()).rd_indexlist);
            }
            let list = pg_sys::RelationGetIndexList(self.as_ptr());
            let oids = oids_of(list);
            pg_sys::list_free(list);
            oids
        }
    }

    fn is_btree_on(&self, columns: &[i16]) -> bool {
        // SAFETY: an open index has its pg_index row, whose indkey has indnatts entries.
        let candidate = unsafe {
            let index = &*(*self.as_ptr()).rd_index;
            let has_predicate = !ports::column_is_null(
                (*self.as_ptr()).rd_indextuple,
                pg_sys::Anum_pg_index_indpred,
            );
            (*(*self.as_ptr()).rd_rel).relam == pg_sys::BTREE_AM_OID
                && index.indisvalid
                && !has_predicate
                && index.indnkeyatts == index.indnatts
                && index
                    .indkey
                    .values
                    .as_slice(index.indnatts as usize)
                    .iter()
                    .copied()
                    .eq(columns.iter().map(|column| column.abs()))
        };
        candidate
            && (columns.iter().enumerate()).all(|(at, column)| self.is_in_order(at, *column < 0))
    }

    /// Does this btree have its key column, counted from 0, in the order that we read it in?
    fn is_in_order(&self, at: usize, descending: bool) -> bool {
        // SAFETY: an open btree has an entry for each key column in these arrays.
        let (option, collation, family) = unsafe {
            let index = &*self.as_ptr();
            (
                *index.rd_indoption.add(at),
                *index.rd_indcollation.add(at),
                *index.rd_opfamily.add(at),
            )
        };
        // Numbers have no collation.
        let in_bytes = collation == pg_sys::C_COLLATION_OID && family == pg_sys::TEXT_BTREE_FAM_OID;
        (option as u32 & pg_sys::INDOPTION_DESC != 0) == descending
            && (collation == pg_sys::InvalidOid || in_bytes)
    }

    /// May the running transaction use this index? One that was built over row versions that an
    /// older snapshot sees otherwise has to wait until there is none: as `get_relation_info()` of
    /// the planner has it.
    pub fn is_usable_now(&self) -> bool {
        // SAFETY: an open index has its pg_index row and tuple; reads a variable of the backend.
        unsafe {
            !(*(*self.as_ptr()).rd_index).indcheckxmin || {
                let made_by = ports::heap_tuple_xmin((*(*self.as_ptr()).rd_indextuple).t_data);
                pg_sys::TransactionIdPrecedes(made_by, pg_sys::TransactionXmin)
            }
        }
    }

    /// The relation cache's entry.
    pub fn as_ptr(&self) -> pg_sys::Relation {
        self.ptr.as_ptr()
    }

    /// Its OID.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: the entry is pinned as long as `self` lives.
        unsafe { (*self.as_ptr()).rd_id }
    }

    /// Its name, without the schema.
    pub fn name(&self) -> Vec<u8> {
        // SAFETY: as above; rd_rel is never NULL, and a name ends with a zero.
        let name =
            unsafe { core::ffi::CStr::from_ptr((*(*self.as_ptr()).rd_rel).relname.data.as_ptr()) };
        name.to_bytes().to_vec()
    }

    /// The number of columns, dropped ones too.
    pub fn columns(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.tuple_desc()).natts as usize }
    }

    /// The columns.
    pub fn tuple_desc(&self) -> pg_sys::TupleDesc {
        // SAFETY: the entry is pinned as long as `self` lives.
        unsafe { (*self.as_ptr()).rd_att }
    }

    /// Size in blocks.
    pub fn blocks(&self) -> u32 {
        // SAFETY: open, and all our relations have storage.
        unsafe { ports::relation_blocks(self.as_ptr()) }
    }

    /// The number of live rows as VACUUM or ANALYZE last found it. None: they never came.
    pub fn live_rows(&self) -> Option<f32> {
        // SAFETY: as above; rd_rel is never NULL.
        let rows = unsafe { (*(*self.as_ptr()).rd_rel).reltuples };
        (rows >= 0.0).then_some(rows)
    }

    /// The oldest xid that the table may hold unfrozen.
    pub fn frozen_xid(&self) -> pg_sys::TransactionId {
        // SAFETY: as above; rd_rel is never NULL.
        unsafe { (*(*self.as_ptr()).rd_rel).relfrozenxid }
    }
}

/// # Safety
/// The list is one of OIDs, or NULL.
unsafe fn oids_of(list: *const pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe {
        let length = (*list).length as usize;
        (0..length)
            .map(|at| (*(*list).elements.add(at)).oid_value)
            .collect()
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The resource owner closes what an error leaves open.
            return;
        }
        // SAFETY: opened by us, closed once.
        unsafe { pg_sys::relation_close(self.as_ptr(), self.unlock) }
    }
}
