//! Peers whose nodes run another backend. Nothing leads to them from here until both nodes run the same; while the nodes
//! of a cluster are changed one by one, that is so for a while.

use crate::report::{Sample, metric};
use crate::subnet::Lease;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use tracing::{info, warn};

/// How many of these peers the log names; the rest is counted.
const MOST_SAID: usize = 3;

/// The peers of other backends.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// What each of them is, in words, by its subnet.
    known: BTreeMap<Ipv4Net, String>,
    /// Whether there are others than the log says.
    changed: bool,
    /// How many events were of their leases.
    events: u64,
}

impl Strangers {
    /// Takes note of a lease that a node of another backend has written.
    pub(super) fn add(&mut self, lease: &Lease) {
        self.events += 1;
        let kind = lease.attrs.backend_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("udp");
        let what = format!("{} at {} ({kind:?})", lease.subnet, lease.attrs.public_ip);
        let known = self.known.insert(lease.subnet, what);
        self.changed |= known.as_ref() != self.known.get(&lease.subnet);
    }

    /// The peer is gone, or of our backend now.
    pub(super) fn remove(&mut self, subnet: Ipv4Net) {
        self.changed |= self.known.remove(&subnet).is_some();
    }

    /// Says in one line what has changed since the last call. `kind` is our own backend.
    pub(super) fn tell(&mut self, kind: &str) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        if self.known.is_empty() {
            return info!("no peer runs another backend than {kind} any more");
        }
        let named: Vec<&str> = self.known.values().take(MOST_SAID).map(String::as_str).collect();
        let more = match self.known.len().saturating_sub(MOST_SAID) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warn!(
            "not reached from here, since they run another backend than {kind}: {}{more}; they come in as soon as both \
             ends run the same",
            named.join(", ")
        );
    }

    /// The counters of these peers.
    pub(super) fn samples(&self) -> [Sample; 2] {
        [
            Sample::new(&metric::OTHER_BACKEND_PEERS, "other_backend_peers", self.known.len() as u64),
            Sample::new(&metric::FOREIGN_LEASES, "foreign_leases", self.events),
        ]
    }
}
