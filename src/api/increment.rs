//! Increments.
//!
//! Functions that have nothing to say return true: a result of type void is an error in some clients,
//! raised when the work is done. See docs/design.md.

use super::args;
use super::args::BigintArray;
use super::args::Jsonb;
use super::args::Text;
use super::args::TextArray;
use crate::pg::error::{raise, report};
use crate::read::reader;
use crate::write::change;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 10)]
fn counter_incr(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_incr()");
    change::add(args::name(name), args::delta(delta));
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 10)]
fn counter_decr(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_decr()");
    let delta = args::delta(delta).checked_neg().unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                format!("counter delta {} is out of range", i64::MIN),
            )
            .set_hint("The least delta that can be negated is -9223372036854775807."),
        )
    });
    change::add(args::name(name), delta);
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_incr_get(name: Option<Text>, delta: default!(Option<i64>, 1)) -> i64 {
    change::check_may_write(c"counter_incr_get()");
    let name = args::name(name);
    let read = change::add_to(name, args::delta(delta));
    args::bigint(name, reader::tally(&read).value)
}

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_incr_many(names: Option<TextArray>, deltas: Option<BigintArray>) -> bool {
    change::check_may_write(c"counter_incr_many()");
    let names = args::names(names);
    let deltas = args::deltas(deltas);
    if names.len() != deltas.len() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
                "arrays of names and deltas must have the same length",
            )
            .set_detail(format!("Names: {}. Deltas: {}.", names.len(), deltas.len()))
            .set_hint("Give one delta for each name, in the same order."),
        );
    }
    for (name, delta) in names.into_iter().zip(deltas) {
        change::add(name, delta);
    }
    true
}

#[pg_extern(volatile, parallel_unsafe, cost = 100, name = "counter_incr_many")]
fn counter_incr_many_jsonb(deltas: Option<Jsonb>) -> bool {
    change::check_may_write(c"counter_incr_many()");
    for (name, delta) in args::members(deltas) {
        change::add(&name, delta);
    }
    true
}
