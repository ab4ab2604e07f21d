//! When what a transaction has pending is written, and that a worker hears of it.

use crate::bounds::types;
use crate::figures::local::{Figure, count};
use crate::pg::ports;
use crate::pg::room;
use crate::transaction::pending::{self, FLUSHED_EARLY_AT, ONLY_DROPS, PHASE, Phase};
use crate::write::flush;
use crate::write::pressure;
use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    /// There is something to fold that was not flushed.
    static WAKE: Cell<bool> = const { Cell::new(false) };
}

static ASK_FOR_WORKER: OnceLock<fn()> = OnceLock::new();

/// Says how to ask for a worker, which is known to floors above. To be called once, from `_PG_init`.
pub fn register(ask_for_worker: fn()) {
    // A second one would be the same.
    let _ = ASK_FOR_WORKER.set(ask_for_worker);
}

/// Asks for a worker now.
pub fn request_worker() {
    if let Some(ask) = ASK_FOR_WORKER.get() {
        ask();
    }
}

/// There is nothing left to wake a worker for. Neither allocates nor fails.
pub fn after_end() {
    WAKE.set(false);
}

/// Writes what is pending.
pub fn flush(level: u32) {
    if pending::is_empty() {
        return;
    }
    pressure::judge(request_worker);
    pending::write(|changes| match PHASE.get() {
        Phase::Preparing => flush::to_late(changes),
        Phase::Running | Phase::Committing => flush::to_logs(changes),
    });
    room::granted(pending::clear_written(level));
    request_worker();
}

/// The running transaction leaves something for a worker to do that is not in its memory: rows that a restore has
/// brought, a history.
pub fn wake_worker_at_commit() {
    WAKE.set(true);
}

/// Asks for a worker, if there is a reason.
pub fn wake_worker() {
    if WAKE.take() {
        request_worker();
    }
}

/// Writes what is pending now: for who has to write more of a counter than one delta can hold.
pub fn write_early() {
    flush_early(ports::xact_nest_level());
}

/// Writes what is pending now, which drops the counters of a type and does nothing else: it does not keep the transaction
/// from defining types.
pub fn write_drops() {
    let is_first = !pending::has_flushed_changes();
    write_early();
    ONLY_DROPS.set(is_first);
}

/// Writes what is pending before the end.
pub fn flush_early(level: u32) {
    ONLY_DROPS.set(false);
    if PHASE.get() == Phase::Running {
        if !pending::is_empty() {
            pressure::judge(request_worker);
        }
        types::announce_early_writing();
        if !pending::is_empty() {
            count(Figure::EarlyFlushes, 1);
        }
        let known = FLUSHED_EARLY_AT.get();
        FLUSHED_EARLY_AT.set(if known == 0 { level } else { known.min(level) });
    }
    flush(level);
}
