//! When a lane's next fold is due.

use std::time::Duration;

/// A lane that keeps failing is tried again this often at least.
pub const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A worker looks for early folds (by number of pending rows) this often.
pub const POLL: Duration = Duration::from_millis(50);

/// What a fold has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Deltas.
    pub deltas: u64,
    /// Deltas of the counter that had the most, in one epoch.
    pub busiest: u64,
}

impl Folded {
    /// So many pending deltas start a lane's next fold before its time.
    ///
    /// A read adds up what is pending of its counter, so it is the busiest counter that should not get
    /// more than `threshold`; this fold tells which share of the lane's deltas may be its. But not many
    /// times as many: lists add up all of them, and from now on they may all be of one counter.
    pub fn early_at(self, threshold: u64) -> u64 {
        const MOST: u64 = 4;
        let counters = self.deltas.checked_div(self.busiest).unwrap_or(1);
        threshold.saturating_mul(counters.clamp(1, MOST))
    }
}

/// The same where so many pending deltas are too many for writers: they should not get to that, if a fold can help it.
pub fn before_pressure(early_at: u64, max_pending: u64) -> u64 {
    match max_pending {
        0 => early_at,
        most => early_at.min(most / 2).max(1),
    }
}

/// How long who waits for a fold waits between two looks: longer each time, as there may be hundreds of them beside
/// the fold, and not all at the same moment.
pub fn until_next_look(look: u32, random: u64) -> Duration {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(100);
    let pause = FIRST.saturating_mul(1 << (look / 4).min(8)).min(LONGEST);
    // Between half of it and all of it.
    pause / 2 + (pause / 2).mul_f64((random % 1024) as f64 / 1024.0)
}

/// How long not to count what is pending in a lane: half of what it takes from `count` to `limit` at the
/// rate since its last tick. To count takes time for each that is there.
pub fn until_next_count(count: u64, limit: u64, since: Duration) -> Duration {
    const LONGEST: Duration = POLL.saturating_mul(4);
    let missing = since
        .as_nanos()
        .saturating_mul(u128::from(limit.saturating_sub(count)));
    match missing.checked_div(2 * u128::from(count)) {
        Some(nanos) => {
            u64::try_from(nanos).map_or(LONGEST, |nanos| Duration::from_nanos(nanos).min(LONGEST))
        }
        None => Duration::ZERO,
    }
}

/// The shortest pause between two looks at a lane.
pub const SHORTEST: Duration = Duration::from_millis(2);

/// The longest one at writers who do not end: each look is a transaction.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// When to look again whether all have ended who may still write rows of a published epoch: most
/// transactions are over in a moment, and what is written until the fold has to wait for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    at: Option<Duration>,
    looks: u32,
}

impl Settling {
    /// The epoch was published.
    pub fn published(&mut self, now: Duration) {
        *self = Self {
            at: Some(now + SHORTEST),
            looks: 0,
        };
    }

    /// Somebody may still write. Each pause is twice as long as the one before.
    pub fn waits(&mut self, now: Duration) {
        self.looks = self.looks.saturating_add(1);
        let pause = SHORTEST.saturating_mul(1 << self.looks.min(16));
        self.at = Some(now + pause.min(LONGEST_LOOK));
    }

    /// Is it awaited that they end?
    pub fn is_on(&self) -> bool {
        self.at.is_some()
    }

    /// Time until the next look; None when nothing is awaited.
    pub fn until_due(&self, now: Duration) -> Option<Duration> {
        self.at.map(|at| at.saturating_sub(now))
    }
}

/// One lane's clock. Times are durations since the worker's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneClock {
    last_tick: Duration,
    failures: u32,
    /// The last tick was neither a success nor a failure: the next one decides.
    waiting: bool,
}

impl LaneClock {
    /// The pause before the next tick: the interval, doubled for each failure in a row.
    fn pause(&self, interval: Duration) -> Duration {
        if self.failures == 0 || self.waiting {
            return interval;
        }
        self.backoff(interval).min(MAX_BACKOFF.max(interval))
    }

    fn backoff(&self, interval: Duration) -> Duration {
        let base = interval.max(POLL);
        base.saturating_mul(1u32 << self.failures.min(16))
    }

    /// Is the tick due by time alone?
    pub fn due(&self, now: Duration, interval: Duration) -> bool {
        now.saturating_sub(self.last_tick) >= self.pause(interval)
    }

    /// May a tick be taken before its time, because of many pending rows, or of somebody who waits? Not while backing
    /// off; but that takes no longer where the interval is a long one.
    pub fn may_be_early(&self, now: Duration, interval: Duration) -> bool {
        const LONG: Duration = Duration::from_secs(1);
        let backoff = self.backoff(interval.min(LONG)).min(MAX_BACKOFF);
        self.failures == 0 || (!self.waiting && self.since(now) >= backoff)
    }

    /// The time since the last tick.
    pub fn since(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last_tick)
    }

    /// A tick was taken and ended well.
    pub fn succeeded(&mut self, now: Duration) {
        self.last_tick = now;
        self.failures = 0;
        self.waiting = false;
    }

    /// A tick was taken that has only prepared the next one. After a failure it takes two to try
    /// again, and the first of them, which goes well, must not make up for the failures.
    pub fn waited(&mut self, now: Duration) {
        self.last_tick = now;
        self.waiting = true;
    }

    /// A tick was taken and failed.
    pub fn failed(&mut self, now: Duration) {
        self.last_tick = now;
        self.failures = self.failures.saturating_add(1);
        self.waiting = false;
    }

    /// Time until the tick is due.
    pub fn until_due(&self, now: Duration, interval: Duration) -> Duration {
        (self.last_tick + self.pause(interval)).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lanes_are_folded_before_writers_would_have_to_wait() {
        assert_eq!(before_pressure(1_000, 0), 1_000);
        assert_eq!(before_pressure(1_000, 100), 50);
        assert_eq!(before_pressure(10, 100), 10);
        assert_eq!(before_pressure(1_000, 1), 1);
    }

    #[test]
    fn who_waits_for_a_fold_looks_less_and_less_often_and_not_all_at_once() {
        let (early, late) = (until_next_look(0, 1023), until_next_look(1_000, 1023));
        assert!(early <= Duration::from_millis(10) && late > Duration::from_millis(90));
        assert!((0..2_000).all(|look| until_next_look(look, 7) <= Duration::from_millis(100)));
        assert!((0..2_000).all(|look| until_next_look(look, 0) >= Duration::from_millis(5)));
        assert_ne!(until_next_look(20, 0), until_next_look(20, 1023));
    }

    #[test]
    fn looks_for_writers_to_end_less_and_less_often() {
        let mut settling = Settling::default();
        assert!(!settling.is_on());
        assert_eq!(settling.until_due(SECOND), None);
        settling.published(SECOND);
        assert!(settling.is_on());
        assert_eq!(settling.until_due(SECOND), Some(SHORTEST));
        assert_eq!(settling.until_due(SECOND * 2), Some(Duration::ZERO));
        let mut last = SHORTEST;
        for _ in 0..40 {
            settling.waits(SECOND);
            let pause = settling.until_due(SECOND).unwrap();
            assert_eq!(pause, (last * 2).min(LONGEST_LOOK));
            last = pause;
        }
        assert_eq!(last, LONGEST_LOOK);
        settling.published(SECOND);
        assert_eq!(settling.until_due(SECOND), Some(SHORTEST), "the next one");
    }

    #[test]
    fn ticks_once_an_interval() {
        let mut clock = LaneClock::default();
        clock.succeeded(SECOND);
        assert!(!clock.due(SECOND + Duration::from_millis(999), SECOND));
        assert!(clock.due(SECOND * 2, SECOND));
        assert_eq!(clock.until_due(SECOND * 2, SECOND), Duration::ZERO);
    }

    #[test]
    fn backs_off_and_recovers() {
        let mut clock = LaneClock::default();
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            clock.failed(now);
            let pause = clock.until_due(now, SECOND);
            assert!(!clock.may_be_early(now + pause - Duration::from_millis(1), SECOND));
            assert!(clock.may_be_early(now + pause, SECOND));
            pauses.push(pause);
            now += SECOND;
        }
        assert_eq!(pauses[0], SECOND * 2);
        assert_eq!(pauses[1], SECOND * 4);
        assert_eq!(*pauses.last().unwrap(), MAX_BACKOFF);
        clock.succeeded(now);
        assert!(clock.may_be_early(now, SECOND));
        assert_eq!(clock.until_due(now, SECOND), SECOND);
    }

    #[test]
    fn trying_again_in_two_ticks_goes_on_backing_off() {
        let mut clock = LaneClock::default();
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..4 {
            clock.failed(now);
            pauses.push(clock.until_due(now, SECOND));
            now += *pauses.last().unwrap();
            clock.waited(now);
            assert_eq!(clock.until_due(now, SECOND), SECOND);
            assert!(!clock.may_be_early(now + MAX_BACKOFF, SECOND));
            now += SECOND;
        }
        assert_eq!(pauses, [2, 4, 8, 16].map(|n| SECOND * n));
        clock.waited(now);
        clock.succeeded(now);
        assert!(clock.may_be_early(now, SECOND));
    }

    #[test]
    fn spread_deltas_may_be_more_and_not_many_more() {
        let early_at = |deltas, busiest| Folded { deltas, busiest }.early_at(1000);
        assert_eq!(Folded::default().early_at(1000), 1000);
        assert_eq!(early_at(1000, 1000), 1000);
        assert_eq!(early_at(1000, 501), 1000);
        assert_eq!(early_at(1000, 500), 2000);
        assert_eq!(early_at(1000, 1), 4000);
        assert_eq!(
            Folded {
                deltas: 9,
                busiest: 1
            }
            .early_at(u64::MAX),
            u64::MAX
        );
    }

    #[test]
    fn counts_often_when_it_is_near_and_seldom_when_it_is_far() {
        let half = Duration::from_millis(500);
        assert_eq!(until_next_count(0, 1000, half), Duration::ZERO);
        assert_eq!(until_next_count(1000, 1000, half), Duration::ZERO);
        assert_eq!(until_next_count(2000, 1000, half), Duration::ZERO);
        assert_eq!(until_next_count(1, 1000, half), POLL * 4);
        assert_eq!(
            until_next_count(750, 1000, Duration::from_millis(150)),
            Duration::from_millis(25)
        );
        assert_eq!(
            until_next_count(1, u64::MAX, Duration::from_secs(1 << 40)),
            POLL * 4
        );
    }

    #[test]
    fn a_long_interval_is_never_shortened_by_failing() {
        let hour = Duration::from_secs(3600);
        let mut clock = LaneClock::default();
        clock.failed(Duration::ZERO);
        assert!(clock.until_due(Duration::ZERO, hour) >= hour);
        // But who waits, or a lane that is crowded, is not left alone for an hour by one that was cancelled.
        assert!(!clock.may_be_early(SECOND, hour));
        assert!(clock.may_be_early(SECOND * 2, hour));
        for _ in 0..20 {
            clock.failed(Duration::ZERO);
        }
        assert!(!clock.may_be_early(MAX_BACKOFF - SECOND, hour));
        assert!(clock.may_be_early(MAX_BACKOFF, hour));
    }

    #[test]
    fn failing_with_a_tiny_interval_does_not_spin() {
        let mut clock = LaneClock::default();
        clock.failed(Duration::ZERO);
        assert!(clock.until_due(Duration::ZERO, Duration::from_millis(1)) >= POLL);
    }
}
