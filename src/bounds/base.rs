//! What the snapshot of a transaction that goes by one shows of a counter: see `levels.rs`.

use crate::bounds::seen;
use crate::pg::ports;
use crate::pg::snapshot;
use counterx_core::escrow::{Noted, Seen, Sums};

/// What a transaction's snapshot shows of a counter, and what it does not. The first does not change; the
/// account says how much has come to the second.
#[derive(Clone, Copy)]
pub struct Base {
    /// What it shows.
    pub seen: Seen,
    /// Taken and added in transactions that had committed.
    pub unseen: (i128, i128),
    /// What the account had known of as committed before.
    pub committed: Sums,
}

impl Base {
    /// Looks now; `noted` is what the account says of others.
    pub fn look(name: &[u8], clock: i64, noted: Noted) -> Self {
        let current = snapshot::active_or_latest();
        let unseen = ports::isolation_is_serializable();
        // SAFETY: the snapshot is active as long as `current` lives.
        unsafe {
            Self {
                seen: seen::seen_at(name, clock, current.as_ptr()),
                unseen: if unseen {
                    seen::unseen(name, clock, current.as_ptr())
                } else {
                    (0, 0)
                },
                committed: noted.committed(),
            }
        }
    }

    /// The same for a transaction that finds others as noted.
    pub fn unseen(&self, clock: i64, noted: Noted) -> Noted {
        let since = noted.committed().minus(self.committed);
        let takes = since.takes + noted.others.takes_at(clock);
        let adds = since.adds + noted.others.amounts.adds;
        let small = |sum: i128| i64::try_from(sum).unwrap_or(i64::MAX);
        Noted::unseen(small(self.unseen.0 + takes), small(self.unseen.1 + adds))
    }
}
