//! The running transaction's increments that are not written yet.

use counterx_core::lane::NameHash;
use counterx_core::pending::PendingMap;
use counterx_core::tally::Tally;
use std::cell::{Cell, RefCell};

thread_local! {
    /// The increments.
    pub static PENDING: RefCell<PendingMap> = RefCell::new(PendingMap::default());
    /// Rows were written before the end: the transaction holds its epochs until it ends.
    /// Where: the level of the outermost (sub)transaction that has done so; 0: none.
    pub static FLUSHED_EARLY_AT: Cell<u32> = const { Cell::new(0) };
    /// See [`Phase`].
    pub static PHASE: Cell<Phase> = const { Cell::new(Phase::Running) };
}

/// Where the transaction stands. Callbacks of other extensions run after ours and may change
/// counters still: such increments are written at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Increments wait for its end.
    Running,
    /// They are written to the logs.
    Committing,
    /// They are late: PREPARE TRANSACTION.
    Preparing,
}

/// What the running transaction has changed of a counter and not written yet.
pub fn pending_tally(hash: NameHash, name: &[u8]) -> Option<Tally> {
    PENDING.with_borrow(|pending| pending.get(hash, name))
}

/// Calls `visit` with each counter that the running transaction has changed and not written yet.
pub fn for_each_pending(mut visit: impl FnMut(&[u8], Tally)) {
    PENDING.with_borrow(|pending| {
        for row in pending.rows() {
            visit(row.name, row.tally());
        }
    });
}

/// Has the running transaction written rows already, and so holds its epochs?
pub fn has_flushed_early() -> bool {
    FLUSHED_EARLY_AT.get() != 0
}
