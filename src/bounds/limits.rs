//! A counter's bounds, and the answer that they do not allow something.

use counterx_core::escrow::Bounds;
use std::num::NonZeroU32;

/// A counter's bounds, and the generation of its type that they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bounds.
    pub bounds: Bounds,
    /// Differs between any two definitions of a type.
    pub generation: i64,
    /// The counters are those of a tracked table's rows, and nobody else changes them.
    pub tracked: bool,
    /// The window of the type: its number among those that are known now.
    pub window: Option<NonZeroU32>,
}

/// Why an increment does not count.
pub enum Denied {
    /// A bound could be broken.
    Short(Shortage),
    /// The window that it would count in is over.
    Over,
}

/// Why an increment is not granted.
pub struct Shortage {
    /// The counter's value, with what the transaction has done.
    pub value: i128,
    /// What could have been taken for certain; None: there is no minimum.
    pub available: Option<i64>,
    /// Is what others have reserved in the way as well?
    pub others: bool,
    /// Is something on hold?
    pub held: bool,
    /// What was counted in the window before, at most, and counts still in part.
    pub before: i128,
    /// Of a counter that begins anew.
    pub renewal: Option<Renewal>,
}

/// When a counter begins anew.
#[derive(Clone, Copy)]
pub struct Renewal {
    /// The end of the running window.
    pub ends_at: i64,
    /// When what was not granted would be, if nobody else came; None: never.
    pub retry_at: Option<i64>,
    /// So far is the time that it goes by ahead of the server's clock, in microseconds.
    pub ahead: i64,
}
