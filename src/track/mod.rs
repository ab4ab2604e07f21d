//! Floor 6: tracked tables, whose rows are counted by group.
//!
//! May use [`crate::write`] and what lies below it. Invariant: what a transaction has changed of a tracked
//! table's rows, it has added to the counters of their groups, in the same (sub)transaction.

pub mod compare;
pub mod definition;
pub mod fill;
pub mod row;
pub mod tables;
pub mod watch;
