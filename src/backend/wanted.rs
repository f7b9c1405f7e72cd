//! The peers of a network that lives in the kernel's tables, and which entries each of them needs there.
//!
//! An event of a lease leaves a *change*: the peer as it was last written, beside the peer as it is now. The difference
//! is all that has to be written, whatever the number of peers.

use super::entries::Job;
use crate::netlink::{Mac, Route, Territory};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// The address of its host.
    pub(super) address: Ipv4Addr,
    /// The MAC of the far end of the tunnel; absent without tunnels.
    pub(super) mac: Option<Mac>,
    /// Whether a plain route over the external interface leads there.
    pub(super) direct: bool,
}

impl Peer {
    /// The MAC of a peer behind the tunnel.
    fn tunnel(self) -> Option<Mac> {
        self.mac.filter(|_| !self.direct)
    }
}

/// Which entries of a peer are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Parts {
    pub(super) arp: bool,
    pub(super) fdb: bool,
    pub(super) route: bool,
}

impl Parts {
    pub(super) fn any(self) -> bool {
        self.arp || self.fdb || self.route
    }
}

/// The peers, and what has changed since they were last written.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) territory: Territory,
    /// The number of the external interface, over which direct routes lead.
    pub(super) external: u32,
    peers: BTreeMap<Ipv4Net, Peer>,
    /// Every peer with a MAC, by that MAC.
    macs: BTreeSet<(Mac, Ipv4Net)>,
    /// MACs that more than one peer has, or had lately.
    shared: BTreeSet<Mac>,
    /// Where each forwarding entry leads, as it was last written.
    written: BTreeMap<Mac, Ipv4Addr>,
    /// MACs that a peer no longer has.
    left: BTreeSet<Mac>,
    /// Peers that came, changed or went, as they were last written.
    changed: BTreeMap<Ipv4Net, Option<Peer>>,
    /// MACs on the device that another program needs.
    pub(super) foreign_macs: BTreeSet<Mac>,
    /// The addresses of hosts that have or had a lease, of whatever backend; kept while an older flannel's routes are
    /// looked for.
    pub(super) hosts: BTreeSet<Ipv4Addr>,
}

impl Wanted {
    /// No peers yet.
    pub(super) fn new(territory: Territory, external: u32) -> Self {
        Self {
            territory,
            external,
            peers: BTreeMap::new(),
            macs: BTreeSet::new(),
            shared: BTreeSet::new(),
            written: BTreeMap::new(),
            left: BTreeSet::new(),
            changed: BTreeMap::new(),
            foreign_macs: BTreeSet::new(),
            hosts: BTreeSet::new(),
        }
    }

    /// How many peers there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// The peer of a subnet.
    pub(super) fn peer(&self, subnet: Ipv4Net) -> Option<Peer> {
        self.peers.get(&subnet).copied()
    }

    /// The first peers after `cursor`, by subnet; from the beginning without one.
    pub(super) fn after(&self, cursor: Option<Ipv4Net>) -> impl Iterator<Item = (Ipv4Net, Peer)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        self.peers.range((from, Unbounded)).map(|(subnet, peer)| (*subnet, *peer))
    }

    /// Takes a peer as it now is. With a MAC it is behind the tunnel, until [`Wanted::decide`] says otherwise.
    pub(super) fn put(&mut self, subnet: Ipv4Net, address: Ipv4Addr, mac: Option<Mac>) {
        let known = self.peer(subnet);
        if known.is_some_and(|known| (known.address, known.mac) == (address, mac)) {
            return;
        }
        self.replace(subnet, Some(Peer { address, mac, direct: mac.is_none() }));
    }

    /// Forgets a peer.
    pub(super) fn remove(&mut self, subnet: Ipv4Net) {
        if self.peers.contains_key(&subnet) {
            self.replace(subnet, None);
        }
    }

    /// Notes whether a plain route leads to a peer.
    pub(super) fn decide(&mut self, subnet: Ipv4Net, direct: bool) {
        if let Some(peer) = self.peer(subnet).filter(|peer| peer.direct != direct) {
            self.replace(subnet, Some(Peer { direct, ..peer }));
        }
    }

    fn replace(&mut self, subnet: Ipv4Net, peer: Option<Peer>) {
        let known = match peer {
            Some(peer) => self.peers.insert(subnet, peer),
            None => self.peers.remove(&subnet),
        };
        // An older change says what was written; what was never written since does not count.
        self.changed.entry(subnet).or_insert(known);
        if let Some(mac) = known.and_then(|known| known.mac) {
            self.macs.remove(&(mac, subnet));
        }
        if let Some(mac) = peer.and_then(|peer| peer.mac) {
            self.macs.insert((mac, subnet));
            if self.of_mac(mac).nth(1).is_some() {
                self.shared.insert(mac);
            }
        }
        debug_assert!(self.macs.len() <= self.peers.len(), "a peer has one MAC at most");
    }

    /// Whether some peers have changed since they were written.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether this peer has changed since it was written.
    pub(super) fn is_changed(&self, subnet: Ipv4Net) -> bool {
        self.changed.contains_key(&subnet)
    }

    /// Takes at most so many changes.
    pub(super) fn take_changes(&mut self, most: usize) -> Vec<(Ipv4Net, Option<Peer>)> {
        let rest = self.changed.keys().nth(most).copied().map(|first| self.changed.split_off(&first));
        std::mem::replace(&mut self.changed, rest.unwrap_or_default()).into_iter().collect()
    }

    /// Forgets that this peer has changed, because it is about to be written.
    pub(super) fn forget_change(&mut self, subnet: Ipv4Net) {
        self.changed.remove(&subnet);
    }

    /// Forgets what has changed, because all is about to be compared.
    pub(super) fn forget_changes(&mut self) {
        self.changed.clear();
    }

    /// The subnets behind the tunnel whose peers have this MAC, with the addresses.
    fn of_mac(&self, mac: Mac) -> impl DoubleEndedIterator<Item = Ipv4Addr> {
        let (first, last) = (Ipv4Net::default(), Ipv4Net::from(Ipv4Addr::BROADCAST));
        let subnets = self.macs.range((mac, first)..=(mac, last));
        subnets
            .filter_map(|(_, subnet)| self.peers.get(subnet))
            .filter(|peer| !peer.direct)
            .map(|p| p.address)
    }

    /// The route to a peer's subnet.
    pub(super) fn route(&self, subnet: Ipv4Net, peer: Peer) -> Route {
        match self.territory.device.filter(|_| !peer.direct) {
            None => Route {
                destination: subnet,
                link_index: self.external,
                gateway: Some(peer.address),
                onlink: false,
            },
            Some(device) => Route {
                destination: subnet,
                link_index: device,
                gateway: Some(subnet.network()),
                onlink: true,
            },
        }
    }

    /// The MAC that an ARP entry of this address should have. Only the first address of a subnet has one.
    pub(super) fn arp(&self, address: Ipv4Addr) -> Option<Mac> {
        let first = Ipv4Net::new(address, 0).ok()?;
        let peers = self.peers.range(first..=Ipv4Net::from(address)).map(|(_, peer)| *peer);
        peers.rev().find_map(Peer::tunnel)
    }

    /// The address to which a forwarding entry of this MAC should lead. Of several peers with one MAC, it is the last.
    pub(super) fn fdb(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.of_mac(mac).next_back()
    }

    /// The writes that remove or correct the forwarding entries of MACs that peers no longer have, or share. Only when all
    /// changes are written is it known who has a MAC in the end.
    pub(super) fn settle(&mut self) -> Vec<Job> {
        debug_assert!(!self.has_changed(), "a change may take an entry over");
        let device = self.territory.device.unwrap_or_default();
        let mut jobs = Vec::new();
        let left = std::mem::take(&mut self.left);
        for mac in left.union(&self.shared).copied().collect::<Vec<_>>() {
            let mut job = Job { device, ..Job::default() };
            match (self.fdb(mac), self.written.get(&mac).copied()) {
                (Some(address), written) if written != Some(address) => job.set_fdb = Some((mac, address)),
                (None, Some(_)) if self.foreign_macs.contains(&mac) => drop(self.written.remove(&mac)),
                (None, Some(written)) => job.drop_fdb = Some((mac, written)),
                _ => continue,
            }
            self.written.extend(job.set_fdb);
            if job.drop_fdb.is_some() {
                self.written.remove(&mac);
            }
            jobs.push(job);
        }
        jobs
    }

    /// What is to be said of peers that share a MAC: the forwarding entry can lead to only one of them.
    pub(super) fn rivals(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for mac in std::mem::take(&mut self.shared) {
            let addresses: BTreeSet<_> = self.of_mac(mac).collect();
            if addresses.len() > 1 {
                let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                said.push(format!(
                    "{list} {} have the VtepMAC {mac}",
                    if addresses.len() == 2 { "both" } else { "all" }
                ));
            }
            if self.of_mac(mac).nth(1).is_some() {
                self.shared.insert(mac);
            }
        }
        said
    }

    /// The writes that set `parts` of a peer.
    pub(super) fn job(&mut self, subnet: Ipv4Net, parts: Parts) -> Job {
        let mut job = Job { device: self.territory.device.unwrap_or_default(), ..Job::default() };
        let Some(peer) = self.peer(subnet) else { return job };
        job.set_route = parts.route.then(|| self.route(subnet, peer));
        if let Some(mac) = peer.tunnel() {
            job.set_arp = parts.arp.then_some((subnet.network(), mac));
            job.set_fdb = self.fdb(mac).filter(|_| parts.fdb).map(|address| (mac, address));
            self.written.extend(job.set_fdb);
        }
        job
    }

    /// Notes that the forwarding entry of a MAC was found as wanted.
    pub(super) fn found_fdb(&mut self, mac: Mac) {
        if let Some(address) = self.fdb(mac) {
            self.written.insert(mac, address);
        }
    }

    /// The writes that bring a peer from what was last written to what it is now, but for a forwarding entry that it no
    /// longer needs ([`Wanted::settle`]). With `all` each entry is written, also one that has not changed.
    pub(super) fn difference(&mut self, subnet: Ipv4Net, written: Option<Peer>, all: bool) -> Job {
        let now = self.peer(subnet);
        let route = |peer: Option<Peer>| peer.map(|peer| self.route(subnet, peer));
        let same_route = route(written) == route(now);
        let tunnel = |peer: Option<Peer>| peer.and_then(Peer::tunnel);
        let (old_mac, new_mac) = (tunnel(written), tunnel(now));
        let outer = |peer: Option<Peer>| peer.map(|peer| peer.address);
        let parts = Parts {
            arp: all || old_mac != new_mac,
            fdb: all || old_mac != new_mac || outer(written) != outer(now),
            route: all || !same_route,
        };
        let mut job = self.job(subnet, parts);
        let Some(before) = written else { return job };
        if now.is_none() {
            job.drop_route = Some(self.route(subnet, before));
        }
        if old_mac.is_some() && new_mac.is_none() {
            let base = subnet.network();
            job.set_arp = self.arp(base).map(|mac| (base, mac));
            job.drop_arp = Some(base).filter(|_| job.set_arp.is_none());
        }
        if let Some(mac) = old_mac.filter(|mac| new_mac != Some(*mac)) {
            self.left.insert(mac);
        }
        job
    }
}

#[cfg(test)]
mod tests;
