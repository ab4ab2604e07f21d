//! What is known of a counter: its value, and whether it exists.
//!
//! # How existence is counted
//! A counter may be dropped while others increment it, and folds may come at any moment between. So
//! that everybody always agrees on whether it exists, existence is a sum, as the value is: each
//! delta is one *use* of its counter, and a drop takes back the value and the uses that it saw. A
//! counter exists while it has uses. Sums do not depend on the order in which their parts arrive,
//! so folds, concurrent increments and drops need no agreement on who came first.
//!
//! # Invariant
//! Over all deltas that a snapshot sees, no uses means no value.

use std::ops::{Add, AddAssign, Sub};

/// A value and the number of its uses, or the sum of some of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The sum of the deltas.
    pub value: i128,
    /// How many deltas there were since the counter was dropped. Parts of the sum may be negative.
    pub uses: i64,
}

impl Tally {
    /// One transaction's part.
    pub fn of(delta: i64, uses: i64) -> Self {
        Self {
            value: delta.into(),
            uses,
        }
    }

    /// Does such a counter exist?
    pub fn exists(self) -> bool {
        self.uses > 0
    }

    /// Does it change nothing?
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            uses: self.uses + other.uses,
        }
    }
}

impl Sub for Tally {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            value: self.value - other.value,
            uses: self.uses - other.uses,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
