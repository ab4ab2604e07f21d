//! The lanes of a worker: when each is to be looked at, and a step for one of them.

use crate::fold::compaction::{self, LaneMemory, Tick};
use crate::fold::sealing::{self, Sealing};
use crate::fold::way;
use crate::pg::error::log;
use crate::pg::lock::{FoldWanted, LaneLock};
use crate::process::session;
use crate::process::uptime::Uptime;
use crate::settings;
use crate::store::catalog::{self, LaneRels};
use crate::store::pending;
use crate::store::shape::Refusal;
use counterx_core::folders::{self, Begun, Debts, Load, Present, Step};
use counterx_core::lane::LANES;
use counterx_core::schedule::{self, LaneClock, POLL, SHORTEST, Settling};
use counterx_core::turns::Turn;
use std::time::Duration;

/// What a worker knows of its lanes.
#[derive(Default)]
pub struct Lanes {
    /// The worker's number in its database.
    number: u8,
    /// Those that it has: nobody else publishes or folds them unasked.
    owned: [bool; LANES],
    /// Which of them it does not hand on in the midst.
    debts: Debts,
    /// How busy they keep it.
    pub load: Load,
    /// What of its turn is done.
    pub turn: Turn,
    clocks: [LaneClock; LANES],
    /// Of epochs that were published and are to be folded when their writers have ended.
    settlings: [Settling; LANES],
    /// Of truncations: one that fails must not hold up folding.
    reclaims: [LaneClock; LANES],
    /// When to count next what is pending.
    counts: [Duration; LANES],
    memories: [LaneMemory; LANES],
    /// Why all lanes are left alone, as the log has it.
    refused: Option<String>,
    /// It has leapt.
    leaps: bool,
}

impl Lanes {
    /// Of the worker of this number, which has none yet.
    pub fn of(number: u8) -> Self {
        Self {
            number,
            debts: Debts::of(number),
            ..Self::default()
        }
    }

    /// Takes what is to be this worker's, as far as it is free, and gives up what is not, where these are there.
    pub fn share(&mut self, up: &Uptime, present: Present) {
        for lane in 0..LANES {
            let owns = self.owned[lane];
            let is_its = present.owner_of(lane) == Some(self.number);
            let begun = match owns && !is_its {
                true => self.begun(up, lane),
                // Makes no difference.
                false => Begun::Not,
            };
            match folders::step(owns, is_its, begun, self.debts.has(lane)) {
                Step::Take => self.owned[lane] = LaneLock::try_take(lane),
                Step::GiveUp => {
                    self.debts.gave_up(lane, begun);
                    self.give_up(lane);
                }
                Step::Keep | Step::Leave => {}
            }
        }
    }

    /// How far is the worker with this lane, which it has?
    fn begun(&mut self, up: &Uptime, lane: usize) -> Begun {
        let memory = &mut self.memories[lane];
        match self.settlings[lane].until_due(up.now()) {
            None => Begun::Not,
            // It looks as often as it would where nobody else were to have it.
            Some(Duration::ZERO)
                if session::transaction(c"looking for writers", || memory.is_settled())
                    == Ok(true) =>
            {
                Begun::Settled
            }
            Some(_) => Begun::Awaited,
        }
    }

    /// Gives up all of them.
    pub fn give_up_all(&mut self) {
        for lane in 0..LANES {
            if self.owned[lane] {
                self.give_up(lane);
            }
        }
    }

    /// Forgets what is known of the lane, but for what its inactive log waits for: when the worker gets it again, it looks
    /// at it at once.
    fn give_up(&mut self, lane: usize) {
        self.owned[lane] = false;
        self.clocks[lane] = LaneClock::default();
        self.settlings[lane] = Settling::default();
        self.reclaims[lane] = LaneClock::default();
        self.counts[lane] = Duration::ZERO;
        self.memories[lane].give_up();
        LaneLock::release(lane);
    }

    /// Has the worker this lane?
    pub fn has(&self, lane: usize) -> bool {
        self.owned[lane]
    }

    /// Those that it has.
    fn owned(&self) -> impl Iterator<Item = usize> {
        (0..LANES).filter(|&lane| self.owned[lane])
    }

    /// What is pending cannot be counted. Lanes are folded by their intervals, and counted again after this pause.
    pub fn count_later(&mut self, up: &Uptime, pause: Duration) {
        let at = up.now() + pause;
        self.counts = self.counts.map(|count| count.max(at));
    }

    /// Which lanes have more pending rows than the threshold? Not each is counted each time.
    pub fn crowded(&mut self, up: &Uptime, lanes: &[LaneRels]) -> [bool; LANES] {
        let threshold = settings::compaction_threshold();
        let mut crowded = [false; LANES];
        let now = up.now();
        for (lane, rels) in lanes.iter().enumerate() {
            if !self.owned[lane] || now < self.counts[lane] {
                continue;
            }
            if self.settlings[lane].is_on() {
                // It is about to be folded, or cannot be.
                self.counts[lane] = now + POLL;
                continue;
            }
            // Nobody should have to wait where a fold would have done; and who waits may do so by settings of its own.
            let limit = match FoldWanted::is_set(lane) {
                true => 1,
                false => schedule::before_pressure(
                    self.memories[lane].early_at(threshold),
                    settings::max_pending(),
                ),
            };
            let count = pending::count_pending_entries(lane, rels, limit);
            crowded[lane] = count >= limit;
            let since = self.clocks[lane].since(now);
            let pause = match count {
                0 => POLL,
                _ => schedule::until_next_count(count, limit, since).max(SHORTEST),
            };
            self.counts[lane] = now + pause;
        }
        crowded
    }

    /// Is it time for this lane? `crowded`: it has more pending rows than the threshold; `waited_for`: others wait
    /// for this turn's first fold of each lane.
    pub fn is_due(&self, up: &Uptime, lane: usize, crowded: bool, waited_for: bool) -> bool {
        if !self.owned[lane] {
            return false;
        }
        let clock = &self.clocks[lane];
        let early = crowded || (waited_for && self.is_hurried(up, lane));
        let settled = self.settlings[lane].until_due(up.now());
        clock.due(up.now(), settings::compaction_interval())
            || (early && clock.may_be_early(up.now(), settings::compaction_interval()))
            || settled == Some(Duration::ZERO)
    }

    /// While others wait, this turn's first fold of each lane comes at once.
    pub fn is_hurried(&self, up: &Uptime, lane: usize) -> bool {
        let may_be_early =
            || self.clocks[lane].may_be_early(up.now(), settings::compaction_interval());
        self.owned[lane] && self.turn.misses(lane) && may_be_early()
    }

    /// Time until some lane is due.
    pub fn until_due(&self, up: &Uptime) -> Duration {
        let interval = settings::compaction_interval();
        self.owned()
            .map(|lane| self.clocks[lane].until_due(up.now(), interval))
            .min()
            .unwrap_or(POLL)
    }

    /// Time until some lane is to be looked at before it is due.
    pub fn until_look(&self, up: &Uptime) -> Duration {
        let now = up.now();
        let settled = (self.owned()).filter_map(|lane| self.settlings[lane].until_due(now));
        let counted = (self.owned()).map(|lane| self.counts[lane].saturating_sub(now));
        settled.chain(counted).min().unwrap_or(POLL).max(SHORTEST)
    }

    /// A step for one lane that the worker has.
    pub fn tick(&mut self, up: &mut Uptime, lane: usize) {
        let before = up.now();
        self.step(up, lane);
        self.load.worked(lane, up.now() - before);
    }

    fn step(&mut self, up: &mut Uptime, lane: usize) {
        let trusted = up.is_clock_trusted();
        let memory = &mut self.memories[lane];
        let result: Result<Result<_, Refusal>, _> = session::transaction(c"folding", || {
            let tick = compaction::tick(lane, catalog::lane(lane), memory, trusted)?;
            Ok((tick, sealing::of(lane, trusted) == Sealing::Leaps))
        });
        let now = up.now();
        match result {
            Ok(Ok((tick, leaps))) => {
                self.note_leap(leaps);
                let settling = &mut self.settlings[lane];
                match tick {
                    Tick::Published => settling.published(now),
                    Tick::Waiting => settling.waits(now),
                    Tick::Folded | Tick::Idle | Tick::Busy => *settling = Settling::default(),
                }
                if matches!(tick, Tick::Folded | Tick::Idle) {
                    self.debts.folded(lane);
                }
                match tick {
                    Tick::Folded | Tick::Idle => self.clocks[lane].succeeded(now),
                    Tick::Published | Tick::Waiting | Tick::Busy => self.clocks[lane].waited(now),
                }
                if matches!(tick, Tick::Folded) {
                    self.memories[lane].after_commit();
                    self.refused = None;
                    // What has come since is to be counted now: it was not while the writers were waited for.
                    self.counts[lane] = now;
                }
                let goes_on = matches!(tick, Tick::Published | Tick::Waiting);
                if !goes_on {
                    self.turn.lane_is_done(lane);
                }
                if goes_on || matches!(tick, Tick::Folded) {
                    up.note_work();
                }
                if matches!(tick, Tick::Published) {
                    // Back in a moment.
                    return;
                }
            }
            Ok(Err(refusal)) => {
                self.settlings[lane] = Settling::default();
                self.clocks[lane].failed(now);
                self.turn.lane_is_done(lane);
                let message = refusal.message();
                if self.refused.as_ref() != Some(&message) {
                    log(format!(
                        "counterx: all lanes are left alone: {message}; {}",
                        refusal.hint()
                    ));
                }
                Self::note(lane, &message);
                self.refused = Some(message);
                return;
            }
            // No failure, and the worker is about to end.
            Err(_) if way::has_made_way() => return,
            Err(message) => {
                self.settlings[lane] = Settling::default();
                self.clocks[lane].failed(now);
                self.turn.lane_is_done(lane);
                let left_out = self.memories[lane].after_failure();
                if left_out.history {
                    log(format!(
                        "counterx: history of lane {lane} cannot be written; the next fold leaves it out, and it begins anew then"
                    ));
                }
                if left_out.alerts {
                    log(format!(
                        "counterx: alerts of lane {lane} cannot be judged; the next fold leaves them out"
                    ));
                } else if left_out.streams {
                    log(format!(
                        "counterx: changes of lane {lane} cannot be written for streams; the next fold leaves them out, and streams are lost then"
                    ));
                }
                return Self::note_failure(lane, "folding", &message);
            }
        }
        failpoint!("fold.committed");
        self.reclaim(up, lane);
        failpoint!("truncate.committed");
    }

    /// Lanes are not sealed, as the clock has leapt. Says so once.
    pub fn note_leap(&mut self, leaps: bool) {
        // The first one says so.
        if leaps && !self.leaps && self.number == 0 {
            log(
                "counterx: history is not sealed: the clock is more than an hour past the time through which it was sealed last; it will be when the clock has gone steadily for ten minutes, or by counter_seal()",
            );
        }
        self.leaps = leaps;
    }

    /// Has the clock leapt, so that lanes are not sealed?
    pub fn leaps(&self) -> bool {
        self.leaps
    }

    /// Truncates the lane's inactive log, if nobody needs it any more.
    pub fn reclaim(&mut self, up: &Uptime, lane: usize) {
        let interval = settings::compaction_interval();
        let clock = &self.reclaims[lane];
        if !clock.may_be_early(up.now(), interval) && !clock.due(up.now(), interval) {
            return;
        }
        let memory = &mut self.memories[lane];
        let result = session::transaction(c"truncating", || {
            compaction::reclaim(lane, catalog::lane(lane), memory)
        });
        let now = up.now();
        match result {
            Ok(_) => self.reclaims[lane].succeeded(now),
            Err(message) => {
                self.reclaims[lane].failed(now);
                self.memories[lane].forget_drained();
                Self::note_failure(lane, "emptying a log of", &message);
            }
        }
    }

    /// Other lanes go on; what has failed is tried again after a pause that grows.
    fn note_failure(lane: usize, doing: &str, message: &str) {
        log(format!("counterx: {doing} lane {lane} failed: {message}"));
        failpoint!("worker.failed");
        Self::note(lane, message);
    }

    fn note(lane: usize, message: &str) {
        let noted = session::transaction(c"noting an error", || {
            compaction::note_error(lane, catalog::lane(lane), message);
            failpoint!("worker.error_noted");
        });
        if let Err(why) = noted {
            log(format!(
                "counterx: the error could not be noted in counterx.state: {why}"
            ));
        }
    }
}
