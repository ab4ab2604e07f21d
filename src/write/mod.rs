//! Floor 5: from a call to the log. What is asked for, what is kept to the end of the transaction, and what
//! is written then.
//!
//! May use [`crate::bounds`], [`crate::fold`] and below. Invariant: a delta is in the map or in a log, and
//! goes with its (sub)transaction; COMMIT and ABORT callbacks neither fail nor allocate.

pub mod callbacks;
pub mod change;
pub mod flush;
pub mod pressure;
pub mod token;
pub mod windows;
pub mod writing;
