//! Medians and spread.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What a figure counts, which decides how it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    Seconds,
    Microseconds,
    Count,
    Bytes,
    Ratio,
    /// Of one processor.
    Share,
}

impl Unit {
    /// The figure with its unit, for people to read.
    pub(crate) fn format(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", group(value)),
            Self::Seconds => format!("{value:.3} s"),
            Self::Microseconds if value < 1000.0 => format!("{value:.1} µs"),
            Self::Microseconds => format!("{} µs", group(value)),
            Self::Count => group(value),
            Self::Bytes if value < 10_000.0 => format!("{value:.0} B"),
            Self::Bytes if value < 1_000_000.0 => format!("{:.1} kB", value / 1024.0),
            Self::Bytes => format!("{:.1} MB", value / 1024.0 / 1024.0),
            Self::Ratio if value >= 100.0 => group(value),
            Self::Ratio if value >= 10.0 => format!("{value:.1}"),
            Self::Ratio => format!("{value:.3}"),
            Self::Share => format!("{:.1} %", value * 100.0),
        }
    }
}

/// One figure, measured once a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Series {
    /// # Errors
    /// There is none, or one that is no number.
    pub(crate) fn new(what: impl Into<String>, unit: Unit, rounds: Vec<f64>) -> Result<Self> {
        let what = what.into();
        ensure!(
            !rounds.is_empty() && rounds.iter().all(|value| value.is_finite()),
            "no figures for \"{what}\": {rounds:?}"
        );
        Ok(Self {
            unit,
            median: median(&rounds),
            min: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            max: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            what,
            rounds,
        })
    }

    /// What `self` is of `other`, round by round, so that a round in which the machine was slow
    /// counts no less and no more than another.
    pub(crate) fn ratio_to(&self, what: impl Into<String>, other: &Self) -> Result<Self> {
        ensure!(
            self.rounds.len() == other.rounds.len(),
            "\"{}\" and \"{}\" have not the same rounds",
            self.what,
            other.what
        );
        let ratios = self.rounds.iter().zip(&other.rounds).map(|(a, b)| a / b);
        Self::new(what, Unit::Ratio, ratios.collect())
    }
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

/// The smallest value that `percent` of all do not exceed (nearest rank). `sorted` is not empty.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted[rank.saturating_sub(1)]
}

/// In which order things take their turn in a round: there, back, and then from the next one on,
/// so that nobody is always first, or always after the same one.
pub(crate) fn turns(round: u32, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count)
        .map(|place| (place + round as usize / 2) % count)
        .collect();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// A whole number with its thousands set off.
fn group(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && digit.is_ascii_digit() && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_knows_its_middle_and_its_ends() {
        let series = Series::new("x", Unit::Seconds, vec![3.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!((series.min, series.median, series.max), (1.0, 2.5, 9.0));
        assert!(Series::new("x", Unit::Seconds, vec![]).is_err());
        assert!(Series::new("x", Unit::Seconds, vec![f64::NAN]).is_err());
    }

    #[test]
    fn a_ratio_is_made_round_by_round() {
        let a = Series::new("a", Unit::PerSecond, vec![10.0, 1.0, 6.0]).unwrap();
        let b = Series::new("b", Unit::PerSecond, vec![5.0, 1.0, 2.0]).unwrap();
        let ratio = a.ratio_to("a to b", &b).unwrap();
        assert_eq!(ratio.rounds, [2.0, 1.0, 3.0]);
        assert_eq!(ratio.median, 2.0);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), 100);
        assert_eq!(percentile(&values, 99), 198);
        assert_eq!(percentile(&[7], 50), 7);
        assert_eq!(percentile(&[7, 8], 99), 8);
    }

    #[test]
    fn everybody_has_a_turn_in_every_round() {
        for round in 0..6 {
            let mut order = turns(round, 4);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
        let firsts: Vec<usize> = (0..4).map(|round| turns(round, 2)[0]).collect();
        assert_eq!(firsts, [0, 1, 1, 0]);
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!(Unit::PerSecond.format(1_234_567.4), "1,234,567/s");
        assert_eq!(Unit::Microseconds.format(41.26), "41.3 µs");
        assert_eq!(Unit::Microseconds.format(41_260.0), "41,260 µs");
        assert_eq!(Unit::Count.format(0.0), "0");
        assert_eq!(Unit::Ratio.format(0.9496), "0.950");
        assert_eq!(Unit::Ratio.format(12.34), "12.3");
        assert_eq!(Unit::Bytes.format(181.4), "181 B");
        assert_eq!(Unit::Bytes.format(3.0 * 1024.0 * 1024.0), "3.0 MB");
        assert_eq!(Unit::Share.format(0.0512), "5.1 %");
    }
}
