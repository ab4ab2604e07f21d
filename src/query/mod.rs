//! Floor 4: many counters at once. Lists, pages, ranks, and the view `counters`.
//!
//! May use [`crate::read`] and below. Invariant: an answer is that of one snapshot, and never takes memory
//! for more counters than it returns without asking for it.

pub mod fdw;
pub mod listing;
pub mod paging;
pub mod ranking;
pub mod shown;
pub mod value_index;
