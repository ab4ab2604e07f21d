//! What one transaction does to a bounded counter, in the order of time; and what it has to reserve
//! for that.
//!
//! # How it works
//! A [`Path`] is a running sum, and the extremes that the sum has had. A transaction that commits has
//! done all of its path, or a beginning of it, since to roll back to a savepoint undoes the *last* part
//! of what was done. So an add counts for the takes that come after it: whatever takes back the add
//! takes back those as well. And a take is reserved only as far as the path has never been so low before.
//!
//! There are two sums, as a hold that others see and that the transaction has ended is not quite like an
//! add: when its time is over, others find its amount free as well.
//!
//! - `free`: adds - takes - holds that were made. What it takes at most is `-free` where that was lowest.
//! - `free + released`: with the holds of others' sight that were ended. This one says what is *needed* of
//!   what is free, as long as none of those holds has expired.
//!
//! `released` never falls, so where the second sum is lower than ever, the first one is too, and by no
//! less: what is needed never grows by more than what is taken, and [`Amounts::backed`], which is the
//! difference, never falls.
//!
//! [`Paths`] is the undo log over the paths of many counters: what a subtransaction has changed is put
//! back as it was when it is rolled back.

use crate::escrow::Amounts;
use crate::room::NoMemory;

/// One thing done to a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Added to the value.
    value: i64,
    /// Added to what is free.
    free: i64,
    /// On hold before the transaction, and not any more.
    released: i64,
    /// When that hold would have expired.
    until: i64,
}

impl Change {
    const NONE: Self = Self {
        value: 0,
        free: 0,
        released: 0,
        until: i64::MAX,
    };

    /// The value changes.
    pub fn delta(delta: i64) -> Self {
        Self {
            value: delta,
            free: delta,
            ..Self::NONE
        }
    }

    /// An amount is set aside.
    pub fn hold(amount: i64) -> Self {
        Self {
            // Amounts are positive.
            free: -amount,
            ..Self::NONE
        }
    }

    /// What the transaction itself has set aside is free again.
    pub fn release_own(amount: i64) -> Self {
        Self {
            free: amount,
            ..Self::NONE
        }
    }

    /// What a hold that others see has set aside is free again. Otherwise it would be at `until`.
    pub fn release(amount: i64, until: i64) -> Self {
        Self {
            released: amount,
            until,
            ..Self::NONE
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    value: i64,
    free: i64,
    released: i64,
    amounts: Amounts,
    /// When the first of the released holds would have expired.
    backed_until: i64,
}

impl Default for Path {
    fn default() -> Self {
        Self::NEW
    }
}

impl Path {
    /// Nothing was done yet.
    pub const NEW: Self = Self {
        value: 0,
        free: 0,
        released: 0,
        amounts: Amounts::NONE,
        backed_until: i64::MAX,
    };

    /// One step further. None: a sum is out of range.
    pub fn then(self, change: Change) -> Option<Self> {
        let value = self.value.checked_add(change.value)?;
        let free = self.free.checked_add(change.free)?;
        let released = self.released.checked_add(change.released)?;
        let lowest = |known: i64, sum: i64| Some(known.max(sum.checked_neg()?));
        let takes = lowest(self.amounts.takes, free)?;
        let needed = lowest(self.needed(), free.checked_add(released)?)?;
        Some(Self {
            value,
            free,
            released,
            amounts: Amounts {
                takes,
                adds: self.amounts.adds.max(value),
                backed: takes - needed,
            },
            backed_until: self.backed_until.min(change.until),
        })
    }

    /// The value's change so far.
    pub fn value(&self) -> i64 {
        self.value
    }

    /// What of holds of others' sight was released so far.
    pub fn released_at(&self, clock: i64) -> i64 {
        if clock < self.backed_until {
            self.released
        } else {
            0
        }
    }

    /// What has to be reserved for it.
    pub fn amounts(&self) -> Amounts {
        self.amounts
    }

    /// Until when [`Amounts::backed`] is.
    pub fn backed_until(&self) -> i64 {
        self.backed_until
    }

    /// Does what it has come to tell of all that was granted? Not where the path has been lower, or higher,
    /// than it is now, or where a part of it was rolled back.
    pub fn tells_of(&self, granted: Amounts) -> bool {
        granted.takes <= self.free.saturating_neg().max(0) && granted.adds <= self.value.max(0)
    }

    fn needed(&self) -> i64 {
        self.amounts.takes - self.amounts.backed
    }

    /// What it needs at most of what is free at that time.
    pub fn needed_at(&self, clock: i64) -> i64 {
        if clock < self.backed_until {
            self.needed()
        } else {
            self.amounts.takes
        }
    }

    /// What it has changed of what is free at that time.
    pub fn free_at(&self, clock: i64) -> i128 {
        i128::from(self.free) + i128::from(self.released_at(clock))
    }
}

/// One step of a path, and what it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The path before.
    pub before: Path,
    /// The path after.
    pub after: Path,
}

impl Step {
    /// What has to be reserved for it.
    pub fn wanted(&self) -> Amounts {
        self.after.amounts.minus(self.before.amounts)
    }
}

/// The nesting level of a transaction that has no subtransaction open.
const TOP_LEVEL: u32 = 1;

#[derive(Debug)]
struct Entry {
    path: Path,
    /// The innermost level that has noted what the path was before.
    noted_at: u32,
}

#[derive(Debug)]
struct Note {
    level: u32,
    at: usize,
    before: Path,
    noted_at: u32,
}

/// The paths of a transaction, by number.
///
/// # Invariants
/// - The levels of notes rise from the first to the last. There are none of the outermost level, whose
///   work is undone by forgetting all.
/// - An entry's `noted_at` is the level of its last note, or the outermost one.
#[derive(Debug, Default)]
pub struct Paths {
    entries: Vec<Entry>,
    notes: Vec<Note>,
}

impl Paths {
    /// A new path. Returns its number: they are counted from 0.
    pub fn push(&mut self) -> usize {
        self.entries.push(Entry {
            path: Path::NEW,
            noted_at: TOP_LEVEL,
        });
        self.entries.len() - 1
    }

    /// A path.
    pub fn get(&self, at: usize) -> Path {
        self.entries[at].path
    }

    /// Makes room: the next [`Self::set`] does not allocate.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn prepare(&mut self) -> Result<(), NoMemory> {
        self.entries.try_reserve(1)?;
        Ok(self.notes.try_reserve(1)?)
    }

    /// The subtransaction at this level has gone on.
    pub fn set(&mut self, level: u32, at: usize, path: Path) {
        let entry = &mut self.entries[at];
        if entry.noted_at < level {
            self.notes.push(Note {
                level,
                at,
                before: entry.path,
                noted_at: entry.noted_at,
            });
            entry.noted_at = level;
        }
        entry.path = path;
    }

    /// The subtransaction at `level`, and all inside it, were rolled back. Calls `give_back` with what
    /// each path has reserved less. Does not allocate.
    pub fn abort_subxact(&mut self, level: u32, mut give_back: impl FnMut(usize, Amounts)) {
        while self.notes.last().is_some_and(|note| note.level >= level) {
            let Some(note) = self.notes.pop() else { break };
            let entry = &mut self.entries[note.at];
            give_back(note.at, entry.path.amounts.minus(note.before.amounts));
            entry.path = note.before;
            entry.noted_at = note.noted_at;
        }
    }

    /// The subtransaction at `level` was released into its parent.
    pub fn release_subxact(&mut self, level: u32) {
        let parent = level - 1;
        let first = self.notes.partition_point(|note| note.level < level);
        let mut kept = first;
        for i in first..self.notes.len() {
            let note = &mut self.notes[i];
            self.entries[note.at].noted_at = parent;
            note.level = parent;
            // What the path was before the parent, the parent has noted, or nobody needs.
            if note.noted_at < parent {
                self.notes.swap(kept, i);
                kept += 1;
            }
        }
        self.notes.truncate(kept);
    }

    /// The transaction has ended. Does not allocate.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.notes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is known of one path: all of its changes.
    type History = Vec<Change>;

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => (-5i64..6).prop_map(Change::delta),
            2 => (1i64..4).prop_map(Change::hold),
            1 => (1i64..4).prop_map(Change::release_own),
            2 => (1i64..4, 10i64..20).prop_map(|(amount, until)| Change::release(amount, until)),
        ]
    }

    /// The obvious way: from all prefixes.
    fn obvious(history: &[Change]) -> (Amounts, i64) {
        let mut amounts = Amounts::default();
        let (mut value, mut free, mut both, mut needed) = (0, 0, 0, 0);
        for change in history {
            value += change.value;
            free += change.free;
            both += change.free + change.released;
            amounts.takes = amounts.takes.max(-free);
            amounts.adds = amounts.adds.max(value);
            needed = needed.max(-both);
        }
        amounts.backed = amounts.takes - needed;
        let until = history.iter().map(|change| change.until).min();
        (amounts, until.unwrap_or(i64::MAX))
    }

    #[derive(Clone, Debug)]
    enum Act {
        Change(usize, Change),
        Begin,
        Release,
        Abort,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => (0usize..3, change()).prop_map(|(at, change)| Act::Change(at, change)),
            3 => Just(Act::Begin),
            2 => Just(Act::Release),
            2 => Just(Act::Abort),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Subtransactions in every order: each path is what its changes that were not rolled back
        /// make of it, and what was given back is the rest.
        #[test]
        fn paths_follow_subtransactions(acts in proptest::collection::vec(act(), 0..60)) {
            let mut paths = Paths::default();
            for at in 0..3 {
                prop_assert_eq!(paths.push(), at);
            }
            let mut reserved = [Amounts::default(); 3];
            let mut levels: Vec<[History; 3]> = vec![Default::default()];
            for act in acts {
                let level = levels.len() as u32;
                match act {
                    Act::Change(at, change) => {
                        let before = paths.get(at);
                        let step = Step { before, after: before.then(change).unwrap() };
                        let wanted = step.wanted();
                        prop_assert!(wanted.takes >= 0 && wanted.adds >= 0 && wanted.backed >= 0);
                        prop_assert!(wanted.backed <= wanted.takes);
                        reserved[at] = reserved[at].plus(wanted);
                        paths.prepare().unwrap();
                        paths.set(level, at, step.after);
                        levels.last_mut().unwrap()[at].push(change);
                    }
                    Act::Begin => levels.push(levels.last().unwrap().clone()),
                    Act::Release if level > 1 => {
                        paths.release_subxact(level);
                        let top = levels.pop().unwrap();
                        *levels.last_mut().unwrap() = top;
                    }
                    Act::Abort if level > 1 => {
                        paths.abort_subxact(level, |at, amounts| {
                            reserved[at] = reserved[at].minus(amounts);
                        });
                        levels.pop();
                    }
                    Act::Release | Act::Abort => {}
                }
                for (at, history) in levels.last().unwrap().iter().enumerate() {
                    let path = paths.get(at);
                    prop_assert_eq!((path.amounts(), path.backed_until()), obvious(history));
                    prop_assert_eq!(path.amounts(), reserved[at]);
                }
            }
        }
    }

    fn path(changes: &[Change]) -> Path {
        let step = |path: Path, change: &Change| path.then(*change).unwrap();
        changes.iter().fold(Path::NEW, step)
    }

    fn amounts(takes: i64, adds: i64, backed: i64) -> Amounts {
        Amounts {
            takes,
            adds,
            backed,
        }
    }

    #[test]
    fn an_add_counts_for_the_takes_after_it() {
        let delta = Change::delta;
        assert_eq!(path(&[delta(5), delta(-5)]).amounts(), amounts(0, 5, 0));
        assert_eq!(path(&[delta(-5), delta(5)]).amounts(), amounts(5, 0, 0));
        let both = [delta(2), delta(-5), delta(4), delta(-1)];
        assert_eq!(path(&both).amounts(), amounts(3, 2, 0));
    }

    #[test]
    fn a_hold_that_others_see_backs_what_is_taken_of_it() {
        let confirmed = path(&[Change::release(5, 10), Change::delta(-3)]);
        assert_eq!(confirmed.amounts(), amounts(3, 0, 3));
        assert_eq!((confirmed.needed_at(9), confirmed.needed_at(10)), (0, 3));
        assert_eq!((confirmed.free_at(9), confirmed.free_at(10)), (2, -3));
        // One that the transaction has made itself was reserved when it was made.
        let own = [
            Change::hold(5),
            Change::release_own(5),
            Change::delta(-3),
            Change::delta(-3),
        ];
        assert_eq!(path(&own).amounts(), amounts(6, 0, 0));
        // Extended: set aside anew.
        let extended = path(&[Change::release(5, 10), Change::hold(5)]);
        assert_eq!(extended.amounts(), amounts(5, 0, 5));
        let and_released = extended.then(Change::release_own(5)).unwrap();
        assert_eq!(and_released.amounts(), amounts(5, 0, 5));
        assert_eq!((and_released.free_at(9), and_released.free_at(10)), (5, 0));
    }

    #[test]
    fn what_it_has_come_to_tells_of_its_extremes_or_not() {
        let tells = |changes: &[Change]| path(changes).tells_of(path(changes).amounts());
        let delta = Change::delta;
        assert!(tells(&[]));
        assert!(tells(&[delta(-3), Change::hold(2), delta(-1)]));
        assert!(tells(&[delta(2), delta(3)]));
        assert!(tells(&[Change::release(5, 10), delta(-5)]));
        assert!(!tells(&[delta(-3), delta(1)]));
        assert!(!tells(&[delta(3), delta(-1)]));
        assert!(!tells(&[Change::hold(2), Change::release_own(2)]));
        // Rolled back.
        assert!(!path(&[delta(-1)]).tells_of(amounts(2, 0, 0)));
        assert!(!Path::NEW.tells_of(amounts(0, 1, 0)));
    }

    #[test]
    fn sums_out_of_range_are_told() {
        assert_eq!(Path::NEW.then(Change::delta(i64::MIN)), None);
        let full = path(&[Change::delta(i64::MAX)]);
        assert_eq!(full.then(Change::delta(1)), None);
        assert_eq!(full.then(Change::release(1, 10)), None);
        let down = path(&[Change::delta(-i64::MAX)]);
        assert_eq!(down.then(Change::delta(-1)), None);
        assert!(down.then(Change::delta(i64::MAX)).is_some());
    }

    #[test]
    fn many_released_subtransactions_leave_few_notes() {
        let mut paths = Paths::default();
        let at = paths.push();
        for _ in 0..1000 {
            let path = paths.get(at).then(Change::delta(-1)).unwrap();
            paths.set(3, at, path);
            paths.release_subxact(3);
        }
        assert_eq!(paths.notes.len(), 1);
        paths.release_subxact(2);
        assert!(paths.notes.is_empty());
    }
}
