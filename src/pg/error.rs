//! Errors as PostgreSQL's users know them: a SQLSTATE, a message, a detail, a hint.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// Raises an error; control goes back to the server, which aborts the (sub)transaction.
pub fn raise(report: ErrorReport) -> ! {
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// A report to be completed with `set_detail` and `set_hint`.
pub fn report(code: PgSqlErrorCode, message: impl Into<String>) -> ErrorReport {
    ErrorReport::new(code, message.into(), "counterx")
}

/// Writes a message to the server's log.
pub fn log(message: impl Into<String>) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        message.into(),
        "counterx",
    )
    .report(PgLogLevel::LOG);
}

/// A name for a message: as text, with what is no text in this encoding replaced.
pub fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(name))
}
