//! Floor 7: what users call. The SQL functions, by what they are for.
//!
//! May use all that lies below, and nothing of [`crate::process`]. Invariant: a user's mistake is an error
//! with a hint, and leaves nothing behind.
//!
//! | module | functions |
//! |---|---|
//! | [`increment`] | `counter_incr` and its relatives |
//! | [`hits`] | `counter_hit` and its relatives, which count by themselves |
//! | [`call`] | `CALL counter_add(...)`, for clients that take a SELECT for a read |
//! | [`look`] | `counter_value`, many at once, pages, sums, ranks |
//! | [`change`] | set, reset, drop, rename, merge |
//! | [`drop_all`], [`existing`] | all counters dropped at once |
//! | [`once`] | increments with a token |
//! | [`parts`] | names that are made of parts |
//! | [`parts`], [`track`], [`track_triggers`] | names that are made of parts; tracked tables |
//! | [`types`], [`bounded`], [`holds`] | counters with bounds |
//! | [`history`] | buckets, values as of a time, rates, events |
//! | [`histories`] | which types have a history, and sealing it |
//! | [`admin`] | the schema `counterx`: compact, the value index |
//! | [`stat`] | the figures behind the view `counterx.stat` |
//! | [`steps`] | the procedure that folds lane by lane |
//! | [`restore`] | what a dump has, and what is done with it |
//! | [`triggers`] | trigger functions of our tables |
//! | [`args`] | what they take: names, arrays, limits |
//!
//! No function is STRICT: a NULL that reaches one is a mistake, and says so. (A NULL array is what an
//! aggregate makes of no rows, and means none.)

pub mod admin;
mod alerts;
mod args;
mod bounded;
mod call;
mod change;
mod drop_all;
mod existing;
pub mod histories;
mod history;
mod hits;
mod holds;
mod increment;
mod look;
mod once;
mod parts;
pub mod restore;
mod stat;
mod steps;
mod streams;
mod track;
pub mod track_triggers;
pub mod triggers;
pub mod types;
