//! The first of many counters by value: a bounded heap of candidates.

use crate::room::{self, NoMemory};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// From which end to rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The greatest values; equal ones by name, ascending.
    Top,
    /// The exact reverse: the least values; equal ones by name, descending.
    Bottom,
}

impl End {
    /// `Less`: `a` comes before `b`.
    fn order(self, a: (i128, &[u8]), b: (i128, &[u8])) -> Ordering {
        let top = b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1));
        match self {
            Self::Top => top,
            Self::Bottom => top.reverse(),
        }
    }
}

/// A place in the order of all counters: just after a counter, or after all of a value. No counter need
/// be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The value.
    pub value: i128,
    /// The name; without one, after all of this value.
    pub name: Option<Box<[u8]>>,
}

impl Mark {
    /// Just before all of a value: no name is empty. As seen from the top.
    pub fn before_all_of(value: i128) -> Self {
        Self {
            value,
            name: Some(Box::default()),
        }
    }
}

/// A counter among the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// 1 for the first; counters of equal value share theirs, and leave a gap behind.
    pub rank: i64,
    /// Its name.
    pub name: Box<[u8]>,
    /// Its value.
    pub value: i128,
}

struct Candidate {
    end: End,
    value: i128,
    name: Box<[u8]>,
}

impl Candidate {
    fn key(&self) -> (i128, &[u8]) {
        (self.value, &self.name)
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.end.order(self.key(), other.key())
    }
}

/// The first `wanted` of all counters that were offered, or of those after a mark.
pub struct Best {
    end: End,
    wanted: usize,
    after: Option<Mark>,
    /// Counters that were offered and come before all of the mark's value.
    above: i64,
    /// Those of the mark's value that do not come after the mark.
    level: i64,
    /// The last one on top.
    heap: BinaryHeap<Candidate>,
}

impl Best {
    /// None so far.
    pub fn new(end: End, wanted: usize) -> Self {
        Self::after(end, wanted, None)
    }

    /// None so far, of those after a mark.
    pub fn after(end: End, wanted: usize, after: Option<Mark>) -> Self {
        Self {
            end,
            wanted,
            after,
            above: 0,
            level: 0,
            heap: BinaryHeap::new(),
        }
    }

    /// How many were offered that come before all of the mark's value.
    pub fn above(&self) -> i64 {
        self.above
    }

    /// Does a counter come after the mark, if there is one?
    pub fn is_after_mark(&self, name: &[u8], value: i128) -> bool {
        self.after.as_ref().is_none_or(|mark| match &mark.name {
            Some(at) => self.end.order((value, name), (mark.value, at)).is_gt(),
            None => value != mark.value && self.end.order((value, b""), (mark.value, b"")).is_gt(),
        })
    }

    /// Would a counter with this name and value be among the first so far?
    pub fn takes(&self, name: &[u8], value: i128) -> bool {
        if self.heap.len() < self.wanted {
            return true;
        }
        self.heap
            .peek()
            .is_some_and(|last| self.end.order((value, name), last.key()).is_lt())
    }

    /// Could a counter be among the first, of which only is known that its value is this one or one
    /// that ranks after it?
    pub fn takes_value(&self, value: i128) -> bool {
        if self.heap.len() < self.wanted {
            return true;
        }
        self.heap.peek().is_some_and(|last| match self.end {
            End::Top => value >= last.value,
            End::Bottom => value <= last.value,
        })
    }

    /// Takes a counter in if it is among the first, or counts it if it is not after the mark. Each name
    /// may be offered once.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn offer(&mut self, name: &[u8], value: i128) -> Result<(), NoMemory> {
        if !self.is_after_mark(name, value) {
            if self.is_of_marks_value(value) {
                self.level += 1;
            } else {
                self.above += 1;
            }
            return Ok(());
        }
        if !self.takes(name, value) {
            return Ok(());
        }
        let candidate = Candidate {
            end: self.end,
            value,
            name: name.into(),
        };
        room::push_heap(&mut self.heap, candidate)?;
        if self.heap.len() > self.wanted {
            self.heap.pop();
        }
        Ok(())
    }

    fn is_of_marks_value(&self, value: i128) -> bool {
        self.after.as_ref().is_some_and(|mark| mark.value == value)
    }

    /// The first, in order. After a mark, all that come before have to have been offered.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn into_ranked(self) -> Result<Vec<Ranked>, NoMemory> {
        let mut rank = self.above + 1;
        let mut before = self.after.as_ref().map(|mark| mark.value);
        let in_order = self
            .heap
            .into_sorted_vec()
            .into_iter()
            .zip(rank + self.level..);
        room::collect(in_order.map(|(candidate, place)| {
            if before.replace(candidate.value) != Some(candidate.value) {
                rank = place;
            }
            Ranked {
                rank,
                name: candidate.name,
                value: candidate.value,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn is_the_head_of_all_sorted(
            counters in proptest::collection::btree_map("[a-c]{1,3}", -4i128..4, 0..40),
            wanted in 0usize..12,
            bottom: bool,
        ) {
            let end = if bottom { End::Bottom } else { End::Top };
            let mut best = Best::new(end, wanted);
            for (name, &value) in &counters {
                best.offer(name.as_bytes(), value).unwrap();
            }
            prop_assert_eq!(best.into_ranked().unwrap(), naive(&counters, wanted, bottom));
        }
    }

    proptest! {
        #[test]
        fn after_a_mark_it_goes_on_as_if_all_before_were_there(
            counters in proptest::collection::btree_map("[a-c]{1,3}", -4i128..4, 0..40),
            wanted in 0usize..12,
            bottom: bool,
            value in -5i128..5,
            name in proptest::option::of("[a-c]{0,3}"),
        ) {
            let end = if bottom { End::Bottom } else { End::Top };
            let mark = Mark { value, name: name.clone().map(|name| name.into_bytes().into()) };
            let mut best = Best::after(end, wanted, Some(mark));
            for (name, &value) in &counters {
                best.offer(name.as_bytes(), value).unwrap();
            }
            let above = counters.values().filter(|&&v| if bottom { v < value } else { v > value });
            prop_assert_eq!(best.above(), above.count() as i64);
            let is_after = |row: &Ranked| {
                let (row_name, mark) = (&*row.name, name.as_deref().map(str::as_bytes));
                match (bottom, row.value.cmp(&value), mark) {
                    (_, Ordering::Equal, None) => false,
                    (false, Ordering::Equal, Some(mark)) => row_name > mark,
                    (true, Ordering::Equal, Some(mark)) => row_name < mark,
                    (false, order, _) => order.is_lt(),
                    (true, order, _) => order.is_gt(),
                }
            };
            let mut all = naive(&counters, usize::MAX, bottom);
            all.retain(is_after);
            all.truncate(wanted);
            prop_assert_eq!(best.into_ranked().unwrap(), all);
        }
    }

    #[test]
    fn before_all_of_a_value_counts_those_above_it() {
        let mut best = Best::after(End::Top, 0, Some(Mark::before_all_of(5)));
        for (name, value) in [("a", 5), ("b", 6), ("c", 7), ("d", 4), ("e", 5)] {
            best.offer(name.as_bytes(), value).unwrap();
        }
        assert_eq!(best.above(), 2);
    }

    fn naive(counters: &BTreeMap<String, i128>, wanted: usize, bottom: bool) -> Vec<Ranked> {
        let mut all: Vec<(&String, i128)> = counters.iter().map(|(n, &v)| (n, v)).collect();
        // Names come ascending, and the sort is stable.
        all.sort_by_key(|&(_, value)| -value);
        if bottom {
            all.reverse();
        }
        let ranked = all.iter().map(|&(name, value)| Ranked {
            rank: 1 + all
                .iter()
                .filter(|other| {
                    if bottom {
                        other.1 < value
                    } else {
                        other.1 > value
                    }
                })
                .count() as i64,
            name: name.as_bytes().into(),
            value,
        });
        ranked.take(wanted).collect()
    }

    #[test]
    fn what_takes_a_value_takes_some_name_with_it() {
        let mut best = Best::new(End::Top, 1);
        best.offer(b"b", 5).unwrap();
        assert!(best.takes_value(5) && best.takes(b"a", 5) && !best.takes(b"c", 5));
        assert!(!best.takes_value(4));
        best.offer(b"a", 5).unwrap();
        assert_eq!(&*best.into_ranked().unwrap()[0].name, b"a");
    }
}
