//! How long to wait before the next attempt.

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, RngExt, SeedableRng, TryRng};
use std::time::Duration;

/// Delays that double from 100 ms to a limit. Each is drawn at random from the upper half of its range, so that hosts
/// that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    failures: u32,
    limit: Duration,
}

const FIRST: Duration = Duration::from_millis(100);

impl Backoff {
    /// A back-off none of whose delays is longer than `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { failures: 0, limit }
    }

    /// Tells of a success: the next delay is a short one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay before the next attempt.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(20)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        let delay = jitter(full, rng);
        debug_assert!(delay <= self.limit, "{delay:?} is over the limit {:?}", self.limit);
        delay
    }
}

/// What jitter is drawn from. A system without random numbers gets none; whatever else needs them will tell.
pub fn chance() -> StdRng {
    StdRng::seed_from_u64(SysRng.try_next_u64().unwrap_or_default())
}

/// A random delay between half of `full` and all of it.
pub fn jitter(full: Duration, rng: &mut impl Rng) -> Duration {
    full.mul_f64(rng.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_with_jitter() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut backoff = Backoff::new(Duration::from_secs(5));
        for full in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
            let full = Duration::from_millis(full);
            let delay = backoff.next(&mut rng);
            assert!(delay >= full / 2 && delay <= full, "{delay:?} for {full:?}");
        }
        for _ in 0..100 {
            backoff.next(&mut rng);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= FIRST);
    }
}
