//! Workers take turns: who has one, who waits for one, who goes next, and when one makes room.
//!
//! [`Directory`] is what the launcher and all sessions share: the databases that have a worker or want
//! one. [`Turn`] is what a worker knows of its own turn. Databases are OIDs, so none is 0; times in the
//! directory are microseconds of the server's clock.

use crate::lane::LANES;
use std::time::Duration;

/// A database that waits is to be served after about so long. Turns get shorter the more databases
/// wait, down to one fold of each lane.
const ROUND: Duration = Duration::from_secs(4);

/// A lane whose writers do not come to an end keeps a worker from making room no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first pause after a start that has failed; it doubles with each that follows.
const FIRST_BACKOFF_US: i64 = 1_000_000;

/// The longest.
const LAST_BACKOFF_US: i64 = 60_000_000;

/// A worker that has not reported for duty by then never will.
const START_TIMEOUT_US: i64 = 30_000_000;

/// What a database's entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It wants a worker.
    #[default]
    Waiting,
    /// The postmaster was asked for a worker.
    Starting,
    /// The worker is there.
    Working,
    /// A worker is to look in after this time, if nobody asks for one before: there is nothing to
    /// fold, but a log that can be truncated only later.
    Later(i64),
    /// No worker could be started. Not again before this time.
    Failed(i64),
}

/// What is known of a database.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// 0 where there is none.
    database: u32,
    state: State,
    /// Since when it waits, or its start lasts, or its worker works.
    since: i64,
    /// Starts that have failed in a row.
    failures: u8,
    /// The worker has work.
    busy: bool,
    /// The worker is to make room when it has had its turn.
    asked: bool,
    /// The worker just looks in, and folds nothing.
    visit: bool,
    /// Since when a commit wants another one than that; 0: none does.
    wanted: i64,
}

impl Entry {
    /// What the database's entry says.
    pub fn state(&self) -> State {
        self.state
    }

    /// Is the worker to make room?
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// Does the worker have work, by what it said last?
    pub fn is_busy(&self) -> bool {
        self.busy
    }
}

/// A database whose worker is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its OID.
    pub database: u32,
    /// The worker just looks in: see [`State::Later`].
    pub visit: bool,
    /// Since when it has waited.
    pub since: i64,
}

/// What the launcher is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These have their turn now. Their entries say so already.
    pub start: Vec<Start>,
    /// So many wait on.
    pub waiting: usize,
    /// When something may have to be done, if nothing happens before; None: not before something
    /// happens. A time of the server's clock.
    pub next: Option<i64>,
}

/// The databases that have a worker, or want one: a hash table of fixed size with `N` places, of which
/// a quarter stays free, so that each look-up visits a few places.
#[derive(Clone, Copy, Debug)]
pub struct Directory<const N: usize> {
    entries: [Entry; N],
    used: usize,
    /// How many databases waited when the launcher looked last.
    waiting: u32,
}

impl<const N: usize> Default for Directory<N> {
    fn default() -> Self {
        Self {
            entries: [Entry::default(); N],
            used: 0,
            waiting: 0,
        }
    }
}

impl<const N: usize> Directory<N> {
    const CAPACITY: usize = N - N / 4;

    fn home(database: u32) -> usize {
        // Fibonacci hashing: OIDs come in rows.
        ((u64::from(database.wrapping_mul(0x9e37_79b9)) * N as u64) >> 32) as usize
    }

    fn place(&self, database: u32) -> Result<usize, usize> {
        let mut at = Self::home(database);
        loop {
            match self.entries[at].database {
                0 => return Err(at),
                other if other == database => return Ok(at),
                _ => at = (at + 1) % N,
            }
        }
    }

    /// The entry of a database.
    pub fn find(&self, database: u32) -> Option<&Entry> {
        Some(&self.entries[self.place(database).ok()?])
    }

    fn find_mut(&mut self, database: u32) -> Option<&mut Entry> {
        let at = self.place(database).ok()?;
        Some(&mut self.entries[at])
    }

    /// Is there no room for another database?
    pub fn is_full(&self) -> bool {
        self.used >= Self::CAPACITY
    }

    /// The database's entry, made where there was none. None: there is no room.
    fn enter(&mut self, database: u32) -> Option<&mut Entry> {
        if database == 0 {
            return None;
        }
        let at = match self.place(database) {
            Ok(at) => at,
            Err(_) if self.is_full() => return None,
            Err(at) => {
                self.used += 1;
                self.entries[at] = Entry {
                    database,
                    ..Entry::default()
                };
                at
            }
        };
        Some(&mut self.entries[at])
    }

    fn remove(&mut self, database: u32) {
        let Ok(mut hole) = self.place(database) else {
            return;
        };
        self.used -= 1;
        // Those that follow move up, so that none is behind a hole.
        let mut at = hole;
        loop {
            self.entries[hole] = Entry::default();
            loop {
                at = (at + 1) % N;
                let entry = self.entries[at];
                if entry.database == 0 {
                    return;
                }
                let home = Self::home(entry.database);
                // How far it is from its home; and how far the hole is from here.
                if (at + N - home) % N >= (at + N - hole) % N {
                    break;
                }
            }
            self.entries[hole] = self.entries[at];
            hole = at;
        }
    }

    /// Must a commit of this database ask for a worker?
    pub fn lacks_worker(&self, database: u32, now: impl FnOnce() -> i64) -> bool {
        match self.find(database).map(Entry::state) {
            None => !self.is_full(),
            Some(State::Later(_)) => true,
            Some(State::Failed(until)) => now() >= until,
            Some(State::Waiting) => self.find(database).is_some_and(|entry| entry.visit),
            Some(State::Starting | State::Working) => {
                (self.find(database)).is_some_and(|entry| entry.visit && entry.wanted == 0)
            }
        }
    }

    /// A commit of this database has left something to fold. False when there is no room to note it:
    /// the next commit has to ask again.
    pub fn request(&mut self, database: u32, now: i64) -> bool {
        let Some(entry) = self.enter(database) else {
            return false;
        };
        let is_new = entry.since == 0;
        match entry.state {
            // A visit that is due has not begun: what it was for is done by the way.
            State::Waiting if !is_new => entry.visit = false,
            State::Starting | State::Working if entry.visit && entry.wanted == 0 => {
                entry.wanted = now;
            }
            State::Starting | State::Working => {}
            State::Failed(until) if now < until => {}
            _ => {
                entry.state = State::Waiting;
                entry.since = now;
                entry.visit = false;
            }
        }
        true
    }

    /// The worker is there, or goes on.
    pub fn working(&mut self, database: u32, visit: bool, now: i64) {
        if let Some(entry) = self.enter(database) {
            *entry = Entry {
                database,
                state: State::Working,
                since: now,
                busy: true,
                visit,
                wanted: if visit { entry.wanted } else { 0 },
                ..Entry::default()
            };
        }
    }

    /// The worker has ended its work, and looks whether there is more after this.
    pub fn stopped(&mut self, database: u32) {
        let wanted = self.find(database).map_or(0, |entry| entry.wanted);
        self.remove(database);
        if wanted != 0 {
            self.request(database, wanted);
        }
    }

    /// The worker has ended. Whoever has counted since it came has relied on it.
    pub fn request_again(&mut self, database: u32, now: i64) {
        self.remove(database);
        self.request(database, now);
    }

    /// A worker is to look in at that time, if nobody asks for one before.
    pub fn visit_at(&mut self, database: u32, at: i64, now: i64) {
        if self.find(database).is_none()
            && let Some(entry) = self.enter(database)
        {
            entry.state = State::Later(at);
            entry.since = now;
        }
    }

    /// The start of a worker has failed.
    pub fn failed(&mut self, database: u32, now: i64) {
        if let Some(entry) = self.find_mut(database)
            && entry.state == State::Starting
        {
            entry.fail(now);
        }
    }

    /// The postmaster has refused: the database waits on, and keeps its place in the queue.
    pub fn refused(&mut self, start: Start) {
        if let Some(entry) = self.find_mut(start.database)
            && entry.state == State::Starting
        {
            entry.state = State::Waiting;
            entry.since = start.since;
        }
    }

    /// The worker has work, or has none.
    pub fn set_busy(&mut self, database: u32, busy: bool) {
        if let Some(entry) = self.find_mut(database) {
            entry.busy = busy;
        }
    }

    /// Is this database's worker to make room? How many databases wait?
    pub fn asked(&self, database: u32) -> (bool, u32) {
        let asked = self.find(database).is_some_and(Entry::is_asked);
        (asked, self.waiting)
    }

    /// Who goes next where so many may have a worker at a time, and who is to make room.
    ///
    /// The database that has waited longest comes first. As many workers are asked to make room as
    /// databases wait for whom there is none: idle ones first, then those that work longest. `held_up`
    /// tells which database must not be started yet, and until when.
    pub fn plan(&mut self, now: i64, turns: usize, held_up: impl Fn(u32) -> Option<i64>) -> Plan {
        let mut plan = Plan::default();
        let mut note = |at: i64| plan.next = Some(plan.next.map_or(at, |next: i64| next.min(at)));
        let mut taken = 0;
        let mut waiting = Vec::new();
        let mut working = Vec::new();
        let mut gone = Vec::new();
        let is_full = self.is_full();
        for entry in self.entries.iter_mut().filter(|entry| entry.database != 0) {
            if let State::Later(at) = entry.state
                && at <= now
            {
                entry.state = State::Waiting;
                entry.since = now;
                entry.visit = true;
            }
            match entry.state {
                State::Waiting => match held_up(entry.database) {
                    Some(until) => note(until),
                    None => waiting.push((entry.since, entry.database)),
                },
                State::Starting if now - entry.since > START_TIMEOUT_US => entry.fail(now),
                State::Starting => {
                    note(entry.since + START_TIMEOUT_US + 1);
                    taken += 1;
                }
                State::Working => {
                    taken += 1;
                    working.push((entry.busy, entry.since, entry.database));
                }
                // These are the ones that may be forgotten: their next commits ask again.
                State::Later(_) if is_full => gone.push(entry.database),
                State::Later(at) => note(at),
                State::Failed(until) if is_full || now > until + LAST_BACKOFF_US => {
                    gone.push(entry.database);
                }
                State::Failed(until) => note(until + LAST_BACKOFF_US + 1),
            }
        }
        for database in gone {
            self.remove(database);
        }
        waiting.sort_unstable();
        let free = turns.saturating_sub(taken).min(waiting.len());
        for (since, database) in waiting.drain(..free) {
            if let Some(entry) = self.find_mut(database) {
                entry.state = State::Starting;
                let visit = entry.visit;
                entry.since = now;
                plan.start.push(Start {
                    database,
                    visit,
                    since,
                });
            }
        }
        // After the setting was lowered there are too many.
        let too_many = taken.saturating_sub(turns);
        working.sort_unstable();
        for (at, (_, _, database)) in working.into_iter().enumerate() {
            if let Some(entry) = self.find_mut(database) {
                entry.asked = at < waiting.len() + too_many;
            }
        }
        plan.waiting = waiting.len();
        self.waiting = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        plan
    }

    /// How many databases have their turn.
    pub fn turns_taken(&self) -> usize {
        let taken = |entry: &&Entry| {
            entry.database != 0 && matches!(entry.state, State::Starting | State::Working)
        };
        self.entries.iter().filter(taken).count()
    }
}

impl Entry {
    fn fail(&mut self, now: i64) {
        let pause = FIRST_BACKOFF_US << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Failed(now + pause.min(LAST_BACKOFF_US));
        self.since = now;
        // The commits that come then ask again.
        self.visit = false;
        self.wanted = 0;
    }
}

/// A turn lasts at least so long where so many databases wait for one of so many turns.
pub fn least_turn(waiting: u32, turns: u32) -> Duration {
    ROUND / waiting.div_ceil(turns.max(1)).max(1)
}

/// What a worker has done since its turn began. Times are durations since then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    folded: [bool; LANES],
}

impl Turn {
    /// All that was pending in this lane when the turn began is folded, or cannot be folded now.
    pub fn lane_is_done(&mut self, lane: usize) {
        self.folded[lane] = true;
    }

    /// Is a fold of this lane missing?
    pub fn misses(&self, lane: usize) -> bool {
        !self.folded[lane]
    }

    /// Has the worker had its turn, where so many databases wait for one of so many?
    pub fn is_over(&self, now: Duration, waiting: u32, turns: u32) -> bool {
        let least = least_turn(waiting, turns);
        now >= least && (self.folded == [true; LANES] || now >= least.max(PATIENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    const SECOND: i64 = 1_000_000;

    fn nobody(_: u32) -> Option<i64> {
        None
    }

    fn databases(plan: &Plan) -> Vec<u32> {
        plan.start.iter().map(|start| start.database).collect()
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
                    let waited = waits.remove(&start.database).is_some();
                    prop_assert!(waited, "{} was not waiting", start.database);
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
                let asked = has_turn.iter().filter(|&&database| directory.asked(database).0).count();
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
    }
}
