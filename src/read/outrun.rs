//! Bounded counters that a snapshot may be too old for: see the invariants in `reader.rs`.
//!
//! Which these are is known to those who keep the bounds, floors above. They say so when the library is loaded.

use counterx_core::tally::Tally;
use pgrx::pg_sys;
use std::sync::OnceLock;

/// What is known of bounded counters.
pub struct Bounded {
    /// Those that the running transaction has changed since a snapshot of this command was taken.
    pub changed_since: fn(pg_sys::CommandId) -> Vec<Box<[u8]>>,
    /// Is this counter one of them?
    pub was_changed_since: fn(&[u8], pg_sys::CommandId) -> bool,
    /// Is this value beyond the counter's bounds?
    pub is_out_of_bounds: fn(&[u8], i128) -> bool,
}

static BOUNDED: OnceLock<Bounded> = OnceLock::new();

/// To be called once, from `_PG_init`.
pub fn register(bounded: Bounded) {
    // A second one would be the same.
    let _ = BOUNDED.set(bounded);
}

/// See [`Bounded::changed_since`].
pub fn changed_since(command: pg_sys::CommandId) -> Vec<Box<[u8]>> {
    BOUNDED
        .get()
        .map(|bounded| (bounded.changed_since)(command))
        .unwrap_or_default()
}

/// See [`Bounded::is_out_of_bounds`].
pub fn is_out_of_bounds(name: &[u8], tally: Tally) -> bool {
    BOUNDED
        .get()
        .is_some_and(|bounded| (bounded.is_out_of_bounds)(name, tally.value))
}

/// See [`Bounded::was_changed_since`].
pub fn was_changed_since(name: &[u8], command: pg_sys::CommandId) -> bool {
    BOUNDED
        .get()
        .is_some_and(|bounded| (bounded.was_changed_since)(name, command))
}

/// Is what such a snapshot shows of this counter beyond its bounds, for what the transaction has done since?
pub fn is_beyond(name: &[u8], tally: Tally, command: pg_sys::CommandId) -> bool {
    was_changed_since(name, command) && is_out_of_bounds(name, tally)
}
