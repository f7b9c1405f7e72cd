//! When a worker lets packets gather before it looks again.
//!
//! A worker that runs dry sleeps until the next packet. Where small packets come fast, that is a wake-up, a turn and a
//! short train for every few of them, on a host that has no core to spare. Network cards have the same trouble with
//! interrupts, and moderate them (`ethtool -C adaptive-rx`); so does a worker: it rests for a fixed moment and then
//! takes all that has come.
//!
//! A rest is latency, and whoever waits for an answer pays for it. So there is none unless traffic is one-sided: the
//! packets of requests and answers, of TCP and its ACKs, of calls, go both ways and never meet one. Nor is there one
//! where frames are large (each is worth a turn) or rare (a rest would gather nothing).

use std::time::{Duration, Instant};

/// Traffic is judged over at least this long.
const WINDOW: Duration = Duration::from_millis(1);
/// Mean bytes a read above which there is nothing to gain.
const LARGE: usize = 8 << 10;
/// How many times the reads of one side must outnumber the other's.
const ONE_SIDED: usize = 16;

/// Judges the traffic of one worker.
#[derive(Debug)]
pub(super) struct Moderation {
    rest: Duration,
    since: Instant,
    frames: usize,
    receives: usize,
    bytes: usize,
    in_force: bool,
}

impl Moderation {
    /// Rests of `rest` at a time; zero: never.
    pub(super) fn new(rest: Duration, now: Instant) -> Moderation {
        Moderation { rest, since: now, frames: 0, receives: 0, bytes: 0, in_force: false }
    }

    /// A read from the TUN.
    pub(super) fn frame(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len;
    }

    /// A receive from the socket.
    pub(super) fn receive(&mut self, len: usize) {
        self.receives += 1;
        self.bytes += len;
    }

    /// How long to rest after this turn, in which the port ran dry.
    pub(super) fn rest(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.in_force = self.pays(elapsed);
            *self = Moderation { in_force: self.in_force, ..Moderation::new(self.rest, now) };
        }
        if self.in_force { self.rest } else { Duration::ZERO }
    }

    fn pays(&self, elapsed: Duration) -> bool {
        let reads = self.frames + self.receives;
        let rests = elapsed.as_nanos().checked_div(self.rest.as_nanos());
        let often = rests.is_some_and(|rests| reads as u128 >= rests);
        let small = self.bytes < reads * LARGE;
        let one_sided = self.frames.min(self.receives) * ONE_SIDED <= self.frames.max(self.receives);
        often && small && one_sided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_micros(50);

    /// What the second look says after a window with this traffic.
    fn after(frames: usize, receives: usize, len: usize, window: Duration) -> Duration {
        let start = Instant::now();
        let mut moderation = Moderation::new(REST, start);
        (0..frames).for_each(|_| moderation.frame(len));
        (0..receives).for_each(|_| moderation.receive(len));
        moderation.rest(start + window)
    }

    #[test]
    fn a_flood_of_small_packets_from_one_side_is_held() {
        assert_eq!(after(20, 0, 92, WINDOW), REST);
        assert_eq!(after(0, 20, 1400, WINDOW), REST);
        assert_eq!(after(160, 10, 92, WINDOW), REST);
    }

    #[test]
    fn answered_large_and_rare_packets_are_not() {
        assert_eq!(after(20, 20, 92, WINDOW), Duration::ZERO, "requests and answers");
        assert_eq!(after(100, 7, 92, WINDOW), Duration::ZERO, "data and an ACK for every 14");
        assert_eq!(after(20, 0, 60_000, WINDOW), Duration::ZERO, "super-packets");
        assert_eq!(after(19, 0, 92, WINDOW), Duration::ZERO, "less than one a rest");
        assert_eq!(after(20, 0, 92, 4 * WINDOW), Duration::ZERO, "likewise, over a longer sleep");
        assert_eq!(after(0, 0, 0, WINDOW), Duration::ZERO);
    }

    #[test]
    fn it_ends_with_the_flood_and_zero_means_never() {
        let start = Instant::now();
        let mut moderation = Moderation::new(REST, start);
        (0..40).for_each(|_| moderation.frame(92));
        assert_eq!(moderation.rest(start + WINDOW / 2), Duration::ZERO, "not judged yet");
        assert_eq!(moderation.rest(start + WINDOW), REST);
        assert_eq!(moderation.rest(start + WINDOW * 3 / 2), REST, "until judged again");
        assert_eq!(moderation.rest(start + 2 * WINDOW), Duration::ZERO);

        let mut never = Moderation::new(Duration::ZERO, start);
        (0..1000).for_each(|_| never.frame(92));
        assert_eq!(never.rest(start + WINDOW), Duration::ZERO);
    }
}
