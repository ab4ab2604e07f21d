//! Errors that are handed from the committer to whoever waits for a hit.

use crate::pg::error::{caught, report, sqlstate};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};

/// An error, as it is handed to whoever waits for the hit.
pub struct Failure {
    /// As in an error report.
    pub code: PgSqlErrorCode,
    /// As in an error report.
    pub message: String,
    /// As in an error report.
    pub detail: String,
    /// As in an error report.
    pub hint: String,
}

impl Failure {
    pub fn of(error: &CaughtError) -> Self {
        let report = caught(error);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Self {
            code: report.sql_error_code(),
            message: report.message().to_owned(),
            detail: text(report.detail()),
            hint: text(report.hint()),
        }
    }

    /// The three parts, each behind the one before and a zero.
    pub fn encode(&self) -> Vec<u8> {
        let parts = [&self.message, &self.detail, &self.hint];
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        parts.join(&0)
    }

    pub fn is_lock_timeout(&self) -> bool {
        self.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    }

    /// Can the same hit be counted later?
    pub fn may_pass(&self) -> bool {
        let class = sqlstate(self.code);
        // Conflicts, resources, limits such as that of xids, objects that are locked, cancellations and
        // shutdowns, the disk.
        ["40", "53", "54", "55", "57", "58"]
            .iter()
            .any(|passing| class.starts_with(passing))
    }
}

/// The error that was handed over. One that was too long has lost its end.
pub fn decode(code: i32, text: &[u8]) -> ErrorReport {
    let mut parts = text
        .split(|&byte| byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned());
    let mut next = || parts.next().unwrap_or_default();
    let (message, detail, hint) = (next(), next(), next());
    let mut made = report(PgSqlErrorCode::from(code), message);
    if !detail.is_empty() {
        made = made.set_detail(detail);
    }
    if !hint.is_empty() {
        made = made.set_hint(hint);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(detail: &str) -> Failure {
        Failure {
            code: PgSqlErrorCode::ERRCODE_DISK_FULL,
            message: "could not extend file".to_owned(),
            detail: detail.to_owned(),
            hint: "Check free disk space.".to_owned(),
        }
    }

    #[test]
    fn errors_are_handed_over_whole() {
        let handed = failure("No space.").encode();
        let code = PgSqlErrorCode::ERRCODE_DISK_FULL as i32;
        let report = decode(code, &handed);
        assert_eq!(report.message(), "could not extend file");
        assert_eq!(report.detail(), Some("No space."));
        assert_eq!(report.hint(), Some("Check free disk space."));
        let bare = decode(code, &failure("").encode());
        assert_eq!(bare.detail(), None);
        assert_eq!(bare.hint(), Some("Check free disk space."));
    }

    #[test]
    fn error_that_is_too_long_loses_its_end() {
        let long = failure(&"\u{e9}".repeat(1000)).encode();
        let report = decode(0, &long[..long.len().min(counterx_core::hits::TEXT)]);
        assert_eq!(report.message(), "could not extend file");
        assert!(
            report
                .detail()
                .is_some_and(|detail| detail.starts_with('\u{e9}'))
        );
        assert_eq!(report.hint(), None);
    }
}
