//! The server's calendar: where the units of a time zone begin.

use super::error::{quoted, raise, report};
use super::varlena::text_datum;
use counterx_core::history::{DAY, HOUR, MINUTE, Unit};
use counterx_core::windows;
use pgrx::{PgLogLevel, PgSqlErrorCode, direct_function_call_as_datum, pg_sys};
use std::cell::RefCell;
use std::ffi::CString;

/// Where the minutes, hours, days or months of a time zone begin. Times are microseconds since 2000.
pub struct Calendar {
    unit: Unit,
    /// Both are texts.
    field: pg_sys::Datum,
    zone: pg_sys::Datum,
    /// The one that was looked at last, and its end.
    known: Option<(i64, i64)>,
}

impl Calendar {
    /// The units of a zone; an event has none. Keeps memory in the current context.
    ///
    /// A zone that the server does not know any more, as after an update of the operating system, is UTC, with a
    /// warning: whoever counts must not be held up.
    pub fn new(unit: Unit, zone: &[u8]) -> Self {
        let zone = if is_known(zone) {
            zone
        } else {
            warn_of(zone);
            b"UTC"
        };
        Self {
            unit,
            field: text_datum(unit.name().as_bytes()),
            zone: text_datum(zone),
            known: None,
        }
    }

    /// When the one begins that a time is in.
    ///
    /// # Errors
    /// Raises 22008 for a time near the end of all times.
    pub fn start_of(&mut self, time: i64) -> i64 {
        if let Some((start, end)) = self.known
            && (start..end).contains(&time)
        {
            return start;
        }
        let start = self.truncate(time);
        // Where clocks are set, by less than an hour, an hour that began before them goes on, so only what is sure to
        // lie in it.
        self.known = Some((start, time.saturating_add(1).max(self.sure_end(start))));
        start
    }

    /// When the one ends that begins then.
    ///
    /// # Errors
    /// As of [`Calendar::start_of`].
    pub fn end_of(&mut self, start: i64) -> i64 {
        match self.unit {
            Unit::Event => start,
            Unit::Minute => start.saturating_add(MINUTE),
            Unit::Hour => start.saturating_add(HOUR),
            // A day has 23 to 25 hours, a month 28 to 31 days: this lies in the middle of the next one.
            Unit::Day => self.truncate(start.saturating_add(36 * HOUR)),
            Unit::Month => self.truncate(start.saturating_add(45 * DAY)),
        }
    }

    /// Up to there, no other one begins for certain.
    fn sure_end(&mut self, start: i64) -> i64 {
        match self.unit {
            Unit::Event => start,
            Unit::Minute => start.saturating_add(MINUTE),
            // Zones are set by multiples of a quarter of an hour, at full minutes.
            Unit::Hour => start.saturating_add(HOUR / 4),
            Unit::Day | Unit::Month => self.end_of(start),
        }
    }

    fn truncate(&self, time: i64) -> i64 {
        if self.unit == Unit::Event {
            return time;
        }
        let start = self.by_offset(time);
        // The server goes by the offset of the time itself. Where clocks were set by half an hour since the hour
        // began, that leads into another hour.
        if self.unit == Unit::Hour && self.by_offset(start) != start {
            return self.by_local_time(time);
        }
        match self.unit {
            Unit::Day | Unit::Month => self.begun(time, self.first_midnight(start)),
            Unit::Event | Unit::Minute | Unit::Hour => start,
        }
    }

    /// Where clocks are set back at midnight, there are two of them, and the server takes the second one.
    fn first_midnight(&self, midnight: i64) -> i64 {
        /// No clocks are set back by more.
        const MOST: i64 = DAY / 2;
        let mut first = midnight;
        while midnight - first < MOST && self.by_offset(first - HOUR / 2) == midnight {
            first -= HOUR / 2;
        }
        first
    }

    /// Where clocks are set back from some time after midnight to some time before it, the day before is there once more,
    /// and goes on until the second midnight.
    fn begun(&self, time: i64, mut start: i64) -> i64 {
        let mut before = time;
        while start > time {
            before -= HOUR / 2;
            start = self.first_midnight(self.by_offset(before));
        }
        start
    }

    fn by_offset(&self, time: i64) -> i64 {
        // SAFETY: timestamptz_trunc_zone(text, timestamptz, text) -> timestamptz.
        let start = unsafe {
            direct_function_call_as_datum(
                pg_sys::timestamptz_trunc_zone,
                &[Some(self.field), Some(time.into()), Some(self.zone)],
            )
        };
        start.map_or(time, |datum| datum.value() as i64)
    }

    /// When the clock showed the full hour; where that was left out, when it was set.
    fn by_local_time(&self, time: i64) -> i64 {
        // SAFETY: timestamptz_zone(text, timestamptz) -> timestamp, timestamp_trunc(text, timestamp) -> timestamp, and
        // timestamp_zone(text, timestamp) -> timestamptz.
        let start = unsafe {
            let local = direct_function_call_as_datum(
                pg_sys::timestamptz_zone,
                &[Some(self.zone), Some(time.into())],
            );
            let hour =
                direct_function_call_as_datum(pg_sys::timestamp_trunc, &[Some(self.field), local]);
            direct_function_call_as_datum(pg_sys::timestamp_zone, &[Some(self.zone), hour])
        };
        start.map_or(time, |datum| datum.value() as i64)
    }
}

impl windows::Calendar for Calendar {
    fn start_of(&mut self, time: i64) -> i64 {
        Self::start_of(self, time)
    }

    fn end_of(&mut self, start: i64) -> i64 {
        Self::end_of(self, start)
    }
}

/// A time as the session shows it.
pub fn text(time: i64) -> String {
    // SAFETY: timestamptz_out(timestamptz) -> cstring, of ASCII.
    let text = unsafe {
        direct_function_call_as_datum(pg_sys::timestamptz_out, &[Some(time.into())])
            .map(|text| std::ffi::CStr::from_ptr(text.cast_mut_ptr()))
    };
    text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
}

/// The three parts of an interval: months, days, microseconds.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn parts(interval: pg_sys::Datum) -> (i32, i32, i64) {
    // SAFETY: the caller's promise.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    (interval.month, interval.day, interval.time)
}

/// Does the server know a time zone of this name, which means the same in all sessions? Abbreviations, which may have
/// the names of zones, are looked up in a list that is the session's; none has a slash.
pub fn is_known(zone: &[u8]) -> bool {
    if !zone.contains(&b'/') && zone != b"UTC" {
        return false;
    }
    let Ok(zone) = CString::new(zone) else {
        return false;
    };
    // SAFETY: a text that ends with a zero.
    !unsafe { pg_sys::pg_tzset(zone.as_ptr()) }.is_null()
}

thread_local! {
    /// The zone that was warned of last.
    static WARNED_OF: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Once in a session, as each fold comes by.
fn warn_of(zone: &[u8]) {
    let is_new = WARNED_OF.with_borrow_mut(|known| {
        let is_new = known != zone;
        zone.clone_into(known);
        is_new
    });
    if is_new {
        report(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "time zone {} is not known to the server: histories and windows in it go on by UTC",
                quoted(zone)
            ),
        )
        .set_hint("Install the time zone data that has it.")
        .report(PgLogLevel::WARNING);
    }
}

/// A time that is earlier by an interval, whose days have 24 hours and whose months those of UTC; or the first of all
/// times. The same in all sessions.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn earlier_in_utc(time: i64, by: pg_sys::Datum) -> i64 {
    // SAFETY: timestamp_mi_interval(timestamp, interval) -> timestamp: a time in UTC is one without a zone.
    unsafe { earlier_by(pg_sys::timestamp_mi_interval, time, by) }
}

/// A time that is earlier by an interval of the session's time zone, or the first of all times.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn earlier(time: i64, by: pg_sys::Datum) -> i64 {
    // SAFETY: timestamptz_mi_interval(timestamptz, interval) -> timestamptz.
    unsafe { earlier_by(pg_sys::timestamptz_mi_interval, time, by) }
}

type Subtract = unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum;

/// # Safety
/// The function takes a time and an interval and returns a time, and the datum is an interval.
unsafe fn earlier_by(subtract: Subtract, time: i64, by: pg_sys::Datum) -> i64 {
    /// A hundred years are far from the ends of all times.
    const FAR: i64 = 100 * 366 * DAY;
    // SAFETY: the caller's promise.
    if unsafe { longest(by) } >= time.saturating_sub(EARLIEST + FAR) {
        return EARLIEST;
    }
    // SAFETY: the caller's promise.
    let earlier =
        unsafe { direct_function_call_as_datum(subtract, &[Some(time.into()), Some(by)]) };
    earlier.map_or(time, |datum| datum.value() as i64)
}

/// Before all that anybody counts: the beginning of the year 1 of our era, nearly.
const EARLIEST: i64 = -2000 * 365 * DAY;

/// Is no part of an interval negative?
///
/// # Safety
/// The datum is an interval.
pub unsafe fn is_positive(interval: pg_sys::Datum) -> bool {
    // SAFETY: the caller's promise.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    interval.month >= 0 && interval.day >= 0 && interval.time >= 0
}

/// How long an interval is at least, in microseconds: a month has 28 days or more.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn shortest(interval: pg_sys::Datum) -> i64 {
    // SAFETY: the caller's promise.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    let days = i64::from(interval.month) * 28 + i64::from(interval.day);
    days.saturating_mul(DAY).saturating_add(interval.time)
}

/// How long an interval is at most, in microseconds: a month has up to 31 days.
///
/// # Errors
/// Raises 22008 when that does not fit.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn longest(interval: pg_sys::Datum) -> i64 {
    // SAFETY: the caller's promise.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    let days = i64::from(interval.month) * 31 + i64::from(interval.day);
    days.checked_mul(DAY)
        .and_then(|days| days.checked_add(interval.time))
        .unwrap_or_else(|| {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW,
                    "interval out of range",
                )
                .set_hint("Use a shorter one."),
            )
        })
}
