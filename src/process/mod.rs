//! Floor 7: the background processes. Workers fold, one a database; the launcher says whose turn it is; the
//! committer counts hits; the filler makes tracks exact.
//!
//! May use [`crate::write`], [`crate::fold`] and below. Invariant: a committed delta has a worker that will
//! see it, or somebody has been told that there is none.

mod batch;
mod committer;
pub mod directory;
mod duty;
mod filler;
mod lanes;
pub mod launcher;
mod mend;
pub mod session;
pub mod start;
mod streams;
mod tracks;
mod upkeep;
mod uptime;
pub mod worker;
