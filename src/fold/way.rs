//! Making way for those who need the database alone: a fold may take long, and they do not wait long.

use crate::pg::error::{raise, report};
use crate::pg::lock;
use pgrx::PgSqlErrorCode;
use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    /// Is this process a worker?
    static IN_WORKER: Cell<bool> = const { Cell::new(false) };
    /// How often [`make_way`] was called.
    static STEPS: Cell<u32> = const { Cell::new(0) };
    /// When it looks again.
    static NEXT_GLANCE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// It has ended a fold.
    static MADE_WAY: Cell<bool> = const { Cell::new(false) };
}

/// This process is a worker from now on.
pub fn enter_worker() {
    IN_WORKER.set(true);
}

/// Is this process a worker?
pub fn is_worker() -> bool {
    IN_WORKER.get()
}

/// Has [`make_way`] ended a fold?
pub fn has_made_way() -> bool {
    MADE_WAY.get()
}

/// Called at each step of what may take long. Ends it where somebody waits for the worker to leave
/// the database: who drops or renames it waits five seconds only.
///
/// # Errors
/// Raises 57014 in a worker, if its database is wanted.
pub fn make_way() {
    const STEPS_TO_CLOCK: u32 = 16;
    const EVERY: Duration = Duration::from_millis(100);
    if !IN_WORKER.get() {
        return;
    }
    STEPS.set(STEPS.get().wrapping_add(1));
    if !STEPS.get().is_multiple_of(STEPS_TO_CLOCK) {
        return;
    }
    let now = Instant::now();
    if NEXT_GLANCE.get().is_some_and(|next| now < next) {
        return;
    }
    NEXT_GLANCE.set(Some(now + EVERY));
    if lock::database_is_wanted() {
        MADE_WAY.set(true);
        raise(report(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "the database is wanted by somebody who needs it alone",
        ));
    }
}
