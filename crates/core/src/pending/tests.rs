//! The map beside the obvious implementation, and single cases.

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
    written: BTreeMap<u8, Tally>,
}

#[derive(Clone, Copy, Default)]
struct Pending {
    delta: i128,
    used: bool,
    dropped: i64,
    rows: i64,
}

impl Pending {
    fn tally(self) -> Tally {
        Tally {
            value: self.delta,
            uses: i64::from(self.used) - self.dropped + self.rows,
        }
    }
    fn is_nothing(self) -> bool {
        !self.used && self.dropped == 0 && self.delta == 0 && self.rows == 0
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
    fn add(&mut self, name: u8, delta: i64) -> bool {
        let pending = self.top().pending.entry(name).or_default();
        let sum = pending.delta + i128::from(delta);
        let fits = i64::try_from(sum).is_ok();
        if fits {
            pending.delta = sum;
            pending.used = true;
        }
        self.forget_nothing(name);
        fits
    }
    fn add_rows(&mut self, name: u8, delta: i64, rows: i64) -> bool {
        let pending = self.top().pending.entry(name).or_default();
        let sum = pending.delta + i128::from(delta);
        let fits = i64::try_from(sum).is_ok();
        if fits {
            pending.delta = sum;
            pending.rows += rows;
        }
        self.forget_nothing(name);
        fits
    }
    fn forget_nothing(&mut self, name: u8) {
        if self.top().pending[&name].is_nothing() {
            self.top().pending.remove(&name);
        }
    }
    fn drop_counter(&mut self, name: u8, written: Tally) {
        self.top().pending.insert(
            name,
            Pending {
                delta: -written.value,
                used: false,
                dropped: written.uses,
                rows: 0,
            },
        );
        self.forget_nothing(name);
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
        let top = self.top();
        for (name, pending) in std::mem::take(&mut top.pending) {
            *top.written.entry(name).or_default() += pending.tally();
        }
    }
    fn pending(&self) -> BTreeMap<u8, Tally> {
        let top = self.levels.last().unwrap();
        let tallies = top.pending.iter();
        tallies.map(|(&name, p)| (name, p.tally())).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, i64),
    /// Of a group, and so many rows.
    Rows(u8, i64, i64),
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
    let delta = || prop_oneof![-3i64..=3, Just(i64::MAX), Just(i64::MIN)];
    prop_oneof![
        5 => (0u8..6, delta(), -2i64..=2).prop_map(|(name, delta, rows)| Step::Rows(name, delta, rows)),
        8 => (0u8..6, delta()).prop_map(|(name, delta)| Step::Add(name, delta)),
        2 => (0u8..6, written()).prop_map(|(name, written)| Step::Drop(name, written)),
        3 => Just(Step::Begin),
        2 => Just(Step::Release),
        2 => Just(Step::Abort),
        1 => Just(Step::Write),
    ]
}

fn rows(map: &PendingMap) -> BTreeMap<u8, Tally> {
    map.rows().map(|row| (row.name[0], row.tally())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn behaves_like_a_stack_of_maps(steps in proptest::collection::vec(step(), 0..80)) {
        let mut model = Model::new();
        let mut map = PendingMap::default();
        // What stands in the log, by the level that wrote it: the server's part of the job.
        let mut log: Vec<BTreeMap<u8, Tally>> = vec![BTreeMap::new()];
        for step in steps {
            let level = model.levels.len() as u32;
            match step {
                Step::Add(name, delta) => {
                    let fits = model.add(name, delta);
                    let added = map.add(level, NameHash::of(&[name]), &[name], delta);
                    prop_assert_eq!(added.is_ok(), fits);
                }
                Step::Rows(name, delta, rows) => {
                    let fits = model.add_rows(name, delta, rows);
                    let added = map.add_rows(level, NameHash::of(&[name]), &[name], delta, rows);
                    prop_assert_eq!(added.is_ok(), fits);
                }
                Step::Drop(name, others) => {
                    let own = log.last().unwrap().get(&name).copied().unwrap_or_default();
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
                    for (name, tally) in rows(&map) {
                        *log.last_mut().unwrap().entry(name).or_default() += tally;
                    }
                    map.clear_written(level).unwrap();
                    model.write();
                }
                Step::Release | Step::Abort => {}
            }
            let pending = model.pending();
            prop_assert_eq!(&rows(&map), &pending);
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
fn a_drop_takes_back_what_is_written_and_forgets_what_is_not() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    map.add(1, hash, b"n", 7).unwrap();
    map.drop_counter(1, hash, b"n", Tally { value: 5, uses: 2 })
        .unwrap();
    assert_eq!(
        map.get(hash, b"n"),
        Some(Tally {
            value: -5,
            uses: -2
        })
    );
    map.add(1, hash, b"n", 3).unwrap();
    map.add(1, hash, b"n", 3).unwrap();
    assert_eq!(map.get(hash, b"n"), Some(Tally { value: 1, uses: -1 }));
    map.drop_counter(1, hash, b"n", Tally::default()).unwrap();
    assert!(map.is_empty());
}

#[test]
fn a_million_calls_are_one_entry() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"hot");
    for _ in 0..1_000_000 {
        map.add(1, hash, b"hot", 1).unwrap();
    }
    assert_eq!(map.rows().count(), 1);
    assert_eq!(map.get(hash, b"hot"), Some(Tally::of(1_000_000, 1)));
}

#[test]
fn an_overflow_leaves_the_sum_as_it_was() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    map.add(1, hash, b"n", i64::MAX).unwrap();
    assert_eq!(map.add(2, hash, b"n", 1), Err(Refused::Overflow));
    assert_eq!(map.get(hash, b"n"), Some(Tally::of(i64::MAX, 1)));
}

#[test]
fn many_released_subtransactions_leave_no_notes() {
    let mut map = PendingMap::default();
    let hash = NameHash::of(b"n");
    for _ in 0..10_000 {
        map.add(3, hash, b"n", 1).unwrap();
        map.release_subxact(3);
    }
    assert!(map.notes.len() <= 1, "{} notes", map.notes.len());
    map.abort_subxact(2);
    assert_eq!(map.get(hash, b"n"), None);
}

#[test]
fn writing_in_a_subtransaction_frees_memory() {
    let mut map = PendingMap::default();
    map.add(1, NameHash::of(b"parent"), b"parent", 7).unwrap();
    for round in 0..100u32 {
        for i in 0..100u32 {
            let name = format!("{round}/{i}");
            map.add(2, NameHash::of(name.as_bytes()), name.as_bytes(), 1)
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
        map.add(1, NameHash::of(&i.to_le_bytes()), &i.to_le_bytes(), 1)
            .unwrap();
    }
    map.reset();
    assert!(map.entries.capacity() <= KEPT_ENTRIES);
    assert!(map.is_empty());
}
