//! The launcher's turns one by one, and what no order of requests and ends may lead to.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

const SECOND: i64 = 1_000_000;

fn nobody(_: Seat) -> Option<i64> {
    None
}

fn databases(plan: &Plan) -> Vec<u32> {
    plan.start.iter().map(|start| start.seat.database).collect()
}

#[test]
fn with_turns_for_all_nobody_is_asked_to_make_room() {
    let mut directory = Directory::<16>::default();
    for database in 1..=3 {
        assert!(directory.request(database, 10));
    }
    assert_eq!(databases(&directory.plan(11, 3, nobody)), [1, 2, 3]);
    for database in 1..=3 {
        directory.working(database, false, 12);
        assert!(!directory.lacks_worker(database, || 13));
    }
    let plan = directory.plan(1000 * SECOND, 3, nobody);
    assert_eq!(plan, Plan::default());
    for database in 1..=3 {
        assert_eq!(directory.asked(database), (false, 0));
    }
}

#[test]
fn who_has_waited_longest_goes_first_and_the_idle_make_room_first() {
    let mut directory = Directory::<16>::default();
    for database in [5, 4] {
        directory.request(database, 1);
        directory.plan(2, 2, nobody);
        directory.working(database, false, i64::from(database));
    }
    directory.request(9, 20);
    directory.request(7, 10);
    directory.request(8, 15);
    directory.set_busy(5, false);
    assert_eq!(databases(&directory.plan(30, 2, nobody)), [0; 0]);
    // Three wait, so both are to make room.
    assert_eq!(directory.asked(5), (true, 3));
    assert_eq!(directory.asked(4), (true, 3));
    directory.stopped(4);
    assert_eq!(databases(&directory.plan(31, 2, nobody)), [7]);
    // It asks no sooner than it has ended; so it comes last.
    directory.request(4, 31);
    directory.working(7, false, 40);
    directory.stopped(5);
    assert_eq!(databases(&directory.plan(41, 2, nobody)), [8]);
    directory.working(8, false, 42);
    directory.plan(43, 2, nobody);
    directory.stopped(7);
    assert_eq!(databases(&directory.plan(44, 2, nobody)), [9]);
    directory.stopped(8);
    assert_eq!(databases(&directory.plan(45, 2, nobody)), [4]);
}

#[test]
fn only_as_many_are_asked_as_wait_and_the_request_is_withdrawn() {
    let mut directory = Directory::<16>::default();
    for database in 1..=3 {
        directory.request(database, 1);
    }
    directory.plan(1, 3, nobody);
    for database in 1..=3 {
        directory.working(database, false, i64::from(database));
    }
    directory.set_busy(2, false);
    directory.request(4, 10);
    directory.plan(10, 3, nobody);
    let asked = |directory: &Directory<16>| [1, 2, 3].map(|db| directory.asked(db).0);
    assert_eq!(asked(&directory), [false, true, false]);
    directory.stopped(1);
    assert_eq!(databases(&directory.plan(11, 3, nobody)), [4]);
    assert_eq!(asked(&directory), [false, false, false]);
    // Fewer turns than workers.
    directory.working(4, false, 12);
    directory.plan(13, 1, nobody);
    let asked = |directory: &Directory<16>| [2, 3, 4].map(|db| directory.asked(db).0);
    assert_eq!(asked(&directory), [true, true, false]);
}

#[test]
fn starts_that_fail_are_tried_again_less_and_less_often() {
    let mut directory = Directory::<16>::default();
    let mut now = SECOND;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(directory.lacks_worker(1, || now));
        directory.request(1, now);
        assert_eq!(databases(&directory.plan(now, 1, nobody)), [1]);
        directory.failed(1, now);
        let failed_at = now;
        while !directory.lacks_worker(1, || now) {
            directory.request(1, now);
            assert_eq!(databases(&directory.plan(now, 1, nobody)), [0; 0]);
            now += SECOND / 2;
        }
        pauses.push((now - failed_at) / SECOND);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    // One that works makes up for them; one that nobody asks for again is forgotten.
    directory.request(1, now);
    directory.plan(now, 1, nobody);
    directory.working(1, false, now);
    directory.request_again(1, now);
    directory.plan(now, 1, nobody);
    directory.failed(1, now);
    assert!(directory.lacks_worker(1, || now + SECOND));
    directory.plan(now + 62 * SECOND, 1, nobody);
    assert!(directory.find(1).is_none());
}

#[test]
fn a_visit_makes_room_for_a_worker_of_its_own_database() {
    let mut directory = Directory::<16>::default();
    directory.visit_at(1, 5, 1);
    assert!(directory.plan(6, 2, nobody).start[0].visit);
    directory.working(1, true, 7);
    assert_eq!(directory.asked(1), (false, 0));
    assert!(directory.lacks_worker(1, || 8));
    directory.request(1, 8);
    assert_eq!(directory.asked(1), (true, 0));
    directory.stopped(1);
    let plan = directory.plan(9, 2, nobody);
    assert_eq!(databases(&plan), [1]);
    assert!(!plan.start[0].visit);
    directory.working(1, false, 10);
    assert_eq!(directory.asked(1), (false, 0));
}

#[test]
fn who_is_owed_a_worker_gets_one_unasked_and_once_more_where_it_fails() {
    let mut directory = Directory::<16>::default();
    directory.request(1, 1);
    directory.plan(1, 1, nobody);
    directory.working(1, false, 2);
    directory.stopped(1);
    directory.owe(1, 3);
    // Not at once: a process that connects at that moment would be in the way, or refused.
    let plan = directory.plan(4, 1, nobody);
    assert_eq!(plan.start, []);
    let next = plan.next.expect("it is to be started");
    assert_eq!(next, 3 + SECOND);
    assert_eq!(databases(&directory.plan(next, 1, nobody)), [1]);
    directory.failed(1, next + 1);
    let next = directory.plan(next + 2, 1, nobody).next.unwrap();
    let plan = directory.plan(next, 1, nobody);
    assert_eq!(databases(&plan), [1]);
    assert!(!plan.start[0].visit);
    // A database that was dropped is not tried for ever.
    directory.failed(1, next + 1);
    let mut now = next + 2;
    while let Some(next) = directory.plan(now, 1, nobody).next {
        now = next;
        assert_eq!(directory.turns_taken(), 0);
    }
    assert!(directory.find(1).is_none());
    // One that works owes nothing any more.
    directory.owe(1, now);
    directory.plan(now + SECOND, 1, nobody);
    directory.working(1, false, now + SECOND);
    directory.stopped(1);
    assert!(directory.find(1).is_none());
}

#[test]
fn who_is_owed_a_worker_does_not_keep_commits_from_asking() {
    let mut directory = Directory::<16>::default();
    directory.owe(1, 1);
    assert!(directory.lacks_worker(1, || 1 + SECOND));
    directory.request(1, 1 + SECOND);
    assert_eq!(databases(&directory.plan(1 + SECOND, 1, nobody)), [1]);
    // Somebody has asked before it was said that one is owed: it comes as soon as without.
    directory.request(2, 5);
    directory.owe(2, 6);
    assert_eq!(databases(&directory.plan(7, 2, nobody)), [2]);
    directory.failed(2, 8);
    let plan = directory.plan(8 + SECOND, 2, nobody);
    assert_eq!(databases(&plan), [2]);
}

#[test]
fn a_start_that_nobody_hears_of_again_gives_its_turn_back() {
    let mut directory = Directory::<16>::default();
    directory.request(1, 1);
    let plan = directory.plan(1, 1, nobody);
    assert_eq!(databases(&plan), [1]);
    directory.request(2, 2);
    assert_eq!(directory.plan(3, 1, nobody).start, []);
    let next = directory.plan(4, 1, nobody).next;
    assert_eq!(next, Some(2 + START_TIMEOUT_US));
    assert_eq!(databases(&directory.plan(next.unwrap(), 1, nobody)), [2]);
}

#[test]
fn a_visit_comes_at_its_time_and_a_commit_does_not_wait_for_it() {
    let mut directory = Directory::<16>::default();
    let visits = |plan: Plan| {
        plan.start
            .iter()
            .map(|start| start.visit)
            .collect::<Vec<_>>()
    };
    directory.visit_at(1, 5 * SECOND, SECOND);
    let plan = directory.plan(2 * SECOND, 1, nobody);
    assert_eq!((&plan.start[..], plan.next), (&[][..], Some(5 * SECOND)));
    assert_eq!(visits(directory.plan(5 * SECOND, 1, nobody)), [true]);
    directory.stopped(1);
    directory.visit_at(1, 9 * SECOND, 6 * SECOND);
    assert!(directory.lacks_worker(1, || 6 * SECOND));
    directory.request(1, 6 * SECOND);
    assert!(!directory.lacks_worker(1, || 6 * SECOND));
    // Who wants one now is not put off.
    directory.visit_at(1, 20 * SECOND, 6 * SECOND);
    assert_eq!(visits(directory.plan(7 * SECOND, 1, nobody)), [false]);
}

#[test]
fn a_commit_beside_a_visit_gets_a_worker_after_it() {
    let mut directory = Directory::<16>::default();
    directory.visit_at(1, 2, 1);
    assert!(directory.plan(2, 1, nobody).start[0].visit);
    for when in [3, 4] {
        // Once while it starts, or once when it is there.
        assert_eq!(directory.lacks_worker(1, || when), when == 3);
        directory.request(1, when);
        directory.working(1, true, when);
    }
    directory.stopped(1);
    let plan = directory.plan(5, 1, nobody);
    assert_eq!((plan.start[0].visit, plan.start[0].since), (false, 3));
    // One that has been put off for want of a turn turns into a worker.
    directory.working(1, false, 6);
    directory.visit_at(2, 7, 6);
    directory.plan(7, 1, nobody);
    assert!(directory.lacks_worker(2, || 8));
    directory.request(2, 8);
    assert!(!directory.lacks_worker(2, || 8));
    directory.stopped(1);
    assert!(!directory.plan(9, 1, nobody).start[0].visit);
}

#[test]
fn a_full_directory_forgets_visits_and_then_asks_for_patience() {
    let mut directory = Directory::<8>::default();
    directory.visit_at(1, 50, 1);
    for database in 2..=6 {
        assert!(directory.request(database, 2));
    }
    assert!(directory.is_full());
    assert!(!directory.request(7, 3));
    assert!(!directory.lacks_worker(7, || 3));
    directory.plan(4, 1, nobody);
    assert!(directory.lacks_worker(7, || 5));
    assert!(directory.request(7, 5));
    assert!(!directory.request(8, 6));
    // Each that is served makes room for one more.
    assert!(directory.find(2).is_some());
    directory.stopped(2);
    assert!(directory.lacks_worker(8, || 7));
    assert!(directory.request(8, 7));
}

#[test]
fn held_up_databases_wait_and_nobody_makes_room_for_them() {
    let mut directory = Directory::<16>::default();
    directory.request(1, 1);
    directory.plan(1, 1, nobody);
    directory.working(1, false, 1);
    directory.request(2, 2);
    let plan = directory.plan(3, 1, |_| Some(77));
    assert_eq!((plan.start.len(), plan.next), (0, Some(77)));
    assert_eq!(directory.asked(1), (false, 0));
    directory.plan(77, 1, nobody);
    assert_eq!(directory.asked(1), (true, 1));
}

#[test]
fn a_refused_start_keeps_its_place() {
    let mut directory = Directory::<16>::default();
    directory.request(1, 1);
    directory.request(2, 2);
    let plan = directory.plan(3, 1, nobody);
    assert_eq!(directory.turns_taken(), 1);
    directory.refused(plan.start[0]);
    assert_eq!(directory.turns_taken(), 0);
    assert_eq!(databases(&directory.plan(4, 1, nobody)), [1]);
}

#[test]
fn a_turn_is_over_after_a_fold_of_each_lane() {
    let mut turn = Turn::default();
    let now = Duration::from_millis;
    assert!(!turn.is_over(now(999), 1000, 3));
    for lane in 0..LANES {
        assert!(turn.misses(lane));
        assert!(!turn.is_over(now(500), 1000, 3));
        turn.lane_is_done(lane);
    }
    assert!(turn.is_over(now(500), 1000, 3));
    // The fewer wait, the longer it may last: one that waits alone does so for one round at most.
    assert!(!turn.is_over(now(500), 9, 3));
    assert!(turn.is_over(now(1400), 9, 3));
    for few in 0..=3 {
        assert!(!turn.is_over(now(3_999), few, 3));
        assert!(turn.is_over(now(4_000), few, 3));
    }
}

#[test]
fn a_lane_that_cannot_be_folded_does_not_keep_the_turn() {
    let mut turn = Turn::default();
    (1..LANES).for_each(|lane| turn.lane_is_done(lane));
    assert!(!turn.is_over(PATIENCE / 2, u32::MAX, 1));
    assert!(turn.is_over(PATIENCE, u32::MAX, 1));
}

fn further(database: u32, number: u8) -> Seat {
    Seat { database, number }
}

fn seats(plan: &Plan) -> Vec<Seat> {
    plan.start.iter().map(|start| start.seat).collect()
}

#[test]
fn further_workers_get_what_nobody_waits_for() {
    let mut directory = Directory::<16>::default();
    directory.request(1, 1);
    directory.plan(1, 3, nobody);
    directory.working(1, false, 1);
    // No sooner than those who want a first one, however long they have waited.
    directory.request(further(1, 2), 2);
    directory.request(further(1, 1), 3);
    directory.request(2, 9);
    assert_eq!(
        seats(&directory.plan(10, 3, nobody)),
        [2.into(), further(1, 1)]
    );
    // The other is forgotten, and nobody makes room for it.
    assert!(directory.find(further(1, 2)).is_none());
    directory.working(2, false, 11);
    directory.working(further(1, 1), false, 11);
    directory.request(further(2, 1), 12);
    let plan = directory.plan(12, 3, nobody);
    assert_eq!((plan.start.len(), plan.waiting), (0, 0));
    assert_eq!(directory.turns_taken(), 3);
    for seat in [1.into(), 2.into(), further(1, 1)] {
        assert_eq!(directory.asked(seat), (false, 0));
    }
    // One that is held up finds its turn free.
    directory.stopped(2);
    directory.request(3, 13);
    directory.request(further(1, 2), 13);
    let held_up = |seat: Seat| (seat.database == 3).then_some(20);
    assert_eq!(seats(&directory.plan(13, 3, held_up)), []);
    assert_eq!(databases(&directory.plan(20, 3, nobody)), [3]);
    directory.request(further(1, 2), 21);
    assert_eq!(seats(&directory.plan(22, 4, nobody)), [further(1, 2)]);
}

#[test]
fn further_workers_make_room_first_and_those_first_of_who_has_most() {
    let mut directory = Directory::<16>::default();
    let all = [
        1.into(),
        2.into(),
        further(1, 1),
        further(1, 2),
        further(2, 1),
    ];
    for (at, seat) in all.into_iter().enumerate() {
        directory.working(seat, false, at as i64);
    }
    directory.set_busy(1, false);
    let asked = |directory: &Directory<16>| all.map(|seat: Seat| directory.asked(seat).0);
    directory.plan(10, 5, nobody);
    assert_eq!(asked(&directory), [false; 5]);
    directory.request(3, 11);
    directory.plan(12, 5, nobody);
    assert_eq!(asked(&directory), [false, false, false, true, false]);
    directory.request(4, 13);
    directory.request(5, 13);
    directory.plan(14, 5, nobody);
    assert_eq!(asked(&directory), [false, false, true, true, true]);
    directory.request(6, 15);
    directory.plan(16, 5, nobody);
    assert_eq!(asked(&directory), [true, false, true, true, true]);
    // So do they when the setting was lowered.
    for database in 3..=6 {
        directory.stopped(database);
    }
    directory.plan(17, 3, nobody);
    assert_eq!(asked(&directory), [false, false, true, true, false]);
}

#[test]
fn a_further_worker_that_cannot_start_is_tried_less_and_less_often() {
    let mut directory = Directory::<16>::default();
    let seat = further(1, 1);
    let mut now = SECOND;
    let mut pauses = Vec::new();
    for _ in 0..4 {
        directory.request(seat, now);
        assert_eq!(seats(&directory.plan(now, 1, nobody)), [seat]);
        directory.failed(seat, now);
        let failed_at = now;
        loop {
            directory.request(seat, now);
            if seats(&directory.plan(now, 1, nobody)) == [seat] {
                directory.refused(Start {
                    seat,
                    visit: false,
                    since: now,
                });
                break;
            }
            now += SECOND / 2;
        }
        pauses.push((now - failed_at) / SECOND);
    }
    assert_eq!(pauses, [1, 2, 4, 8]);
    // Nothing of it counts for the database's first one.
    assert!(directory.lacks_worker(1, || now));
    assert!(directory.find(1).is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Request(u32),
    Working(u32),
    Stopped(u32),
    Failed(u32),
    Killed(u32),
    Visit(u32),
    Plan,
}

fn is_visit(directory: &Directory<32>, database: u32) -> bool {
    directory.find(database).is_some_and(|entry| entry.visit)
}

fn step() -> impl Strategy<Value = Step> {
    let database = || 1..14_u32;
    prop_oneof![
        4 => database().prop_map(Step::Request),
        2 => database().prop_map(Step::Working),
        3 => database().prop_map(Step::Stopped),
        1 => database().prop_map(Step::Failed),
        1 => database().prop_map(Step::Killed),
        1 => database().prop_map(Step::Visit),
        4 => Just(Step::Plan),
    ]
}

proptest! {
    /// The hash table holds what a map does, whatever collides and is removed.
    #[test]
    fn the_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 1..40_u32), 1..200)) {
        let mut directory = Directory::<16>::default();
        let mut model = BTreeSet::new();
        for (insert, database) in steps {
            // Such that many have the same home.
            let database = database << 26 | 1;
            if insert {
                let had_room = model.len() < 12 || model.contains(&database);
                prop_assert_eq!(directory.request(database, 1), had_room);
                if had_room {
                    model.insert(database);
                }
            } else {
                directory.stopped(database);
                model.remove(&database);
            }
            prop_assert_eq!(directory.used, model.len());
            for database in &model {
                prop_assert!(directory.find(*database).is_some());
            }
        }
    }

    /// Never more workers than turns; nobody overtakes who has waited longer; nobody makes room
    /// for nobody; and all who wait get their turn.
    #[test]
    fn turns_are_fair(turns in 1..4_usize, steps in prop::collection::vec(step(), 1..300)) {
        let mut directory = Directory::<32>::default();
        let mut has_turn: BTreeSet<u32> = BTreeSet::new();
        let mut waits: HashMap<u32, i64> = HashMap::new();
        let mut now = 0;
        let plan = |directory: &mut Directory<32>,
                        has_turn: &mut BTreeSet<u32>,
                        waits: &mut HashMap<u32, i64>,
                        now: i64| {
            let plan = directory.plan(now, turns, nobody);
            for start in plan.start.iter().filter(|start| !start.visit) {
                let waited = waits.remove(&start.seat.database).is_some();
                prop_assert!(waited, "{} was not waiting", start.seat.database);
                let overtaken = |(database, &since): (&u32, &i64)| {
                    since < start.since && !has_turn.contains(database)
                };
                prop_assert!(!waits.iter().any(overtaken));
            }
            has_turn.extend(databases(&plan));
            prop_assert!(has_turn.len() <= turns);
            // A commit beside a visit waits for its end.
            let all_come = waits.keys().all(|database| has_turn.contains(database));
            prop_assert!(has_turn.len() == turns || all_come);
            let is_asked = |database| directory.find(database).is_some_and(Entry::is_asked);
            let asked = has_turn.iter().filter(|&&database| is_asked(database)).count();
            prop_assert!(asked <= directory.waiting as usize);
            Ok(())
        };
        for step in steps {
            now += 1;
            match step {
                Step::Request(database) => {
                    let wants = directory.lacks_worker(database, || now);
                    directory.request(database, now);
                    if wants {
                        waits.insert(database, now);
                    }
                }
                Step::Working(database) if has_turn.contains(&database) => {
                    let visit = is_visit(&directory, database);
                    directory.working(database, visit, now);
                }
                Step::Stopped(database) if has_turn.remove(&database) => {
                    directory.stopped(database);
                }
                Step::Killed(database) if has_turn.remove(&database) => {
                    directory.request_again(database, now);
                    waits.insert(database, now);
                }
                Step::Failed(database)
                    if directory.find(database).is_some_and(|e| e.state() == State::Starting) =>
                {
                    directory.failed(database, now);
                    has_turn.remove(&database);
                    waits.remove(&database);
                }
                Step::Visit(database) => directory.visit_at(database, now + 5, now),
                Step::Plan => plan(&mut directory, &mut has_turn, &mut waits, now)?,
                _ => {}
            }
        }
        // From here on whoever is asked makes room.
        for _ in 0..100 {
            now += 1;
            plan(&mut directory, &mut has_turn, &mut waits, now)?;
            for database in has_turn.clone() {
                let visit = is_visit(&directory, database);
                directory.working(database, visit, now);
            }
            plan(&mut directory, &mut has_turn, &mut waits, now)?;
            for database in has_turn.clone() {
                if directory.asked(database).0 || is_visit(&directory, database) {
                    directory.stopped(database);
                    has_turn.remove(&database);
                }
            }
        }
        prop_assert!(waits.is_empty(), "{:?} still wait", waits);
    }

    /// With further workers: never more than turns; who waits for a first one has all further ones make room
    /// before any first one does, and gets a turn though no first one ever goes.
    #[test]
    fn further_workers_keep_nobody_waiting(
        turns in 1..6_usize,
        steps in prop::collection::vec((0..6_u8, 1..6_u32, 0..4_u8), 1..200),
    ) {
        let mut directory = Directory::<32>::default();
        let mut has_turn: BTreeSet<Seat> = BTreeSet::new();
        let plan = |directory: &mut Directory<32>, has_turn: &mut BTreeSet<Seat>, now: i64| {
            let plan = directory.plan(now, turns, nobody);
            for seat in seats(&plan) {
                prop_assert!(seat.is_first() || plan.waiting == 0);
                prop_assert!(has_turn.insert(seat));
            }
            prop_assert!(has_turn.len() <= turns);
            prop_assert_eq!(directory.turns_taken(), has_turn.len());
            let is_working = |seat: &Seat| directory.find(*seat).unwrap().state() == State::Working;
            let working = || has_turn.iter().copied().filter(|seat| is_working(seat));
            let asked = working().filter(|&seat| directory.asked(seat).0);
            prop_assert_eq!(asked.clone().count(), plan.waiting.min(working().count()));
            if asked.clone().any(Seat::is_first) {
                prop_assert!(working().all(|seat| seat.is_first() || directory.asked(seat).0));
            }
            Ok(())
        };
        let mut now = 0;
        for (what, database, number) in steps {
            now += 1;
            let seat = Seat { database, number };
            match what {
                0 | 1 => {
                    directory.request(seat, now);
                }
                2 if has_turn.contains(&seat) => directory.working(seat, false, now),
                3 if has_turn.remove(&seat) => directory.stopped(seat),
                _ => plan(&mut directory, &mut has_turn, now)?,
            }
        }
        // There is a turn for each first one.
        let firsts = (1..6).filter(|&database| directory.find(database).is_some()).count();
        prop_assume!(firsts <= turns);
        for _ in 0..10 {
            now += 1;
            for &seat in &has_turn {
                directory.working(seat, false, now);
            }
            plan(&mut directory, &mut has_turn, now)?;
            for seat in has_turn.clone() {
                if directory.asked(seat).0 {
                    prop_assert!(!seat.is_first());
                    directory.stopped(seat);
                    has_turn.remove(&seat);
                }
            }
        }
        for database in 1..6 {
            let waits = directory.find(database).map(Entry::state) == Some(State::Waiting);
            prop_assert!(!waits, "{} waits", database);
        }
    }
}
