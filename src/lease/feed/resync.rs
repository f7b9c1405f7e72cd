//! The list on the timer, which finds the events that the watch has lost.
//!
//! All nodes of a network list all of it, so the store carries the square of their number in each period. Up to
//! [`FEW_PEERS`] the period is [`SHORTEST`], and beyond it grows with the square of the number of peers, so that the
//! store's load stays what it is there: a lease is 177 bytes in a list of etcd v3, which makes 0.15 MB a second. At
//! [`LONGEST`] it ends, at about 6 000 peers; 10 000 nodes come to 0.4 MB a second.

use rand::{Rng, RngExt};
use std::time::Duration;

/// The period of small networks.
const SHORTEST: Duration = Duration::from_secs(5 * 60);
/// The period of the largest networks. What the watch has lost is found on the same day.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// A network of so many peers or fewer is a small one.
const FEW_PEERS: usize = 500;

/// When the next list on the timer is due. It depends on the number of peers at that time, not at the time of the last
/// list: a network that starts at once is empty when its first nodes list it.
#[derive(Debug, Default)]
pub(super) struct Resync {
    /// The time of the last list, and how much longer than the period is waited this time.
    last: Option<(Duration, f64)>,
}

impl Resync {
    /// A list has come. The next follows after the period, give or take a fifth, so that hosts that have listed together
    /// do not do so again.
    pub(super) fn after(now: Duration, rng: &mut impl Rng) -> Self {
        Self { last: Some((now, rng.random_range(0.8..=1.2))) }
    }

    /// No list is due until one has come.
    pub(super) fn postpone(&mut self) {
        self.last = None;
    }

    /// When the next list is due, if there are so many peers then.
    pub(super) fn due(&self, peers: usize) -> Duration {
        self.last.map_or(Duration::MAX, |(last, factor)| last.saturating_add(period(peers).mul_f64(factor)))
    }
}

/// The time between two lists, without the random part.
fn period(peers: usize) -> Duration {
    let times = u32::try_from(peers.max(FEW_PEERS)).map_or(f64::INFINITY, f64::from) / FEW_PEERS as f64;
    Duration::try_from_secs_f64(SHORTEST.as_secs_f64() * times * times).unwrap_or(LONGEST).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn the_period_grows_with_the_square_of_the_peers() {
        let minutes = |peers| period(peers).as_secs_f64() / 60.0;
        assert_eq!([0, 1, 500, 1000, 2000, 5000].map(minutes), [5.0, 5.0, 5.0, 20.0, 80.0, 500.0]);
        assert_eq!([10_000, 100_000, usize::MAX].map(minutes), [720.0; 3]);
    }

    #[test]
    fn hosts_that_list_together_do_not_do_so_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Duration::from_secs(1000);
        let mut due: Vec<Duration> =
            (0..40).map(|_| Resync::after(now, &mut rng).due(10_000) - now).collect();
        due.sort();
        assert!(due[0] >= LONGEST.mul_f64(0.8) && due[39] <= LONGEST.mul_f64(1.2), "{due:?}");
        assert!(due[39] - due[0] > LONGEST.mul_f64(0.3), "{due:?}");
    }

    #[test]
    fn the_peers_of_the_moment_count() {
        let empty = Resync::after(Duration::ZERO, &mut StdRng::seed_from_u64(1));
        assert!(empty.due(0) <= Duration::from_secs(360) && empty.due(10_000) >= Duration::from_secs(34_560));
        assert_eq!(Resync::default().due(0), Duration::MAX);
    }
}
