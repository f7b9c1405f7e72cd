//! The clock of the lease machine.

use std::time::{Duration, Instant};

/// The steps in which `/proc/uptime` counts.
const STEP: Duration = Duration::from_millis(10);
/// A difference beyond this means that the machine has slept.
const TOLERANCE: Duration = Duration::from_millis(20);
const _: () = assert!(STEP.as_millis() < TOLERANCE.as_millis(), "rounding is not sleep");

/// A clock that counts while the machine sleeps, as the store's does.
///
/// `/proc/uptime` is the kernel's boot-time clock in steps of 10 ms, rounded down, which is the safe side
/// for a deadline. Without `/proc` the clock stands still while the machine sleeps.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    boot: Option<Duration>,
}

impl Clock {
    /// Starts to count from zero.
    #[allow(clippy::new_without_default)] // two clocks are not the same clock
    pub fn new() -> Self {
        Self { start: Instant::now(), boot: uptime() }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        let slept = self.boot.zip(uptime()).map(|(boot, now)| now.saturating_sub(boot));
        // The two agree to one `STEP` unless the machine has slept. `awake` has no steps, so it counts then.
        let awake = self.start.elapsed();
        match slept {
            Some(slept) if slept > awake + TOLERANCE => slept,
            _ => awake,
        }
    }
}

fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_and_does_not_step_back() {
        let clock = Clock::new();
        let mut last = clock.now();
        for _ in 0..200 {
            let now = clock.now();
            assert!(now >= last && now < Duration::from_secs(10));
            last = now;
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
