//! Alerts: when a counter crosses a threshold.
//!
//! An alert *fires* for a counter that is beyond its threshold, once, and not again before the counter has come back
//! to where the alert is *rearmed*. What a counter is that does not exist is armed: so the first value that is beyond
//! the threshold fires. Hysteresis goes by the state alone, and not by the value of before: whatever was not looked at,
//! the next look comes to the right state.

/// On which side of a threshold an alert fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Of values that are less.
    Below,
    /// Of values that are greater.
    Above,
}

/// What an alert goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    beyond: Beyond,
    at: i128,
    rearm: i128,
}

/// Why there is no such threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoThreshold {
    /// There has to be one of two.
    NotOne,
    /// It would be rearmed where it fires.
    RearmedBeyond,
}

/// What is to be told of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has come to be beyond the threshold.
    Fired,
    /// It has come back.
    Rearmed,
}

impl Threshold {
    /// Of one of two numbers, and of where it is rearmed: at the same, unless another one is given.
    ///
    /// # Errors
    /// [`NoThreshold`].
    pub fn new(
        below: Option<i64>,
        above: Option<i64>,
        rearm: Option<i64>,
    ) -> Result<Self, NoThreshold> {
        let (beyond, at) = match (below, above) {
            (Some(at), None) => (Beyond::Below, at),
            (None, Some(at)) => (Beyond::Above, at),
            _ => return Err(NoThreshold::NotOne),
        };
        let rearm = rearm.unwrap_or(at);
        let is_beyond = match beyond {
            Beyond::Below => rearm < at,
            Beyond::Above => rearm > at,
        };
        if is_beyond {
            return Err(NoThreshold::RearmedBeyond);
        }
        Ok(Self {
            beyond,
            at: at.into(),
            rearm: rearm.into(),
        })
    }

    /// Is a value beyond it?
    pub fn is_beyond(self, value: i128) -> bool {
        match self.beyond {
            Beyond::Below => value < self.at,
            Beyond::Above => value > self.at,
        }
    }

    /// Has a value come back to where it is rearmed?
    pub fn is_back(self, value: i128) -> bool {
        match self.beyond {
            Beyond::Below => value >= self.rearm,
            Beyond::Above => value <= self.rearm,
        }
    }

    /// Does it make no difference for a counter of this value whether the alert had fired?
    pub fn keeps(self, value: i128) -> bool {
        !self.is_beyond(value) && !self.is_back(value)
    }

    /// Whether it has fired for a counter of this value, where it had or had not before, and what is to be told.
    /// None: the counter does not exist. `silent`: nothing is told of what is not counted.
    pub fn judge(
        self,
        had_fired: bool,
        value: Option<i128>,
        silent: bool,
    ) -> (bool, Option<Event>) {
        let Some(value) = value else {
            return (false, None);
        };
        let has_fired = self.is_beyond(value) || (had_fired && !self.is_back(value));
        let event = match (had_fired, has_fired) {
            (false, true) => Some(Event::Fired),
            (true, false) => Some(Event::Rearmed),
            _ => None,
        };
        (has_fired, event.filter(|_| !silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_is_one_threshold_and_it_is_rearmed_on_its_other_side() {
        let new = Threshold::new;
        assert_eq!(new(None, None, None), Err(NoThreshold::NotOne));
        assert_eq!(new(Some(1), Some(1), None), Err(NoThreshold::NotOne));
        assert_eq!(
            new(Some(10), None, Some(9)),
            Err(NoThreshold::RearmedBeyond)
        );
        assert_eq!(
            new(None, Some(10), Some(11)),
            Err(NoThreshold::RearmedBeyond)
        );
        assert!(new(Some(10), None, Some(10)).is_ok());
        assert!(new(None, Some(10), Some(3)).is_ok());
    }

    #[test]
    fn fires_once_for_each_crossing() {
        let low = Threshold::new(Some(10), None, Some(15)).expect("it is one");
        let mut fired = false;
        let mut told = Vec::new();
        for value in [20, 9, 8, 12, 9, 14, 15, 12, 9] {
            let (now, event) = low.judge(fired, Some(value), false);
            fired = now;
            told.push(event);
        }
        let (f, r) = (Some(Event::Fired), Some(Event::Rearmed));
        assert_eq!(told, [None, f, None, None, None, None, r, None, f]);
        assert_eq!(low.judge(true, None, false), (false, None));
        // The first value of all.
        assert_eq!(low.judge(false, Some(3), false), (true, f));
        assert_eq!(low.judge(false, Some(3), true), (true, None));
    }

    proptest! {
        /// Whatever values there are: it tells of firing and of being rearmed in turn, and never of a value in between.
        #[test]
        fn fires_and_is_rearmed_in_turn(
            at in -5..5_i64, gap in 0..4_i64, above: bool,
            values in proptest::collection::vec((proptest::option::weighted(0.9, -12..12_i64), any::<bool>()), 0..40),
        ) {
            let threshold = match above {
                true => Threshold::new(None, Some(at), Some(at - gap)),
                false => Threshold::new(Some(at), None, Some(at + gap)),
            }.expect("it is one");
            let mut fired = false;
            for (value, silent) in values {
                let value = value.map(i128::from);
                let (now, event) = threshold.judge(fired, value, silent);
                match value {
                    None => prop_assert!(!now && event.is_none()),
                    Some(value) => {
                        prop_assert!(!threshold.is_beyond(value) || now);
                        prop_assert!(!threshold.is_back(value) || !now);
                        prop_assert!(!threshold.keeps(value) || now == fired);
                        let expected = match (fired, now) {
                            (false, true) => Some(Event::Fired),
                            (true, false) => Some(Event::Rearmed),
                            _ => None,
                        };
                        prop_assert_eq!(event, expected.filter(|_| !silent));
                    }
                }
                fired = now;
            }
        }
    }
}
