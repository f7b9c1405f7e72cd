//! When a worker lets packets gather before it looks again.
//!
//! A worker that runs dry sleeps until the next packet. Where small packets come fast, that costs a wake-up, a turn and
//! a short train for every few of them, on a host that has no core to spare. Network cards have the same trouble with
//! interrupts and moderate them (`ethtool -C adaptive-rx`). A worker does the same: it pauses for a fixed moment and
//! then takes all that has come.
//!
//! A pause is latency, and whoever waits for an answer pays for it. So a worker pauses only where traffic is one-sided:
//! the packets of requests and answers, of TCP and its ACKs, and of calls go both ways and never meet a pause. It does
//! not pause where frames are large (each is worth a turn) or rare (a pause would gather nothing).

use super::settings::LONGEST_MODERATION;
use std::time::{Duration, Instant};

/// Traffic is judged over at least this time.
const WINDOW: Duration = Duration::from_millis(1);
// A window is at least one pause long. Otherwise any traffic at all would count as more than a packet a pause.
const _: () = assert!(LONGEST_MODERATION.as_nanos() <= WINDOW.as_nanos());
/// Above this many bytes a read, on average, a pause gains nothing.
const LARGE: usize = 8 << 10;
/// How many times as many reads one side must have as the other.
const ONE_SIDED: usize = 16;

/// Judges the traffic of one worker.
#[derive(Debug)]
pub(super) struct Moderation {
    pause: Duration,
    /// When the current window began.
    since: Instant,
    /// Reads from the TUN in this window.
    frames: usize,
    /// Receives from the socket in this window.
    receives: usize,
    bytes: usize,
    /// What the last window was judged to be worth: a pause or none.
    in_force: bool,
}

impl Moderation {
    /// The worker pauses for `pause` at a time; with zero it never does.
    pub(super) fn new(pause: Duration, now: Instant) -> Moderation {
        Moderation { pause, since: now, frames: 0, receives: 0, bytes: 0, in_force: false }
    }

    /// Counts a read from the TUN of `len` bytes.
    pub(super) fn frame(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len;
    }

    /// Counts a receive from the socket of `len` bytes.
    pub(super) fn receive(&mut self, len: usize) {
        self.receives += 1;
        self.bytes += len;
    }

    /// How long the worker pauses after this turn, in which the port ran dry.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.in_force = self.pays(elapsed);
            *self = Moderation { in_force: self.in_force, ..Moderation::new(self.pause, now) };
        }
        if self.in_force { self.pause } else { Duration::ZERO }
    }

    /// Whether a pause was worth its latency in the window that `elapsed` since it began.
    fn pays(&self, elapsed: Duration) -> bool {
        let reads = self.frames + self.receives;
        let pauses = elapsed.as_nanos().checked_div(self.pause.as_nanos());
        let often = pauses.is_some_and(|pauses| reads as u128 >= pauses);
        let small = self.bytes < reads * LARGE;
        let one_sided = self.frames.min(self.receives) * ONE_SIDED <= self.frames.max(self.receives);
        often && small && one_sided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_micros(50);

    /// The pause that is asked for after a window with this traffic.
    fn after(frames: usize, receives: usize, len: usize, window: Duration) -> Duration {
        let start = Instant::now();
        let mut moderation = Moderation::new(PAUSE, start);
        (0..frames).for_each(|_| moderation.frame(len));
        (0..receives).for_each(|_| moderation.receive(len));
        moderation.pause(start + window)
    }

    #[test]
    fn a_flood_of_small_packets_from_one_side_is_held() {
        assert_eq!(after(20, 0, 92, WINDOW), PAUSE);
        assert_eq!(after(0, 20, 1400, WINDOW), PAUSE);
        assert_eq!(after(160, 10, 92, WINDOW), PAUSE);
    }

    #[test]
    fn answered_large_and_rare_packets_are_not() {
        assert_eq!(after(20, 20, 92, WINDOW), Duration::ZERO, "requests and answers");
        assert_eq!(after(100, 7, 92, WINDOW), Duration::ZERO, "data and an ACK for every 14");
        assert_eq!(after(20, 0, 60_000, WINDOW), Duration::ZERO, "super-packets");
        assert_eq!(after(19, 0, 92, WINDOW), Duration::ZERO, "less than one a pause");
        assert_eq!(after(20, 0, 92, 4 * WINDOW), Duration::ZERO, "likewise, over a longer sleep");
        assert_eq!(after(0, 0, 0, WINDOW), Duration::ZERO);
    }

    #[test]
    fn it_ends_with_the_flood_and_zero_means_never() {
        let start = Instant::now();
        let mut moderation = Moderation::new(PAUSE, start);
        (0..40).for_each(|_| moderation.frame(92));
        assert_eq!(moderation.pause(start + WINDOW / 2), Duration::ZERO, "not judged yet");
        assert_eq!(moderation.pause(start + WINDOW), PAUSE);
        assert_eq!(moderation.pause(start + WINDOW * 3 / 2), PAUSE, "until judged again");
        assert_eq!(moderation.pause(start + 2 * WINDOW), Duration::ZERO);

        let mut never = Moderation::new(Duration::ZERO, start);
        (0..1000).for_each(|_| never.frame(92));
        assert_eq!(never.pause(start + WINDOW), Duration::ZERO);
    }
}
