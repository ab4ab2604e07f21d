//! What became of rows that have expired.

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// All that was expired is removed.
    Done,
    /// There may be more.
    More,
    /// Somebody else is at it, or is working on the table.
    Busy,
}
