//! Where the write-ahead log is.

use super::ports;
use pgrx::pg_sys;

/// Which life of which database this is: another one after a promotion, a recovery to a point in time and pg_upgrade, and
/// of a copy that was made by CREATE DATABASE. Standbys have their primary's.
pub fn era() -> i64 {
    // SAFETY: reads variables of the backend and of shared memory.
    let (server, database) = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::MyDatabaseId) };
    let place = u64::from(database.to_u32()) << 32 | u64::from(timeline());
    ((server ^ place) & i64::MAX as u64) as i64
}

/// The server's timeline, or, on a standby, that of what it replays.
fn timeline() -> u32 {
    // SAFETY: reads variables of shared memory; the first needs the recovery to be over.
    unsafe {
        if ports::recovery_in_progress() {
            let mut timeline = 0;
            pg_sys::GetXLogReplayRecPtr(&mut timeline);
            timeline
        } else {
            pg_sys::GetWALInsertionTimeLine()
        }
    }
}

/// Makes sure that all that was written so far survives a crash, also what others have committed without waiting for
/// that. Nothing on a standby: what it has replayed was flushed.
pub fn flush() {
    if ports::recovery_in_progress() {
        return;
    }
    // SAFETY: reads a variable of shared memory, and flushes up to there.
    unsafe {
        let next = pg_sys::GetXLogInsertRecPtr();
        pg_sys::XLogFlush(end_of_last(next, pg_sys::wal_segment_size as u64));
    }
}

/// Where the last record ends, where the next one would begin at this place: at the beginning of a page, that is behind
/// its header, and nobody can flush that far.
fn end_of_last(next: u64, segment: u64) -> u64 {
    const PAGE: u64 = pg_sys::XLOG_BLCKSZ as u64;
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    let header = if next % segment < PAGE {
        LONG_HEADER
    } else {
        SHORT_HEADER
    };
    if next % PAGE == header {
        next - header
    } else {
        next
    }
}

#[cfg(test)]
mod tests {
    use super::end_of_last;

    #[test]
    fn headers_of_pages_are_not_flushed_before_they_are_written() {
        let segment = 16 << 20;
        assert_eq!(end_of_last(5 * segment + 40, segment), 5 * segment);
        assert_eq!(end_of_last(8192 + 24, segment), 8192);
        assert_eq!(end_of_last(8192 + 40, segment), 8192 + 40);
        assert_eq!(end_of_last(8192 + 1000, segment), 8192 + 1000);
    }
}
