//! Repairs are counted and logged. When somebody undoes the same one again and again, the log must not fill and we
//! must not be kept at work: then there is one look a second, and one line a minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// This many repairs of the same thing within [`WINDOW`] are a fight.
const MOST: usize = 3;
/// The time in which [`MOST`] repairs are a fight; a fight ends after as long without one.
const WINDOW: Duration = Duration::from_secs(10);
/// The time between two looks during a fight.
const PAUSE: Duration = Duration::from_secs(1);
/// The time between two lines about a fight.
const SAY_EVERY: Duration = Duration::from_secs(60);
// A fight that has slowed down is still a fight, and its line comes before it is forgotten.
const _: () = assert!(PAUSE.as_secs() * (MOST as u64) < WINDOW.as_secs());
const _: () = assert!(WINDOW.as_secs() < SAY_EVERY.as_secs());

/// The repairs of one network.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    total: u64,
    tracks: BTreeMap<String, Track>,
}

/// The repairs of one and the same thing.
#[derive(Debug, Default)]
struct Track {
    /// The times of the latest repairs, at most [`MOST`].
    times: Vec<Instant>,
    /// During a fight, the time of the last line and how many repairs came since.
    fight: Option<(Instant, u64)>,
}

impl Repairs {
    /// The number of all repairs so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Counts a repair that needs no line here.
    pub(super) fn count(&mut self) {
        self.total += 1;
    }

    /// Counts a repair that did `what`, and logs it unless it is part of a fight.
    pub(super) fn note(&mut self, now: Instant, what: String) {
        self.count();
        self.settle(now);
        let track = self.tracks.entry(what.clone()).or_default();
        track.times.push(now);
        if track.times.len() > MOST {
            track.times.remove(0);
        }
        debug_assert!(track.times.len() <= MOST);
        debug_assert!(track.fight.is_none() || track.times.len() == MOST, "a fight has many repairs");
        let Some((_, count)) = &mut track.fight else {
            info!("{what}");
            let first = track.times.first().filter(|_| track.times.len() == MOST);
            if first.is_some_and(|first| now.saturating_duration_since(*first) < WINDOW) {
                warn!(
                    "somebody undoes this again and again; from now on one look a second, one line a minute"
                );
                track.fight = Some((now, 0));
            }
            return;
        };
        *count += 1;
    }

    /// Logs what is due, and forgets what is over.
    pub(super) fn settle(&mut self, now: Instant) {
        self.tracks.retain(|what, track| {
            debug_assert!(!track.times.is_empty(), "a track begins with a repair");
            let last = track.times.last().copied().unwrap_or(now);
            let quiet = now.saturating_duration_since(last) >= WINDOW;
            let Some((since, count)) = &mut track.fight else { return !quiet };
            let time = now.saturating_duration_since(*since);
            if time < SAY_EVERY {
                return true;
            }
            if *count > 0 {
                warn!("{count} repairs in the last {} s: {what}", time.as_secs());
            }
            (*since, *count) = (now, 0);
            !quiet
        });
    }

    /// How long the next look at the tables has to wait.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        let fights = self.tracks.values().filter(|track| track.fight.is_some());
        let last = fights.filter_map(|track| track.times.last()).max();
        let pause = last.map_or(Duration::ZERO, |last| (*last + PAUSE).saturating_duration_since(now));
        debug_assert!(pause <= PAUSE, "a repair of the future: {pause:?}");
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn seldom_repairs_are_no_fight() {
        let (start, mut repairs) = (Instant::now(), Repairs::default());
        for n in 0..20 {
            repairs.note(start + 6 * n * SECOND, "route".to_owned());
            // These are different things, as after a deleted device.
            repairs.note(start + 6 * n * SECOND, format!("address {n}"));
            assert_eq!(repairs.pause(start + 6 * n * SECOND), Duration::ZERO);
        }
        assert_eq!(repairs.total(), 40);
        assert!(repairs.tracks.len() < 5, "{repairs:?}");
    }

    #[test]
    fn a_fight_slows_down_and_ends() {
        let (start, mut repairs) = (Instant::now(), Repairs::default());
        for _ in 0..MOST {
            assert_eq!(repairs.pause(start), Duration::ZERO);
            repairs.note(start, "route".to_owned());
        }
        assert_eq!(repairs.pause(start), SECOND);
        for n in 1..=59 {
            let now = start + n * SECOND;
            assert_eq!(repairs.pause(now), Duration::ZERO);
            repairs.note(now, "route".to_owned());
            assert_eq!(repairs.tracks["route"].fight, Some((start, n.into())));
        }
        repairs.note(start + 60 * SECOND, "route".to_owned());
        assert_eq!(repairs.tracks["route"].fight, Some((start + 60 * SECOND, 1)));
        repairs.settle(start + 119 * SECOND);
        assert_eq!(repairs.tracks.len(), 1);
        repairs.settle(start + 120 * SECOND);
        assert_eq!(repairs.tracks.len(), 0);
        assert_eq!((repairs.pause(start + 120 * SECOND), repairs.total()), (Duration::ZERO, 63));
    }
}
