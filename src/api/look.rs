//! Reads: all of them with the running query's snapshot.

use super::args::{self, NameOut, Text, TextArray};
use crate::paging;
use crate::ranking;
use crate::read;
use counterx_core::rank::End;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;

#[pg_extern(stable, parallel_restricted, cost = 100)]
fn counter_value(name: Option<Text>) -> i64 {
    let name = args::name(name);
    args::bigint(name, read::tally(name).value)
}

#[pg_extern(stable, parallel_restricted, cost = 1000)]
fn counter_values(
    names: Option<TextArray>,
) -> TableIterator<'static, (name!(name, NameOut), name!(value, i64))> {
    rows(paging::values(&args::names(names)))
}

#[pg_extern(stable, parallel_restricted, cost = 1000)]
fn counter_list(
    prefix: default!(Option<Text>, "''"),
    after: default!(Option<Text>, "NULL"),
    max_rows: default!(Option<i32>, 100),
) -> TableIterator<'static, (name!(name, NameOut), name!(value, i64))> {
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
fn counter_top(
    n: default!(Option<i32>, 10),
    prefix: default!(Option<Text>, "''"),
) -> TableIterator<'static, (name!(rank, i64), name!(name, NameOut), name!(value, i64))> {
    ranked(End::Top, n, prefix)
}

#[pg_extern(stable, parallel_restricted, cost = 10000)]
fn counter_bottom(
    n: default!(Option<i32>, 10),
    prefix: default!(Option<Text>, "''"),
) -> TableIterator<'static, (name!(rank, i64), name!(name, NameOut), name!(value, i64))> {
    ranked(End::Bottom, n, prefix)
}

#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn ranked(
    end: End,
    n: Option<i32>,
    prefix: Option<Text>,
) -> TableIterator<'static, (name!(rank, i64), name!(name, NameOut), name!(value, i64))> {
    let n = args::row_count("n", n);
    let ranked = ranking::rank(end, n, &args::prefix(prefix));
    TableIterator::new(ranked.into_iter().map(|row| {
        let value = args::bigint(&row.name, row.value);
        (row.rank, NameOut(row.name), value)
    }))
}

#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn rows(
    rows: Vec<(Box<[u8]>, i128)>,
) -> TableIterator<'static, (name!(name, NameOut), name!(value, i64))> {
    TableIterator::new(rows.into_iter().map(|(name, value)| {
        let value = args::bigint(&name, value);
        (NameOut(name), value)
    }))
}
