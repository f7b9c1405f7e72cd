//! A device that is deleted again and again belongs to somebody else's management, and making it anew has to end.

use super::BackendError;
use std::time::{Duration, Instant};

/// Restarts count for this long.
const WINDOW: Duration = Duration::from_secs(60);

/// The restarts of one device.
#[derive(Debug)]
pub(super) struct Restarts {
    most: usize,
    /// The restarts within [`WINDOW`] before the latest.
    times: Vec<Instant>,
}

impl Restarts {
    /// Starts without restarts; `most` are borne within a minute.
    pub(super) fn new(most: usize) -> Self {
        Self { most, times: Vec::new() }
    }

    /// Notes a restart.
    ///
    /// # Errors
    /// [`BackendError::Unstable`] if it is one too many.
    pub(super) fn note(&mut self, now: Instant) -> Result<(), BackendError> {
        self.times.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        debug_assert!(self.times.len() <= self.most, "an unstable network has ended");
        self.times.push(now);
        if self.times.len() > self.most {
            return Err(BackendError::Unstable(self.times.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_restart_too_many_within_a_minute_is_the_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut restarts = Restarts::new(2);
        for seconds in [0, 1, 60, 61, 121] {
            assert!(restarts.note(at(seconds)).is_ok(), "{seconds}");
        }
        assert!(restarts.note(at(122)).is_ok());
        assert!(matches!(restarts.note(at(123)), Err(BackendError::Unstable(3))));
    }
}
