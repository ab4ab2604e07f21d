//! What the running transaction has come to.

use crate::figures::memory::{self, Sums};
use crate::pg::ports;
use std::cell::Cell;
use std::time::Duration;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Figure {
    /// Increments that were asked for.
    Increments,
    /// Rows written to logs.
    RowsFlushed,
    /// Transactions' writes before their end.
    EarlyFlushes,
    /// Transactions of the committer.
    HitBatches,
    /// Hits that these have counted.
    HitsBatched,
    /// Hits that were not counted.
    HitsRefused,
    /// Folds of a lane.
    Folds,
    /// Deltas that they have moved.
    DeltasFolded,
    /// How long they took, in microseconds.
    FoldTime,
    /// Logs that were emptied.
    Truncations,
    /// Requests that a bound forbade.
    Refused,
    /// Requests that have waited for what others may give back.
    EscrowWaits,
    /// How long, in microseconds.
    EscrowWaitTime,
    /// Tokens that were new.
    TokensUsed,
    /// Tokens that were used before.
    TokensReplayed,
    /// Tokens that were removed.
    TokensExpired,
    /// Holds that were removed when they had expired long ago.
    HoldsExpired,
    /// Errors 40001.
    SerializationConflicts,
    /// Transactions that have waited for a fold.
    BackPressureWaits,
    /// How long, in microseconds.
    BackPressureWaitTime,
}

use Figure::*;

impl Figure {
    /// In the order of their numbers.
    const ALL: [Self; memory::FIGURES] = [
        Increments,
        RowsFlushed,
        EarlyFlushes,
        HitBatches,
        HitsBatched,
        HitsRefused,
        Folds,
        DeltasFolded,
        FoldTime,
        Truncations,
        Refused,
        EscrowWaits,
        EscrowWaitTime,
        TokensUsed,
        TokensReplayed,
        TokensExpired,
        HoldsExpired,
        SerializationConflicts,
        BackPressureWaits,
        BackPressureWaitTime,
    ];

    /// Does it count only when it is committed?
    const fn is_of_commits(self) -> bool {
        matches!(
            self,
            Folds | DeltasFolded | FoldTime | Truncations | TokensExpired | HoldsExpired
        )
    }

    const fn bit(self) -> u32 {
        1 << self as usize
    }
}

/// The bits of what counts only when it is committed.
const OF_COMMITS: u32 = {
    let mut bits = 0;
    let mut at = 0;
    while at < memory::FIGURES {
        assert!(Figure::ALL[at] as usize == at);
        if Figure::ALL[at].is_of_commits() {
            bits |= Figure::ALL[at].bit();
        }
        at += 1;
    }
    bits
};

struct Local {
    counts: [Cell<u64>; memory::FIGURES],
    /// Which of them may not be zero.
    changed: Cell<u32>,
    /// The outermost (sub)transaction that has counted what only counts when it is committed. (One for all: where a
    /// transaction folds by hand and once more in a savepoint that it gives up, the second fold counts as well.)
    level: Cell<u32>,
    /// Those of this database.
    sums: Cell<Option<Sums>>,
    /// When somebody has looked last whether there is room for them, and there was none.
    looked_at: Cell<Option<i64>>,
    /// When it has looked last which databases are gone.
    made_room_at: Cell<Option<i64>>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            counts: [const { Cell::new(0) }; memory::FIGURES],
            changed: Cell::new(0),
            level: Cell::new(0),
            sums: Cell::new(None),
            looked_at: Cell::new(None),
            made_room_at: Cell::new(None),
        }
    };
}

/// Where there is no room, it is looked for this often, in microseconds.
const LOOK_AGAIN_AFTER: i64 = 10_000_000;

impl Local {
    #[inline]
    fn count(&self, figure: Figure, n: u64) {
        let count = &self.counts[figure as usize];
        count.set(count.get().wrapping_add(n));
        self.changed.set(self.changed.get() | figure.bit());
    }

    /// Forgets these.
    fn forget(&self, bits: u32) {
        let mut left = self.changed.get() & bits;
        self.changed.set(self.changed.get() & !bits);
        while left != 0 {
            self.counts[left.trailing_zeros() as usize].set(0);
            left &= left - 1;
        }
    }

    /// Adds what there is to the sums.
    #[inline]
    fn hand_over(&self) {
        if let Some(sums) = self.sums.get().or_else(|| self.find()) {
            self.add(sums, u32::MAX);
        }
    }

    /// Adds these.
    #[inline]
    fn add(&self, sums: Sums, bits: u32) {
        let mut left = self.changed.get() & bits;
        self.changed.set(self.changed.get() & !bits);
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            sums.add(at, self.counts[at].replace(0));
            left &= left - 1;
        }
    }

    /// Neither allocates nor fails. None: there are no sums of this database yet, and what was counted is kept
    /// until there are.
    #[cold]
    fn find(&self) -> Option<Sums> {
        if !memory::is_there() {
            self.forget(u32::MAX);
            return None;
        }
        if is_due(&self.looked_at) {
            self.sums.set(Sums::of_this_database());
        }
        self.sums.get()
    }

    /// The same for those who look at them, in the midst of a transaction, where databases that are gone can be told
    /// from others. That takes a look at a catalog for each entry.
    #[cold]
    fn make_room(&self) {
        if !memory::is_there() || !is_due(&self.made_room_at) {
            return;
        }
        self.sums.set(memory::make_room());
        if let Some(sums) = self.sums.get() {
            self.add(sums, !OF_COMMITS);
        }
    }
}

/// Is it time again for what was done then?
fn is_due(at: &Cell<Option<i64>>) -> bool {
    let now = ports::now();
    let is_due = (at.get()).is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN_AFTER);
    if is_due {
        at.set(Some(now));
    }
    is_due
}

/// So much more.
#[inline]
pub fn count(figure: Figure, n: u64) {
    LOCAL.with(|local| local.count(figure, n));
}

/// So much time more.
pub fn count_time(figure: Figure, time: Duration) {
    let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    count(figure, time);
}

/// A time between two looks at the server's clock, in microseconds: none where that was set back meanwhile.
pub fn elapsed(microseconds: i64) -> u64 {
    u64::try_from(microseconds).unwrap_or(0)
}

/// The same of what counts only when it is committed.
pub fn count_if_committed(figure: Figure, n: u64) {
    debug_assert!(figure.is_of_commits());
    LOCAL.with(|local| {
        let level = ports::xact_nest_level();
        let known = local.level.get();
        local
            .level
            .set(if known == 0 { level } else { known.min(level) });
        local.count(figure, n);
    });
}

thread_local! {
    /// What this process raises is raised again by those that it works for.
    static HANDS_CONFLICTS_ON: Cell<bool> = const { Cell::new(false) };
}

/// Errors 40001 of this process are handed to others, who raise and count them.
pub fn hand_conflicts_on() {
    HANDS_CONFLICTS_ON.set(true);
}

/// An error 40001 is raised.
pub fn count_conflict() {
    if !HANDS_CONFLICTS_ON.get() {
        count(Figure::SerializationConflicts, 1);
    }
}

/// Counts one while `body` runs, and takes it back afterwards: what stays is how often it has ended by an error.
pub fn count_failure(figure: Figure, body: impl FnOnce()) {
    count(figure, 1);
    body();
    count(figure, 1_u64.wrapping_neg());
}

/// The transaction has ended. Neither allocates nor fails.
#[inline]
pub fn after_end(committed: bool) {
    LOCAL.with(|local| {
        if local.changed.get() == 0 {
            return;
        }
        if local.level.replace(0) != 0 && !committed {
            local.forget(OF_COMMITS);
        }
        local.hand_over();
    });
}

/// What was counted outside of any transaction. Neither allocates nor fails.
pub fn hand_over() {
    after_end(true);
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    LOCAL.with(|local| {
        if local.level.get() >= level {
            local.level.set(level - 1);
        }
    });
}

/// The subtransaction at this level was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    LOCAL.with(|local| {
        if local.level.get() >= level {
            local.level.set(0);
            local.forget(OF_COMMITS);
        }
    });
}

/// The sums of this database. None: there is no shared memory, or no room in it.
pub fn sums() -> Option<Sums> {
    LOCAL.with(|local| {
        let sums = local.sums.get().or_else(|| local.find());
        if sums.is_none() {
            local.make_room();
        }
        local.sums.get()
    })
}

#[cfg(test)]
mod tests {
    use super::elapsed;

    #[test]
    fn clock_that_is_set_back_adds_no_time() {
        assert_eq!(elapsed(1_500), 1_500);
        assert_eq!(elapsed(-3_600_000_000), 0);
    }
}
