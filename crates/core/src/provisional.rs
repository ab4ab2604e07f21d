//! Counts that are worth something only when what they count is committed.
//!
//! A transaction has few of them, mostly none, and they are forgotten on the way back from an error, where nothing may
//! be allocated: so there is room for some levels of subtransactions, and for no more.

/// Counts of this many subtransactions within each other are told apart. Those of deeper ones belong to the deepest
/// that is: they go when it goes, and stay when it stays.
const DEPTH: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Level<const FIGURES: usize> {
    level: u32,
    counts: [u64; FIGURES],
}

/// What the running transaction has counted, by the subtransaction that it goes with.
#[derive(Debug)]
pub struct Provisional<const FIGURES: usize> {
    /// The levels ascend.
    levels: [Level<FIGURES>; DEPTH],
    used: usize,
}

impl<const FIGURES: usize> Provisional<FIGURES> {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        const {
            Self {
                levels: [Level {
                    level: 0,
                    counts: [0; FIGURES],
                }; DEPTH],
                used: 0,
            }
        }
    }

    /// Is there nothing?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The (sub)transaction at this level, which is the innermost, has counted so many more.
    ///
    /// # Panics
    /// There is no such figure.
    pub fn add(&mut self, level: u32, figure: usize, n: u64) {
        let is_known = self.used > 0 && self.levels[self.used - 1].level >= level;
        if !is_known && self.used < DEPTH {
            self.levels[self.used].level = level;
            self.used += 1;
        }
        let count = &mut self.levels[self.used - 1].counts[figure];
        *count = count.wrapping_add(n);
    }

    /// The subtransaction at this level was released: what it has counted is its parent's.
    pub fn release(&mut self, level: u32) {
        let Some(last) = self.used.checked_sub(1) else {
            return;
        };
        if self.levels[last].level < level {
            return;
        }
        let parent = level.saturating_sub(1);
        if last == 0 || self.levels[last - 1].level < parent {
            self.levels[last].level = parent;
            return;
        }
        self.used = last;
        let released = std::mem::replace(&mut self.levels[last].counts, [0; FIGURES]);
        for (count, more) in self.levels[last - 1].counts.iter_mut().zip(released) {
            *count = count.wrapping_add(more);
        }
    }

    /// The subtransaction at this level was rolled back.
    pub fn abort(&mut self, level: u32) {
        while self.used > 0 && self.levels[self.used - 1].level >= level {
            self.used -= 1;
            self.levels[self.used].counts = [0; FIGURES];
        }
    }

    /// The transaction has ended, and each of the figures that it has counted is handed to `keep` if it was committed.
    pub fn end(&mut self, committed: bool, mut keep: impl FnMut(usize, u64)) {
        for level in &self.levels[..self.used] {
            for (figure, &n) in level.counts.iter().enumerate() {
                if committed && n != 0 {
                    keep(figure, n);
                }
            }
        }
        self.abort(0);
    }
}

impl<const FIGURES: usize> Default for Provisional<FIGURES> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(counts: &mut Provisional<2>, committed: bool) -> [u64; 2] {
        let mut kept = [0_u64; 2];
        counts.end(committed, |figure, n| {
            kept[figure] = kept[figure].wrapping_add(n);
        });
        assert!(counts.is_empty());
        kept
    }

    #[test]
    fn what_is_rolled_back_is_forgotten() {
        let mut counts = Provisional::new();
        counts.add(1, 0, 3);
        counts.add(1, 1, 4);
        assert_eq!(kept(&mut counts, false), [0, 0]);
        counts.add(1, 1, 5);
        assert_eq!(kept(&mut counts, true), [0, 5]);
        assert_eq!(kept(&mut counts, true), [0, 0]);
    }

    #[test]
    fn subtransactions_take_away_what_is_theirs() {
        let mut counts = Provisional::new();
        counts.add(1, 0, 1);
        counts.add(2, 0, 10);
        counts.abort(2);
        counts.add(2, 0, 100);
        counts.release(2);
        counts.add(3, 0, 1_000);
        counts.abort(2);
        assert_eq!(kept(&mut counts, true), [101, 0]);
    }

    #[test]
    fn what_is_released_goes_with_its_parent() {
        let mut counts = Provisional::new();
        counts.add(3, 0, 1);
        counts.release(3);
        counts.add(2, 0, 2);
        counts.abort(2);
        assert_eq!(kept(&mut counts, true), [0, 0]);
        counts.add(3, 0, 1);
        counts.release(3);
        counts.abort(3);
        counts.release(2);
        counts.add(2, 0, 10);
        counts.abort(2);
        assert_eq!(kept(&mut counts, true), [1, 0]);
    }

    #[test]
    fn those_that_have_counted_nothing_change_nothing() {
        let mut counts = Provisional::new();
        counts.release(2);
        counts.abort(2);
        counts.add(1, 0, 1);
        counts.release(2);
        counts.abort(2);
        assert_eq!(kept(&mut counts, true), [1, 0]);
    }

    #[test]
    fn as_many_may_be_taken_away_as_were_added() {
        let mut counts = Provisional::new();
        counts.add(1, 0, 1);
        counts.add(2, 0, 1_u64.wrapping_neg());
        assert_eq!(kept(&mut counts, true), [0, 0]);
    }

    /// With as many levels as there is room for, and with more.
    #[test]
    fn deep_ones_go_with_the_deepest_that_is_known() {
        let depth = u32::try_from(DEPTH).unwrap();
        for levels in 1..=depth + 2 {
            let mut counts = Provisional::new();
            for level in 1..=levels {
                counts.add(level, 0, 1);
            }
            counts.abort(depth);
            let left = u64::from(levels.min(depth - 1));
            assert_eq!(kept(&mut counts, true), [left, 0], "{levels}");
            for level in 1..=levels {
                counts.add(level, 0, 1);
            }
            for level in (2..=levels).rev() {
                counts.release(level);
            }
            assert_eq!(kept(&mut counts, true), [levels.into(), 0], "{levels}");
        }
    }

    /// Beside what remembers each of them.
    #[test]
    fn same_as_a_list_of_all_that_was_counted() {
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..2_000 {
            let mut counts = Provisional::new();
            let mut all: Vec<(u32, u64)> = Vec::new();
            let mut level = 1;
            for _ in 0..next(30) {
                match next(4) {
                    0 if level < u32::try_from(DEPTH).unwrap() => level += 1,
                    1 if level > 1 => {
                        counts.release(level);
                        level -= 1;
                        for (own, _) in &mut all {
                            *own = level.min(*own);
                        }
                    }
                    2 if level > 1 => {
                        counts.abort(level);
                        all.retain(|(own, _)| *own < level);
                        level -= 1;
                    }
                    _ => {
                        let n = next(100);
                        counts.add(level, 1, n);
                        all.push((level, n));
                    }
                }
            }
            let expected = all.iter().map(|(_, n)| n).sum();
            assert_eq!(kept(&mut counts, true), [0, expected]);
        }
    }
}
