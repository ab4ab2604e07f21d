//! What happens at which moment of a transaction.
//!
//! One callback for transactions and one for subtransactions, registered for good in `_PG_init`.
//! (Callbacks registered per transaction through the bindings survive PREPARE TRANSACTION and
//! fire in the backend's next one.)
//!
//! COMMIT and ABORT events reset the map and nothing else: an error there takes the server down,
//! so nothing in them allocates or can fail. All that can fail happens when an increment is
//! called, or at PRE_COMMIT and PRE_PREPARE.

use crate::bounds::levels;
use crate::bounds::reservations;
use crate::bounds::types;
use crate::figures::local;
use crate::fold::compaction;
use crate::pg::error::{raise, report};
use crate::pg::ports;
use crate::transaction::notes;
use crate::transaction::pending::{self, FLUSHED_EARLY_AT, PHASE, Phase};
use crate::transaction::restored;
use crate::write::pressure;
use crate::write::writing;
use counterx_core::escrow::End;
use counterx_core::pending::TOP_LEVEL;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Registers the callbacks. Called once, from `_PG_init`.
pub fn register() {
    // SAFETY: both functions are valid for the life of the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_xact_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subxact_event), std::ptr::null_mut());
    }
}

fn before_prepare() {
    if reservations::has_reservations() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has changed bounded counters",
            )
            .set_hint("Change them in a transaction that is not prepared, or hold an amount with counter_hold() before and confirm it after."),
        );
    }
    if pending::has_flushed_early() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has changed more counters than counterx.pending_work_mem holds",
            )
            .set_hint("Raise counterx.pending_work_mem in this session, or change fewer counters in one transaction."),
        );
    }
    if pending::purges() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that has purged counters",
            )
            .set_detail("What is counted until it is committed would be before that, or after.")
            .set_hint(
                "Call counter_drop() with purge => true in a transaction that is not prepared.",
            ),
        );
    }
    if compaction::has_folded() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "cannot PREPARE a transaction that keeps lanes from being folded",
            )
            .set_detail(
                "It has called counterx.compact(), or begun a stream with counter_stream_bootstrap(). Nobody else could fold before it is committed or rolled back.",
            )
            .set_hint("Call counterx.compact() and counter_stream_bootstrap() in transactions that are not prepared."),
        );
    }
    levels::note_reads();
    PHASE.set(Phase::Preparing);
    writing::flush(TOP_LEVEL);
    writing::wake_worker();
}

/// Neither allocates nor fails.
fn after_end(end: End) {
    reservations::after_end(end);
    types::after_end();
    notes::after_end();
    restored::after_end();
    compaction::after_end(end == End::Committed);
    writing::after_end();
    pressure::after_end();
    pending::after_end();
    local::after_end(end == End::Committed);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_xact_event(
    event: pg_sys::XactEvent::Type,
    _arg: *mut core::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => {
            levels::note_reads();
            PHASE.set(Phase::Committing);
            writing::flush(TOP_LEVEL);
            writing::wake_worker();
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
            pending::release_subxact(level);
            notes::release_subxact(level);
            restored::release_subxact(level);
            compaction::release_subxact(level);
            local::release_subxact(level);
            if FLUSHED_EARLY_AT.get() >= level {
                FLUSHED_EARLY_AT.set(level - 1);
            }
            reservations::release_subxact(level);
        }
        SUBXACT_EVENT_ABORT_SUB => {
            notes::abort_subxact(ports::xact_nest_level());
            restored::abort_subxact(ports::xact_nest_level());
            compaction::abort_subxact(ports::xact_nest_level());
            local::abort_subxact(ports::xact_nest_level());
            // What was written is gone with it, and so are the gates' locks.
            if FLUSHED_EARLY_AT.get() >= ports::xact_nest_level() {
                FLUSHED_EARLY_AT.set(0);
            }
            reservations::abort_subxact(ports::xact_nest_level());
            pending::abort_subxact(ports::xact_nest_level());
        }
        _ => {}
    }
}
