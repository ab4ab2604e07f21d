//! How lanes are shared, and a model of what workers do: all orders of their steps up to a depth, and what becomes of
//! each state when nobody comes or dies any more.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashSet};

#[test]
fn lanes_are_shared_evenly_and_all_agree() {
    for set in 1..=u8::MAX {
        let present = Present(set);
        let mut shares = [0; MOST];
        for lane in 0..LANES {
            let owner = present.owner_of(lane).unwrap();
            assert!(present.has(owner));
            shares[usize::from(owner)] += 1;
        }
        let of_present = (0..MOST).filter(|&number| present.has(number as u8));
        let (least, most) = (LANES / present.count(), LANES.div_ceil(present.count()));
        assert!(
            of_present
                .map(|number| shares[number])
                .all(|n| n == least || n == most)
        );
    }
    assert_eq!(Present::default().owner_of(3), None);
    assert!((0..LANES).all(|lane| Present::alone(5).owner_of(lane) == Some(5)));
}

#[test]
fn the_next_number_is_the_lowest_but_never_the_first() {
    assert_eq!(Present::alone(0).next(1), None);
    assert_eq!(Present::alone(0).next(2), Some(1));
    assert_eq!(Present::alone(0).with(1).next(2), None);
    assert_eq!(Present::alone(2).next(8), Some(1));
    assert_eq!(Present(u8::MAX).next(99), None);
}

const SECOND: Duration = Duration::from_secs(1);

/// So many windows in which these lanes take so much of each.
fn busy(load: &mut Load, now: &mut Duration, windows: u32, lanes: &[(usize, Duration)]) -> u32 {
    let mut asked = 0;
    for _ in 0..windows {
        for &(lane, took) in lanes {
            load.worked(lane, took);
        }
        *now += SECOND;
        load.look(*now);
        asked += u32::from(load.wants_help(*now));
    }
    asked
}

#[test]
fn who_is_behind_asks_less_and_less_often_if_it_does_not_help() {
    let mut load = Load::default();
    let mut now = Duration::ZERO;
    let half = SECOND / 2;
    assert_eq!(
        busy(&mut load, &mut now, 1, &[(0, half), (1, half)]),
        0,
        "a moment"
    );
    assert_eq!(busy(&mut load, &mut now, 1, &[(0, half), (1, half)]), 1);
    assert_eq!(busy(&mut load, &mut now, 13, &[(0, half), (1, half)]), 2);
    assert_eq!(busy(&mut load, &mut now, 600, &[(0, half), (1, half)]), 12);
    // It has helped, and later it is too much again.
    busy(&mut load, &mut now, 70, &[(0, half / 2)]);
    assert_eq!(busy(&mut load, &mut now, 4, &[(0, half), (1, half)]), 2);
}

#[test]
fn folds_may_take_longer_than_a_window() {
    let mut load = Load::default();
    let mut now = Duration::ZERO;
    let mut asked = Vec::new();
    for lane in 0..LANES {
        let took = SECOND * 3 / 2;
        now += took;
        load.worked(lane, took);
        load.look(now);
        if load.wants_help(now) {
            asked.push(lane);
        }
    }
    assert_eq!(asked, [1, 3, 6]);
}

#[test]
fn nobody_can_help_with_one_lane() {
    let mut load = Load::default();
    let mut now = Duration::ZERO;
    let much = [(3, SECOND / 10 * 8), (4, SECOND / 10)];
    assert_eq!(busy(&mut load, &mut now, 100, &much), 0);
    assert!(!load.is_idle(now));
}

#[test]
fn who_has_little_to_do_for_some_time_goes() {
    let mut load = Load::default();
    let mut now = Duration::ZERO;
    let little = [(1, SECOND / 10)];
    busy(&mut load, &mut now, 9, &little);
    assert!(!load.is_idle(now));
    busy(&mut load, &mut now, 1, &[(1, SECOND / 2)]);
    busy(&mut load, &mut now, 9, &little);
    assert!(!load.is_idle(now));
    busy(&mut load, &mut now, 1, &little);
    assert!(load.is_idle(now));
}

proptest! {
    /// Those who stay when one has gone for want of work are not behind because of it.
    #[test]
    fn one_who_goes_is_not_asked_back(workers in 2..=MOST as u32, share in 0..200_u32) {
        let work = SECOND * share / 1000 * workers;
        let each = work / (workers - 1);
        let mut load = Load::default();
        let mut now = Duration::ZERO;
        prop_assert_eq!(busy(&mut load, &mut now, 30, &[(0, each / 2), (1, each / 2)]), 0);
    }
}

/// What holds in a model: as it is, or with a fault in it.
#[derive(Clone, Copy)]
struct Rules {
    /// A lane has an owner. Otherwise whoever is there publishes and folds each.
    owners: bool,
    /// A published epoch counts only as long as the gate shows it.
    gate_shows: bool,
    /// `compact()` publishes beside the workers.
    compacts: bool,
    /// A lane is given up while its writers are awaited.
    gives_up_awaited: bool,
    /// A lane is handed on in the midst however often it was before.
    hands_on_again: bool,
    /// Who gets a lane goes on with the epoch that the gate shows, as if its writers had ended.
    goes_on_blindly: bool,
}

const AS_IT_IS: Rules = Rules {
    owners: true,
    gate_shows: false,
    compacts: true,
    gives_up_awaited: false,
    hands_on_again: false,
    goes_on_blindly: false,
};

const WORKERS: usize = 2;
const SOME_LANES: usize = 2;

/// Whose lock on a lane the server has still to give back.
const DEAD: u8 = u8::MAX;

/// What a worker has published: the epoch, and those who may still write to earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Epoch {
    epoch: i64,
    writers: BTreeSet<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    is_up: bool,
    /// Whom it has seen.
    seen: Present,
    owned: [bool; SOME_LANES],
    published: [Option<Epoch>; SOME_LANES],
    debts: Debts,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Lane {
    gate: i64,
    folded: i64,
    /// The lock on it.
    owner: Option<u8>,
    /// Running transactions, with the epoch that each has stamped its delta with.
    writers: Vec<(u8, i64)>,
    /// Epochs of deltas that were committed and not folded.
    pending: Vec<i64>,
    /// So many deltas were.
    total: u32,
    written: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    /// Held marks. Of one that dies they go first, its lanes' locks later.
    marks: Present,
    workers: [Worker; WORKERS],
    lanes: [Lane; SOME_LANES],
    next_writer: u8,
    /// What is still to happen.
    comings: u8,
    deaths: u8,
    writes: u8,
    compactions: u8,
    asks: u8,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Come(usize),
    Die(usize),
    /// The server gives back a lock of one that has died.
    Release(usize),
    Look(usize),
    /// It asks for another one, and makes room as if that one were there.
    Ask(usize),
    Share(usize, usize),
    Tick(usize, usize),
    Write(usize),
    Commit(usize),
    Compact(usize),
}

fn all_moves() -> Vec<Move> {
    let mut moves = Vec::new();
    for lane in 0..SOME_LANES {
        moves.extend([
            Move::Release(lane),
            Move::Write(lane),
            Move::Commit(lane),
            Move::Compact(lane),
        ]);
    }
    for worker in 0..WORKERS {
        moves.extend([
            Move::Come(worker),
            Move::Die(worker),
            Move::Look(worker),
            Move::Ask(worker),
        ]);
        for lane in 0..SOME_LANES {
            moves.extend([Move::Share(worker, lane), Move::Tick(worker, lane)]);
        }
    }
    moves
}

impl Lane {
    fn publish(&mut self) -> Epoch {
        self.gate += 1;
        Epoch {
            epoch: self.gate,
            writers: self.writers.iter().map(|(id, _)| *id).collect(),
        }
    }

    fn fold(&mut self, through: i64) {
        let before = self.pending.len();
        self.pending.retain(|&epoch| epoch > through);
        self.total += (before - self.pending.len()) as u32;
        self.folded = self.folded.max(through);
    }

    fn is_settled(&self, epoch: &Epoch) -> bool {
        !self
            .writers
            .iter()
            .any(|(id, _)| epoch.writers.contains(id))
    }
}

impl World {
    fn new() -> Self {
        let mut world = World {
            comings: 3,
            deaths: 2,
            writes: 2,
            compactions: 1,
            asks: 1,
            ..World::default()
        };
        for lane in &mut world.lanes {
            lane.gate = 1;
        }
        world
    }

    /// False: it cannot be made.
    fn make(&mut self, what: Move, rules: Rules) -> bool {
        match what {
            Move::Come(at) => {
                let number = at as u8;
                if self.comings == 0 || self.workers[at].is_up || self.marks.has(number) {
                    return false;
                }
                self.comings -= 1;
                self.marks = self.marks.with(number);
                self.workers[at] = Worker {
                    is_up: true,
                    seen: Present::alone(number),
                    debts: Debts::of(number),
                    ..Worker::default()
                };
            }
            Move::Die(at) => {
                if self.deaths == 0 || !self.workers[at].is_up {
                    return false;
                }
                self.deaths -= 1;
                self.marks.0 &= !(1 << at);
                for (lane, owned) in self.lanes.iter_mut().zip(self.workers[at].owned) {
                    if owned {
                        lane.owner = Some(DEAD);
                    }
                }
                self.workers[at] = Worker::default();
            }
            Move::Release(lane) => {
                let lane = &mut self.lanes[lane];
                if lane.owner != Some(DEAD) {
                    return false;
                }
                lane.owner = None;
            }
            Move::Look(at) => {
                if !self.workers[at].is_up {
                    return false;
                }
                self.workers[at].seen = self.marks.with(at as u8);
            }
            Move::Ask(at) => {
                let worker = &mut self.workers[at];
                if self.asks == 0 || !worker.is_up {
                    return false;
                }
                self.asks -= 1;
                worker.seen = (0..WORKERS as u8).fold(self.marks, Present::with);
            }
            Move::Share(at, number) => {
                let (worker, lane) = (&mut self.workers[at], &mut self.lanes[number]);
                if !worker.is_up || !rules.owners {
                    return false;
                }
                let is_its = worker.seen.owner_of(number) == Some(at as u8);
                let begun = match &worker.published[number] {
                    Some(epoch) if lane.is_settled(epoch) || rules.gives_up_awaited => {
                        Begun::Settled
                    }
                    Some(_) => Begun::Awaited,
                    None => Begun::Not,
                };
                let owes = worker.debts.has(number) && !rules.hands_on_again;
                match step(worker.owned[number], is_its, begun, owes) {
                    Step::Take if lane.owner.is_none() => {
                        worker.owned[number] = true;
                        lane.owner = Some(at as u8);
                        if rules.goes_on_blindly {
                            worker.published[number] = Some(Epoch {
                                epoch: lane.gate,
                                writers: BTreeSet::new(),
                            });
                        }
                    }
                    Step::GiveUp => {
                        worker.owned[number] = false;
                        worker.published[number] = None;
                        worker.debts.gave_up(number, begun);
                        lane.owner = None;
                    }
                    _ => return false,
                }
            }
            Move::Tick(at, number) => {
                let worker = &mut self.workers[at];
                if !worker.is_up || (rules.owners && !worker.owned[number]) {
                    return false;
                }
                let published = &mut worker.published[number];
                let lane = &mut self.lanes[number];
                let known = published.take().filter(|known| {
                    (!rules.gate_shows || known.epoch == lane.gate) && known.epoch - 1 > lane.folded
                });
                match known {
                    Some(known) if lane.is_settled(&known) => {
                        lane.fold(known.epoch - 1);
                        worker.debts.folded(number);
                    }
                    Some(known) => {
                        *published = Some(known);
                        return false;
                    }
                    None if lane.pending.is_empty() && lane.writers.is_empty() => {
                        worker.debts.folded(number);
                        return false;
                    }
                    None => *published = Some(lane.publish()),
                }
            }
            Move::Write(lane) => {
                if self.writes == 0 {
                    return false;
                }
                self.writes -= 1;
                self.begin(lane);
            }
            Move::Commit(lane) => return self.commit(lane),
            Move::Compact(lane) => {
                let lane = &mut self.lanes[lane];
                // Those it waits for have ended, or it is another time; it folds later, or never.
                if !rules.compacts || self.compactions == 0 {
                    return false;
                }
                self.compactions -= 1;
                let published = lane.publish();
                if lane.is_settled(&published) {
                    lane.fold(published.epoch - 1);
                }
            }
        }
        true
    }

    fn begin(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        lane.writers.push((self.next_writer, lane.gate));
        self.next_writer = self.next_writer.wrapping_add(1);
    }

    fn commit(&mut self, lane: usize) -> bool {
        let lane = &mut self.lanes[lane];
        if lane.writers.is_empty() {
            return false;
        }
        let (_, epoch) = lane.writers.remove(0);
        assert!(
            epoch > lane.folded,
            "a delta that no fold will see: {lane:?}"
        );
        lane.pending.push(epoch);
        lane.written += 1;
        true
    }

    fn check(&self) {
        for (at, lane) in self.lanes.iter().enumerate() {
            let owners: Vec<_> = (0..WORKERS)
                .filter(|&n| self.workers[n].owned[at])
                .collect();
            assert!(owners.len() <= 1, "{self:?}");
            assert!(
                owners.iter().all(|&n| lane.owner == Some(n as u8)),
                "{self:?}"
            );
            assert_eq!(
                lane.total as usize + lane.pending.len(),
                lane.written as usize
            );
        }
    }

    /// From here on all who are there take turns, nobody comes or dies, and somebody writes all the time. Is what was
    /// pending folded?
    fn folds(mut self, rules: Rules) -> bool {
        // One there has to be.
        if self.workers.iter().all(|worker| !worker.is_up) {
            self.comings = 1;
            (0..SOME_LANES).for_each(|lane| while self.make(Move::Release(lane), rules) {});
            self.make(Move::Come(0), rules);
        }
        for lane in 0..SOME_LANES {
            while self.commit(lane) {}
        }
        let due: Vec<u32> = self.lanes.iter().map(|lane| lane.written).collect();
        for _ in 0..12 {
            for lane in 0..SOME_LANES {
                self.begin(lane);
                self.make(Move::Release(lane), rules);
            }
            for at in 0..WORKERS {
                self.make(Move::Look(at), rules);
                for lane in 0..SOME_LANES {
                    self.make(Move::Share(at, lane), rules);
                    self.make(Move::Tick(at, lane), rules);
                    // There is one more at each moment.
                    self.commit(lane);
                    self.begin(lane);
                }
            }
            self.check();
        }
        self.lanes
            .iter()
            .zip(due)
            .all(|(lane, due)| lane.total >= due)
    }
}

/// Goes through all states that so many moves lead to. Returns how many there are, and one from where nothing is
/// folded any more.
fn explore(rules: Rules, depth: usize) -> (usize, Option<World>) {
    let mut seen = HashSet::from([World::new()]);
    let mut front = vec![World::new()];
    let moves = all_moves();
    for _ in 0..depth {
        let mut next = Vec::new();
        for world in front {
            if !world.clone().folds(rules) {
                return (seen.len(), Some(world));
            }
            for &what in &moves {
                let mut after = world.clone();
                if after.make(what, rules) {
                    after.check();
                    if seen.insert(after.clone()) {
                        next.push(after);
                    }
                }
            }
        }
        front = next;
    }
    (seen.len(), None)
}

const DEPTH: usize = 10;

#[test]
fn whatever_comes_and_dies_all_is_folded_once() {
    let (states, stuck) = explore(AS_IT_IS, DEPTH);
    assert!(stuck.is_none(), "{stuck:?}");
    assert!(states > 10_000, "{states}");
}

/// Two who publish in turn, each of whom goes by the gate alone, never fold.
#[test]
fn the_model_finds_those_who_publish_in_turn() {
    let rules = Rules {
        owners: false,
        gate_shows: true,
        compacts: false,
        ..AS_IT_IS
    };
    let (_, stuck) = explore(rules, DEPTH);
    let stuck = stuck.expect("a state from where nothing is folded");
    assert!(stuck.workers.iter().all(|worker| worker.is_up), "{stuck:?}");
    // With an owner for each lane the gate would do.
    let owned = Rules {
        owners: true,
        ..rules
    };
    assert!(explore(owned, DEPTH - 1).1.is_none());
}

/// What is lost where a lane's new owner does not wait for those who write to it.
#[test]
#[should_panic(expected = "a delta that no fold will see")]
fn the_model_finds_those_who_do_not_wait_for_writers() {
    let rules = Rules {
        goes_on_blindly: true,
        ..AS_IT_IS
    };
    let (_, stuck) = explore(rules, DEPTH);
    unreachable!("{stuck:?}");
}

/// Is lane 1 folded, where workers come and go faster than a transaction ends, or than whoever has the lane has the
/// time for it? `is_awaited`: when the other one comes, its writers have not ended.
fn is_folded_beside_comings(rules: Rules, is_awaited: bool) -> bool {
    let mut world = World::new();
    world.make(Move::Come(0), rules);
    world.begin(1);
    for round in 0..20 {
        world.comings = 1;
        world.deaths = 1;
        world.asks = 1;
        world.begin(1);
        for what in [Move::Look(0), Move::Share(0, 1), Move::Tick(0, 1)] {
            world.make(what, rules);
        }
        if !is_awaited {
            while world.commit(1) {}
        }
        // In the even rounds it asks, and makes room for who has not come yet.
        let sees = match round % 2 {
            0 => [Move::Ask(0), Move::Share(0, 1), Move::Come(1)],
            _ => [Move::Come(1), Move::Look(0), Move::Share(0, 1)],
        };
        for what in sees.into_iter().chain([
            Move::Look(1),
            Move::Share(1, 1),
            Move::Tick(1, 1),
            Move::Die(1),
            Move::Release(1),
            Move::Tick(0, 1),
        ]) {
            world.make(what, rules);
        }
        // Where they are awaited, each ends in the second round after its own.
        if round > 1 {
            world.commit(1);
        }
    }
    world.check();
    world.lanes[1].total > 0
}

/// What is not begun anew each time is folded.
#[test]
fn who_comes_and_goes_does_not_hold_up_a_fold() {
    assert!(is_folded_beside_comings(AS_IT_IS, true));
    assert!(is_folded_beside_comings(AS_IT_IS, false));
    let gives_up_awaited = Rules {
        gives_up_awaited: true,
        hands_on_again: true,
        ..AS_IT_IS
    };
    assert!(!is_folded_beside_comings(gives_up_awaited, true));
    let hands_on_again = Rules {
        hands_on_again: true,
        ..AS_IT_IS
    };
    assert!(is_folded_beside_comings(hands_on_again, true));
    assert!(!is_folded_beside_comings(hands_on_again, false));
}

/// A large backlog is shared as soon as the other one is there: of what its owner has begun, it keeps what it is at.
#[test]
fn who_comes_gets_its_share_of_what_is_begun() {
    let mut debts = Debts::default();
    let present = Present::alone(0).with(1);
    let mut owned = [true; LANES];
    for (lane, owns) in owned.iter_mut().enumerate() {
        let step = step(
            true,
            present.owner_of(lane) == Some(0),
            Begun::Settled,
            debts.has(lane),
        );
        if step == Step::GiveUp {
            *owns = false;
            debts.gave_up(lane, Begun::Settled);
        }
    }
    assert_eq!(owned.iter().filter(|&&owns| owns).count(), LANES / 2);
    // It gets them back, and folds them before it hands them on again.
    for lane in (0..LANES).filter(|&lane| !owned[lane]) {
        assert_eq!(
            step(true, false, Begun::Settled, debts.has(lane)),
            Step::Keep
        );
        assert_eq!(step(true, false, Begun::Not, debts.has(lane)), Step::GiveUp);
        debts.folded(lane);
        assert_eq!(
            step(true, false, Begun::Settled, debts.has(lane)),
            Step::GiveUp
        );
    }
    // Further ones owe a fold of each lane from the start.
    assert!((0..LANES).all(|lane| Debts::of(1).has(lane)));
}
