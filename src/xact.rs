//! The running transaction's increments, and the moments of its life at which they move.
//!
//! One callback for transactions and one for subtransactions, registered for good in `_PG_init`.
//! (Callbacks registered per transaction through the bindings survive PREPARE TRANSACTION and
//! fire in the backend's next one.)
//!
//! COMMIT and ABORT events reset the map and nothing else: an error there takes the server down,
//! so nothing in them allocates or can fail. All that can fail happens when an increment is
//! called, or at PRE_COMMIT and PRE_PREPARE.

use crate::catalog;
use crate::flush;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::settings;
use crate::worker;
use counterx_core::lane::NameHash;
use counterx_core::pending::{Overflow, PendingMap, TOP_LEVEL};
use counterx_core::tally::Tally;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::{Cell, RefCell};

thread_local! {
    static PENDING: RefCell<PendingMap> = RefCell::new(PendingMap::default());
    /// Rows were written before the end: the transaction holds its epochs until it ends.
    static FLUSHED_EARLY: Cell<bool> = const { Cell::new(false) };
    static PHASE: Cell<Phase> = const { Cell::new(Phase::Running) };
    static BY_VALUE: RefCell<Vec<ByValue>> = const { RefCell::new(Vec::new()) };
}

/// A counter that was changed by what its latest value was. A snapshot that was taken before does
/// not go with such a change: see `read.rs`.
struct ByValue {
    level: u32,
    /// Snapshots of later commands were taken after the change.
    command: pg_sys::CommandId,
    name: Box<[u8]>,
}

/// Where the transaction stands. Callbacks of other extensions run after ours and may change
/// counters still: such increments are written at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Committing,
    Preparing,
}

/// Registers the callbacks. Called once, from `_PG_init`.
pub fn register_callbacks() {
    // SAFETY: both functions are valid for the life of the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_xact_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subxact_event), std::ptr::null_mut());
    }
}

/// Adds to a counter on behalf of the running (sub)transaction.
///
/// # Errors
/// Raises 22003 when the transaction's sum for this counter would leave the range of a bigint.
pub fn add(name: &[u8], delta: i64) {
    let hash = NameHash::of(name);
    change(name, |level, pending| pending.add(level, hash, name, delta));
}

/// Drops a counter on behalf of the running (sub)transaction; `written` is all there is of it but
/// for what is pending here.
///
/// # Errors
/// Raises 22003 when the value is out of range for a bigint.
pub fn drop_counter(name: &[u8], written: Tally) {
    let hash = NameHash::of(name);
    change(name, |level, pending| {
        pending.drop_counter(level, hash, name, written)
    });
}

/// Notes that the running (sub)transaction changes a counter by what its latest value is.
pub fn note_change_by_value(name: &[u8]) {
    let noted = ByValue {
        level: ports::xact_nest_level(),
        // SAFETY: marks the command as one that writes, so that the next one has another number.
        command: unsafe { pg_sys::GetCurrentCommandId(true) },
        name: name.into(),
    };
    BY_VALUE.with_borrow_mut(|all| all.push(noted));
}

/// The counters that were changed by their value since a snapshot of this command was taken, each
/// once, ascending.
pub fn changed_by_value_since(command: pg_sys::CommandId) -> Vec<Box<[u8]>> {
    BY_VALUE.with_borrow(|all| {
        let since = all.iter().filter(|change| change.command >= command);
        let mut names: Vec<Box<[u8]>> = since.map(|change| change.name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    })
}

/// Is this counter one of them?
pub fn was_changed_by_value_since(name: &[u8], command: pg_sys::CommandId) -> bool {
    BY_VALUE.with_borrow(|all| {
        let mut since = all.iter().filter(|change| change.command >= command);
        since.any(|change| *change.name == *name)
    })
}

fn change(name: &[u8], how: impl FnOnce(u32, &mut PendingMap) -> Result<(), Overflow>) {
    let level = ports::xact_nest_level();
    let full = PENDING.with_borrow_mut(|pending| {
        how(level, pending).map(|()| pending.bytes() > settings::pending_work_mem())
    });
    match full {
        Ok(false) if PHASE.get() == Phase::Running => {}
        Ok(_) => flush_early(level),
        Err(Overflow) => raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "the increments of counter {} in this transaction are out of range for type bigint",
                    crate::pg::error::quoted(name)
                ),
            )
            .set_hint("Commit, and go on in a new transaction: a counter's value itself has no such limit."),
        ),
    }
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
    FLUSHED_EARLY.get()
}

/// Writes what is pending. The map is only borrowed for reading meanwhile: should the session be
/// terminated in mid-flush, no unwinding takes place, and [`after_end`] finds it borrowed.
fn flush(level: u32) {
    if PENDING.with_borrow(PendingMap::is_empty) {
        return;
    }
    PENDING.with_borrow(|pending| match PHASE.get() {
        Phase::Preparing => flush::to_late(pending),
        Phase::Running | Phase::Committing => flush::to_logs(pending),
    });
    PENDING.with_borrow_mut(|pending| pending.clear_written(level));
    worker::request();
}

fn flush_early(level: u32) {
    if PHASE.get() == Phase::Running {
        FLUSHED_EARLY.set(true);
    }
    flush(level);
}

fn before_prepare() {
    if FLUSHED_EARLY.get() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has changed more counters than counterx.pending_work_mem holds",
            )
            .set_hint("Raise counterx.pending_work_mem in this session, or change fewer counters in one transaction."),
        );
    }
    PHASE.set(Phase::Preparing);
    flush(TOP_LEVEL);
}

/// Neither allocates nor fails.
fn after_end() {
    PENDING.with(|pending| {
        // Borrowed only when the session ends in mid-flush; then nobody will look again.
        if let Ok(mut pending) = pending.try_borrow_mut() {
            pending.reset();
        }
    });
    BY_VALUE.with(|all| {
        if let Ok(mut all) = all.try_borrow_mut() {
            all.clear();
        }
    });
    FLUSHED_EARLY.set(false);
    PHASE.set(Phase::Running);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_xact_event(
    event: pg_sys::XactEvent::Type,
    _arg: *mut core::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => {
            PHASE.set(Phase::Committing);
            flush(TOP_LEVEL);
        }
        XACT_EVENT_PRE_PREPARE => before_prepare(),
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE => after_end(),
        // A parallel worker has no increments of its own: they are refused.
        XACT_EVENT_PARALLEL_PRE_COMMIT | XACT_EVENT_PARALLEL_COMMIT | XACT_EVENT_PARALLEL_ABORT => {
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subxact_event(
    event: pg_sys::SubXactEvent::Type,
    _subid: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut core::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        SUBXACT_EVENT_COMMIT_SUB => {
            let level = ports::xact_nest_level();
            PENDING.with_borrow_mut(|pending| pending.release_subxact(level));
            BY_VALUE.with_borrow_mut(|all| {
                let inside = all
                    .iter_mut()
                    .rev()
                    .take_while(|change| change.level >= level);
                inside.for_each(|change| change.level = level - 1);
            });
        }
        SUBXACT_EVENT_ABORT_SUB => {
            PENDING.with(|pending| {
                // As in after_end().
                if let Ok(mut pending) = pending.try_borrow_mut() {
                    pending.abort_subxact(ports::xact_nest_level());
                }
            });
            BY_VALUE.with(|all| {
                if let Ok(mut all) = all.try_borrow_mut() {
                    let level = ports::xact_nest_level();
                    while all.last().is_some_and(|change| change.level >= level) {
                        all.pop();
                    }
                }
            });
        }
        _ => {}
    }
}

/// Refuses what must not change counters now.
///
/// # Errors
/// Raises 25006 in a read-only transaction and on a standby, 25000 in a parallel operation, and
/// an error when the extension cannot be used.
pub fn check_may_write(function: &'static core::ffi::CStr) {
    if ports::xact_read_only() {
        // SAFETY: both raise an error, or return.
        unsafe {
            pg_sys::PreventCommandDuringRecovery(function.as_ptr());
            pg_sys::PreventCommandIfReadOnly(function.as_ptr());
        }
    }
    if ports::in_parallel_mode() {
        // SAFETY: as above.
        unsafe { pg_sys::PreventCommandIfParallelMode(function.as_ptr()) };
    }
    if !catalog::is_known() {
        catalog::shared();
    }
}
