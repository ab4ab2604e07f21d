//! Numbers from a Zipf distribution: the k-th is drawn with a probability proportional to 1 / k^s.

use rand::{Rng, RngExt};

/// Draws by rejection-inversion (W. Hörmann and G. Derflinger, "Rejection-inversion to generate
/// variates from monotone discrete distributions", ACM TOMACS 6(3), 1996): in constant time and
/// memory, however many numbers there are.
pub(super) struct Zipf {
    exponent: f64,
    /// The integral of 1 / x^s at the lower and the upper end.
    low: f64,
    high: f64,
    /// What lies so near to its number needs no second look.
    near: f64,
    count: f64,
}

impl Zipf {
    /// Numbers from 1 to `count`. The exponent is positive and not 1.
    pub(super) fn new(count: u32, exponent: f64) -> Self {
        let mut zipf = Self {
            exponent,
            low: 0.0,
            high: 0.0,
            near: 0.0,
            count: f64::from(count),
        };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(zipf.count + 0.5);
        zipf.near = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    fn integral(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.exponent) - 1.0) / (1.0 - self.exponent)
    }

    fn inverse(&self, x: f64) -> f64 {
        (x * (1.0 - self.exponent) + 1.0).powf(1.0 / (1.0 - self.exponent))
    }

    pub(super) fn draw(&self, rng: &mut impl Rng) -> u32 {
        loop {
            let u = self.high + rng.random::<f64>() * (self.low - self.high);
            let x = self.inverse(u);
            let number = x.round().clamp(1.0, self.count);
            if number - x <= self.near || u >= self.integral(number + 0.5) - self.weight(number) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it lies between 1 and a number of this type"
                )]
                return number as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn frequencies_are_those_of_the_distribution() {
        const DRAWS: u32 = 200_000;
        let (count, exponent) = (1000, 1.07);
        let zipf = Zipf::new(count, exponent);
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = vec![0_u32; count as usize + 1];
        for _ in 0..DRAWS {
            seen[zipf.draw(&mut rng) as usize] += 1;
        }
        let sum: f64 = (1..=count).map(|k| f64::from(k).powf(-exponent)).sum();
        for k in [1_u32, 2, 3, 10, 100] {
            let due = f64::from(DRAWS) * f64::from(k).powf(-exponent) / sum;
            let got = f64::from(seen[k as usize]);
            // Five standard deviations.
            assert!(
                (got - due).abs() < 5.0 * due.sqrt(),
                "{k}: {got}, not {due}"
            );
        }
        assert_eq!(seen[0], 0);
    }
}
