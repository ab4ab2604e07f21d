//! Idempotent increments.

use super::args;
use super::args::Text;
use crate::pg::error::{quoted, raise, report};
use crate::read::reader;
use crate::write::change;
use crate::write::token::{self, Claim, Use};
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 200)]
fn counter_incr_once(
    token: Option<Text>,
    name: Option<Text>,
    delta: default!(Option<i64>, 1),
) -> bool {
    change::check_may_write(c"counter_incr_once()");
    let (token, name, delta) = (args::token(token), args::name(name), args::delta(delta));
    let claim = token::claim(token, increment(name, delta), || {
        change::add(name, delta);
        None
    });
    matches!(claim, Claim::Taken(_))
}

#[pg_extern(volatile, parallel_unsafe, cost = 300)]
fn counter_incr_once_get(
    token: Option<Text>,
    name: Option<Text>,
    delta: default!(Option<i64>, 1),
) -> i64 {
    change::check_may_write(c"counter_incr_once_get()");
    let (token, name, delta) = (args::token(token), args::name(name), args::delta(delta));
    let claim = token::claim(token, increment(name, delta), || {
        let read = change::add_to(name, delta);
        Some(args::bigint(name, reader::tally(&read).value))
    });
    let (Claim::Taken(value) | Claim::Replay(value)) = claim;
    value.unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("token {} has no value to return", quoted(token)),
            )
            .set_detail("It was used by counter_incr_once(), which keeps none.")
            .set_hint("Use the same function for all calls with a token."),
        )
    })
}

fn increment(name: &[u8], delta: i64) -> Use<'_> {
    Use {
        name,
        amount: delta,
        hold: false,
    }
}
