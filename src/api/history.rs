//! What was counted when: buckets, values as of a time, rates, events.
//!
//! Functions that return many rows are the server's own kind, and declared in `sql/views.sql`: the bindings would be
//! called for each row.

use super::args::{self, Arguments, Text, Timestamptz};
use crate::pg::clock;
use crate::pg::error::{beginning, quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::number;
use crate::pg::rows::Rows;
use crate::pg::time;
use crate::pg::varlena::text_datum;
use crate::read::history::{self, Counter, Event, OfUnit, Rate, Span};
use crate::read::lane;
use crate::read::most_changed;
use counterx_core::buckets;
use counterx_core::history::{DAY, Stored, Unit};
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::parts::type_of;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

version_1!(
    pg_finfo_counterx_buckets,
    pg_finfo_counterx_rate,
    pg_finfo_counterx_top_changed,
    pg_finfo_counterx_events,
    pg_finfo_counterx_sealed_until
);

/// Nothing begins so far in the future, in microseconds.
const CENTURY: i64 = 100 * 365 * DAY;

/// So much of a text is shown in a message, in bytes: as much as a name has.
const SHOWN: usize = MAX_NAME_BYTES;

/// # Errors
/// Raises 55000.
fn no_history(type_name: Option<&[u8]>, kept_by: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    raise(match type_name {
        Some(of) => report(
            code,
            format!("there is no history of type {}{kept_by}", quoted(beginning(of, SHOWN))),
        )
        .set_hint("counter_history() begins one."),
        None => report(code, "a counter without a type has no history").set_hint(
            "A type is what stands before the first colon of a name, as in \"hits:home\". counter_history('hits') begins the history of such counters.",
        ),
    })
}

/// One unit of a counter's history.
///
/// # Errors
/// Raises 55000 when it has none.
fn unit_of<'a>(counter: &'a Counter, name: &[u8], unit: Unit) -> OfUnit<'a> {
    counter.unit(unit).unwrap_or_else(|| {
        let kept_by = match unit {
            Unit::Event => " by single changes".to_owned(),
            unit => format!(" by {}", unit.name()),
        };
        no_history(type_of(name), &kept_by)
    })
}

fn check_history(counter: &Counter, name: &[u8]) {
    if !counter.has_history() {
        no_history(type_of(name), "");
    }
}

/// A unit that has buckets.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for what is none.
fn bucket_unit(unit: Option<Text>) -> Unit {
    let Text(name) = args::required("unit", unit);
    Unit::of_name(name)
        .filter(|unit| *unit != Unit::Event)
        .unwrap_or_else(|| {
            raise(
                args::invalid(format!(
                    "there are no buckets of the unit {}",
                    quoted(beginning(name, SHOWN))
                ))
                .set_hint(
                    "Units are minute, hour, day and month. counter_events() has single changes.",
                ),
            )
        })
}

/// `counter_buckets(name, unit, "from", "to", fill)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_buckets(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called with (text, text, timestamptz, timestamptz, boolean).
    let (arguments, name, unit) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let (name, unit) = (arguments.text(0), arguments.text(1));
        (arguments, args::name(name), bucket_unit(unit))
    };
    let from = arguments.number(2).unwrap_or(i64::MIN);
    // Nothing begins later than all that there is, and calendars have an end.
    let latest = clock::now().saturating_add(CENTURY);
    let from = from.min(latest);
    // The last time that is before the end.
    let through = arguments
        .number(3)
        .map_or(Some(i64::MAX), |to| to.checked_sub(1));
    let fill = args::required("fill", arguments.boolean(4));
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    history::of_counter(name, |counter| {
        let mut unit = unit_of(counter, name, unit);
        let Some(through) = through.filter(|&through| from <= through) else {
            return;
        };
        let sealed_before = unit.sealed_before();
        let Span { rows: all, before } = unit.between(from, through);
        let put = |row: &Stored| {
            let Stored { start, sums, value } = *row;
            rows.put(|| {
                [
                    start.into(),
                    number::numeric(sums.delta),
                    number::numeric(sums.ups),
                    number::numeric(sums.downs),
                    sums.changes.into(),
                    number::numeric(sums.adjusted),
                    number::numeric(value),
                    sealed_before.is_some_and(|before| start < before).into(),
                ]
                .map(Some)
            });
        };
        let Some(known) = unit.known_from().filter(|_| fill) else {
            return all.iter().for_each(put);
        };
        let mut first = unit.start_of(known.max(from));
        if first < from {
            first = unit.next(first);
        }
        let last = through.min(counter.now());
        buckets::fill(&all, before, (first, last), |start| unit.next(start), put);
    });
    pg_sys::Datum::null()
}

#[pg_extern(stable, parallel_restricted, cost = 200)]
fn counter_at(name: Option<Text>, at: Option<Timestamptz>) -> Option<i64> {
    let name = args::name(name);
    let (_, value) = as_of(name, at)?;
    Some(args::bigint(name, value))
}

#[pg_extern(stable, parallel_restricted, cost = 200)]
fn counter_at_boundary(
    name: Option<Text>,
    at: Option<Timestamptz>,
) -> Option<TimestampWithTimeZone> {
    let (boundary, _) = as_of(args::name(name), at)?;
    TimestampWithTimeZone::try_from(boundary).ok()
}

fn as_of(name: &[u8], at: Option<Timestamptz>) -> Option<(i64, i128)> {
    let at = args::required("time", at).time();
    history::of_counter(name, |counter| {
        check_history(counter, name);
        counter.as_of(at)
    })
}

/// `counter_rate(name, over)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_rate(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called with (text, interval).
    let (name, over) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let name = args::name(arguments.text(0));
        (name, positive("over", arguments.get(1)).0)
    };
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    let rate = history::of_counter(name, |counter| {
        check_history(counter, name);
        // SAFETY: an interval.
        counter.rate(|time| unsafe { time::earlier(time, over) })
    });
    let Rate {
        delta,
        from,
        through,
    } = rate.unwrap_or_else(|| no_history(type_of(name), " by minute, hour, day or month"));
    let seconds = (through - from) as f64 / 1e6;
    rows.put(|| {
        [
            delta.map(number::numeric),
            Some(from.into()),
            Some(through.into()),
            delta.and_then(|delta| (delta as f64 / seconds).into_datum()),
        ]
    });
    pg_sys::Datum::null()
}

/// An interval, and how long it is at most.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for one that is not positive.
///
/// # Safety
/// The datum is an interval.
unsafe fn positive(what: &str, interval: Option<pg_sys::Datum>) -> (pg_sys::Datum, i64) {
    let interval = args::required(what, interval);
    // SAFETY: the caller's promise.
    let length = unsafe { time::longest(interval) };
    if length <= 0 {
        raise(
            args::invalid(format!("{what} must be positive"))
                .set_hint("Give how long ago it begins, such as '1 hour'."),
        );
    }
    (interval, length)
}

/// `counter_top_changed(max_rows, prefix, since)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_top_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called with (bigint, text, interval).
    let (wanted, prefix, (since, length)) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let wanted = args::row_count("max_rows", arguments.number(0));
        let Text(prefix) = args::required("prefix", arguments.text(1));
        (wanted, prefix, positive("since", arguments.get(2)))
    };
    let Some(of) = type_of(prefix) else {
        raise(
            args::invalid("prefix must begin with a counter type and a colon")
                .set_detail(format!("It is {}.", quoted(beginning(prefix, SHOWN))))
                .set_hint("History is kept by type: ask for 'hits:', say."),
        )
    };
    let mut range = NameRange::all();
    range.starting_with(prefix);
    // SAFETY: an interval.
    let earlier = |time| unsafe { time::earlier(time, since) };
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    let changed = most_changed::most_changed(&range, of, (earlier, length), wanted)
        .unwrap_or_else(|| no_history(Some(of), ""));
    for counter in changed {
        rows.put(|| {
            [
                Some(text_datum(&counter.name)),
                Some(number::numeric(counter.value)),
            ]
        });
    }
    pg_sys::Datum::null()
}

/// `counter_events(name, after, max_rows)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_events(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called with (text, timestamptz, bigint).
    let (name, after, limit) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let name = args::name(arguments.text(0));
        let limit = args::row_count("max_rows", arguments.number(2));
        (name, arguments.number(1), limit)
    };
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    history::of_counter(name, |counter| {
        let unit = unit_of(counter, name, Unit::Event);
        for event in unit.events(after, limit) {
            let Event {
                at,
                delta,
                is_increment,
                xid,
                is_folded,
            } = event;
            let kind: &[u8] = if is_increment {
                b"increment"
            } else {
                b"adjustment"
            };
            rows.put(|| {
                [
                    Some(at.into()),
                    Some(number::numeric(delta)),
                    Some(text_datum(kind)),
                    xid.map(Into::into),
                    Some(is_folded.into()),
                ]
            });
        }
    });
    pg_sys::Datum::null()
}

/// `counterx.sealed_until()`, behind the view `counter_sealed`.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_sealed_until(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    match lane::sealed_until() {
        Some(time) => time.into(),
        None => {
            // SAFETY: the server's own.
            unsafe { (*fcinfo).isnull = true };
            pg_sys::Datum::null()
        }
    }
}
