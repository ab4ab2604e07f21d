//! The map beside the obvious implementation, and single cases.

use super::Kind::{Adjustment, Increment};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The obvious implementation: one map a level, and for each level what it has written.
#[derive(Default)]
struct Model {
    levels: Vec<Level>,
}

#[derive(Clone, Default)]
struct Level {
    pending: BTreeMap<u8, Pending>,
    written: Rows,
}

/// What rows come to, by name and kind.
type Rows = BTreeMap<(u8, Kind), Tally>;

/// What has been done to a counter and is not written: calls with their deltas, since the last drop.
#[derive(Clone, Default)]
struct Pending {
    calls: Vec<(Kind, i64)>,
    dropped: Option<Tally>,
}

impl Pending {
    fn of(&self, kind: Kind) -> i128 {
        let calls = self.calls.iter().filter(|(of, _)| *of == kind);
        calls.map(|&(_, delta)| i128::from(delta)).sum()
    }

    fn has(&self, kind: Kind) -> bool {
        self.calls.iter().any(|(of, _)| *of == kind)
    }

    fn taken_back(&self) -> Tally {
        self.dropped.unwrap_or_default()
    }

    fn tally(&self) -> Tally {
        Tally {
            value: self.of(Increment) + self.of(Adjustment) - self.taken_back().value,
            uses: i64::from(!self.calls.is_empty()) - self.taken_back().uses,
        }
    }

    /// The row of a kind, if there is to be one.
    fn row(&self, kind: Kind) -> Option<Tally> {
        let increments = Tally {
            value: self.of(Increment),
            uses: 1,
        };
        match kind {
            Increment => self.has(Increment).then_some(increments),
            Adjustment if !self.has(Increment) => Some(self.tally()),
            Adjustment => {
                let all = self.tally();
                let rest = Tally {
                    value: all.value - increments.value,
                    uses: all.uses - increments.uses,
                };
                (!rest.is_zero()).then_some(rest)
            }
        }
    }
}

/// What [`PendingMap::add`] should answer.
fn answer(before: &Pending, after: &Pending) -> Result<(), Refused> {
    let fits = |sum: i128| i64::try_from(sum).is_ok();
    let adjusted = after.of(Adjustment) - after.taken_back().value;
    if !fits(after.tally().value) {
        Err(Refused::Overflow)
    } else if !fits(after.of(Increment)) || !fits(adjusted) {
        assert!(!before.calls.is_empty() || before.dropped.is_some());
        Err(Refused::WriteFirst)
    } else {
        Ok(())
    }
}

impl Model {
    fn new() -> Self {
        Model {
            levels: vec![Level::default()],
        }
    }
    fn top(&mut self) -> &mut Level {
        self.levels.last_mut().unwrap()
    }
    fn add(&mut self, name: u8, kind: Kind, delta: i64) -> Result<(), Refused> {
        let pending = &mut self.top().pending;
        let before = pending.get(&name).cloned().unwrap_or_default();
        let mut after = before.clone();
        after.calls.push((kind, delta));
        let answer = answer(&before, &after);
        if answer.is_ok() {
            pending.insert(name, after);
        }
        answer
    }
    fn drop_counter(&mut self, name: u8, written: Tally) {
        let dropped = Pending {
            calls: Vec::new(),
            dropped: Some(written),
        };
        self.top().pending.insert(name, dropped);
        if written.uses == 0 {
            self.top().pending.remove(&name);
        }
    }
    fn begin(&mut self) {
        self.levels.push(self.levels.last().unwrap().clone());
    }
    fn release(&mut self) {
        let top = self.levels.pop().unwrap();
        *self.top() = top;
    }
    fn abort(&mut self) {
        self.levels.pop();
    }
    fn write(&mut self) {
        let rows = self.rows();
        let top = self.top();
        top.pending.clear();
        for (row, tally) in rows {
            *top.written.entry(row).or_default() += tally;
        }
    }
    fn pending(&self) -> BTreeMap<u8, Tally> {
        let top = self.levels.last().unwrap();
        let tallies = top.pending.iter();
        tallies.map(|(&name, p)| (name, p.tally())).collect()
    }
    fn rows(&self) -> Rows {
        let top = self.levels.last().unwrap();
        let of_each = top.pending.iter().flat_map(|(&name, pending)| {
            [Increment, Adjustment].map(|kind| pending.row(kind).map(|tally| ((name, kind), tally)))
        });
        of_each.flatten().collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, Kind, i64),
    /// Of a counter of which others have written so much.
    Drop(u8, Tally),
    Begin,
    Release,
    Abort,
    Write,
}

fn written() -> impl Strategy<Value = Tally> {
    prop_oneof![
        Just(Tally::default()),
        (-9i128..9, 1i64..9).prop_map(|(value, uses)| Tally { value, uses }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let delta = prop_oneof![-3i64..=3, Just(i64::MAX), Just(i64::MIN)];
    let kind = prop_oneof![Just(Increment), Just(Adjustment)];
    prop_oneof![
        8 => (0u8..6, kind, delta).prop_map(|(name, kind, delta)| Step::Add(name, kind, delta)),
        2 => (0u8..6, written()).prop_map(|(name, written)| Step::Drop(name, written)),
        3 => Just(Step::Begin),
        2 => Just(Step::Release),
        2 => Just(Step::Abort),
        1 => Just(Step::Write),
    ]
}

fn rows(map: &PendingMap) -> Rows {
    let rows: Vec<_> = map
        .rows()
        .map(|row| ((row.name[0], row.kind), row.tally()))
        .collect();
    let by_name: Rows = rows.iter().copied().collect();
    assert_eq!(by_name.len(), rows.len(), "two rows of one kind");
    by_name
}

/// What rows come to, whatever their kinds.
fn sums(rows: &Rows) -> BTreeMap<u8, Tally> {
    let mut sums = BTreeMap::<u8, Tally>::new();
    for (&(name, _), &tally) in rows {
        *sums.entry(name).or_default() += tally;
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn behaves_like_a_stack_of_maps(steps in proptest::collection::vec(step(), 0..80)) {
        let mut model = Model::new();
        let mut map = PendingMap::default();
        // What stands in the log, by the level that wrote it: the server's part of the job.
        let mut log: Vec<Rows> = vec![Rows::new()];
        for step in steps {
            let level = model.levels.len() as u32;
            match step {
                Step::Add(name, kind, delta) => {
                    let added = map.add(level, NameHash::of(&[name]), &[name], delta, kind);
                    prop_assert_eq!(added, model.add(name, kind, delta));
                }
                Step::Drop(name, others) => {
                    let own = sums(log.last().unwrap()).remove(&name).unwrap_or_default();
                    let written = own + others;
                    // The server sees a value only of counters that exist.
                    if written.uses > 0 || written.is_zero() {
                        let dropped = map.drop_counter(level, NameHash::of(&[name]), &[name], written);
                        let fits = i64::try_from(-written.value).is_ok();
                        prop_assert_eq!(dropped.is_ok(), fits);
                        if fits {
                            model.drop_counter(name, written);
                        }
                    }
                }
                Step::Begin => {
                    model.begin();
                    log.push(log.last().unwrap().clone());
                }
                Step::Release if level > 1 => {
                    map.release_subxact(level);
                    model.release();
                    let top = log.pop().unwrap();
                    *log.last_mut().unwrap() = top;
                }
                Step::Abort if level > 1 => {
                    map.abort_subxact(level);
                    model.abort();
                    log.pop();
                }
                Step::Write => {
                    for (row, tally) in rows(&map) {
                        *log.last_mut().unwrap().entry(row).or_default() += tally;
                    }
                    map.clear_written(level).unwrap();
                    model.write();
                }
                Step::Release | Step::Abort => {}
            }
            let pending = model.pending();
            prop_assert_eq!(&rows(&map), &model.rows());
            prop_assert_eq!(&sums(&rows(&map)), &pending);
            prop_assert_eq!(log.last().unwrap(), &model.top().written);
            prop_assert_eq!(map.is_empty(), pending.is_empty());
            for name in 0u8..6 {
                let got = map.get(NameHash::of(&[name]), &[name]);
                prop_assert_eq!(got, pending.get(&name).copied());
            }
            if pending.is_empty() {
                prop_assert_eq!(map.bytes(), 0);
            }
        }
    }
}

#[test]
fn both_kinds_are_two_rows_with_one_use() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    let rows = |map: &PendingMap| -> Vec<(Kind, i64, i64)> {
        let rows = map.rows();
        rows.map(|row| (row.kind, row.delta, row.uses)).collect()
    };
    map.add(1, hash, b"n", 7, Increment).unwrap();
    map.add(2, hash, b"n", -4, Adjustment).unwrap();
    assert_eq!(rows(&map), [(Increment, 7, 1), (Adjustment, -4, 0)]);
    map.abort_subxact(2);
    assert_eq!(rows(&map), [(Increment, 7, 1)]);
    // One that comes to nothing is no row beside the increments, and is one by itself.
    map.add(1, hash, b"n", 0, Adjustment).unwrap();
    assert_eq!(rows(&map), [(Increment, 7, 1)]);
    map.drop_counter(1, hash, b"n", Tally { value: 5, uses: 2 })
        .unwrap();
    assert_eq!(rows(&map), [(Adjustment, -5, -2)]);
    map.add(1, hash, b"n", 1, Increment).unwrap();
    assert_eq!(rows(&map), [(Increment, 1, 1), (Adjustment, -5, -2)]);
    let other = NameHash::of(b"m");
    map.reset();
    map.add(1, other, b"m", 0, Adjustment).unwrap();
    assert_eq!(rows(&map), [(Adjustment, 0, 1)]);
}

#[test]
fn a_kind_that_does_not_fit_leaves_all_as_it_was() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    map.add(1, hash, b"n", i64::MAX, Increment).unwrap();
    map.add(1, hash, b"n", -9, Adjustment).unwrap();
    let refused = map.add(2, hash, b"n", 1, Increment);
    assert_eq!(refused, Err(Refused::WriteFirst));
    assert_eq!(map.get(hash, b"n"), Some(Tally::of(i64::MAX - 9, 1)));
    map.clear_written(2).unwrap();
    map.add(2, hash, b"n", 1, Increment).unwrap();
    assert_eq!(map.get(hash, b"n"), Some(Tally::of(1, 1)));
}

#[test]
fn a_drop_takes_back_what_is_written_and_forgets_what_is_not() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    map.add(1, hash, b"n", 7, Increment).unwrap();
    map.drop_counter(1, hash, b"n", Tally { value: 5, uses: 2 })
        .unwrap();
    assert_eq!(
        map.get(hash, b"n"),
        Some(Tally {
            value: -5,
            uses: -2
        })
    );
    map.add(1, hash, b"n", 3, Increment).unwrap();
    map.add(1, hash, b"n", 3, Increment).unwrap();
    assert_eq!(map.get(hash, b"n"), Some(Tally { value: 1, uses: -1 }));
    map.drop_counter(1, hash, b"n", Tally::default()).unwrap();
    assert!(map.is_empty());
}

#[test]
fn a_million_calls_are_one_entry() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"hot");
    for _ in 0..1_000_000 {
        map.add(1, hash, b"hot", 1, Increment).unwrap();
    }
    assert_eq!(map.rows().count(), 1);
    assert_eq!(map.get(hash, b"hot"), Some(Tally::of(1_000_000, 1)));
}

#[test]
fn an_overflow_leaves_the_sum_as_it_was() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    map.add(1, hash, b"n", i64::MAX, Increment).unwrap();
    assert_eq!(map.add(2, hash, b"n", 1, Increment), Err(Refused::Overflow));
    assert_eq!(map.get(hash, b"n"), Some(Tally::of(i64::MAX, 1)));
}

#[test]
fn many_released_subtransactions_leave_no_notes() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    for _ in 0..10_000 {
        map.add(3, hash, b"n", 1, Increment).unwrap();
        map.release_subxact(3);
    }
    assert!(map.notes.len() <= 1, "{} notes", map.notes.len());
    map.abort_subxact(2);
    assert_eq!(map.get(hash, b"n"), None);
}

#[test]
fn writing_in_a_subtransaction_frees_memory() {
    let mut map = PendingMap::default();
    map.add(1, NameHash::of(b"parent"), b"parent", 7, Increment)
        .unwrap();
    for round in 0..100u32 {
        for i in 0..100u32 {
            let name = format!("{round}/{i}");
            map.add(
                2,
                NameHash::of(name.as_bytes()),
                name.as_bytes(),
                1,
                Increment,
            )
            .unwrap();
        }
        map.clear_written(2).unwrap();
    }
    assert_eq!(map.entries.len(), 1);
    map.abort_subxact(2);
    assert_eq!(
        map.get(NameHash::of(b"parent"), b"parent"),
        Some(Tally::of(7, 1))
    );
}

#[test]
fn a_large_transaction_gives_its_memory_back() {
    let mut map = PendingMap::default();
    for i in 0..100_000u32 {
        map.add(
            1,
            NameHash::of(&i.to_le_bytes()),
            &i.to_le_bytes(),
            1,
            Increment,
        )
        .unwrap();
    }
    map.reset();
    assert!(map.entries.capacity() <= KEPT_ENTRIES);
    assert!(map.is_empty());
}
