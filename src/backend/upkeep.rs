//! The book-keeping of a network that lives in the kernel's tables (vxlan, host-gw). It decides when entries of peers
//! that have left may be removed, what counts as a repair, and what is worth a line in the log.
//!
//! Entries outlive the process, so that a restart loses no packet. Therefore those of peers that left in the
//! meantime have to be found and removed. The first pass over the tables therefore only adds, and counts what
//! it would remove. If that is more than half of what is there, the store is suspect (wiped, half restored), and
//! everything stays for a while; the watch brings back whoever is really there.

use super::Trouble;
use super::repairs::Repairs;
use super::strangers::{Strangers, Unusable};
use crate::log::Complaint;
use crate::netlink::{Changes, Error};
use crate::report::{DataPath, Sample, metric};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// With fewer stale entries than this a network is too small to tell a loss from a departure.
const LEAST_SUSPECT: usize = 4;
/// How long the entries of a suspect loss stay.
const HOLD: Duration = Duration::from_secs(25);
/// How many refused entries the log names; the rest is counted.
const MOST_SAID: usize = 3;

/// Whether entries that no peer wants may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sweep {
    /// The first pass is still to come.
    Due,
    /// The first pass found too many, and they stay until this time at most.
    Held { until: Instant },
    /// Every pass removes what no peer wants.
    Open,
}

/// What a pass over the tables was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// What an earlier run left is brought in order.
    Start,
    /// Events of leases are written.
    Events,
    /// The tables are compared with what should be there.
    Look,
}

/// What has to be remembered between two passes over the tables.
#[derive(Debug)]
pub(super) struct Upkeep {
    sweep: Sweep,
    /// The peers of other backends.
    pub(super) strangers: Strangers,
    /// The peers of this backend whose leases it cannot use.
    pub(super) unusable: Unusable,
    /// The passes that had to put something right.
    repairs: Repairs,
    /// The peers whose entries the kernel refused, and why.
    refused: BTreeMap<Ipv4Net, Error>,
    complaint: Complaint<Instant>,
}

impl Upkeep {
    pub(super) fn new() -> Self {
        Self {
            sweep: Sweep::Due,
            strangers: Strangers::default(),
            unusable: Unusable::default(),
            repairs: Repairs::default(),
            refused: BTreeMap::new(),
            complaint: Complaint::default(),
        }
    }

    /// Whether the first pass is still to come.
    pub(super) fn is_new(&self) -> bool {
        self.sweep == Sweep::Due
    }

    /// Whether entries of an earlier run are still looked for, and stay.
    pub(super) fn keeps(&self) -> bool {
        self.sweep != Sweep::Open
    }

    /// Notes whether the kernel has taken the entries of a peer.
    pub(super) fn note(&mut self, subnet: Ipv4Net, error: Option<Error>) {
        match error {
            Some(error) => drop(self.refused.insert(subnet, error)),
            None => drop(self.refused.remove(&subnet)),
        }
    }

    /// Whether the kernel has refused an entry of this peer.
    pub(super) fn is_refused(&self, subnet: Ipv4Net) -> bool {
        self.refused.contains_key(&subnet)
    }

    /// Forgets the refusals of all peers but these, whose entries were found in place.
    pub(super) fn retain_refusals(&mut self, of: impl Fn(Ipv4Net) -> bool) {
        self.refused.retain(|subnet, _| of(*subnet));
    }

    /// How many peers the kernel has refused with one of these errors.
    pub(super) fn refused_with(&self, errors: &[i32]) -> usize {
        self.refused
            .values()
            .filter(|error| error.errno().is_some_and(|errno| errors.contains(&errno)))
            .count()
    }

    /// Whether the `stale` entries that a pass has found beside those of `peers` peers may be removed.
    pub(super) fn may_sweep(&mut self, now: Instant, stale: usize, peers: usize) -> bool {
        let suspect = stale >= LEAST_SUSPECT && stale > peers;
        let open = match self.sweep {
            Sweep::Open => return true,
            Sweep::Due if suspect => {
                warn!(
                    "the store knows {peers} peers and the kernel {stale} more from an earlier run: \
                     keeping those for {} s",
                    HOLD.as_secs()
                );
                self.sweep = Sweep::Held { until: now + HOLD };
                false
            }
            Sweep::Due => true,
            Sweep::Held { until } => {
                debug_assert!(until <= now + HOLD, "a hold does not grow");
                !suspect || now >= until
            }
        };
        if open {
            self.sweep = Sweep::Open;
            if stale > 0 {
                info!("removing the entries of {stale} peers that left before this start");
            }
        }
        open
    }

    /// Ends a pass. `device` is what was done to the device, `tables` what was done to the tables, and `name` names the
    /// device or interface.
    pub(super) fn conclude(&mut self, reason: Reason, name: &str, device: Changes, tables: Changes) {
        let now = Instant::now();
        let repair = !device.is_empty() || (reason == Reason::Look && !tables.is_empty());
        let mut changes = device;
        changes.extend(tables);
        if repair {
            self.repairs.note(now, format!("{name}: {changes}"));
        } else if !changes.is_empty() {
            info!("{name}: {changes}");
        }
        self.repairs.settle(now);
        self.complain(now, name);
    }

    /// What the kernel has refused, in words; `None` if it has refused nothing.
    fn refusals(&self) -> Option<String> {
        // That the device is gone is told by the look that follows.
        let refused = || self.refused.values().filter(|error| error.errno() != Some(libc::ENODEV));
        let first: Vec<String> = refused().take(MOST_SAID).map(ToString::to_string).collect();
        let mut text = first.join("; ");
        if let Some(more @ 1..) = refused().count().checked_sub(MOST_SAID) {
            let _ = write!(text, "; and {more} more");
        }
        (!first.is_empty()).then_some(text)
    }

    fn complain(&mut self, now: Instant, name: &str) {
        let Some(text) = self.refusals() else {
            self.complaint.settle();
            return;
        };
        if self.complaint.is_news(now, &text) {
            warn!("{name}: {text}");
        }
    }

    /// What cannot be set of the entries of `peers` peers; `is_peer` says whether a subnet is that of a peer.
    pub(super) fn trouble(&self, peers: usize, is_peer: impl Fn(Ipv4Net) -> bool) -> Option<Trouble> {
        let refused = self.refused.keys().filter(|subnet| is_peer(**subnet)).count();
        let text = self.refusals().filter(|_| refused > 0)?;
        debug_assert!(refused <= peers, "{refused} of {peers}");
        Some(Trouble {
            reason: format!("{refused} of {peers} peers are not reached: {text}"),
            is_grave: refused * 2 >= peers,
        })
    }

    /// How long the next look at the tables should wait.
    pub(super) fn repair_pause(&self) -> Duration {
        self.repairs.pause(Instant::now())
    }

    /// The report of a data path with `peers` peers.
    pub(super) fn report(&self, peers: usize) -> DataPath {
        let mut samples = self.strangers.samples().to_vec();
        samples.extend([
            self.unusable.sample(),
            Sample::new(&metric::RECONCILE_REPAIRS, "repairs", self.repairs.total()),
            Sample::new(&metric::REFUSED_ENTRIES, "refused_entries", self.refused.len() as u64),
        ]);
        DataPath { workers: Vec::new(), peers, samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_stale_entries_go_at_once() {
        let now = Instant::now();
        for (stale, peers) in [(0, 0), (3, 0), (4, 4), (300, 700)] {
            let mut upkeep = Upkeep::new();
            assert!(upkeep.is_new() && upkeep.keeps());
            assert!(upkeep.may_sweep(now, stale, peers), "{stale} beside {peers}");
            assert!(!upkeep.is_new() && !upkeep.keeps());
        }
    }

    #[test]
    fn a_suspect_loss_is_held_for_a_while() {
        let now = Instant::now();
        let mut upkeep = Upkeep::new();
        assert!(!upkeep.may_sweep(now, 5, 4));
        assert!(!upkeep.may_sweep(now + HOLD - Duration::from_secs(1), 5, 4));
        assert!(upkeep.keeps() && !upkeep.is_new());
        assert!(upkeep.may_sweep(now + HOLD, 5, 4));
        assert!(!upkeep.keeps());
    }

    #[test]
    fn a_loss_that_mends_is_held_no_longer() {
        let now = Instant::now();
        let mut upkeep = Upkeep::new();
        assert!(!upkeep.may_sweep(now, 100, 0));
        assert!(upkeep.may_sweep(now + Duration::from_secs(1), 10, 90));
    }
}
