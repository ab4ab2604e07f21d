//! Floor 4: from the logs to the totals, and the space of the logs given back.
//!
//! May use [`crate::settings`], [`crate::store`] and below. Invariant: whoever folds a lane holds its
//! lease, has waited for the writers of the epochs that it folds, and moves them in one transaction.

pub mod at_it;
pub mod beginnings;
pub mod compaction;
pub mod expiry;
pub mod folding;
pub mod history;
pub mod history_table;
pub mod rotation;
pub mod sealing;
pub mod stream;
pub mod stream_upkeep;
pub mod sweep;
pub mod totals;
pub mod way;
pub mod windows;
