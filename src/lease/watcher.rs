//! The peers: every lease of the network except our own, as last known.
//!
//! A list is compared with what is known over all attributes, additions come out before removals, and a
//! key whose value has become unreadable keeps the last good one. A list that lacks more than half of
//! four or more peers is suspect (a wiped store, a partial restore): its removals wait for a second list.

use super::Notice;
use super::identity::Identity;
use crate::store::{Change, Entry, Skipped};
use crate::subnet::{Event, Lease, LeaseAttrs, SubnetKey, overlap};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// More refusals at once share a notice: after a change of the network's range, all leases of the old one are refused.
const MOST_REFUSALS: usize = 20;

/// What the watcher has counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Keys and values that could not be read. Each counts once as long as it stands.
    pub skipped: u64,
    /// Leases outside the network, over our subnet, or with an address that nobody can send to.
    pub rejected: u64,
    /// Differences that a list beside a running watch found. Each is an event that the watch has lost.
    pub repairs: u64,
    /// Leases that were refused or given up because their subnets hold an address of this host.
    pub conflicts: u64,
    /// Lists whose removals were held back.
    pub withheld: u64,
    /// Lists that the store was asked for.
    pub lists: u64,
    /// Watches by which the store has shown after a failure that it is the same, so that no list was needed.
    pub proofs: u64,
    /// Leases of peers that another node, or the same under another PublicIP, has taken over as they stood.
    pub handovers: u64,
    /// Times that another host wrote our own lease as its own.
    pub overwrites: u64,
}

/// A list can be suspect only if this many peers are known.
const GUARD_MIN_PEERS: usize = 4;
/// A suspect list is believed if another one says the same after this time or later.
pub(super) const CONFIRM_AFTER: Duration = Duration::from_secs(10);

/// All peers, and what was refused as a peer.
#[derive(Debug)]
pub(super) struct Watcher {
    network: Ipv4Net,
    /// The key that we hold or want back.
    own: Option<SubnetKey>,
    /// A subnet and the key that holds it: `10.1.5.0-24` and `10.1.5.0-24&fc00::-64` are two keys of one IPv4 subnet.
    peers: BTreeMap<Ipv4Net, (SubnetKey, LeaseAttrs)>,
    /// Each key that was refused, and what was said about it.
    refused: BTreeMap<String, String>,
    /// When a list became suspect, while its removals are held back.
    withheld_at: Option<Duration>,
    counters: Counters,
    notices: Vec<Notice>,
}

/// What an entry is to us.
enum Verdict {
    Peer,
    Own,
    /// Its PublicIP is ours, but it is not the subnet that we hold, so no peer has it.
    Stray(String),
    Reject(&'static str),
    /// It would take something away from this host.
    Harm(String),
}

impl Watcher {
    /// A watcher that knows no peers yet.
    pub(super) fn new(network: Ipv4Net) -> Self {
        Self {
            network,
            own: None,
            peers: BTreeMap::new(),
            refused: BTreeMap::new(),
            withheld_at: None,
            counters: Counters::default(),
            notices: Vec::new(),
        }
    }

    /// All peers, in order of their subnets.
    #[cfg(test)]
    pub(super) fn peers(&self) -> impl Iterator<Item = (Ipv4Net, &LeaseAttrs)> {
        self.peers.iter().map(|(subnet, (_, attrs))| (*subnet, attrs))
    }

    /// The leases of all peers, in order of their subnets.
    pub(super) fn leases(&self) -> impl ExactSizeIterator<Item = (SubnetKey, &LeaseAttrs)> {
        self.peers.values().map(|(key, attrs)| (*key, attrs))
    }

    /// How many peers there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// What was counted since the start.
    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Forgets all peers and takes `own` for our key. Returns the removal of every peer.
    pub(super) fn restart(&mut self, own: Option<SubnetKey>) -> Vec<Event> {
        self.own = own;
        self.withheld_at = None;
        let peers = std::mem::take(&mut self.peers);
        peers.into_iter().map(|(subnet, (_, attrs))| Event::Removed(Lease { subnet, attrs })).collect()
    }

    /// Whether another key than ours holds part of our subnet: one of another prefix length, or that of a dual-stack
    /// node. Such a lease was refused.
    pub(super) fn is_overlapped(&self) -> bool {
        let Some(own) = self.own else { return false };
        let keys = self.refused.keys().filter_map(|key| key.parse::<SubnetKey>().ok());
        keys.filter(|key| *key != own).any(|key| overlap(key.ipv4, own.ipv4))
    }

    /// The key that we hold or want back.
    pub(super) fn own(&self) -> Option<SubnetKey> {
        self.own
    }

    /// What is to be said about keys and values that were refused since the last call.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        let notices = std::mem::take(&mut self.notices);
        let is_refusal = |notice: &Notice| matches!(notice, Notice::Refused { .. });
        if notices.iter().filter(|notice| is_refusal(notice)).count() <= MOST_REFUSALS {
            return notices;
        }
        let (refusals, mut notices): (Vec<_>, Vec<_>) = notices.into_iter().partition(is_refusal);
        let pair = |notice| match notice {
            Notice::Refused { key, reason } => Some((key, reason)),
            _ => None,
        };
        notices.push(Notice::ManyRefused(refusals.into_iter().filter_map(pair).collect()));
        notices
    }

    /// When another list may confirm a suspect one, if there is one.
    pub(super) fn confirm_at(&self) -> Option<Duration> {
        self.withheld_at.map(|at| at + CONFIRM_AFTER)
    }

    /// Makes the peers what a list says, and returns the difference. `repair`: only events that the watch has lost
    /// can make a difference now.
    pub(super) fn snapshot(
        &mut self,
        us: &Identity,
        now: Duration,
        entries: &[Entry],
        skipped: &[Skipped],
        repair: bool,
    ) -> Vec<Event> {
        let mut refused = BTreeSet::new();
        let mut wanted: BTreeMap<Ipv4Net, (SubnetKey, LeaseAttrs)> = BTreeMap::new();
        let mut last_good = Vec::new();
        let mut entries: Vec<&Entry> = entries.iter().collect();
        entries.sort_by_key(|entry| entry.revision);
        for entry in entries {
            match self.judge(us, entry) {
                Verdict::Own => {}
                Verdict::Peer => drop(wanted.insert(entry.key.subnet(), (entry.key, entry.attrs.clone()))),
                Verdict::Stray(reason) => {
                    refused.insert(entry.key.to_string());
                    self.reject(entry.key, &reason);
                }
                Verdict::Reject(reason) => {
                    refused.insert(entry.key.to_string());
                    self.reject(entry.key, reason);
                    last_good.push(entry.key);
                }
                Verdict::Harm(reason) => {
                    refused.insert(entry.key.to_string());
                    self.object(entry.key, reason);
                }
            }
        }
        for skip in skipped {
            refused.insert(skip.key.clone());
            self.skip(skip);
            last_good.extend(skip.key.parse::<SubnetKey>());
        }
        self.refused.retain(|key, _| refused.contains(key));
        for key in last_good {
            if let Some(peer) = self.peers.get(&key.subnet()).filter(|peer| peer.0 == key) {
                wanted.entry(key.subnet()).or_insert_with(|| peer.clone());
            }
        }
        let events = self.replace(us, now, wanted);
        if repair {
            self.counters.repairs += events.len() as u64;
        }
        events
    }

    fn replace(
        &mut self,
        us: &Identity,
        now: Duration,
        wanted: BTreeMap<Ipv4Net, (SubnetKey, LeaseAttrs)>,
    ) -> Vec<Event> {
        let mut gone: Vec<Ipv4Net> =
            self.peers.keys().filter(|subnet| !wanted.contains_key(subnet)).copied().collect();
        let many = self.peers.len() >= GUARD_MIN_PEERS && gone.len() * 2 > self.peers.len();
        let suspect = many || (self.withheld_at.is_some() && !gone.is_empty());
        if suspect && self.confirm_at().is_none_or(|at| now < at) {
            if self.withheld_at.is_none() {
                self.withheld_at = Some(now);
                self.counters.withheld += 1;
                self.notices.push(Notice::Withheld { count: gone.len() });
            }
            gone.clear();
        } else {
            self.withheld_at = None;
        }
        debug_assert!(self.confirm_at().is_none_or(|at| at > now), "a list would follow on this one at once");
        let count = wanted.len();
        let mut events = Vec::new();
        for (subnet, peer) in wanted {
            events.extend(self.put(us, subnet, peer));
        }
        for subnet in gone {
            let removed = self.peers.remove(&subnet);
            events.extend(removed.map(|(_, attrs)| Event::Removed(Lease { subnet, attrs })));
        }
        let withheld = self.withheld_at.is_some();
        debug_assert!(self.peers.len() == count || withheld, "the peers are not what the list says");
        events
    }

    /// Takes one change. Changes come in the store's order.
    pub(super) fn apply(&mut self, us: &Identity, change: &Change) -> Option<Event> {
        match change {
            Change::Set(entry) => match self.judge(us, entry) {
                Verdict::Own => None,
                Verdict::Peer => {
                    self.refused.remove(&entry.key.to_string());
                    self.put(us, entry.key.subnet(), (entry.key, entry.attrs.clone()))
                }
                Verdict::Stray(reason) => {
                    self.reject(entry.key, &reason);
                    self.remove(entry.key)
                }
                Verdict::Reject(reason) => {
                    self.reject(entry.key, reason);
                    None
                }
                Verdict::Harm(reason) => {
                    self.object(entry.key, reason);
                    self.remove(entry.key)
                }
            },
            Change::Gone { key, .. } => {
                self.refused.remove(&key.to_string());
                self.remove(*key)
            }
            Change::Skipped(skip) => {
                self.skip(skip);
                None
            }
        }
    }

    fn remove(&mut self, key: SubnetKey) -> Option<Event> {
        let subnet = key.subnet();
        if self.peers.get(&subnet).is_none_or(|peer| peer.0 != key) {
            return None;
        }
        let (_, attrs) = self.peers.remove(&subnet)?;
        Some(Event::Removed(Lease { subnet, attrs }))
    }

    /// Takes a peer as it now is. A renewal changes nothing, so it is no event.
    fn put(&mut self, us: &Identity, subnet: Ipv4Net, mut peer: (SubnetKey, LeaseAttrs)) -> Option<Event> {
        // The question whether it lives is for the peer alone.
        peer.1.asked_by = None;
        debug_assert!(peer.0.subnet() == subnet, "{} is filed under {subnet}", peer.0);
        debug_assert!(
            self.own.is_none_or(|own| !overlap(own.ipv4, subnet)),
            "{subnet} is our own: {:?}",
            self.own
        );
        debug_assert!(self.network.contains(&subnet), "{subnet} lies outside of {}", self.network);
        let known = self.peers.get(&subnet).map(|(_, known)| known.clone());
        if known.as_ref() == Some(&peer.1) {
            self.peers.insert(subnet, peer);
            return None;
        }
        let attrs = peer.1.clone();
        self.peers.insert(subnet, peer);
        if us.has_name(&attrs) && known.as_ref().is_none_or(|known| !us.has_name(known)) {
            self.notices.push(Notice::Namesake { subnet, by: Box::new(attrs.clone()) });
        }
        if let Some(known) = known {
            let renamed =
                known.node_id.is_some() && attrs.node_id.is_some() && known.node_id != attrs.node_id;
            if renamed || known.public_ip != attrs.public_ip {
                self.counters.handovers += 1;
                self.notices.push(Notice::ChangedHands {
                    subnet,
                    from: Box::new(known),
                    to: Box::new(attrs.clone()),
                });
            }
        }
        Some(Event::Added(Lease { subnet, attrs }))
    }

    fn judge(&self, us: &Identity, entry: &Entry) -> Verdict {
        let subnet = entry.key.subnet();
        let ip = entry.attrs.public_ip;
        match self.own {
            Some(own) if own == entry.key => return Verdict::Own,
            Some(own) if overlap(own.ipv4, subnet) => return Verdict::Reject("it overlaps our own subnet"),
            _ => {}
        }
        if !self.network.contains(&subnet) {
            Verdict::Reject("it lies outside the network")
        } else if let Some(reason) = us.objection(subnet) {
            Verdict::Harm(reason)
        } else if us.has_address(ip) {
            Verdict::Stray(match &entry.attrs.node_id {
                Some(node) if us.claim(entry).is_some() => {
                    format!("its PublicIP is our own, and its node id is another one: {node}")
                }
                _ => "its PublicIP is our own".to_owned(),
            })
        } else if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            Verdict::Reject("nobody can send to its PublicIP")
        } else {
            Verdict::Peer
        }
    }

    fn reject(&mut self, key: SubnetKey, reason: &str) {
        if self.refuse(key.to_string(), reason.to_owned()) {
            self.counters.rejected += 1;
        }
    }

    fn object(&mut self, key: SubnetKey, reason: String) {
        if self.refuse(key.to_string(), reason) {
            self.counters.conflicts += 1;
        }
    }

    fn skip(&mut self, skip: &Skipped) {
        if self.refuse(skip.key.clone(), skip.reason.clone()) {
            self.counters.skipped += 1;
        }
    }

    /// Remembers that a key was refused. Returns whether that is news.
    fn refuse(&mut self, key: String, reason: String) -> bool {
        let news = self.refused.get(&key) != Some(&reason);
        if news {
            self.notices.push(Notice::Refused { key: key.clone(), reason: reason.clone() });
        }
        self.refused.insert(key, reason);
        news
    }
}

#[cfg(test)]
mod tests;
