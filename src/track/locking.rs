//! Locking a table and its partitions against others, for a short while and in several attempts.
//!
//! Whoever waits for such a lock has everybody else queue behind it. So an attempt is given up after half a
//! second, all of it, and those who queue go first before the next one.

use crate::pg::error::{raise, report};
use crate::pg::guc_scope::GucScope;
use crate::pg::ports;
use crate::pg::relation::{ACCESS_EXCLUSIVE, LockMode, Relation};
use crate::pg::subtransaction;
use crate::track::tables::{self, Catalogs};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::collections::HashSet;
use std::ffi::CString;
use std::time::{Duration, Instant};

/// How long an attempt takes at most, in which others queue.
const ATTEMPT: Duration = Duration::from_millis(500);
/// The pauses between attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Locks a table, shown by this name, and its partitions, to the end of the transaction. Nobody in this
/// transaction has it open: two who lock what both read would be deadlocked.
///
/// # Errors
/// Raises 55P03 when others keep it for too long, and names them; 42P01 when it is dropped.
pub fn lock_with_partitions(table: pg_sys::Oid, name: &str, mode: LockMode) {
    let mut pauses = PAUSES.iter();
    loop {
        let locked =
            subtransaction::unless_it_raises(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, || {
                lock_all(table, mode, Instant::now() + ATTEMPT)
            });
        match locked {
            Some(true) => return,
            Some(false) => raise(
                report(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                    "the table was dropped meanwhile",
                )
                .set_hint("Name a table."),
            ),
            None => {}
        }
        let Some(&pause) = pauses.next() else {
            raise_in_use(table, name, mode)
        };
        ports::pause(pause);
        pgrx::check_for_interrupts!();
    }
}

/// False: there is no such table.
///
/// # Errors
/// Raises 55P03 when the time is over.
fn lock_all(table: pg_sys::Oid, mode: LockMode, until: Instant) -> bool {
    if !lock_one(table, mode, until) {
        return false;
    }
    // Nobody makes partitions, attaches or detaches them now, except concurrently: such a one counts on. To a
    // partition that was not locked yet, one may have been attached.
    let mut locked = HashSet::new();
    loop {
        let below = tables::below(&Catalogs::enter(), table);
        let before = locked.len();
        for partition in below {
            if locked.insert(partition) {
                lock_one(partition, mode, until);
            }
        }
        if locked.len() == before {
            return true;
        }
    }
}

fn lock_one(oid: pg_sys::Oid, mode: LockMode, until: Instant) -> bool {
    if Relation::open_if_free(oid, mode).is_some() {
        return true;
    }
    // No time is no limit.
    let left = until.saturating_duration_since(Instant::now()).as_millis();
    let left = CString::new(format!("{}ms", left.max(1))).unwrap_or_default();
    // The server asks an autovacuum to make room only when it looks for deadlocks.
    let _patience = GucScope::enter(&[
        (c"lock_timeout", left.as_c_str()),
        (c"deadlock_timeout", c"100ms"),
    ]);
    Relation::open_until_commit(oid, mode).is_some()
}

fn raise_in_use(table: pg_sys::Oid, name: &str, mode: LockMode) -> ! {
    let holders = tables::holders(&Catalogs::enter(), table, mode);
    let against = if mode == ACCESS_EXCLUSIVE {
        "readers and writers"
    } else {
        "writers"
    };
    raise(
        report(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!(
                "could not lock table {name} against {against} in {} attempts of {} ms",
                PAUSES.len() + 1,
                ATTEMPT.as_millis(),
            ),
        )
        .set_detail(match holders {
            Some(holders) => format!("It is in use by {holders}."),
            None => "Whoever had it in use has gone now.".to_owned(),
        })
        .set_hint("Nothing was changed. Try again, or end those transactions first."),
    )
}
