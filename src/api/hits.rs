//! Increments that count by themselves, whatever becomes of the transaction.

use super::args::{self, Text};
use crate::hits::caller;
use crate::write::change;
use counterx_core::hits::Kind;
use pgrx::prelude::*;

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_hit(
    name: Option<Text>,
    delta: default!(Option<i64>, 1),
    wait: default!(Option<bool>, true),
) -> bool {
    change::check_may_write(c"counter_hit()");
    let (name, delta) = (args::name(name), args::delta(delta));
    let wait = args::required("wait", wait);
    caller::hit("counter_hit()", name, delta, Kind::Add, wait)
}

#[pg_extern(volatile, parallel_unsafe, cost = 100)]
fn counter_try_hit(name: Option<Text>, delta: default!(Option<i64>, 1)) -> bool {
    change::check_may_write(c"counter_try_hit()");
    let (name, delta) = (args::name(name), args::delta(delta));
    caller::hit("counter_try_hit()", name, delta, Kind::Try, true)
}
