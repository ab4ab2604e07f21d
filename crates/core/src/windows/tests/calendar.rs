//! A calendar of days of 24, 23 and 25 hours, and of months of 28, 31 and 30 of them.

use super::super::{Calendar, Length};
use crate::history::{DAY, HOUR};

/// Three days that repeat, or three months.
pub struct Fake {
    ends: [i64; 3],
}

impl Fake {
    /// The days, or the months. For other lengths nobody asks.
    pub fn of(length: Length) -> Self {
        let ends = match length {
            Length::Month => [28 * DAY, 59 * DAY - HOUR, 89 * DAY + HOUR],
            Length::Day | Length::Fixed(_) => [DAY, 2 * DAY - HOUR, 3 * DAY],
        };
        Self { ends }
    }
}

impl Calendar for Fake {
    fn start_of(&mut self, time: i64) -> i64 {
        let round = time.div_euclid(self.ends[2]) * self.ends[2];
        let starts = [0, self.ends[0], self.ends[1]].map(|start| round + start);
        let past = starts.into_iter().filter(|&start| start <= time);
        past.max().unwrap_or(round)
    }

    fn end_of(&mut self, start: i64) -> i64 {
        let round = start.div_euclid(self.ends[2]) * self.ends[2];
        let ends = self.ends.map(|end| round + end);
        let later = ends.into_iter().filter(|&end| end > start);
        later.min().unwrap_or(round)
    }
}
