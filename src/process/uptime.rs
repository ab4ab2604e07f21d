//! What a worker knows of time: how long it runs, when it had work last, whether the clock is to be trusted.

use crate::pg::clock;
use counterx_core::history::Steadiness;
use std::time::{Duration, Instant};

/// A worker's time.
pub struct Uptime {
    started: Instant,
    last_work: Duration,
    /// Whether the clock that history goes by can be trusted.
    steadiness: Steadiness,
}

impl Uptime {
    /// It starts now.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            last_work: Duration::ZERO,
            steadiness: Steadiness::default(),
        }
    }

    /// The time since its start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// There was something to do.
    pub fn note_work(&mut self) {
        self.last_work = self.now();
    }

    /// The time since there was.
    pub fn since_work(&self) -> Duration {
        self.now().saturating_sub(self.last_work)
    }

    /// Has the clock gone steadily for as long as this process looks at it, and long enough?
    pub fn is_clock_trusted(&mut self) -> bool {
        let steady = i64::try_from(self.now().as_micros()).unwrap_or(i64::MAX);
        self.steadiness.look(clock::now(), steady)
    }
}
