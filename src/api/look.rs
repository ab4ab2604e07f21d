//! Reads: all of them with the running query's snapshot.

use super::args;
use super::args::NameOut;
use super::args::RecordOut;
use super::args::SameVersion;
use super::args::Text;
use super::args::TextArray;
use crate::bounds::windows::{Look, Place};
use crate::pg::error::{quoted, raise};
use crate::pg::room;
use crate::query::paging;
use crate::query::ranking::{self, From};
use crate::read::reader;
use counterx_core::rank::{End, Mark};
use counterx_core::windows::Window;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;

#[pg_extern(stable, parallel_restricted, cost = 100)]
fn counter_value(name: Option<Text>) -> i64 {
    let name = args::name(name);
    let read = Look::default().name(name);
    args::bigint(name, reader::tally(&read).value)
}

#[pg_extern(stable, parallel_restricted, cost = 1000)]
fn counter_values(
    names: Option<TextArray>,
) -> TableIterator<'static, (name!(name, NameOut), name!(value, Option<i64>))> {
    let names = args::names(names);
    let look = Look::default();
    let read = room::collect(names.iter().map(|name| look.name(name)));
    let read: Vec<&[u8]> = room::collect(read.iter().map(|name| &**name));
    let values = paging::values(&read).into_iter();
    rows(room::collect(
        (names.iter().zip(values)).map(|(&name, value)| (name.into(), value)),
    ))
}

#[pg_extern(stable, parallel_restricted, cost = 1000)]
fn counter_list(
    prefix: default!(Option<Text>, "''"),
    after: default!(Option<Text>, "NULL"),
    max_rows: default!(Option<i64>, 100),
) -> TableIterator<'static, (name!(name, NameOut), name!(value, Option<i64>))> {
    let mut range = args::prefix(prefix);
    let limit = args::row_count("max_rows", max_rows);
    if let Some(Text(after)) = after {
        range.more_than(after);
    }
    rows(paging::page(range, limit))
}

#[pg_extern(stable, parallel_restricted, cost = 10000)]
fn counter_sum(prefix: default!(Option<Text>, "''")) -> AnyNumeric {
    AnyNumeric::from(ranking::sum(&args::prefix(prefix)))
}

#[pg_extern(stable, parallel_restricted, cost = 10000)]
fn counter_rank(name: Option<Text>, prefix: default!(Option<Text>, "''")) -> Option<i64> {
    ranking::rank_of(args::name(name), &args::prefix(prefix))
}

#[pg_extern(stable, parallel_restricted, cost = 10000)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn counter_top(
    _version: SameVersion,
    n: default!(Option<i64>, 10),
    prefix: default!(Option<Text>, "''"),
    after_value: default!(Option<i64>, "NULL"),
    after_name: default!(Option<Text>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(rank, i64),
        name!(name, NameOut),
        name!(value, Option<i64>),
    ),
> {
    ranked(End::Top, n, prefix, from(after_value, after_name))
}

#[pg_extern(stable, parallel_restricted, cost = 10000)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn counter_bottom(
    _version: SameVersion,
    n: default!(Option<i64>, 10),
    prefix: default!(Option<Text>, "''"),
    after_value: default!(Option<i64>, "NULL"),
    after_name: default!(Option<Text>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(rank, i64),
        name!(name, NameOut),
        name!(value, Option<i64>),
    ),
> {
    ranked(End::Bottom, n, prefix, from(after_value, after_name))
}

fn from<'a>(value: Option<i64>, name: Option<Text<'a>>) -> From<'a> {
    match (value, name) {
        (None, None) => From::End,
        (None, Some(Text(name))) => From::Counter(name),
        (Some(value), name) => From::Mark(Mark {
            value: value.into(),
            name: name.map(|Text(name)| name.into()),
        }),
    }
}

#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn ranked(
    end: End,
    n: Option<i64>,
    prefix: Option<Text>,
    from: From,
) -> TableIterator<
    'static,
    (
        name!(rank, i64),
        name!(name, NameOut),
        name!(value, Option<i64>),
    ),
> {
    let n = args::row_count("n", n);
    let ranked = ranking::rank(end, n, &args::prefix(prefix), from);
    TableIterator::new(
        (ranked.into_iter()).map(|row| (row.rank, NameOut(row.name), value_in_list(row.value))),
    )
}

#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn rows(
    rows: Vec<(Box<[u8]>, i128)>,
) -> TableIterator<'static, (name!(name, NameOut), name!(value, Option<i64>))> {
    TableIterator::new(
        rows.into_iter()
            .map(|(name, value)| (NameOut(name), value_in_list(value))),
    )
}

#[pg_extern(sql = "
CREATE FUNCTION counter_window(name text, OUT value bigint, OUT begins_at timestamptz, OUT ends_at timestamptz)
    RETURNS record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_window(name: Option<Text>, fcinfo: pg_sys::FunctionCallInfo) -> RecordOut {
    let name = args::name(name);
    let place = place(name);
    let value = args::bigint(name, reader::tally(place.name()).value);
    let Window { start, end } = place.window();
    RecordOut::new(
        fcinfo,
        [value, start, end].map(|number| Some(number.into())),
    )
}

#[pg_extern(stable, parallel_restricted, cost = 1000)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn counter_windows(
    name: Option<Text>,
) -> TableIterator<
    'static,
    (
        name!(value, Option<i64>),
        name!(begins_at, TimestampWithTimeZone),
        name!(ends_at, TimestampWithTimeZone),
    ),
> {
    let name = args::name(name);
    let before = place(name).before(name).into_iter();
    let rows = before.filter_map(|(window, stored)| {
        let tally = reader::tally(stored.get());
        let (begins_at, ends_at) = times(window);
        (tally.exists()).then(|| (value_in_list(tally.value), begins_at, ends_at))
    });
    TableIterator::new(room::collect(rows))
}

/// The running window of a counter.
///
/// # Errors
/// Raises 22023 where its type has none.
fn place(name: &[u8]) -> Place {
    Look::default().place(name).unwrap_or_else(|| {
        raise(
            args::invalid(format!("counter {} has no windows", quoted(name)))
                .set_detail("Its type was created without \"per\", or it has none.")
                .set_hint("counter_value() tells its value."),
        )
    })
}

fn times(window: Window) -> (TimestampWithTimeZone, TimestampWithTimeZone) {
    let time =
        |at| TimestampWithTimeZone::try_from(at).expect("a time that the server has computed");
    (time(window.start), time(window.end))
}

/// A value among others. One that does not fit is null, as whoever may count can take a counter there:
/// an error would keep all others of the list from everybody.
fn value_in_list(value: i128) -> Option<i64> {
    i64::try_from(value).ok()
}
