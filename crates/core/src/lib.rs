//! The parts of counterx that know nothing of PostgreSQL: what a transaction holds in memory
//! ([`pending`]), when a counter exists ([`tally`]), what is pending of many ([`sums`]), what of a
//! bounded one is spoken for ([`escrow`]) and what one transaction asks of it ([`path`]), how names spread over lanes ([`lane`]) and make
//! ranges ([`names`]), how they are made of parts ([`parts`]), which counters come first ([`rank`]), what a gate's value means ([`gate`]),
//! which epochs a reader visits ([`probe`]), how several workers share the lanes ([`folders`]), when a fold is due ([`schedule`]), what an installation lacks
//! ([`installation`]), what is told of changes ([`streams`]) and when an alert fires ([`alerts`]), what was counted when ([`history`]), what begins anew with each window ([`windows`]), what was counted in vain if it is rolled back ([`provisional`]), and what to do where there is no memory for any of it ([`room`]).
//!
//! Everything here is plain data and arithmetic, so that its tests run in milliseconds.

pub mod alerts;
pub mod buckets;
pub mod escrow;
pub mod folders;
pub mod gate;
pub mod history;
pub mod hits;
pub mod installation;
pub mod lane;
pub mod names;
pub mod parts;
pub mod path;
pub mod pending;
pub mod probe;
pub mod provisional;
pub mod rank;
pub mod room;
pub mod schedule;
pub mod streams;
pub mod sums;
pub mod tally;
pub mod turns;
pub mod weight;
pub mod windows;
