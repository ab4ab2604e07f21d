//! Snapshots.

use super::ports;
use pgrx::pg_sys;

/// The snapshot of the running query.
///
/// None when none is set, as in a callback at the end of a transaction.
pub fn active() -> Option<pg_sys::Snapshot> {
    // SAFETY: reads the stack of active snapshots.
    unsafe { pg_sys::ActiveSnapshotSet().then(|| pg_sys::GetActiveSnapshot()) }
}

/// The running query's snapshot, or a new one where there is none.
pub enum CurrentSnapshot {
    /// That of the query.
    Active(pg_sys::Snapshot),
    /// One of our own.
    Latest(LatestSnapshot),
}

/// See [`CurrentSnapshot`].
pub fn active_or_latest() -> CurrentSnapshot {
    active().map_or_else(
        || CurrentSnapshot::Latest(LatestSnapshot::take()),
        CurrentSnapshot::Active,
    )
}

impl CurrentSnapshot {
    /// For scans, as long as this lives.
    pub fn as_ptr(&self) -> pg_sys::Snapshot {
        match self {
            Self::Active(snapshot) => *snapshot,
            Self::Latest(latest) => latest.as_ptr(),
        }
    }
}

/// The running query's snapshot, or that which a query would get now.
pub fn active_or_transactions() -> CurrentSnapshot {
    active().map_or_else(
        || CurrentSnapshot::Latest(LatestSnapshot::of_transaction()),
        CurrentSnapshot::Active,
    )
}

/// A new snapshot that is the active one as long as this lives.
pub struct LatestSnapshot(pg_sys::Snapshot);

impl LatestSnapshot {
    /// Takes it now. A transaction that is bound to one snapshot sees others' later work by it.
    ///
    /// In the leader of a parallel plan the server takes no such snapshot, as its workers could not have
    /// it. What we read there, workers never read. So it is taken as those are that catalogs are read
    /// with, parallel or not: for a relation that is no catalog, that is a new one each time.
    pub fn take() -> Self {
        // SAFETY: we are in a transaction; the active stack holds a copy until the drop.
        unsafe {
            pg_sys::PushActiveSnapshot(if ports::in_parallel_mode() {
                pg_sys::GetCatalogSnapshot(pg_sys::InvalidOid)
            } else {
                pg_sys::GetLatestSnapshot()
            });
            Self(pg_sys::GetActiveSnapshot())
        }
    }

    /// That which a query would get now: the transaction's own where it is bound to one, also in callbacks
    /// at its end, where none is active any more.
    pub fn of_transaction() -> Self {
        // SAFETY: as above. What the transaction has taken is kept until after the callbacks.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            Self(pg_sys::GetActiveSnapshot())
        }
    }

    /// For scans.
    pub fn as_ptr(&self) -> pg_sys::Snapshot {
        self.0
    }
}

impl Drop for LatestSnapshot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: pushed by us, and whatever was pushed later is popped already.
        unsafe { pg_sys::PopActiveSnapshot() }
    }
}

/// A copy of a snapshot in which the own transaction's rows count from their insertion on, and
/// not only from the next command on.
///
/// Increments that stay in memory are seen at once by their own transaction; those that were
/// flushed early must not differ. Sound for tables that are insert-only for others: the copy
/// changes nothing but the command id.
pub struct OwnRowsVisible(Box<pg_sys::SnapshotData>);

impl OwnRowsVisible {
    /// # Safety
    /// `of` is an MVCC snapshot, registered or active, and stays so longer than the copy.
    pub unsafe fn copy(of: pg_sys::Snapshot) -> Self {
        // SAFETY: the caller's promise; the arrays stay shared with the original.
        let mut copy = Box::new(unsafe { *of });
        copy.curcid = pg_sys::InvalidCommandId;
        Self(copy)
    }

    /// A copy that changes nothing.
    ///
    /// # Safety
    /// As of [`Self::copy`].
    pub unsafe fn same(of: pg_sys::Snapshot) -> Self {
        // SAFETY: the caller's promise; the arrays stay shared with the original.
        Self(Box::new(unsafe { *of }))
    }

    /// A copy in which the own transaction's rows do not count at all.
    ///
    /// # Safety
    /// As of [`Self::copy`].
    pub unsafe fn hidden(of: pg_sys::Snapshot) -> Self {
        // SAFETY: the caller's promise.
        let mut copy = unsafe { Self::copy(of) };
        copy.0.curcid = pg_sys::FirstCommandId;
        copy
    }

    /// For scans of ours that a serializable transaction leaves no trace with: they lock no pages or
    /// rows against later writers, and do not notice earlier ones.
    pub fn quiet(mut self) -> Self {
        self.0.speculativeToken = QUIET;
        self
    }

    /// For scans.
    pub fn as_ptr(&mut self) -> pg_sys::Snapshot {
        &mut *self.0
    }
}

/// A mark of copies, in a field that the server has for snapshots of another kind alone.
const QUIET: u32 = 0x7175_6965;

/// Is this a copy made by [`OwnRowsVisible::quiet`]? Scans look at all row versions then, which the
/// server takes no notice of, and ask of each whether the snapshot sees it.
///
/// # Safety
/// The snapshot is a static one, active or registered, or one of our copies.
pub unsafe fn is_quiet(snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the caller's promise.
    let snapshot = unsafe { &*snapshot };
    snapshot.speculativeToken == QUIET
        && snapshot.snapshot_type == pg_sys::SnapshotType::SNAPSHOT_MVCC
}

/// Committed rows and the own transaction's, by the latest state: for rows that only the holder
/// of a lane's lease changes.
pub fn self_snapshot() -> pg_sys::Snapshot {
    &raw mut pg_sys::SnapshotSelfData
}

/// Every row version there is.
pub fn any_snapshot() -> pg_sys::Snapshot {
    &raw mut pg_sys::SnapshotAnyData
}

/// Shows rows of transactions that are under way, and says whose they are: `SnapshotDirty`.
pub struct DirtySnapshot(Box<pg_sys::SnapshotData>);

impl DirtySnapshot {
    /// Makes one.
    pub fn new() -> Self {
        Self(Box::new(pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..Default::default()
        }))
    }

    /// For scans.
    pub fn as_ptr(&mut self) -> pg_sys::Snapshot {
        &mut *self.0
    }

    /// The transaction, not this one and not over, that has inserted or deletes the row that a scan
    /// stands on.
    pub fn in_progress(&self) -> Option<pg_sys::TransactionId> {
        [self.0.xmin, self.0.xmax]
            .into_iter()
            .find(|&xid| xid != pg_sys::InvalidTransactionId)
    }
}
