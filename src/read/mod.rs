//! Floor 3: reading. One counter, or many, exact for a snapshot.
//!
//! May use [`crate::store`], [`crate::transaction`] and below. Invariant: total + unfolded rows + late
//! deltas + what the own transaction has pending is the counter's value in each snapshot, whatever is
//! folded meanwhile. Likewise, [`history`] has buckets whose sums make up that value.

pub mod dumped;
pub mod history;
pub mod lane;
pub mod most_changed;
pub mod outrun;
pub mod reader;
pub mod stream;
