//! The session of a background process: its settings, its transactions, how it sleeps.

use crate::pg::compat;
use crate::pg::error::{caught, log, sqlstate};
use crate::pg::relation::Relation;
use crate::pg::scan::TableScan;
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::user::ActingAs;
use crate::store::catalog;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, Spi, pg_sys};
use std::cell::Cell;
use std::ffi::CStr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// From here on `pg_cancel_backend()` cancels what runs in [`transaction`], and nothing else: outside
/// of it there is nothing to cancel, and the error would end the process.
pub fn ignore_cancels() {
    // SAFETY: a plain counter of the process.
    unsafe { pg_sys::QueryCancelHoldoffCount = 1 };
}

fn heed_cancels() {
    // SAFETY: plain variables of the process. What was sent before is not meant for what comes.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        pg_sys::QueryCancelHoldoffCount = 0;
    }
}

/// What workers and the launcher wait for between their rounds.
static IDLE: compat::WaitEvent = compat::WaitEvent::new(c"CounterxMain");

/// Sleeps until something happens or the time is over, and does what the server asks for: ends
/// on SIGTERM, reads the configuration again on SIGHUP.
pub fn wait(pause: Duration) {
    let timeout = pause.as_millis().clamp(1, 3_600_000) as core::ffi::c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, timeout, IDLE.number());
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
    // SAFETY: a flag that a signal handler sets.
    unsafe { pg_sys::QueryCancelPending = 0 };
    reload_if_asked();
}

/// Reads the configuration again if the postmaster has said so. Outside of any transaction.
pub fn reload_if_asked() {
    // SAFETY: a flag that a signal handler sets; the caller is in no transaction.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Tries for a second.
pub fn patiently(attempt: impl Fn() -> bool) -> bool {
    for _ in 0..50 {
        if attempt() {
            return true;
        }
        wait(Duration::from_millis(20));
    }
    false
}

/// What the session must have, whatever the configuration says; `own` is for this kind of process alone.
pub fn own_settings(own: &[(&'static CStr, &'static CStr)]) {
    let fixed = [
        (c"statement_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        (c"search_path", c"pg_catalog"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        // An error is to be dealt with, not to end the process.
        (c"exit_on_error", c"off"),
    ];
    let further = compat::FURTHER_TIMEOUTS.iter().map(|&name| (name, c"0"));
    for (name, value) in fixed.into_iter().chain(further).chain(own.iter().copied()) {
        set(name, value);
    }
}

/// Sets a setting for the rest of the session.
pub fn set(name: &CStr, value: &CStr) {
    // SAFETY: strings that end with a zero.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Runs `body` in a transaction of its own, as of [`attempt`], and shows what it does in
/// `pg_stat_activity`. An error comes back as its message.
pub fn transaction<R>(activity: &CStr, body: impl FnOnce() -> R) -> Result<R, String> {
    let shown = || {
        // SAFETY: in a transaction that has just begun.
        unsafe {
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
        }
        body()
    };
    let result = attempt(shown, |error| {
        let report = caught(error);
        format!(
            "{}: {}",
            sqlstate(report.sql_error_code()),
            report.message()
        )
    });
    // SAFETY: outside of any transaction.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

/// Runs `body` in a transaction of its own, READ COMMITTED and writable, as the extension's owner. An
/// error aborts the transaction and comes back as what `failure` makes of it.
///
/// The session's user may be anybody: `ALTER DATABASE ... SET role` makes it so, and the bootstrap
/// superuser need not be a superuser any more. The owner may write to what is the extension's.
pub fn attempt<R, E>(body: impl FnOnce() -> R, failure: fn(&CaughtError) -> E) -> Result<R, E> {
    let as_owner = || {
        let owner = as_owner();
        let result = body();
        drop(owner);
        result
    };
    attempt_anywhere(as_owner, failure)
}

/// The same without a database, and so without an extension.
fn attempt_anywhere<R, E>(
    body: impl FnOnce() -> R,
    failure: fn(&CaughtError) -> E,
) -> Result<R, E> {
    let body = Cell::new(Some(body));
    let run = || {
        heed_cancels();
        // SAFETY: outside of any transaction, in a background worker.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
        }
        let body = body.take().expect("runs once");
        let result = body();
        // SAFETY: ends what was started above.
        unsafe { pg_sys::CommitTransactionCommand() };
        Ok(result)
    };
    let result = PgTryBuilder::new(AssertUnwindSafe(run))
        .catch_others(|error| {
            let failure = failure(&error);
            // SAFETY: an error was raised since the start; this brings the process back to rest.
            unsafe { pg_sys::AbortCurrentTransaction() };
            Err(failure)
        })
        .execute();
    ignore_cancels();
    // SAFETY: outside of any transaction.
    unsafe { pg_sys::pgstat_report_stat(false) };
    result
}

fn as_owner() -> Option<ActingAs> {
    let gate = catalog::try_lane(0).ok()?.gate;
    Relation::open_for_read(gate).map(|gate| ActingAs::owner_of(&gate))
}

/// Was this database dropped? Not while that cannot be found out. For a process that may have none itself.
pub fn is_database_gone(database: u32) -> bool {
    /// pg_database.oid
    const OID: usize = 1;
    let look = || {
        let databases = Relation::open_for_read(pg_sys::DatabaseRelationId)?;
        let snapshot = LatestSnapshot::take();
        // Without an index, as such a process has none of the catalogs' at hand.
        // SAFETY: the snapshot lives longer.
        let mut scan = unsafe { TableScan::new(&databases, snapshot.as_ptr()) };
        let mut rows = std::iter::from_fn(|| scan.next()?.get(OID));
        Some(!rows.any(|oid| oid.value() == database as usize))
    };
    attempt_anywhere(look, |error| {
        let message = caught(error).message();
        log(format!("counterx: cannot look for a database: {message}"));
    })
    .is_ok_and(|gone| gone == Some(true))
}

/// What ALTER DATABASE ... SET has set, as one number. (The texts may be in any encoding.)
pub fn database_settings(database: pg_sys::Oid) -> Option<i64> {
    let _snapshot = LatestSnapshot::take();
    Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.hashtextextended(pg_catalog.array_to_string(setconfig, E'\\n'), 0) \
                 FROM pg_catalog.pg_db_role_setting \
                 WHERE setdatabase OPERATOR(pg_catalog.=) $1 AND setrole OPERATOR(pg_catalog.=) 0",
                Some(1),
                &[database.into()],
            )
            .and_then(|table| if table.is_empty() { Ok(None) } else { table.first().get_one::<i64>() })
    })
    .unwrap_or_else(|error| {
        log(format!("counterx: cannot read the settings of the database: {error}"));
        None
    })
}
