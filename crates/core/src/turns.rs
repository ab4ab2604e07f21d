//! Workers take turns: who has one, who waits for one, who goes next, and when one makes room.
//!
//! [`Directory`] is what the launcher and all sessions share: the databases that have a worker or want
//! one, and what further workers they have. [`Turn`] is what a worker knows of its own turn. Databases are OIDs, so none is 0; times in the
//! directory are microseconds of the server's clock.

use crate::lane::LANES;
use std::cmp::Reverse;
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

/// A worker that is owed is tried once more when it could not be started so often in a row.
const TRIES_OF_OWED: u8 = 2;

/// A worker that has not reported for duty by then never will.
const START_TIMEOUT_US: i64 = 30_000_000;

/// The place of a worker: its database, and its number there. A database's first worker is number 0. Further ones come
/// only where nobody else needs their turn, and go first: see [`Directory::plan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// Its OID.
    pub database: u32,
    /// 0 for the first one.
    pub number: u8,
}

impl Seat {
    /// Is it that of the first one?
    pub fn is_first(self) -> bool {
        self.number == 0
    }
}

/// A database's first worker.
impl From<u32> for Seat {
    fn from(database: u32) -> Self {
        Self {
            database,
            number: 0,
        }
    }
}

/// What a worker's entry says.
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
    /// No worker could be started, or can be for a moment. Not again before this time.
    Failed(i64),
}

/// What is known of a worker, or of one that is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// That of database 0 where there is none.
    seat: Seat,
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
    /// The worker comes whether or not somebody asks: see [`Directory::owe`].
    owed: bool,
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

/// A worker that is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Where.
    pub seat: Seat,
    /// The worker just looks in: see [`State::Later`].
    pub visit: bool,
    /// Since when it has waited.
    pub since: i64,
}

/// What the launcher is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These have their turn now. Their entries say so already. Further workers come last.
    pub start: Vec<Start>,
    /// So many databases wait on.
    pub waiting: usize,
    /// When something may have to be done, if nothing happens before; None: not before something
    /// happens. A time of the server's clock.
    pub next: Option<i64>,
}

/// The workers that are there, or are wanted: a hash table of fixed size with `N` places, of which
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

    fn home(seat: Seat) -> usize {
        // Fibonacci hashing: OIDs come in rows.
        let hash = seat.database.wrapping_mul(0x9e37_79b9);
        ((u64::from(hash) * N as u64) >> 32) as usize
    }

    fn place(&self, seat: Seat) -> Result<usize, usize> {
        let mut at = Self::home(seat);
        loop {
            match self.entries[at].seat {
                Seat { database: 0, .. } => return Err(at),
                other if other == seat => return Ok(at),
                _ => at = (at + 1) % N,
            }
        }
    }

    /// The entry of a worker.
    pub fn find(&self, seat: impl Into<Seat>) -> Option<&Entry> {
        Some(&self.entries[self.place(seat.into()).ok()?])
    }

    fn find_mut(&mut self, seat: Seat) -> Option<&mut Entry> {
        let at = self.place(seat).ok()?;
        Some(&mut self.entries[at])
    }

    /// Is there no room for another database?
    pub fn is_full(&self) -> bool {
        self.used >= Self::CAPACITY
    }

    /// The worker's entry, made where there was none. None: there is no room.
    fn enter(&mut self, seat: Seat) -> Option<&mut Entry> {
        if seat.database == 0 {
            return None;
        }
        let at = match self.place(seat) {
            Ok(at) => at,
            Err(_) if self.is_full() => return None,
            Err(at) => {
                self.used += 1;
                self.entries[at] = Entry {
                    seat,
                    ..Entry::default()
                };
                at
            }
        };
        Some(&mut self.entries[at])
    }

    fn remove(&mut self, seat: Seat) {
        let Ok(mut hole) = self.place(seat) else {
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
                if entry.seat.database == 0 {
                    return;
                }
                let home = Self::home(entry.seat);
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
    /// the next commit has to ask again. Or a worker has more to do than it can: a further one is to come.
    pub fn request(&mut self, seat: impl Into<Seat>, now: i64) -> bool {
        let Some(entry) = self.enter(seat.into()) else {
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
    pub fn working(&mut self, seat: impl Into<Seat>, visit: bool, now: i64) {
        let seat = seat.into();
        if let Some(entry) = self.enter(seat) {
            *entry = Entry {
                seat,
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
    pub fn stopped(&mut self, seat: impl Into<Seat>) {
        let seat = seat.into();
        let wanted = self.find(seat).map_or(0, |entry| entry.wanted);
        self.remove(seat);
        if wanted != 0 {
            self.request(seat, wanted);
        }
    }

    /// The worker has ended. Whoever has counted since it came has relied on it.
    pub fn request_again(&mut self, database: u32, now: i64) {
        self.remove(database.into());
        self.request(database, now);
    }

    /// The worker has left work behind, as somebody needs its database alone. Another one comes after a moment,
    /// whether or not somebody asks for it; and once more where that one cannot begin: a database that was
    /// renamed, or moved, while a process connects to it is refused to that process.
    pub fn owe(&mut self, database: u32, now: i64) {
        let is_new = self.find(database).is_none();
        if let Some(entry) = self.enter(database.into()) {
            entry.owed = true;
            if is_new {
                entry.state = State::Failed(now + FIRST_BACKOFF_US);
                entry.since = now;
            }
        }
    }

    /// A worker is to look in at that time, if nobody asks for one before.
    pub fn visit_at(&mut self, database: u32, at: i64, now: i64) {
        if self.find(database).is_none()
            && let Some(entry) = self.enter(database.into())
        {
            entry.state = State::Later(at);
            entry.since = now;
        }
    }

    /// The start of a worker has failed.
    pub fn failed(&mut self, seat: impl Into<Seat>, now: i64) {
        if let Some(entry) = self.find_mut(seat.into())
            && entry.state == State::Starting
        {
            entry.fail(now);
        }
    }

    /// The postmaster has refused: the database waits on, and keeps its place in the queue.
    pub fn refused(&mut self, start: Start) {
        if let Some(entry) = self.find_mut(start.seat)
            && entry.state == State::Starting
        {
            entry.state = State::Waiting;
            entry.since = start.since;
        }
    }

    /// The worker has work, or has none.
    pub fn set_busy(&mut self, seat: impl Into<Seat>, busy: bool) {
        if let Some(entry) = self.find_mut(seat.into()) {
            entry.busy = busy;
        }
    }

    /// Is this worker to make room? How many databases wait? A visit makes room for a worker of its own database, too:
    /// it folds nothing, and may go on for long.
    pub fn asked(&self, seat: impl Into<Seat>) -> (bool, u32) {
        let is_asked = |entry: &Entry| entry.is_asked() || (entry.visit && entry.wanted != 0);
        (self.find(seat).is_some_and(is_asked), self.waiting)
    }

    /// Who goes next where so many may work at a time, and who is to make room.
    ///
    /// The database that has waited longest comes first. As many workers are asked to make room as
    /// databases wait for whom there is none: further workers of a database first, those with the highest
    /// numbers before the others, so that who has most gives first; then idle ones, then those that work
    /// longest. Further workers get what turns nobody waits for, and nobody makes room for them: those for
    /// whom there is no turn are forgotten, as who wants them asks again. `held_up` tells who must not be
    /// started yet, and until when.
    pub fn plan(&mut self, now: i64, turns: usize, held_up: impl Fn(Seat) -> Option<i64>) -> Plan {
        let mut plan = Plan::default();
        let mut note = |at: i64| plan.next = Some(plan.next.map_or(at, |next: i64| next.min(at)));
        let mut taken = 0;
        let mut waiting = Vec::new();
        let mut held_back = 0;
        let mut further = Vec::new();
        let mut working = Vec::new();
        let mut gone = Vec::new();
        let is_full = self.is_full();
        let entries = self.entries.iter_mut();
        for entry in entries.filter(|entry| entry.seat.database != 0) {
            let seat = entry.seat;
            if let State::Later(at) = entry.state
                && at <= now
            {
                entry.state = State::Waiting;
                entry.since = now;
                entry.visit = true;
            }
            if let State::Failed(until) = entry.state
                && entry.owed
                && until <= now
            {
                entry.state = State::Waiting;
                entry.since = now;
            }
            match entry.state {
                State::Waiting => match held_up(seat) {
                    Some(_) if !seat.is_first() => gone.push(seat),
                    None if !seat.is_first() => {
                        further.push((seat.number, entry.since, seat.database));
                    }
                    Some(until) => {
                        held_back += 1;
                        note(until);
                    }
                    None => waiting.push((entry.since, seat.database)),
                },
                State::Starting if now - entry.since > START_TIMEOUT_US => entry.fail(now),
                State::Starting => {
                    note(entry.since + START_TIMEOUT_US + 1);
                    taken += 1;
                }
                State::Working => {
                    taken += 1;
                    let gives_first = Reverse(seat.number);
                    working.push((gives_first, entry.busy, entry.since, seat.database));
                }
                // These are the ones that may be forgotten: their next commits ask again.
                State::Later(_) if is_full => gone.push(seat),
                State::Later(at) => note(at),
                State::Failed(until) if is_full || now > until + LAST_BACKOFF_US => {
                    gone.push(seat);
                }
                State::Failed(until) if entry.owed => note(until),
                State::Failed(until) => note(until + LAST_BACKOFF_US + 1),
            }
        }
        waiting.sort_unstable();
        let free = turns.saturating_sub(taken);
        let served = free.min(waiting.len());
        let mut starts: Vec<(Seat, i64)> = waiting
            .drain(..served)
            .map(|(since, database)| (database.into(), since))
            .collect();
        // One that is held up for a moment is not to find its turn taken.
        let left = free.saturating_sub(served + held_back).min(further.len());
        further.sort_unstable();
        let further = further
            .into_iter()
            .map(|(number, since, database)| (Seat { database, number }, since));
        for (place, (seat, since)) in further.enumerate() {
            if place < left {
                starts.push((seat, since));
            } else {
                gone.push(seat);
            }
        }
        for seat in gone {
            self.remove(seat);
        }
        for (seat, since) in starts {
            if let Some(entry) = self.find_mut(seat) {
                entry.state = State::Starting;
                let visit = entry.visit;
                entry.since = now;
                plan.start.push(Start { seat, visit, since });
            }
        }
        // After the setting was lowered there are too many.
        let too_many = taken.saturating_sub(turns);
        working.sort_unstable();
        for (at, (Reverse(number), _, _, database)) in working.into_iter().enumerate() {
            if let Some(entry) = self.find_mut(Seat { database, number }) {
                entry.asked = at < waiting.len() + too_many;
            }
        }
        plan.waiting = waiting.len();
        self.waiting = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        plan
    }

    /// How many turns are taken.
    pub fn turns_taken(&self) -> usize {
        let taken = |entry: &&Entry| {
            entry.seat.database != 0 && matches!(entry.state, State::Starting | State::Working)
        };
        self.entries.iter().filter(taken).count()
    }
}

impl Entry {
    fn fail(&mut self, now: i64) {
        let pause = FIRST_BACKOFF_US << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.owed &= self.failures < TRIES_OF_OWED;
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
mod tests;
