//! How long the machine waits before it tries again. All its random draws are made here, so one seed decides them.

use crate::store::{Backoff, jitter};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// No attempt waits longer than this for the next, apart from renewals and a full pool.
pub(super) const RETRY_LIMIT: Duration = Duration::from_secs(5);
/// The longest wait after a write that the store refused. Each attempt costs it a list and a write, and what is wrong is
/// for the operator to mend.
const REFUSED_LIMIT: Duration = Duration::from_secs(2 * 60);
/// The longest wait before another look at a key or a pool that is not as we need it.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// The randomness of one machine, and the back-offs that its parts share.
#[derive(Debug)]
pub(super) struct Delays {
    rng: StdRng,
    /// After lists without an answer. The watch has a back-off of its own.
    calls: Backoff,
    /// After writes without an answer. A store that answers lists may take no write, so only a write resets it.
    writes: Backoff,
    /// After writes that were refused.
    refused: Backoff,
    /// After answers that leave us without a subnet.
    looks: Backoff,
}

impl Delays {
    /// Every delay follows from the seed.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            calls: Backoff::new(RETRY_LIMIT),
            writes: Backoff::new(RETRY_LIMIT),
            refused: Backoff::new(REFUSED_LIMIT),
            looks: Backoff::new(LOOK_LIMIT),
        }
    }

    /// The store has answered: the delay after the next failed list is a short one.
    pub(super) fn answered(&mut self) {
        self.calls.reset();
    }

    /// The store has taken a write, or may take the next one: the delay after a failed write is a short one again.
    pub(super) fn written(&mut self) {
        self.writes.reset();
        self.refused.reset();
    }

    /// The delay after a write that was `refused`, or got no answer.
    pub(super) fn after_failed_write(&mut self, refused: bool) -> Duration {
        let backoff = if refused { &mut self.refused } else { &mut self.writes };
        let delay = backoff.next(&mut self.rng);
        debug_assert!(!delay.is_zero(), "a store that takes no write would be asked without a pause");
        delay
    }

    /// A subnet is ours: the delay before the next look is a short one.
    pub(super) fn settled(&mut self) {
        self.looks.reset();
    }

    /// The delay after a call that got no answer, or failed in a way that a repetition may mend.
    pub(super) fn after_failure(&mut self) -> Duration {
        let delay = self.calls.next(&mut self.rng);
        debug_assert!(!delay.is_zero(), "a store that fails would be asked without a pause");
        delay
    }

    /// The delay before another look at the store, which has answered but has no subnet for us now.
    pub(super) fn before_look(&mut self) -> Duration {
        let delay = self.looks.next(&mut self.rng);
        debug_assert!(!delay.is_zero(), "a store that has no subnet would be asked without a pause");
        delay
    }

    /// A delay of up to a second, which keeps many hosts out of step.
    pub(super) fn soon(&mut self) -> Duration {
        self.upper_half(Duration::from_secs(1))
    }

    /// A delay between half of `full` and all of it.
    pub(super) fn upper_half(&mut self, full: Duration) -> Duration {
        jitter(full, &mut self.rng)
    }

    /// A delay between nothing and `longest`.
    pub(super) fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.rng.random_range(0.0..=1.0))
    }

    /// A factor between a half and one, for a delay whose length the caller knows.
    pub(super) fn pace(&mut self) -> f64 {
        self.rng.random_range(0.5..=1.0)
    }

    /// The source of all draws, for a choice that is not a delay or a back-off that is not shared.
    pub(super) fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }
}
