//! How many ICMP errors a worker may send: a token bucket (RFC 1812, section 4.3.2.8).

use std::time::{Duration, Instant};

/// So many errors may be sent a second in the long run, and so many at once after a quiet second.
const RATE: u32 = 100;
/// The time in which the bucket gains one token.
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);
// A quiet second fills the bucket exactly.
const _: () = assert!(INTERVAL.as_nanos() * RATE as u128 == 1_000_000_000);

/// The bucket of one direction. It is full at first.
#[derive(Debug)]
pub(super) struct IcmpLimit {
    tokens: u32,
    filled: Option<Instant>,
}

impl IcmpLimit {
    pub(super) fn new() -> IcmpLimit {
        IcmpLimit { tokens: RATE, filled: None }
    }

    /// Whether one more error may be sent at `now`; if so, it takes a token.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        let since = self.filled.map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        let earned = u32::try_from(since.as_nanos() / INTERVAL.as_nanos()).unwrap_or(RATE).min(RATE);
        if earned > 0 || self.filled.is_none() {
            self.tokens = (self.tokens + earned).min(RATE);
            // The time that has not earned a token yet counts for the next one, unless the bucket is full.
            let spent = INTERVAL * earned;
            self.filled = Some(if earned == RATE { now } else { self.filled.map_or(now, |at| at + spent) });
        }
        let allowed = self.tokens > 0;
        self.tokens -= u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_hundred_then_a_hundred_a_second() {
        let mut limit = IcmpLimit::new();
        let start = Instant::now();
        let sent = |limit: &mut IcmpLimit, at: Duration, tries: u32| {
            (0..tries).filter(|_| limit.allow(start + at)).count()
        };
        assert_eq!(sent(&mut limit, Duration::ZERO, 500), 100);
        assert_eq!(sent(&mut limit, Duration::from_millis(9), 500), 0);
        assert_eq!(sent(&mut limit, Duration::from_millis(500), 500), 50);
        assert_eq!(sent(&mut limit, Duration::from_secs(3600), 500), 100);
    }
}
