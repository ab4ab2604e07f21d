//! Increments that count by themselves, whatever becomes of the transaction.

use super::args::{self, Jsonb, Text};
use crate::hits::caller;
use crate::pg::room;
use crate::write::change;
use counterx_core::hits::{Change, Kind};
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_hit(
    name: Option<Text>,
    delta: default!(Option<i64>, 1),
    wait: default!(Option<bool>, true),
) -> bool {
    change::check_may_write(c"counter_hit()");
    let change = Change {
        name: args::name(name),
        delta: args::delta(delta),
    };
    let wait = args::required("wait", wait);
    caller::hit("counter_hit()", &[change], Kind::Add, wait)
}

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_try_hit(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_try_hit()");
    let change = Change {
        name: args::name(name),
        delta: args::delta(delta),
    };
    caller::hit("counter_try_hit()", &[change], Kind::Try, true)
}

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_hit_many(deltas: Option<Jsonb>, wait: default!(Option<bool>, true)) -> bool {
    change::check_may_write(c"counter_hit_many()");
    let members = args::members(deltas);
    let changes = members.iter().map(|(name, delta)| Change {
        name,
        delta: *delta,
    });
    let (changes, wait) = (room::collect(changes), args::required("wait", wait));
    // An object of no members, or none at all, as with counter_incr_many().
    changes.is_empty() || caller::hit("counter_hit_many()", &changes, Kind::Add, wait)
}
