//! Peers to which nothing leads from here. Those of another backend come in when both nodes run the same; while the nodes
//! of a cluster are changed one by one, that is so for a while. Others publish what no node of this backend can use.
//!
//! However many there are, each change of them is one line of the log, which names those that are new first.

use crate::log::{few, quote};
use crate::report::{Sample, metric};
use crate::subnet::Lease;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

/// How many of these peers the log names; the rest is counted.
const MOST_SAID: usize = 3;

/// Peers that the log names together.
#[derive(Debug, Default)]
struct Named {
    /// What each of them is, in words, by its subnet.
    known: BTreeMap<Ipv4Net, String>,
    /// Those of which the log has not told as they are now.
    fresh: BTreeSet<Ipv4Net>,
    /// Whether there are others than the log says.
    changed: bool,
    /// How many events were of their leases.
    events: u64,
}

impl Named {
    fn add(&mut self, lease: &Lease, what: &str) {
        self.events += 1;
        let what = format!("{} at {} ({what})", lease.subnet, lease.attrs.public_ip);
        if self.known.get(&lease.subnet) != Some(&what) {
            self.known.insert(lease.subnet, what);
            self.fresh.insert(lease.subnet);
            self.changed = true;
        }
    }

    fn remove(&mut self, subnet: Ipv4Net) {
        self.fresh.remove(&subnet);
        self.changed |= self.known.remove(&subnet).is_some();
    }

    /// The first of these peers and the number of the others, if that has changed since the last call; empty if there are
    /// none any more.
    fn news(&mut self) -> Option<String> {
        let fresh = std::mem::take(&mut self.fresh);
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let new = fresh.iter().filter_map(|subnet| self.known.get(subnet));
        let old = self.known.iter().filter(|(subnet, _)| !fresh.contains(subnet)).map(|(_, what)| what);
        Some(few(new.chain(old).cloned(), self.known.len(), MOST_SAID))
    }
}

/// The peers of other backends.
#[derive(Debug, Default)]
pub(super) struct Strangers(Named);

impl Strangers {
    /// Takes note of a lease that a node of another backend has written.
    pub(super) fn add(&mut self, lease: &Lease) {
        let kind = lease.attrs.backend_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("udp");
        self.0.add(lease, &format!("\"{}\"", quote(kind)));
    }

    /// The peer is gone, or of our backend now.
    pub(super) fn remove(&mut self, subnet: Ipv4Net) {
        self.0.remove(subnet);
    }

    /// Says in one line what has changed since the last call. `kind` is our own backend.
    pub(super) fn tell(&mut self, kind: &str) {
        match self.0.news() {
            None => {}
            Some(named) if named.is_empty() => info!("no peer runs another backend than {kind} any more"),
            Some(named) => warn!(
                "not reached from here, since they run another backend than {kind}: {named}; they come in as soon as \
                 both ends run the same"
            ),
        }
    }

    /// The counters of these peers.
    pub(super) fn samples(&self) -> [Sample; 2] {
        [
            Sample::new(&metric::OTHER_BACKEND_PEERS, "other_backend_peers", self.0.known.len() as u64),
            Sample::new(&metric::FOREIGN_LEASES, "foreign_leases", self.0.events),
        ]
    }
}

/// The peers of our backend whose leases lack what it needs.
#[derive(Debug, Default)]
pub(super) struct Unusable(Named);

impl Unusable {
    /// Takes note of such a lease. `lacks` says what is missing.
    pub(super) fn add(&mut self, lease: &Lease, lacks: &str) {
        let data = lease.attrs.backend_data.as_ref().map(ToString::to_string).unwrap_or_default();
        self.0.add(lease, &format!("{lacks}: {}", quote(&data)));
    }

    /// The peer is gone, or its lease can be used now.
    pub(super) fn remove(&mut self, subnet: Ipv4Net) {
        self.0.remove(subnet);
    }

    /// Says in one line what has changed since the last call. `kind` is our own backend.
    pub(super) fn tell(&mut self, kind: &str) {
        match self.0.news() {
            None => {}
            Some(named) if named.is_empty() => info!("all leases of {kind} nodes can be used now"),
            Some(named) => {
                warn!("not reached from here, since no {kind} node publishes such leases: {named}");
            }
        }
    }

    /// The counter of these leases.
    pub(super) fn sample(&self) -> Sample {
        Sample::new(&metric::UNUSABLE_LEASES, "unusable_leases", self.0.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::LeaseAttrs;
    use std::net::Ipv4Addr;

    fn lease(n: u16, data: &str) -> Lease {
        let [a, b] = n.to_be_bytes();
        let attrs = LeaseAttrs {
            backend_data: Some(serde_json::Value::from(data).into()),
            ..LeaseAttrs::new(Ipv4Addr::new(192, 0, a, b))
        };
        Lease { subnet: Ipv4Net::new(Ipv4Addr::new(10, a, b, 0), 24).unwrap(), attrs }
    }

    #[test]
    fn many_are_one_line_and_a_newcomer_is_named_in_it() {
        let mut named = Named::default();
        for n in 0..2000 {
            named.add(&lease(n, ""), "x");
        }
        let first =
            "10.0.0.0/24 at 192.0.0.0 (x), 10.0.1.0/24 at 192.0.0.1 (x), 10.0.2.0/24 at 192.0.0.2 (x)";
        assert_eq!(named.news().as_deref(), Some(&*format!("{first} and 1997 more")));
        assert_eq!(named.news(), None);
        named.add(&lease(7, ""), "x");
        assert_eq!(named.news(), None, "it is known as it is");
        named.add(&lease(2000, ""), "x");
        let line = named.news().unwrap();
        assert!(line.starts_with("10.7.208.0/24 at 192.0.7.208 (x), 10.0.0.0/24"), "{line}");
        assert!(line.ends_with(" and 1998 more"), "{line}");
        (0..=2000).for_each(|n| named.remove(lease(n, "").subnet));
        assert_eq!((named.news().as_deref(), named.news(), named.events), (Some(""), None, 2002));
    }
}
