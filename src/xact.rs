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
use crate::compaction;
use crate::escrow::{self, Shortage};
use crate::flush;
use crate::notes;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::pg::room;
use crate::restored;
use crate::settings;
use crate::types;
use crate::worker;
use counterx_core::escrow::{Bounds, End};
use counterx_core::lane::NameHash;
use counterx_core::pending::{PendingMap, Refused, TOP_LEVEL};
use counterx_core::tally::Tally;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::{Cell, RefCell};

thread_local! {
    static PENDING: RefCell<PendingMap> = RefCell::new(PendingMap::default());
    /// Rows were written before the end: the transaction holds its epochs until it ends.
    /// Where: the level of the outermost (sub)transaction that has done so; 0: none.
    static FLUSHED_EARLY_AT: Cell<u32> = const { Cell::new(0) };
    static PHASE: Cell<Phase> = const { Cell::new(Phase::Running) };
    /// There is something to fold that was not flushed.
    static WAKE: Cell<bool> = const { Cell::new(false) };
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
/// Raises 22003 when the transaction's sum for this counter would leave the range of a bigint, 53200 when
/// there is no memory for one more.
pub fn add(name: &[u8], delta: i64) {
    if let Some(limits) = types::limits_of(name)
        && let Err(shortage) = escrow::request(name, delta, limits)
    {
        raise_shortage(name, delta.into(), limits.bounds, &shortage)
    }
    add_reserved(name, delta);
}

/// Adds to a counter, if its bounds allow it.
///
/// # Errors
/// [`Shortage`] when they do not; else as of [`add`].
pub fn try_add(name: &[u8], delta: i64) -> Result<(), Shortage> {
    if let Some(limits) = types::limits_of(name) {
        escrow::request(name, delta, limits)?;
    }
    add_reserved(name, delta);
    Ok(())
}

/// Adds to a counter what its bounds are known to allow.
///
/// # Errors
/// As of [`add`], but for the bounds.
pub fn add_reserved(name: &[u8], delta: i64) {
    let hash = NameHash::of(name);
    change(name, |level, pending| pending.add(level, hash, name, delta));
}

/// Refuses a change that could break a bound.
///
/// # Errors
/// Raises 23514.
pub fn raise_shortage(name: &[u8], delta: i128, bounds: Bounds, shortage: &Shortage) -> ! {
    let name = crate::pg::error::quoted(name);
    let (message, hint) = match bounds {
        Bounds { min: Some(min), .. } if delta < 0 => (
            format!("counter {name} must not go below {min}"),
            "counter_try_incr() answers false instead, and counter_take_up_to() takes what there is.",
        ),
        Bounds { max, .. } => (
            format!(
                "counter {name} must not go above {}",
                max.unwrap_or(i64::MAX)
            ),
            "counter_try_incr() answers false instead.",
        ),
    };
    let mut detail = match shortage.available {
        Some(available) if delta < 0 => format!(
            "Asked for {}, available are {available}.",
            delta.unsigned_abs()
        ),
        _ => format!("Its value is {}, the change {delta}.", shortage.value),
    };
    // Nobody is blamed who is not in the way.
    detail += match (delta < 0, shortage.others, shortage.held) {
        (true, true, true) => {
            " What other transactions have reserved, and what is on hold, is not available."
        }
        (true, true, false) => " What other transactions have reserved is not available.",
        (true, false, true) => " What is on hold is not available.",
        (false, true, _) => " What other transactions are about to add counts as well.",
        _ => "",
    };
    raise(
        report(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION, message)
            .set_detail(detail)
            .set_hint(hint),
    )
}

/// Drops a counter on behalf of the running (sub)transaction; `written` is all there is of it but
/// for what is pending here.
///
/// # Errors
/// Raises 22003 when the value is out of range for a bigint.
pub fn drop_counter(name: &[u8], written: Tally) {
    let hash = NameHash::of(name);
    // What is pending here goes with it.
    if let Some(limits) = types::limits_of(name) {
        let changes = [pending_tally(hash, name).unwrap_or_default(), written];
        let [Ok(pending), Ok(rest)] = changes.map(|tally| i64::try_from(-tally.value)) else {
            raise_out_of_range(name)
        };
        let delta = i128::from(pending) + i128::from(rest);
        let deltas = i64::try_from(delta).map_or([pending, rest], |delta| [delta, 0]);
        if let Err(shortage) = escrow::request_both(name, deltas, limits) {
            raise_shortage(name, delta, limits.bounds, &shortage)
        }
    }
    drop_unchecked(name, written);
}

/// The same without a look at its bounds: for who has made sure that nobody goes by what it was.
///
/// # Errors
/// As of [`drop_counter`], but for the bounds.
pub fn drop_unchecked(name: &[u8], written: Tally) {
    let hash = NameHash::of(name);
    change(name, |level, pending| {
        pending.drop_counter(level, hash, name, written)
    });
}

fn change(name: &[u8], how: impl FnOnce(u32, &mut PendingMap) -> Result<(), Refused>) {
    let level = ports::xact_nest_level();
    let full = PENDING.with_borrow_mut(|pending| {
        how(level, pending).map(|()| pending.bytes() > settings::pending_work_mem())
    });
    match full {
        Ok(false) if PHASE.get() == Phase::Running => {}
        Ok(_) => flush_early(level),
        Err(Refused::NoMemory) => room::raise_no_memory(),
        Err(Refused::Overflow) => raise_out_of_range(name),
    }
}

fn raise_out_of_range(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!(
                "the increments of counter {} in this transaction are out of range for type bigint",
                crate::pg::error::quoted(name)
            ),
        )
        .set_hint(
            "Commit, and go on in a new transaction: a counter's value itself has no such limit.",
        ),
    )
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
    let cleared = PENDING.with_borrow_mut(|pending| pending.clear_written(level));
    room::granted(cleared);
    worker::request();
}

/// The running transaction leaves something to fold that is not in its memory: rows that a restore has
/// brought.
pub fn wake_worker_at_commit() {
    WAKE.set(true);
}

/// Does the running transaction leave such rows?
pub fn wakes_worker_at_commit() -> bool {
    WAKE.get()
}

fn wake_worker() {
    if WAKE.take() {
        worker::request();
    }
}

/// Writes what is pending now: for who has to write more of a counter than one delta can hold.
pub fn write_early() {
    flush_early(ports::xact_nest_level());
}

fn flush_early(level: u32) {
    if PHASE.get() == Phase::Running {
        types::announce_early_writing();
        let known = FLUSHED_EARLY_AT.get();
        FLUSHED_EARLY_AT.set(if known == 0 { level } else { known.min(level) });
    }
    flush(level);
}

fn before_prepare() {
    if escrow::has_reservations() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has changed bounded counters",
            )
            .set_hint("Change them in a transaction that is not prepared, or hold an amount with counter_hold() before and confirm it after."),
        );
    }
    if has_flushed_early() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has changed more counters than counterx.pending_work_mem holds",
            )
            .set_hint("Raise counterx.pending_work_mem in this session, or change fewer counters in one transaction."),
        );
    }
    if compaction::has_folded() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has called counterx.compact()",
            )
            .set_detail(
                "No lane could be folded by anybody else until it is committed or rolled back.",
            )
            .set_hint("Call counterx.compact() in a transaction of its own."),
        );
    }
    escrow::note_reads();
    PHASE.set(Phase::Preparing);
    flush(TOP_LEVEL);
    wake_worker();
}

/// Neither allocates nor fails.
fn after_end(end: End) {
    escrow::after_end(end);
    types::after_end();
    notes::after_end();
    restored::after_end();
    compaction::after_end();
    WAKE.set(false);
    PENDING.with(|pending| {
        // Borrowed only when the session ends in mid-flush; then nobody will look again.
        if let Ok(mut pending) = pending.try_borrow_mut() {
            pending.reset();
        }
    });
    FLUSHED_EARLY_AT.set(0);
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
            escrow::note_reads();
            PHASE.set(Phase::Committing);
            flush(TOP_LEVEL);
            wake_worker();
            compaction::before_commit();
            failpoint!("commit.flushed");
        }
        XACT_EVENT_PRE_PREPARE => {
            before_prepare();
            failpoint!("prepare.late_written");
        }
        XACT_EVENT_COMMIT => {
            crashpoint!("commit.done");
            after_end(End::Committed);
        }
        XACT_EVENT_PREPARE => {
            crashpoint!("prepare.done");
            after_end(End::Committed);
        }
        XACT_EVENT_ABORT => after_end(End::Aborted),
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
            notes::release_subxact(level);
            restored::release_subxact(level);
            compaction::release_subxact(level);
            if FLUSHED_EARLY_AT.get() >= level {
                FLUSHED_EARLY_AT.set(level - 1);
            }
            escrow::release_subxact(level);
        }
        SUBXACT_EVENT_ABORT_SUB => {
            notes::abort_subxact(ports::xact_nest_level());
            restored::abort_subxact(ports::xact_nest_level());
            compaction::abort_subxact(ports::xact_nest_level());
            // What was written is gone with it, and so are the gates' locks.
            if FLUSHED_EARLY_AT.get() >= ports::xact_nest_level() {
                FLUSHED_EARLY_AT.set(0);
            }
            escrow::abort_subxact(ports::xact_nest_level());
            PENDING.with(|pending| {
                // As in after_end().
                if let Ok(mut pending) = pending.try_borrow_mut() {
                    pending.abort_subxact(ports::xact_nest_level());
                }
            });
        }
        _ => {}
    }
}

/// Refuses what the server does not allow in a parallel operation.
///
/// # Errors
/// Raises 25000 in one.
pub fn check_not_parallel(function: &'static core::ffi::CStr) {
    if ports::in_parallel_mode() {
        // SAFETY: raises an error.
        unsafe { pg_sys::PreventCommandIfParallelMode(function.as_ptr()) };
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
    check_not_parallel(function);
    if !catalog::is_known() {
        catalog::shared();
    }
}
