//! What the running transaction has come to.

pub use crate::figures::memory::Figure;
use crate::figures::memory::{self, FIGURES, Sums};
use crate::pg::ports;
use counterx_core::provisional::Provisional;
use std::cell::{Cell, RefCell};
use std::time::Duration;

struct Local {
    counts: [Cell<u64>; FIGURES],
    /// Which of them may not be zero.
    changed: Cell<u32>,
    /// What counts only when it is committed.
    provisional: RefCell<Provisional<FIGURES>>,
    /// Those of this database.
    sums: Cell<Option<Sums>>,
    /// When somebody has looked last whether there is room for them, and there was none.
    looked_at: Cell<Option<i64>>,
    /// When it has looked last which databases are gone.
    made_room_at: Cell<Option<i64>>,
    /// What this process counts, it counts for others: see [`work_for_others`].
    works_for_others: Cell<bool>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            counts: [const { Cell::new(0) }; FIGURES],
            changed: Cell::new(0),
            provisional: RefCell::new(Provisional::new()),
            sums: Cell::new(None),
            looked_at: Cell::new(None),
            made_room_at: Cell::new(None),
            works_for_others: Cell::new(false),
        }
    };
}

/// Where there is no room, it is looked for this often, in microseconds.
const LOOK_AGAIN_AFTER: i64 = 10_000_000;

impl Local {
    #[inline]
    fn count(&self, figure: Figure, n: u64) {
        if self.works_for_others.get() {
            self.count_if_committed(figure, n);
        } else {
            self.keep(figure as usize, n);
        }
    }

    /// It counts whatever happens.
    #[inline]
    fn keep(&self, figure: usize, n: u64) {
        let count = &self.counts[figure];
        count.set(count.get().wrapping_add(n));
        self.changed.set(self.changed.get() | 1 << figure);
    }

    fn count_if_committed(&self, figure: Figure, n: u64) {
        let level = ports::xact_nest_level();
        let mut provisional = self.provisional.borrow_mut();
        provisional.add(level, figure as usize, n);
    }

    /// Does so with what counts only when it is committed. Neither allocates nor fails.
    fn change(&self, change: impl FnOnce(&mut Provisional<FIGURES>)) {
        // Never borrowed by others: nothing is called meanwhile.
        if let Ok(mut provisional) = self.provisional.try_borrow_mut()
            && !provisional.is_empty()
        {
            change(&mut provisional);
        }
    }

    /// Takes what is kept, and leaves nothing.
    #[inline]
    fn take(&self, mut add: impl FnMut(usize, u64)) {
        let mut left = self.changed.replace(0);
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            add(at, self.counts[at].replace(0));
            left &= left - 1;
        }
    }

    /// Adds what there is to the sums.
    #[inline]
    fn hand_over(&self) {
        if let Some(sums) = self.sums.get().or_else(|| self.find()) {
            self.take(|figure, n| sums.add(figure, n));
        }
    }

    /// Neither allocates nor fails. None: there are no sums of this database yet, and what was counted is kept
    /// until there are.
    #[cold]
    fn find(&self) -> Option<Sums> {
        if !memory::is_there() {
            self.take(|_, _| {});
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
            self.take(|figure, n| sums.add(figure, n));
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
    LOCAL.with(|local| local.count_if_committed(figure, n));
}

/// What this process counts, it counts for others. What it cannot commit it tries again, or they hear of it: so nothing
/// counts before it is committed, and errors 40001 are theirs, who raise them again.
pub fn work_for_others() {
    LOCAL.with(|local| local.works_for_others.set(true));
}

/// An error 40001 is raised.
pub fn count_conflict() {
    LOCAL.with(|local| {
        if !local.works_for_others.get() {
            local.count(Figure::SerializationConflicts, 1);
        }
    });
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
        local.change(|provisional| {
            provisional.end(committed, |figure, n| local.keep(figure, n));
        });
        if local.changed.get() != 0 {
            local.hand_over();
        }
    });
}

/// What was counted outside of any transaction. Neither allocates nor fails.
pub fn hand_over() {
    after_end(true);
}

/// The subtransaction at this level was released.
pub fn release_subxact(level: u32) {
    LOCAL.with(|local| local.change(|provisional| provisional.release(level)));
}

/// The subtransaction at this level was rolled back. Neither allocates nor fails.
pub fn abort_subxact(level: u32) {
    LOCAL.with(|local| local.change(|provisional| provisional.abort(level)));
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
