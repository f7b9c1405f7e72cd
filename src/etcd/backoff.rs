//! Jittered exponential back-off.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// Pauses between attempts: each is drawn from the upper half of a ceiling that doubles from `first`
/// up to `most`, so that daemons that lost one store do not come back to it in step.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    ceiling: Duration,
    random: StdRng,
}

impl Backoff {
    /// The first pause is at most `first`, none is longer than `most`; the seed makes the draw repeatable.
    pub fn new(first: Duration, most: Duration, seed: u64) -> Self {
        Self { first, most, ceiling: first.min(most), random: StdRng::seed_from_u64(seed) }
    }

    /// How long to wait before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.ceiling.mul_f64(self.random.random_range(0.5..=1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.most);
        pause
    }

    /// An attempt succeeded: the next pause is a short one again.
    pub fn reset(&mut self) {
        self.ceiling = self.first.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_double_up_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(FIRST, MOST, 7);
        let mut ceiling = FIRST;
        for _ in 0..10 {
            let pause = backoff.pause();
            assert!(pause <= ceiling && pause >= ceiling / 2, "{pause:?} for a ceiling of {ceiling:?}");
            ceiling = (ceiling * 2).min(MOST);
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let mut backoff = Backoff::new(FIRST, MOST, seed);
            [backoff.pause(), backoff.pause(), backoff.pause()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
