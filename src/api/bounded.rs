//! Increments of bounded counters that may be refused.

use super::args;
use super::args::Text;
use crate::bounds::escrow;
use crate::bounds::limits::Shortage;
use crate::bounds::types;
use crate::bounds::windows::Look;
use crate::write::change;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_try_incr(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_try_incr()");
    change::try_add(args::name(name), args::delta(delta)).is_ok()
}

/// One row: a table function, as it has several columns.
#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_try(
    name: Option<Text>,
    delta: default!(Option<i64>, 1),
) -> TableIterator<
    'static,
    (
        name!(granted, bool),
        name!(retry_at, Option<TimestampWithTimeZone>),
    ),
> {
    change::check_may_write(c"counter_try()");
    let row = match change::try_add(args::name(name), args::delta(delta)) {
        Ok(()) => (true, None),
        Err(Shortage { renewal: None, .. }) => (false, None),
        Err(Shortage {
            renewal: Some(renewal),
            ..
        }) => {
            let retry_at = renewal
                .retry_at
                .and_then(|at| TimestampWithTimeZone::try_from(at).ok());
            let never = TimestampWithTimeZone::positive_infinity;
            (false, Some(retry_at.unwrap_or_else(never)))
        }
    };
    TableIterator::once(row)
}

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
