//! Transactions in all orders of their steps keep the bounds, and single steps that are worth a name.

mod world;

use proptest::prelude::*;

use super::*;
use crate::path::Change;
use world::{World, act, act_on_holds};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn no_outcome_breaks_a_bound(
        start in 0i128..9,
        first in 0i64..4,
        second in 0i64..3,
        min in prop_oneof![Just(None), Just(Some(0i64)), Just(Some(-2))],
        max in prop_oneof![Just(None), Just(Some(8i64)), Just(Some(10))],
        acts in proptest::collection::vec(act(), 0..120),
    ) {
        let value = start.max((first + second).into());
        World::new(Bounds { min, max }, value, [(first, 6), (second, 3)]).go_through(acts)?;
    }

    #[test]
    fn what_was_on_hold_is_had_once(
        free in 0i128..2,
        first in 1i64..4,
        second in 1i64..3,
        acts in proptest::collection::vec(act_on_holds(), 0..50),
    ) {
        let bounds = Bounds { min: Some(0), max: None };
        let value = free + i128::from(first + second);
        World::new(bounds, value, [(first, 1), (second, 3)]).go_through(acts)?;
    }

    /// Alone, all is granted that no beginning of what was done would break a bound with.
    #[test]
    fn alone_everything_that_fits_is_granted(
        start in -5i128..6,
        deltas in proptest::collection::vec(-6i64..7, 1..8),
    ) {
        let bounds = Bounds { min: Some(-5), max: Some(5) };
        let mut account = Account::NEW;
        let mut before = Path::NEW;
        for delta in deltas {
            let step = Step { before, after: before.then(Change::delta(delta)).unwrap() };
            let noted = account.reserve_step(&step);
            let verdict = check(bounds, seen(start, 0), &step, 0, noted);
            let then = start + i128::from(step.after.value());
            let fits = bounds.contain(then);
            prop_assert_eq!(verdict, if fits { Verdict::Granted } else { Verdict::Refused });
            let available = available(bounds, seen(start, 0), &before, 0, noted).unwrap();
            prop_assert_eq!(i128::from(available), start + i128::from(before.value()) + 5);
            if fits {
                before = step.after;
            } else {
                account.release(step.wanted(), End::Aborted);
            }
        }
    }
}

fn seen(value: i128, held: i128) -> Seen {
    Seen {
        value,
        held,
        clock: 0,
    }
}

/// The first step of a transaction.
fn first(delta: i64) -> Step {
    Step {
        before: Path::NEW,
        after: Path::NEW.then(Change::delta(delta)).unwrap(),
    }
}

#[test]
fn what_is_learnt_saves_reading() {
    let bounds = Bounds {
        min: Some(0),
        max: None,
    };
    let mut account = Account::NEW;
    let one = first(-1);
    let wanted = one.wanted();
    let noted = account.reserve_step(&one);
    assert!(!account.is_covered(bounds, wanted));
    account.learn(noted, seen(3, 0));
    assert!(account.is_covered(bounds, wanted));
    account.release(wanted, End::Committed);
    for _ in 0..2 {
        account.reserve_step(&one);
        assert!(account.is_covered(bounds, wanted));
        account.release(wanted, End::Committed);
    }
    account.reserve_step(&one);
    assert!(!account.is_covered(bounds, wanted));
}

#[test]
fn extreme_numbers_are_out_of_range_and_nothing_else() {
    let mut account = Account::NEW;
    let all = first(-i64::MAX);
    // However much is in flight, nobody is in others' way for the sake of a number's width.
    for times in 1..4 {
        account.reserve_step(&all);
        assert_eq!(account.in_flight().takes, times * i128::from(i64::MAX));
    }
    let noted = account.reserve_step(&first(0));
    for value in [i128::MAX / 4, i128::MIN / 4] {
        account.learn(noted, seen(value, 0));
    }
}

#[test]
fn what_is_held_makes_no_room_below_the_maximum() {
    let bounds = Bounds {
        min: Some(0),
        max: Some(10),
    };
    let seen = seen(10, 3);
    let verdict = |delta: i64| {
        let mut account = Account::NEW;
        let step = first(delta);
        let noted = account.reserve_step(&step);
        account.learn(noted, seen);
        let verdict = check(bounds, seen, &step, 0, noted);
        assert_eq!(
            account.is_covered(bounds, step.wanted()),
            verdict == Verdict::Granted
        );
        verdict
    };
    assert_eq!(verdict(1), Verdict::Refused);
    assert_eq!(verdict(-7), Verdict::Granted);
    assert_eq!(verdict(-8), Verdict::Refused);
}

#[test]
fn who_has_read_before_the_account_forgot_teaches_nothing() {
    let mut account = Account::NEW;
    let noted = account.reserve_step(&first(-1));
    account.forget();
    account.learn(noted, seen(10, 0));
    assert_eq!((account.floor, account.ceiling), (None, None));
}

#[test]
fn what_a_hold_backs_counts_once_until_it_expires() {
    let bounds = Bounds {
        min: Some(0),
        max: None,
    };
    let mut account = Account::NEW;
    let released = Path::NEW.then(Change::release(5, 60)).unwrap();
    let confirmed = Step {
        before: Path::NEW,
        after: released.then(Change::delta(-5)).unwrap(),
    };
    account.reserve_step(&confirmed);
    let five = first(-5);
    let noted = account.reserve_step(&five);
    let verdict = |held, clock| {
        let seen = Seen {
            value: 10,
            held,
            clock,
        };
        check(bounds, seen, &five, clock, noted)
    };
    // The hold is there, or has been confirmed.
    assert_eq!(verdict(5, 59), Verdict::Granted);
    // It has expired, and is being confirmed by one who has looked at the clock before.
    assert_eq!(verdict(0, 60), Verdict::Granted);
    assert_eq!(verdict(1, 60), Verdict::Contended);
    account.release(confirmed.wanted(), End::Aborted);
    assert_eq!(account.backed_until, i64::MAX);
}

#[test]
fn others_see_takes_and_none_of_the_adds_before_them() {
    let bounds = Bounds {
        min: Some(0),
        max: Some(10),
    };
    let mut account = Account::NEW;
    let added = Step {
        before: Path::NEW,
        after: Path::NEW.then(Change::delta(5)).unwrap(),
    };
    account.reserve_step(&added);
    let sold = Step {
        before: added.after,
        after: added.after.then(Change::delta(-5)).unwrap(),
    };
    assert!(sold.wanted().is_zero());
    let other = first(-1);
    let noted = account.reserve_step(&other);
    assert_eq!(
        check(bounds, seen(0, 0), &other, 0, noted),
        Verdict::Refused
    );
    assert_eq!(
        check(bounds, seen(1, 0), &other, 0, noted),
        Verdict::Granted
    );
}

#[test]
fn what_commits_meanwhile_may_be_more_than_a_bigint() {
    const HALF: i64 = 1 << 62;
    let takes = Amounts {
        takes: HALF,
        ..Amounts::NONE
    };
    let mut account = Account::NEW;
    let noted = account.note(Amounts::NONE);
    let seen = Seen {
        value: HALF.into(),
        held: 0,
        clock: 0,
    };
    // Taken, put back and taken again, by others.
    for _ in 0..2 {
        account.reserve(Amounts::NONE, takes);
        account.release(takes, End::Committed);
    }
    account.learn(noted, seen);
    let bounds = Bounds {
        min: Some(0),
        max: None,
    };
    let one = Amounts {
        takes: 1,
        ..Amounts::NONE
    };
    account.reserve(Amounts::NONE, one);
    assert!(!account.is_covered(bounds, one));
}
