//! Several workers of one database: which of them has which lane, and when there is enough to do for one more.
//!
//! A lane has an owner, who alone publishes its epochs and folds it unasked. Two who did so in turn would each begin
//! anew what the other one has begun: `folders/tests.rs` has the states that this leads to. To own a lane is to hold a
//! lock on it, so no two workers have one however little they know of each other; what is said here is how they come
//! to agree. Each looks which workers are there and finds its share by [`Present::owner_of`]: all who see the same
//! find the same.

use crate::lane::LANES;
use std::time::Duration;

/// So many workers a database can have: more would have no lane.
pub const MOST: usize = LANES;

/// The workers of a database that are there, by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Present(u8);

impl Present {
    /// This one and nobody else.
    pub fn alone(number: u8) -> Self {
        Self::default().with(number)
    }

    /// This one as well.
    #[must_use]
    pub fn with(self, number: u8) -> Self {
        Self(self.0 | 1 << number)
    }

    /// Is it there?
    pub fn has(self, number: u8) -> bool {
        self.0 & 1 << number != 0
    }

    /// So many are.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Who is to have this lane. None: nobody is there.
    pub fn owner_of(self, lane: usize) -> Option<u8> {
        let place = lane % self.count().max(1);
        (0..MOST as u8)
            .filter(|&number| self.has(number))
            .nth(place)
    }

    /// The number that a further worker would have, where there may be so many.
    pub fn next(self, most: usize) -> Option<u8> {
        // The first one comes by itself.
        (1..most.min(MOST) as u8).find(|&number| !self.has(number))
    }
}

/// What a worker does about a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It tries to take it. Whoever has it still gives it up, or has just died.
    Take,
    /// It goes on with it.
    Keep,
    /// It leaves it to another one.
    GiveUp,
    /// It is another one's.
    Leave,
}

/// How far the owner of a lane is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// No epoch is published that is not folded.
    Not,
    /// One is, and its writers have not ended.
    Awaited,
    /// They have. It could be folded, but its owner is busy with others.
    Settled,
}

/// `owns`: the worker has the lane; `is_its`: it is to have it.
///
/// Who gets a lane in the midst publishes anew. While writers are awaited nobody could fold it sooner, and who begins
/// anew waits for more of them, so it stays where it is. When they have ended, all that it takes is somebody who has the
/// time, and it is handed on, unless it was before and its owner `owes` a fold of it since: see [`Debts`]. So however
/// often workers come and go, what was begun is folded.
pub fn step(owns: bool, is_its: bool, begun: Begun, owes: bool) -> Step {
    match (owns, is_its, begun) {
        (false, true, _) => Step::Take,
        (false, false, _) => Step::Leave,
        (true, true, _) | (true, false, Begun::Awaited) => Step::Keep,
        (true, false, Begun::Settled) if owes => Step::Keep,
        (true, false, Begun::Not | Begun::Settled) => Step::GiveUp,
    }
}

/// Of which lanes a worker owes a fold: it does not hand them on in the midst before. The first worker owes one of each
/// that it has handed on. Further ones come and go, so they owe one of each from the start: what a lane that is handed
/// on has to wait for more, it waits for once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Debts(u8);

impl Debts {
    /// Of a worker of this number that has just come.
    pub fn of(number: u8) -> Self {
        Self(if number == 0 { 0 } else { u8::MAX })
    }

    /// Does it owe a fold of this lane?
    pub fn has(self, lane: usize) -> bool {
        self.0 & 1 << lane != 0
    }

    /// It gives the lane up.
    pub fn gave_up(&mut self, lane: usize, begun: Begun) {
        if begun != Begun::Not {
            self.0 |= 1 << lane;
        }
    }

    /// It has folded the lane, or has found nothing to fold.
    pub fn folded(&mut self, lane: usize) {
        self.0 &= !(1 << lane);
    }
}

/// A worker looks at how busy it was this often.
const WINDOW: Duration = Duration::from_secs(1);

/// It is behind when it was busy for more than three quarters of so long.
const BEHIND: Duration = Duration::from_secs(2);

/// A further worker that was busy for less than a fifth of each of these for so long goes. What it did is then less
/// than what makes the others ask for it again.
const IDLE: Duration = Duration::from_secs(10);

/// The first pause after a worker has asked for help; it doubles with each time that it has not helped.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// The longest.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// How busy a worker is. Times are durations since it has begun.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// When the current window began.
    since: Duration,
    /// For how long it was busy in it.
    busy: Duration,
    /// With which lane, of late: what was before this window counts half, and so on. A fold may take longer than a
    /// window, which has one lane alone then.
    lanes: [Duration; LANES],
    /// For so long it was behind.
    behind: Duration,
    /// Not with one lane alone.
    is_shareable: bool,
    /// Since when it is idle.
    idle_since: Option<Duration>,
    /// It does not ask for help before.
    asks_at: Duration,
    pause: Duration,
}

impl Load {
    /// It was at this lane for so long.
    pub fn worked(&mut self, lane: usize, took: Duration) {
        self.busy += took;
        self.lanes[lane] += took;
    }

    /// To be called again and again.
    pub fn look(&mut self, now: Duration) {
        let window = now.saturating_sub(self.since);
        if window < WINDOW {
            return;
        }
        let busy = std::mem::take(&mut self.busy);
        let of_late: Duration = self.lanes.iter().sum();
        let most = self.lanes.iter().max().copied().unwrap_or_default();
        // What there is to do in one lane nobody can share. (A first fold that takes longer than that is of one lane,
        // whatever comes after it.)
        self.is_shareable = most <= of_late / 4 * 3;
        self.behind = match busy > window / 4 * 3 {
            true => self.behind + window,
            false => Duration::ZERO,
        };
        if busy < window / 2 {
            self.pause = Duration::ZERO;
        }
        self.idle_since = match busy < window / 5 {
            true => self.idle_since.or(Some(self.since)),
            false => None,
        };
        self.since = now;
        self.lanes = self.lanes.map(|took| took / 2);
    }

    /// Does it need help? Whoever is told so asks for it.
    pub fn wants_help(&mut self, now: Duration) -> bool {
        if self.behind < BEHIND || !self.is_shareable || now < self.asks_at {
            return false;
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.asks_at = now + self.pause;
        true
    }

    /// Is a further worker not needed any more?
    pub fn is_idle(&self, now: Duration) -> bool {
        (self.idle_since).is_some_and(|since| now.saturating_sub(since) >= IDLE)
    }
}

#[cfg(test)]
mod tests;
