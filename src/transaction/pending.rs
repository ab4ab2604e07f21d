//! The running transaction's increments that are not written yet.
//!
//! There are two maps of them: of calls, and of rows of tracked tables. A counter may be in both, when its
//! type came to be tracked meanwhile: its calls are refused then, its rows are not.

use counterx_core::lane::NameHash;
use counterx_core::pending::{PendingMap, Refused};
use counterx_core::room::NoMemory;
use counterx_core::tally::Tally;
use std::cell::{Cell, RefCell};
use std::thread::LocalKey;

thread_local! {
    /// Of calls.
    static CALLS: RefCell<PendingMap> = RefCell::default();
    /// Of rows.
    static ROWS: RefCell<PendingMap> = RefCell::default();
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

/// Whose changes a map has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Calls of functions.
    Calls,
    /// Rows of tracked tables.
    Rows,
}

impl Source {
    fn map(self) -> &'static LocalKey<RefCell<PendingMap>> {
        match self {
            Self::Calls => &CALLS,
            Self::Rows => &ROWS,
        }
    }
}

const BOTH: [Source; 2] = [Source::Calls, Source::Rows];

/// Changes one of the maps.
///
/// # Errors
/// Those of the change.
pub fn change(
    source: Source,
    how: impl FnOnce(&mut PendingMap) -> Result<(), Refused>,
) -> Result<(), Refused> {
    source.map().with_borrow_mut(how)
}

/// The memory that writing frees, in bytes, nearly.
pub fn bytes() -> usize {
    BOTH.into_iter()
        .map(|source| source.map().with_borrow(PendingMap::bytes))
        .sum()
}

/// Is nothing pending?
pub fn is_empty() -> bool {
    BOTH.into_iter()
        .all(|source| source.map().with_borrow(PendingMap::is_empty))
}

/// Calls `write` with both maps, of calls and of rows. They are only borrowed for reading meanwhile: should
/// the session be terminated in the midst of that, no unwinding takes place, and [`after_end`] finds them
/// borrowed.
pub fn write(write: impl FnOnce(&PendingMap, &PendingMap)) {
    CALLS.with_borrow(|calls| ROWS.with_borrow(|rows| write(calls, rows)));
}

/// All was written on behalf of the subtransaction at `level`.
///
/// # Errors
/// [`NoMemory`].
pub fn clear_written(level: u32) -> Result<(), NoMemory> {
    BOTH.into_iter()
        .try_for_each(|source| source.map().with_borrow_mut(|map| map.clear_written(level)))
}

/// The subtransaction at `level` was released.
pub fn release_subxact(level: u32) {
    for source in BOTH {
        source
            .map()
            .with_borrow_mut(|map| map.release_subxact(level));
    }
}

/// The subtransaction at `level` was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    for source in BOTH {
        // Borrowed only when the session ends in mid-flush; then nobody will look again.
        source.map().with(|map| {
            if let Ok(mut map) = map.try_borrow_mut() {
                map.abort_subxact(level);
            }
        });
    }
}

/// The transaction has ended. Neither allocates nor fails.
pub fn after_end() {
    for source in BOTH {
        // As in abort_subxact().
        source.map().with(|map| {
            if let Ok(mut map) = map.try_borrow_mut() {
                map.reset();
            }
        });
    }
    FLUSHED_EARLY_AT.set(0);
    PHASE.set(Phase::Running);
}

/// What the running transaction has changed of a counter and not written yet.
pub fn pending_tally(hash: NameHash, name: &[u8]) -> Option<Tally> {
    let [calls, rows] =
        BOTH.map(|source| source.map().with_borrow(|pending| pending.get(hash, name)));
    match (calls, rows) {
        (Some(calls), Some(rows)) => Some(calls + rows),
        (calls, rows) => calls.or(rows),
    }
}

/// Calls `visit` with each counter that the running transaction has changed and not written yet; twice with
/// one of which there are calls and rows.
pub fn for_each_pending(mut visit: impl FnMut(&[u8], Tally)) {
    for source in BOTH {
        source.map().with_borrow(|pending| {
            for row in pending.rows() {
                visit(row.name, row.tally());
            }
        });
    }
}

/// Has the running transaction written rows already, and so holds its epochs?
pub fn has_flushed_early() -> bool {
    FLUSHED_EARLY_AT.get() != 0
}
