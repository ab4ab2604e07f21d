//! Increments of bounded counters that may be refused.

use super::args;
use super::args::{RecordOut, Text};
use crate::bounds::escrow;
use crate::bounds::types;
use crate::bounds::windows::Look;
use crate::write::change;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_try_incr(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_try_incr()");
    change::try_add(args::name(name), args::delta(delta)).is_ok()
}

#[pg_extern(sql = "
CREATE FUNCTION counter_try(name text, delta bigint DEFAULT 1, OUT granted boolean, OUT retry_at timestamptz)
    RETURNS record
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 100
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_try(
    name: Option<Text>,
    delta: Option<i64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> RecordOut {
    change::check_may_write(c"counter_try()");
    let shortage = change::try_add(args::name(name), args::delta(delta)).err();
    let granted = shortage.is_none();
    let retry_at = shortage
        .and_then(|shortage| shortage.renewal)
        .map(|renewal| renewal.retry_at.unwrap_or(NEVER));
    RecordOut::new(fcinfo, [Some(granted.into()), retry_at.map(Into::into)])
}

/// As a time of the server's: infinity.
const NEVER: i64 = i64::MAX;

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_take_up_to(name: Option<Text>, n: Option<i64>) -> i64 {
    change::check_may_write(c"counter_take_up_to()");
    let (name, n) = (args::name(name), args::required("amount", n));
    args::not_negative("amount", n);
    // What is certain now may be gone in a moment; but each time, somebody gets something.
    let mut wanted = reasonable(name, n);
    while wanted > 0 {
        match change::try_add(name, -wanted) {
            Ok(()) => break,
            Err(shortage) => wanted = shortage.available.unwrap_or(0).min(wanted - 1),
        }
    }
    wanted
}

/// "All there is" may be asked for by a number that leaves no room for others in their common sum:
/// then no more than there is.
fn reasonable(name: &[u8], n: i64) -> i64 {
    if n <= i64::from(u32::MAX) {
        return n;
    }
    let bounds = types::limits_of(name).map(|limits| limits.bounds);
    let read = Look::default().name(name);
    let most = bounds.and_then(|bounds| escrow::most(&read, bounds));
    most.map_or(n, |most| most.min(n))
}
