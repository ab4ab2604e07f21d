//! Errors as PostgreSQL's users know them: a SQLSTATE, a message, a detail, a hint.

use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::OnceLock;

/// What an error that was caught says.
pub fn caught(error: &CaughtError) -> &ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    }
}

/// Raises an error; control goes back to the server, which aborts the (sub)transaction.
pub fn raise(report: ErrorReport) -> ! {
    if IS_CONFLICT.take()
        && let Some(tell) = ON_CONFLICT.get()
    {
        tell();
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

static ON_CONFLICT: OnceLock<fn()> = OnceLock::new();

thread_local! {
    /// The report that was made last says 40001. (A report itself does not tell its code.)
    static IS_CONFLICT: Cell<bool> = const { Cell::new(false) };
}

/// Says whom to tell of each error 40001 that we raise, which is known to floors above. To be called once, from `_PG_init`.
pub fn register_conflicts(on_conflict: fn()) {
    // A second one would be the same.
    let _ = ON_CONFLICT.set(on_conflict);
}

/// A report to be completed with `set_detail` and `set_hint`.
pub fn report(code: PgSqlErrorCode, message: impl Into<String>) -> ErrorReport {
    IS_CONFLICT.set(code == PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE);
    ErrorReport::new(code, message.into(), "counterx")
}

/// Writes a message to the server's log.
pub fn log(message: impl Into<String>) {
    write(message.into(), PgLogLevel::LOG);
}

/// The same of one that only who looks for it wants to see.
pub fn debug(message: impl Into<String>) {
    write(message.into(), PgLogLevel::DEBUG1);
}

fn write(message: String, level: PgLogLevel) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        in_server_encoding(&message).into_owned(),
        "counterx",
    )
    .report(level);
}

/// Warns the client, whatever `log_min_messages` has of warnings in the server's log.
pub fn warn_client(report: ErrorReport) {
    struct Unlogged(core::ffi::c_int);
    impl Drop for Unlogged {
        fn drop(&mut self) {
            // SAFETY: a plain variable of the process.
            unsafe { pg_sys::log_min_messages = self.0 };
        }
    }
    // SAFETY: as above. What is raised meanwhile is logged all the same.
    let _unlogged = unsafe {
        let before = Unlogged(pg_sys::log_min_messages);
        pg_sys::log_min_messages = before.0.max(PgLogLevel::ERROR as core::ffi::c_int);
        before
    };
    report.report(PgLogLevel::WARNING);
}

/// The five characters of an error code.
pub fn sqlstate(code: PgSqlErrorCode) -> String {
    // SAFETY: writes five characters to a static buffer and returns it.
    unsafe {
        let text = pg_sys::unpack_sql_state(code as i32);
        core::ffi::CStr::from_ptr(text)
            .to_string_lossy()
            .into_owned()
    }
}

/// A name for a message. Reports are UTF-8, and the server takes them as they are. So where the
/// database has another encoding, bytes that are not ASCII are shown as `\xE9`.
pub fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", shown(name, database_is_utf8()))
}

/// What the server has written for a message, such as the name of a type: likewise, without the quotes.
pub fn unquoted(text: &[u8]) -> String {
    shown(text, database_is_utf8()).into_owned()
}

/// The first characters of a text that is too long to be shown, in so many bytes.
pub fn beginning(text: &[u8], bytes: usize) -> &[u8] {
    let (length, limit) = (text.len() as i32, bytes as i32);
    // SAFETY: reads so many bytes of the text.
    let length = unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), length, limit) };
    &text[..length as usize]
}

/// Somebody's text for the server; where that is not of UTF-8, what is not ASCII is a question mark.
pub fn in_server_encoding(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || database_is_utf8() {
        return Cow::Borrowed(text);
    }
    let ascii = |character: char| if character.is_ascii() { character } else { '?' };
    Cow::Owned(text.chars().map(ascii).collect())
}

fn database_is_utf8() -> bool {
    // SAFETY: reads a variable of the session's.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

fn shown(name: &[u8], utf8: bool) -> Cow<'_, str> {
    if utf8 || name.is_ascii() {
        return String::from_utf8_lossy(name);
    }
    let mut text = String::with_capacity(name.len() + 3);
    for &byte in name {
        if byte.is_ascii() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn names_are_ascii_where_the_database_is_not_utf8() {
        assert_eq!(shown(b"caf\xe9 au\xff", false), "caf\\xE9 au\\xFF");
        assert_eq!(shown(b"caf\xe9 au\xff", true), "caf\u{fffd} au\u{fffd}");
        assert_eq!(shown("caf\u{e9}".as_bytes(), true), "caf\u{e9}");
    }
}
