//! How much time has passed since the file was written, by the wall clock and by the clock that counts from the boot.
//!
//! Within one boot the boot clock counts: it runs while the machine sleeps, and nobody sets it. A virtual machine that
//! was stopped and resumed is the exception: its boot clock has not counted, and its wall clock has been set since.
//! Therefore the longer of the two times counts, and a wall clock that was set forward can only end a lease too early.
//! After a reboot only the wall clock is there. It may be wrong until the time is synchronised, so a tenth of what was
//! left of the lease is given up, and a clock that contradicts itself ends the use of the file.

use super::Refusal;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Two clocks that differ by less than this are in step.
const TOLERANCE: Duration = Duration::from_secs(2);
/// The part of what was left that counts after a reboot.
const TRUST: f64 = 0.9;
const _: () = assert!(TRUST > 0.0 && TRUST < 1.0);

/// One instant, on the wall clock and on the clock of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since 1970, as the wall clock shows them.
    pub wall_ms: u64,
    /// Milliseconds since the boot, sleep included.
    pub boot_ms: u64,
    /// The kernel's random name for this boot; empty if it is unknown.
    pub boot_id: String,
}

/// What lies between two instants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// The time, at least.
    pub(super) time: Duration,
    /// How far the wall clock was set forward (back, if negative), in seconds, if it was.
    pub(super) stepped: Option<i64>,
    rebooted: bool,
}

impl Moment {
    /// Reads the clocks and the name of the boot from the kernel.
    #[must_use]
    pub fn now() -> Moment {
        let read = |clock| {
            let time = clock_gettime(clock);
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0))
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Moment {
            wall_ms: read(ClockId::Realtime),
            boot_ms: read(ClockId::Boottime),
            boot_id: boot_id.trim().to_owned(),
        }
    }

    /// What lies between this instant, which was written down, and `now`.
    pub(super) fn until(&self, now: &Moment) -> Result<Passed, Refusal> {
        let wall = now.wall_ms.checked_sub(self.wall_ms).map(Duration::from_millis);
        if self.boot_id.is_empty() || self.boot_id != now.boot_id {
            let time = wall.ok_or(Refusal::Clock(
                "the machine was started since, and its wall clock shows a time before the file was written",
            ))?;
            // The file was written before this boot.
            let started = now.wall_ms.saturating_sub(now.boot_ms);
            if Duration::from_millis(self.wall_ms.saturating_sub(started)) > TOLERANCE {
                return Err(Refusal::Clock(
                    "the machine was started since, and by its wall clock the file was written after that",
                ));
            }
            return Ok(Passed { time, stepped: None, rebooted: true });
        }
        let boot = now.boot_ms.checked_sub(self.boot_ms).map(Duration::from_millis);
        let boot = boot.ok_or(Refusal::Clock("it was written later in this boot than it is now"))?;
        let step = signed(now.wall_ms, self.wall_ms).saturating_sub(signed(now.boot_ms, self.boot_ms));
        let is_set = Duration::from_millis(step.unsigned_abs()) > TOLERANCE;
        Ok(Passed {
            time: wall.map_or(boot, |wall| wall.max(boot)),
            stepped: is_set.then_some(step / 1000),
            rebooted: false,
        })
    }
}

fn signed(later: u64, earlier: u64) -> i64 {
    let clamp = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    clamp(later).saturating_sub(clamp(earlier))
}

impl Passed {
    /// What is left now of a lease that had `left` to live then; a reservation has no end.
    pub(super) fn left(&self, left: Option<Duration>) -> Result<Option<Duration>, Refusal> {
        let Some(left) = left else { return Ok(None) };
        let trusted = if self.rebooted { left.mul_f64(TRUST) } else { left };
        match trusted.checked_sub(self.time) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(Refusal::Ended(self.time.saturating_sub(trusted))),
        }
    }
}
