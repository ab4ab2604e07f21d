//! Rows against a list of all deltas, tables against a list of all segments, seals against their promises.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Increment), 1 => Just(Kind::Adjustment)]
}

/// A delta that a fold meets: when it was written, what it is, by how much.
fn delta() -> impl Strategy<Value = (i64, Kind, i128)> {
    (
        -60i64..60,
        kind(),
        prop_oneof![-5i128..6, -1i128 << 90..1 << 90],
    )
}

/// What a fold does: how far the lane's seal has moved, deltas, how many of the oldest rows are removed then.
fn fold() -> impl Strategy<Value = (i64, Vec<(i64, Kind, i128)>, usize)> {
    let removed = prop_oneof![5 => Just(0), 1 => 1usize..4];
    (0i64..8, vec(delta(), 0..6), removed)
}

/// What a counter's rows have to be, from all its deltas.
fn naive(base: i128, deltas: &[(i64, Kind, i128)], from: i64) -> Vec<Stored> {
    let mut starts: Vec<i64> = deltas.iter().map(|(start, ..)| *start).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.retain(|start| *start >= from);
    let row = |start| {
        let within = deltas.iter().filter(move |delta| delta.0 == start);
        let increments = within.clone().filter(|delta| delta.1 == Kind::Increment);
        let sums = Sums {
            delta: increments.clone().map(|delta| delta.2).sum(),
            adjusted: within
                .filter(|delta| delta.1 == Kind::Adjustment)
                .map(|delta| delta.2)
                .sum(),
            ups: increments
                .clone()
                .map(|delta| delta.2)
                .filter(|delta| *delta > 0)
                .sum(),
            downs: increments
                .clone()
                .map(|delta| delta.2)
                .filter(|delta| *delta < 0)
                .map(|delta| -delta)
                .sum(),
            changes: increments.count() as i64,
        };
        let through = deltas.iter().filter(|delta| delta.0 <= start);
        let value = base + through.map(|delta| delta.2).sum::<i128>();
        Stored { start, sums, value }
    };
    starts.into_iter().map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn rows_are_what_all_deltas_make_of_them(
        base in -1000i128..1000,
        length in 1i64..20,
        folds in vec(fold(), 1..10),
    ) {
        let mut deltas = Vec::new();
        let mut rows: Vec<Stored> = Vec::new();
        // What was before this is removed.
        let mut kept = i64::MIN;
        let mut sealed = None;
        for (moved, folded, removed) in folds {
            let before = base + deltas.iter().map(|&(_, _, delta)| delta).sum::<i128>();
            let mut new = BTreeMap::<i64, Sums>::new();
            for (at, kind, delta) in folded {
                let at = counted_at(at, sealed).max(kept);
                let start = at.div_euclid(length) * length;
                // A bucket of which a part is removed would go on as a new one.
                let start = if start < kept { start + length } else { start };
                *new.entry(start).or_default() += Sums::of(kind, delta);
                deltas.push((start, kind, delta));
            }
            let new: Vec<(i64, Sums)> = new.into_iter().collect();
            let first = new.first().map_or(i64::MAX, |(start, _)| *start);
            let older = rows.partition_point(|row| row.start < first);
            let stored = rows.split_off(older);
            let mut written = Vec::new();
            place(before, &stored, &new, |row| written.push(row));

            prop_assert!(written.is_sorted_by(|one, next| one.row.start < next.row.start));
            let mut after: BTreeMap<i64, Stored> = stored.iter().map(|row| (row.start, *row)).collect();
            let mut replaced = vec![false; stored.len()];
            for Placed { row, replaces } in written {
                let old = after.insert(row.start, row);
                // What stays as it is is left alone, what is replaced is so once, and is the row of that bucket.
                prop_assert_eq!(old, replaces.map(|replaces| stored[replaces]));
                prop_assert_ne!(old, Some(row));
                if let Some(replaces) = replaces {
                    prop_assert!(!std::mem::replace(&mut replaced[replaces], true));
                }
            }
            rows.extend(after.into_values());
            prop_assert_eq!(&rows, &naive(base, &deltas, kept));
            let total = base + deltas.iter().map(|(_, _, delta)| delta).sum::<i128>();
            if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
                prop_assert_eq!(last.value, total);
                let all: i128 = rows.iter().map(|row| row.sums.net()).sum();
                prop_assert_eq!(first.value_before() + all, total);
            }
            if removed > 0 && rows.len() > removed {
                rows.drain(..removed);
                kept = rows[0].start;
            }
            sealed = Some(sealed.unwrap_or(-60) + moved);
        }
    }

    /// Deltas that come in several folds make the same rows as those that come at once.
    #[test]
    fn rows_do_not_depend_on_folds(
        deltas in vec((0i64..10, kind(), -3i128..4), 0..12),
        cuts in vec(any::<bool>(), 12),
    ) {
        let mut rows: Vec<Stored> = Vec::new();
        let mut total = 0;
        let mut new = BTreeMap::<i64, Sums>::new();
        for ((start, kind, delta), is_cut) in deltas.iter().zip(cuts).chain([(&(0, Kind::Increment, 0), true)]) {
            if *delta != 0 || *kind == Kind::Adjustment {
                *new.entry(*start).or_default() += Sums::of(*kind, *delta);
            }
            if is_cut {
                let sums: Vec<_> = std::mem::take(&mut new).into_iter().collect();
                let mut after: BTreeMap<_, _> = rows.iter().map(|row| (row.start, *row)).collect();
                let from = sums.first().map_or(i64::MAX, |(start, _)| *start);
                rows.retain(|row| row.start >= from);
                place(total, &rows, &sums, |placed| {
                    after.insert(placed.row.start, placed.row);
                });
                rows = after.into_values().collect();
                total += sums.iter().map(|(_, sums)| sums.net()).sum::<i128>();
            }
        }
        let counted: Vec<_> = deltas
            .into_iter()
            .filter(|(_, kind, delta)| *delta != 0 || *kind == Kind::Adjustment)
            .collect();
        prop_assert_eq!(rows, naive(0, &counted, i64::MIN));
    }
}

#[test]
fn nothing_new_changes_nothing() {
    let row = Stored {
        start: 5,
        sums: Sums::of(Kind::Increment, 2),
        value: 7,
    };
    place(7, &[row], &[], |placed| panic!("{placed:?}"));
    place(7, &[row], &[(5, Sums::default())], |placed| {
        panic!("{placed:?}")
    });
    place(7, &[], &[], |placed| panic!("{placed:?}"));
}

#[test]
fn what_comes_late_raises_what_is_after_it() {
    let up = |delta| Sums::of(Kind::Increment, delta);
    let row = |start, sums, value| Stored { start, sums, value };
    let stored = [row(10, up(1), 4), row(20, up(2), 6)];
    let mut written = Vec::new();
    // 3 were counted before there was history.
    place(6, &stored, &[(5, up(7)), (10, up(-7))], |placed| {
        written.push((placed.row, placed.replaces));
    });
    let mut both = up(1);
    both += up(-7);
    assert_eq!(both.downs, 7);
    assert_eq!(both.changes, 2);
    // The last one's value is what it was.
    assert_eq!(
        written,
        [(row(5, up(7), 10), None), (row(10, both, 4), Some(0))]
    );
}

#[test]
fn units_have_names_and_lengths() {
    let mut longest = -1;
    for unit in std::iter::once(Unit::Event).chain(Unit::BUCKETS) {
        assert_eq!(Unit::of_name(unit.name().as_bytes()), Some(unit));
        assert!(unit.longest() > longest);
        longest = unit.longest();
    }
    assert_eq!(Unit::of_name(b"year"), None);
    assert_eq!(Unit::of_name(b""), None);
}

fn class() -> impl Strategy<Value = Class> {
    (0..Class::ALL).prop_map(|number| Class::of_number(number).unwrap())
}

fn finite_class() -> impl Strategy<Value = Class> {
    (0..Class::FINITE).prop_map(|number| Class::of_number(number).unwrap())
}

/// Any time, and often one about a boundary of a class's segments, before 2000 as well.
fn time() -> impl Strategy<Value = i64> {
    prop_oneof![
        -9000 * DAY..9000 * DAY,
        (finite_class(), -40i64..40, -2i64..3).prop_map(|(class, segments, off)| {
            class.segment_length().unwrap() * segments + off
        }),
    ]
}

fn unit() -> impl Strategy<Value = Unit> {
    prop::sample::select(vec![
        Unit::Event,
        Unit::Minute,
        Unit::Hour,
        Unit::Day,
        Unit::Month,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_table_is_expired_when_all_its_segments_are(
        class in class(),
        expired in time(),
        ago in prop_oneof![-DAY..2000 * DAY, 0i64..3],
    ) {
        let newest = expired.saturating_add(ago);
        for table in 0..class.tables() {
            let wanted = match class.segment_length() {
                None => true,
                Some(length) => {
                    let last = newest.div_euclid(length);
                    // Whoever is further back has ended before.
                    (last - 20..=last)
                        .filter(|segment| class.table_of(segment * length) == table)
                        .any(|segment| (segment + 1) * length > expired)
                }
            };
            prop_assert_eq!(class.is_expired(table, expired, newest), !wanted);
            if let Some(expired) = class.segment_begin(expired) {
                prop_assert_eq!(class.is_expired(table, expired, newest), !wanted);
            }
        }
    }

    #[test]
    fn a_table_with_a_wanted_row_is_not_expired(
        class in class(),
        expired in time(),
        start in time(),
        later in prop_oneof![Just(0), 0..3 * DAY, 0..3000 * DAY],
    ) {
        let table = class.table_of(start);
        prop_assert!(table < class.tables());
        let newest = start.saturating_add(later);
        if class.is_expired(table, expired, newest) {
            prop_assert!(start < expired);
        }
    }

    #[test]
    fn a_segment_is_in_one_table_and_its_neighbours_are_not(class in class(), time in time()) {
        let Some(begin) = class.segment_begin(time) else {
            prop_assert_eq!((class.table_of(time), class.tables()), (0, 1));
            return Ok(());
        };
        let length = class.segment_length().unwrap();
        prop_assert!((begin..begin + length).contains(&time));
        for same in [begin, begin + length - 1, begin + 6 * length, begin - 6 * length] {
            prop_assert_eq!(class.table_of(same), class.table_of(time));
        }
        for other in (1..6).flat_map(|by| [begin + by * length, begin - by * length]) {
            prop_assert_ne!(class.table_of(other), class.table_of(time));
        }
    }

    /// A row is found as long as it is wanted, and there is time to empty a table before its turn comes again.
    #[test]
    fn rows_stay_as_long_as_they_are_wanted_and_tables_are_empty_in_time(
        unit in unit(),
        keep in prop_oneof![0..=DAY, 0..=7 * DAY, 0..=35 * DAY, 0..=800 * DAY,
            prop::sample::select(vec![DAY, 7 * DAY, 35 * DAY, 800 * DAY])],
        now in time(),
        age in 0.0..1.0f64,
        length in 0.0..=1.0f64,
    ) {
        let class = Class::of_keep(unit, Some(keep)).unwrap();
        let segment = class.segment_length().unwrap();
        let expired = class.wanted_from(now).unwrap();
        // A bucket of which anything is wanted still.
        let end = now - (age * keep as f64) as i64;
        let start = end - (length * unit.longest() as f64) as i64;
        prop_assert!(start >= expired);
        for newest in [now, now + segment / 2] {
            prop_assert!(!class.is_expired(class.table_of(start), expired, newest));
        }
        // Nobody writes to a table that has rows of an older segment which are wanted.
        for later in [now, now + segment / 2] {
            if class.segment_begin(start) != class.segment_begin(later) {
                prop_assert_ne!(class.table_of(start), class.table_of(later));
            }
        }
        let next = class.segment_begin(now).unwrap() + segment;
        if next - now <= segment / 2 {
            prop_assert!(class.is_expired(class.table_of(next), expired, now));
        }
    }
}

#[test]
fn classes_are_by_what_is_kept() {
    let number = |unit, keep| Class::of_keep(unit, keep).map(Class::number);
    assert_eq!(number(Unit::Minute, Some(DAY)), Ok(0));
    assert_eq!(number(Unit::Hour, Some(DAY)), Ok(0));
    assert_eq!(number(Unit::Minute, Some(DAY + 1)), Ok(1));
    assert_eq!(number(Unit::Hour, Some(35 * DAY)), Ok(2));
    assert_eq!(number(Unit::Day, Some(35 * DAY)), Ok(2));
    // A row that ended a day ago began two days ago.
    assert_eq!(number(Unit::Day, Some(DAY)), Ok(1));
    assert_eq!(number(Unit::Month, Some(DAY)), Ok(2));
    assert_eq!(number(Unit::Month, Some(35 * DAY)), Ok(3));
    for unit in std::iter::once(Unit::Event).chain(Unit::BUCKETS) {
        assert_eq!(number(unit, Some(800 * DAY)), Ok(3));
        assert_eq!(number(unit, Some(800 * DAY + 1)), Err(800));
        assert_eq!(number(unit, Some(i64::MAX)), Err(800));
        assert_eq!(number(unit, None), Ok(4));
    }
    for number in 0..Class::ALL {
        let class = Class::of_number(number).unwrap();
        assert_eq!(class.number(), number);
        let is_finite = number < Class::FINITE;
        assert_eq!(class.tables(), if is_finite { 6 } else { 1 });
        assert_eq!(class.wanted_from(0).is_some(), is_finite);
        assert!(!class.is_expired(0, i64::MAX, i64::MAX) || is_finite);
    }
    assert_eq!(Class::of_number(Class::ALL), None);
}

proptest! {
    #[test]
    fn a_seal_is_never_broken(known in any::<Option<i64>>(), clock: i64, is_trusted: bool) {
        let sealed = seal(known, clock, is_trusted);
        let Some(known) = known else {
            prop_assert_eq!(sealed, clock);
            return Ok(());
        };
        prop_assert!(sealed == known || sealed == clock);
        prop_assert!(sealed >= known);
        let leap = i128::from(clock) - i128::from(known);
        if is_trusted || leap <= i128::from(LEAP) {
            prop_assert_eq!(sealed, known.max(clock));
        } else {
            prop_assert_eq!(sealed, known);
        }
    }

    /// What may be lost is no more than what no bucket's end lies in.
    #[test]
    fn the_end_of_a_bucket_is_noticed(
        known in -10 * MINUTE..10 * MINUTE,
        moved in prop_oneof![0..3 * MINUTE, 0i64..3],
    ) {
        let sealed = known + moved;
        let ended = (-10..20).map(|minute| minute * MINUTE).any(|end| known < end && end <= sealed);
        prop_assert_eq!(ends_bucket(Some(known), sealed), ended);
        prop_assert!(ends_bucket(None, sealed));
    }

    #[test]
    fn what_is_late_counts_where_nothing_is_sealed(at: i64, sealed in any::<Option<i64>>()) {
        let counted = counted_at(at, sealed);
        prop_assert!(counted >= at);
        prop_assert!(sealed.is_none_or(|sealed| counted >= sealed));
        prop_assert!(counted == at || Some(counted) == sealed);
    }

    #[test]
    fn sums_are_what_they_are_made_of(deltas in vec((kind(), -9i128..10), 0..20)) {
        let mut sums = Sums::default();
        for &(kind, delta) in &deltas {
            sums += Sums::of(kind, delta);
        }
        prop_assert_eq!(sums.net(), deltas.iter().map(|(_, delta)| delta).sum::<i128>());
        prop_assert_eq!(sums.delta, sums.ups - sums.downs);
        prop_assert!(sums.ups >= 0 && sums.downs >= 0);
        let increments = deltas.iter().filter(|(kind, _)| *kind == Kind::Increment);
        prop_assert_eq!(sums.changes, increments.count() as i64);
        prop_assert_eq!(sums.is_nothing(), sums.changes == 0 && sums.adjusted == 0);
    }

    #[test]
    fn only_a_clock_that_has_gone_steadily_is_trusted(
        looks in vec(
            (0..4 * MINUTE, prop_oneof![6 => Just(0), 2 => -4_000_000i64..4_000_000, 1 => -DAY..DAY]),
            1..40,
        ),
    ) {
        let mut steadiness = Steadiness::default();
        let (mut clock, mut steady) = (1000 * DAY, 5);
        let mut seen: Vec<(i64, i64)> = Vec::new();
        for (passed, stepped) in looks {
            steady += passed;
            clock += passed + stepped;
            let is_trusted = steadiness.look(clock, steady);
            seen.push((clock - steady, steady));
            let spread = |looks: &[(i64, i64)]| {
                let differences = looks.iter().map(|(difference, _)| *difference);
                differences.clone().max().unwrap() - differences.min().unwrap()
            };
            // The looks of the last ten minutes, and the one before them.
            let recent = seen.partition_point(|look| look.1 <= steady - Steadiness::TRUSTED_AFTER);
            if is_trusted {
                prop_assert!(recent > 0);
                prop_assert!(spread(&seen[recent - 1..]) <= 2 * Steadiness::DRIFT);
            } else {
                // No clock that was not set within this time is distrusted for long.
                prop_assert!(recent == 0 || spread(&seen[recent - 1..]) > 0);
            }
        }
    }

    /// A clock that is ahead for less than ten minutes, by whatever, takes the seal no more than an hour with it.
    #[test]
    fn a_clock_that_is_wrong_for_some_minutes_is_not_followed(
        before in 1usize..20,
        ahead in prop_oneof![0..2 * LEAP, LEAP..1000 * DAY],
        pauses in vec(1..MINUTE, 60),
        lasts in 0..Steadiness::TRUSTED_AFTER,
    ) {
        let mut steadiness = Steadiness::default();
        let (mut time, mut sealed, mut jumped_at) = (0, None, None);
        for (look, pause) in pauses.into_iter().enumerate() {
            time += pause;
            if look == before {
                jumped_at = Some(time);
            }
            let is_ahead = jumped_at.is_some_and(|jumped| time - jumped < lasts);
            let clock = time + if is_ahead { ahead } else { 0 };
            let is_trusted = steadiness.look(clock, time);
            sealed = Some(seal(sealed, clock, is_trusted));
            prop_assert!(sealed.unwrap() <= time + LEAP + Steadiness::DRIFT);
            // And it goes on as if nothing had been.
            if jumped_at.is_none() || (!is_ahead && ahead > LEAP + MINUTE) {
                prop_assert_eq!(sealed, Some(clock));
            }
        }
    }
}

#[test]
fn a_process_has_to_look_for_ten_minutes() {
    let mut steadiness = Steadiness::default();
    assert!(!steadiness.look(500, 0));
    assert!(!steadiness.look(500 + 10 * MINUTE - 1, 10 * MINUTE - 1));
    assert!(steadiness.look(500 + 10 * MINUTE, 10 * MINUTE));
    // Set.
    assert!(!steadiness.look(DAY, 11 * MINUTE));
    assert!(!steadiness.look(DAY + 9 * MINUTE, 20 * MINUTE));
    assert!(steadiness.look(DAY + 10 * MINUTE, 21 * MINUTE));
}
