//! Names, windows of all lengths, and what sliding promises, over all orders of the steps of several calls.

mod calendar;
mod world;

use super::*;
use crate::history::{HOUR, MINUTE};
use calendar::Fake;
use proptest::prelude::*;
use world::{Rule, Rules, World, act};

/// A window's start, of which there are a few that lie close together.
fn start() -> impl Strategy<Value = i64> {
    prop_oneof![
        0i64..5,
        -SINCE_1970..-SINCE_1970 + 5,
        9_053_315_195i64..9_053_315_200
    ]
    .prop_map(|seconds| seconds * SECOND)
}

fn type_name() -> impl Strategy<Value = &'static [u8]> {
    // Signs before and behind the colon, and names that others begin with.
    const NAMES: [&[u8]; 5] = [b"a", b"a!", b"a~", b"aa", b"b"];
    proptest::sample::select(NAMES.to_vec())
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(2u8),
        Just(b'!'),
        Just(b':'),
        Just(b'a'),
        Just(b'b'),
        Just(b'~'),
        Just(255u8)
    ];
    proptest::collection::vec(byte, 0..5)
}

fn name_of(type_name: &[u8], rest: &[u8]) -> Vec<u8> {
    [type_name, b":", rest].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn names_come_back_and_sort_by_window_first(
        (type_name, other_type) in (type_name(), type_name()),
        (a, b) in (start(), start()),
        (rest, other) in (text(), text()),
    ) {
        let stored = |type_name: &[u8], start, rest: &[u8]| {
            let prefix = Prefix::new(type_name, start).unwrap();
            prefix.stored(&name_of(type_name, rest)).unwrap().get().to_vec()
        };
        let first = stored(type_name, a, &rest);
        let known = Stored::of(&first).unwrap();
        prop_assert_eq!((known.type_name, known.start, known.rest), (type_name, a, &rest[..]));
        prop_assert_eq!(known.plain(), name_of(type_name, &rest));
        // What is given is nothing that is stored.
        let plain = name_of(type_name, &rest);
        prop_assert_eq!(Stored::of(&plain), None);
        let second = stored(type_name, b, &other);
        prop_assert_eq!(first.cmp(&second), (a, &rest).cmp(&(b, &other)));
        // Ranges.
        let third = stored(other_type, b, &other);
        let is_of_type = type_name == other_type;
        prop_assert_eq!(all(type_name).contains(&third), is_of_type);
        let window = Prefix::new(type_name, a).unwrap().range();
        prop_assert_eq!(window.contains(&third), is_of_type && a == b);
        let ended = ended(type_name, a).unwrap();
        prop_assert_eq!(ended.contains(&third), is_of_type && b < a);
    }

    #[test]
    fn the_longest_names_fit_and_no_longer_ones(
        start in start(),
        type_length in 1usize..MAX_WINDOWED_BYTES + 3,
        length in MAX_WINDOWED_BYTES - 2..MAX_WINDOWED_BYTES + 4,
    ) {
        let type_name = vec![b't'; type_length];
        let Some(prefix) = Prefix::new(&type_name, start) else {
            prop_assert!(type_length >= MAX_WINDOWED_BYTES);
            return Ok(());
        };
        prop_assert!(type_length < MAX_WINDOWED_BYTES);
        let rest = vec![b'r'; length.saturating_sub(type_length + 1)];
        let name = name_of(&type_name, &rest);
        match prefix.stored(&name) {
            Ok(stored) => {
                prop_assert!(name.len() <= MAX_WINDOWED_BYTES && stored.get().len() <= MAX_NAME_BYTES);
                prop_assert_eq!(Stored::of(stored.get()).unwrap().plain(), name);
            }
            Err(bad) => {
                prop_assert_eq!(bad, BadName::TooLong);
                prop_assert!(name.len() + OVERHEAD > MAX_NAME_BYTES);
            }
        }
    }

    /// Whatever is asked for by a range of names: what the segments have, and what the hull has and is shown, are the
    /// names in that range, in their order.
    #[test]
    fn ranges_of_names_are_ranges_of_stored_ones(
        types in proptest::collection::btree_map(type_name(), start(), 0..4),
        counters in proptest::collection::btree_set((type_name(), text(), proptest::option::of(start())), 0..12),
        plain in proptest::collection::btree_set(text(), 0..6),
        (lower, upper, prefix) in (
            proptest::option::of(text()),
            proptest::option::of(text()),
            proptest::option::of((type_name(), text())),
        ),
    ) {
        let shown = Shown::new(
            types.iter().map(|(name, start)| Prefix::new(name, *start).unwrap()).collect(),
        );
        let mut range = NameRange::all();
        if let Some(lower) = &lower { range.at_least(lower) }
        if let Some(upper) = &upper { range.less_than(upper) }
        if let Some((type_name, rest)) = &prefix { range.starting_with(&name_of(type_name, rest)) }
        // What there is: of types with a window, in the running one and in others; of the others, as it is.
        let mut stored: Vec<Vec<u8>> = Vec::new();
        let mut wanted: Vec<Vec<u8>> = Vec::new();
        for (type_name, rest, start) in &counters {
            let name = name_of(type_name, rest);
            let running = types.get(type_name);
            match running {
                Some(running) => {
                    let start = start.unwrap_or(*running);
                    let prefix = Prefix::new(type_name, start).unwrap();
                    stored.push(prefix.stored(&name).unwrap().get().to_vec());
                    if start == *running { wanted.push(name) }
                }
                None => {
                    stored.push(name.clone());
                    wanted.push(name);
                }
            }
        }
        for name in plain {
            let type_name = name.split(|&byte| byte == b':').next().unwrap();
            let is_windowed = name.contains(&b':') && types.contains_key(type_name);
            if !name.is_empty() && !is_windowed {
                stored.push(name.clone());
                wanted.push(name);
            }
        }
        wanted.retain(|name| range.contains(name));
        wanted.sort_unstable();
        wanted.dedup();
        stored.sort_unstable();
        stored.dedup();
        let hull = shown.hull(&range);
        let by_hull = stored.iter().filter(|name| hull.contains(name) && shown.shows(name));
        let by_hull: Vec<_> = by_hull.map(|name| shown.plain(name).unwrap().into_owned()).collect();
        prop_assert_eq!(&by_hull, &wanted);
        let asked = Asked::new(shown.clone(), &range);
        let by_asking = stored.iter().filter(|name| asked.contains(name));
        let by_asking: Vec<_> = by_asking.map(|name| asked.plain(name).into_vec()).collect();
        prop_assert_eq!(&by_asking, &wanted);
        prop_assert!(!asked.is_all() || wanted.len() == stored.len());
        let segments = shown.segments(&range);
        let by_segments = segments.iter().flat_map(|segment| {
            stored.iter().filter(|name| segment.contains(name))
        });
        let by_segments: Vec<_> = by_segments.map(|name| shown.plain(name).map(Cow::into_owned)).collect();
        prop_assert_eq!(by_segments, wanted.iter().cloned().map(Some).collect::<Vec<_>>());
        // And a name is found as it is stored.
        for name in &wanted {
            let found = shown.stored(name).into_owned();
            prop_assert!(stored.contains(&found));
            prop_assert_eq!(shown.plain(&found).unwrap().into_owned(), name.clone());
        }
    }

    /// Windows of any length follow each other without a gap, and each time is in one.
    #[test]
    fn windows_follow_each_other(
        length in prop_oneof![
            proptest::sample::select(vec![SECOND, 50 * SECOND, MINUTE, 90 * MINUTE, HOUR, 12 * HOUR])
                .prop_map(Length::Fixed),
            Just(Length::Day),
            Just(Length::Month),
        ],
        time in -SINCE_1970 + 400_000_000..SINCE_1970,
        kept in 0u32..5,
    ) {
        let time = time * SECOND + 7;
        let calendar = &mut Fake::of(length);
        let running = Window::at(length, calendar, time).unwrap();
        prop_assert!(running.contains(time));
        prop_assert_eq!(running.start % SECOND, 0);
        let (before, after) = (running.before(length, calendar).unwrap(), running.after(length, calendar).unwrap());
        prop_assert_eq!((before.end, after.start), (running.start, running.end));
        for same in [running.start, running.end - 1] {
            prop_assert_eq!(Window::at(length, calendar, same), Some(running));
        }
        if let Length::Fixed(length) = length {
            prop_assert_eq!(running.end - running.start, length);
        }
        let mut first = running;
        for _ in 0..kept {
            first = first.before(length, calendar).unwrap();
        }
        prop_assert_eq!(running.first_kept(kept, length, calendar), first.start);
    }

    #[test]
    fn what_counts_still_is_rounded_up_and_never_overflows(
        previous in prop_oneof![0i128..200, Just(i64::MAX.into()), Just(i128::MAX / 2), Just(-5)],
        length in prop_oneof![1i64..20, Just(31 * DAY)],
        at in 0f64..1.0,
        max in prop_oneof![0i64..200, Just(i64::MAX)],
    ) {
        let window = Window { start: 0, end: length };
        let time = (at * length as f64) as i64;
        let weight = window.weight(previous, time);
        if previous < i128::MAX / 2 {
            let exact = previous.max(0) * i128::from(length - time);
            prop_assert!(weight * i128::from(length) >= exact);
            prop_assert!((weight - 1) * i128::from(length) < exact || weight == 0);
        }
        prop_assert_eq!(window.weight(previous, 0), previous.max(0));
        prop_assert_eq!(window.weight(previous, length), 0);
        let limit = window.limit(max, previous, time);
        prop_assert!(i128::from(limit) == i128::from(max) - weight || limit == i64::MIN);
    }

    /// The first moment at which it would be granted: not before, and then.
    #[test]
    fn who_comes_back_when_told_is_granted(
        kind in prop_oneof![Just(Kind::Fixed), Just(Kind::Sliding)],
        (length, next_length) in (1i64..13, 1i64..13),
        max in 0i64..12,
        wanted in 0i64..14,
        used in 0i128..16,
        previous in 0i128..16,
        time in 0i64..13,
    ) {
        let running = Window { start: 0, end: length };
        let next = Window { start: length, end: length + next_length };
        let time = time.min(length - 1);
        let refused = Refused { max, wanted, used, previous };
        let granted = |at: i64| {
            let (window, used, previous) = match at {
                at if at < running.end => (running, used, previous),
                at if at < next.end => (next, 0, used),
                _ => return wanted <= max,
            };
            let weight = match kind {
                Kind::Fixed => 0,
                Kind::Sliding => window.weight(previous, at),
            };
            used + weight + i128::from(wanted) <= max.into()
        };
        let obvious = (time..=next.end).find(|&at| granted(at));
        prop_assert_eq!(refused.retry_at(kind, running, next, time), obvious);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Calls in all orders of their steps, with clocks, commits and rollbacks in between.
    #[test]
    fn sliding_keeps_its_promise(
        max in 1i64..9,
        lengths in (2i64..12, 2i64..12),
        acts in proptest::collection::vec(act(false), 0..160),
    ) {
        World::new(Rules::sliding(max), lengths).go_through(acts)?;
    }

    /// Fixed windows, whose totals are removed, on a server that restarts with a clock that was set back.
    #[test]
    fn no_window_is_had_twice(
        max in 1i64..9,
        lengths in (2i64..12, 2i64..12),
        acts in proptest::collection::vec(act(true), 0..160),
    ) {
        World::new(Rules::fixed(max), lengths).go_through(acts)?;
    }
}

/// Why each rule is there: without it, the tests above find what it is for.
mod without {
    use super::*;
    use world::Act::{self, *};

    fn fails(rules: Rules, rule: Rule, acts: Vec<Act>) {
        let go = |rules| World::new(rules, (10, 10)).go_through(acts.clone());
        go(rules).expect("the rules keep it");
        go(rules.without(rule)).expect_err("the rule is needed for it");
    }

    fn call(who: usize, delta: i64) -> Vec<Act> {
        vec![Begin(who, delta), Finish(who), Commit(who)]
    }

    /// Somebody looks at the clock just before a window ends, and reserves after others have looked what the window
    /// came to.
    #[test]
    fn the_second_look_who_is_late_goes_beyond_the_promise() {
        let acts = [
            vec![Tick(9), Begin(0, 4), Tick(1)],
            call(1, 4),
            vec![Finish(0), Commit(0)],
        ];
        fails(Rules::sliding(4), Rule::SecondLook, acts.concat());
    }

    /// What is in flight of the window before is no part of its value yet.
    #[test]
    fn the_note_of_the_window_before_its_last_calls_are_missed() {
        let acts = [
            vec![Tick(9), Begin(0, 4), Finish(0), Tick(1)],
            call(1, 4),
            vec![Commit(0)],
        ];
        fails(Rules::sliding(4), Rule::NoteBefore, acts.concat());
    }

    /// After a restart the clock is an hour behind.
    #[test]
    fn the_note_of_what_is_removed_a_window_is_had_again() {
        let acts = [
            vec![Tick(1)],
            call(0, 4),
            vec![Tick(10), RemoveOnce, RemoveOnce, Restart(-10)],
            call(0, 4),
        ];
        fails(Rules::fixed(4), Rule::Removed, acts.concat());
    }

    /// Somebody sleeps between his look at the clock and the value, and the window is removed meanwhile.
    #[test]
    fn the_second_look_who_is_late_has_a_removed_window_again() {
        let acts = [
            vec![Tick(1)],
            call(0, 4),
            vec![
                Begin(1, 4),
                Reserve(1),
                Tick(10),
                RemoveOnce,
                RemoveOnce,
                Finish(1),
                Commit(1),
            ],
        ];
        fails(Rules::fixed(4), Rule::SecondLook, acts.concat());
    }
}

#[test]
fn lengths_of_intervals() {
    let of = Length::of_interval;
    assert_eq!(of(0, 0, MINUTE), Ok(Length::Fixed(MINUTE)));
    assert_eq!(of(0, 0, 90 * MINUTE), Ok(Length::Fixed(90 * MINUTE)));
    assert_eq!(of(0, 1, 0), Ok(Length::Day));
    assert_eq!(of(1, 0, 0), Ok(Length::Month));
    assert_eq!(of(0, 0, 0), Err(BadLength::NotPositive));
    assert_eq!(of(0, 1, -HOUR), Err(BadLength::NotPositive));
    assert_eq!(of(0, 0, SECOND / 2), Err(BadLength::NotWholeSeconds));
    assert_eq!(of(0, 0, 7 * MINUTE), Err(BadLength::Uneven));
    assert_eq!(of(0, 0, DAY), Err(BadLength::Uneven));
    assert_eq!(of(0, 0, 2 * DAY), Err(BadLength::Uneven));
    for several in [(0, 7, 0), (12, 0, 0), (1, 1, 0), (0, 1, HOUR)] {
        let (months, days, micros) = several;
        assert_eq!(of(months, days, micros), Err(BadLength::Several));
    }
}

#[test]
fn stored_names_as_they_are_on_disk() {
    // What is stored is found by these bytes: a change here loses windows.
    let start = 844_131_480 * SECOND;
    let prefix = Prefix::new(b"api", start).unwrap();
    let stored = prefix.stored(b"api:user:42").unwrap();
    assert_eq!(stored.get(), b"api:\x011790816280\x01user:42");
    assert_eq!(prefix.stored(b"api:a\x01").unwrap_err(), BadName::Separator);
    assert_eq!(Prefix::new(b"api", start + 1), None);
    assert_eq!(Prefix::new(b"api", -(SINCE_1970 + 1) * SECOND), None);
    assert_eq!(
        Prefix::new(b"api", (10_000_000_000 - SINCE_1970) * SECOND),
        None
    );
    for no_stored in [
        &b"api"[..],
        b"api:\x01179081628\x01x",
        b"api:\x0117908162800\x01x",
        b"api:\x01179081628x\x01x",
        b"api:\x011790816280\x01\x01",
        b":\x011790816280\x01x",
        b"api\x011790816280\x01x",
    ] {
        assert_eq!(Stored::of(no_stored), None);
    }
}

#[test]
fn days_of_23_and_25_hours() {
    let calendar = &mut Fake::of(Length::Day);
    let hours: Vec<i64> = (0..3)
        .map(|day| {
            let window = Window::at(Length::Day, calendar, day * DAY + 2 * HOUR).unwrap();
            (window.end - window.start) / HOUR
        })
        .collect();
    assert_eq!(hours, [24, 23, 25]);
}
