//! The server's calendar: where the units of a time zone begin.

use super::error::{raise, report};
use super::varlena::text_datum;
use counterx_core::history::{DAY, HOUR, MINUTE, Unit};
use pgrx::{PgSqlErrorCode, direct_function_call_as_datum, pg_sys};

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
    pub fn new(unit: Unit, zone: &[u8]) -> Self {
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
    /// Raises 22023 when the zone is not known to the server any more.
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

/// A time that is earlier by an interval.
///
/// # Safety
/// The datum is an interval.
pub unsafe fn earlier(time: i64, by: pg_sys::Datum) -> i64 {
    // SAFETY: timestamptz_mi_interval(timestamptz, interval) -> timestamptz.
    let earlier = unsafe {
        direct_function_call_as_datum(
            pg_sys::timestamptz_mi_interval,
            &[Some(time.into()), Some(by)],
        )
    };
    earlier.map_or(time, |datum| datum.value() as i64)
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
            raise(report(
                PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW,
                "interval out of range",
            ))
        })
}
