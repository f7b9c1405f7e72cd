//! Who we are in the store, and whether an entry is ours. All parts of the machine ask here and nowhere else.

use crate::store::Entry;
use crate::subnet::{LeaseAttrs, NodeId, Underlay};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// How many earlier values we know again. An answer or a change that speaks of an older one is long past.
const MOST_FORMER: usize = 8;

/// What we publish, and by it what is ours. The manager alone holds it; its parts get it with each call, so that
/// they all know of a change at once.
///
/// An entry is ours by its NodeID, or by our PublicIP if it has none, as entries of flannel have. A NodeID that was
/// derived from the machine id counts only together with our PublicIP, since clones of a host have it too.
#[derive(Debug, Clone)]
pub struct Identity {
    attrs: LeaseAttrs,
    underlay: Underlay,
    /// The NodeID that we have without a better one, and under which an earlier run may have written.
    of_machine: Option<NodeId>,
    /// What we published before, the oldest first. A late write of our own may still bring it.
    former: Vec<LeaseAttrs>,
}

/// Why an entry may be another living host's although it looks like ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It has our PublicIP under another NodeID: a second host with our address, or this host before it was
    /// installed anew.
    Address,
    /// It has our NodeID under a PublicIP that this run has never had: this host before its address changed, or a copy
    /// of it.
    Name,
}

impl Identity {
    /// The identity of the node that publishes `attrs`. `of_machine` is the NodeID that is derived from the machine
    /// id, if there is one.
    pub fn new(attrs: LeaseAttrs, of_machine: Option<NodeId>) -> Self {
        debug_assert!(of_machine.as_ref().is_none_or(NodeId::is_of_machine), "{of_machine:?}");
        Self { attrs, of_machine, underlay: Underlay::default(), former: Vec::new() }
    }

    /// What we publish in the store.
    pub fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    /// Publishes `attrs` from now on, under the name that we have. False if that is nothing new.
    pub(super) fn publish(&mut self, attrs: LeaseAttrs) -> bool {
        let attrs = LeaseAttrs { node_id: self.attrs.node_id.clone(), ..attrs };
        if attrs == self.attrs {
            return false;
        }
        let old = std::mem::replace(&mut self.attrs, attrs);
        self.former.retain(|former| *former != old && *former != self.attrs);
        self.former.push(old);
        if self.former.len() > MOST_FORMER {
            self.former.remove(0);
        }
        true
    }

    /// Whether this entry is ours, as far as it tells. A search looks for a [`Claim`] first.
    pub fn owns(&self, entry: &Entry) -> bool {
        let (ours, theirs) = (&self.attrs.node_id, &entry.attrs.node_id);
        let is_ours = match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours == theirs && !ours.is_of_machine() => true,
            (Some(ours), Some(theirs)) => {
                let ours_once = self.of_machine.as_ref() == Some(theirs) || ours == theirs;
                ours_once && self.has_address(entry.attrs.public_ip)
            }
            (None, _) | (_, None) => self.has_address(entry.attrs.public_ip),
        };
        is_ours || self.published(entry)
    }

    /// Whether this run has published this value. Somebody may have asked in it whether we live.
    fn published(&self, entry: &Entry) -> bool {
        self.attrs.says(&entry.attrs) || self.former.iter().any(|former| former.says(&entry.attrs))
    }

    /// Whether a packet to this address comes to us.
    pub(super) fn has_address(&self, address: Ipv4Addr) -> bool {
        address == self.attrs.public_ip
    }

    /// Takes note of what lies under the overlay.
    pub(super) fn set_underlay(&mut self, underlay: Underlay) {
        self.underlay = underlay;
    }

    /// What lies under the overlay.
    pub(super) fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Why nobody may use `subnet`, for the sake of this host; `None` if all is well.
    pub(super) fn objection(&self, subnet: Ipv4Net) -> Option<String> {
        let own = self.underlay.taken_by(subnet)?;
        Some(format!("it holds this host's own address {own}, which would no longer be reached"))
    }

    /// Why this entry may be another living host's, if it looks like ours and may not be.
    pub(super) fn claim(&self, entry: &Entry) -> Option<Claim> {
        let is_known = self.has_address(entry.attrs.public_ip) || self.published(entry);
        match (self.owns(entry), is_known) {
            (true, false) => Some(Claim::Name),
            (false, true) => Some(Claim::Address),
            (true, true) | (false, false) => None,
        }
    }

    /// Whether this entry is ours and can be nobody else's.
    pub(super) fn is_surely(&self, entry: &Entry) -> bool {
        self.owns(entry) && self.claim(entry).is_none()
    }

    /// Whether the write that made this entry of ours was made by somebody else: our own writes have our NodeID, and
    /// a PublicIP that this run has or had.
    pub(super) fn is_foreign(&self, entry: &Entry) -> bool {
        let is_as_ours = entry.attrs.node_id == self.attrs.node_id && self.has_address(entry.attrs.public_ip);
        !is_as_ours && !self.published(entry)
    }

    /// Whether another node has published our NodeID. One that is derived from the machine id is no name of ours alone.
    pub(super) fn has_name(&self, attrs: &LeaseAttrs) -> bool {
        let own = self.attrs.node_id.as_ref().filter(|own| !own.is_of_machine());
        own.is_some() && own == attrs.node_id.as_ref()
    }

    /// The same entry with the question whether its owner lives.
    pub(super) fn ask(&self, entry: &Entry) -> LeaseAttrs {
        LeaseAttrs { asked_by: self.attrs.node_id.clone(), ..entry.attrs.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::{Generation, SubnetKey};

    fn entry(host: u8, node: Option<&NodeId>) -> Entry {
        let attrs = LeaseAttrs { node_id: node.cloned(), ..LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, host)) };
        let value = attrs.encode(Generation::V3);
        Entry {
            key: SubnetKey::v4("10.5.1.0/24".parse().unwrap()),
            attrs,
            value,
            revision: 1,
            lease: Some(1),
        }
    }

    #[test]
    fn what_this_run_has_published_is_ours_without_a_doubt() {
        for node in [None, Some(NodeId::random(1)), Some(NodeId::of_machine(3))] {
            let mut us = Identity::new(entry(1, node.as_ref()).attrs, None);
            // The backend knows nothing of the name.
            assert!(us.publish(entry(2, None).attrs) && !us.publish(entry(2, None).attrs));
            assert_eq!(us.attrs(), &entry(2, node.as_ref()).attrs);
            let mut before = entry(1, node.as_ref());
            for asked_by in [None, Some(NodeId::random(9))] {
                before.attrs.asked_by = asked_by;
                assert_eq!(
                    (us.owns(&before), us.claim(&before), us.is_foreign(&before)),
                    (true, None, false)
                );
            }
            // Another host may have the old address by now.
            let other = entry(1, Some(&NodeId::random(2)));
            assert_eq!((us.owns(&other), us.claim(&other)), (false, None), "{node:?}");
        }
    }

    #[test]
    fn what_is_ours() {
        let (kept, other) = (NodeId::random(1), NodeId::random(2));
        let (machine, others) = (NodeId::of_machine(3), NodeId::of_machine(4));
        let us = |node: Option<&NodeId>, of_machine: &NodeId| {
            Identity::new(entry(1, node).attrs, Some(of_machine.clone()))
        };
        // (our NodeID, the entry's PublicIP and NodeID, ours, claim)
        let table = [
            // Entries of flannel, and a daemon without a NodeID: the address decides.
            (Some(&kept), 1, None, true, None),
            (Some(&kept), 2, None, false, None),
            (None, 1, Some(&other), true, None),
            (None, 2, Some(&other), false, None),
            // A NodeID that was kept or given.
            (Some(&kept), 1, Some(&kept), true, None),
            (Some(&kept), 2, Some(&kept), true, Some(Claim::Name)),
            (Some(&kept), 1, Some(&other), false, Some(Claim::Address)),
            (Some(&kept), 2, Some(&other), false, None),
            // One that was derived: clones have it too, so the address has to agree.
            (Some(&machine), 1, Some(&machine), true, None),
            (Some(&machine), 2, Some(&machine), false, None),
            (Some(&machine), 1, Some(&others), false, Some(Claim::Address)),
            // A host that has had no state directory so far.
            (Some(&kept), 1, Some(&machine), true, None),
            (Some(&kept), 2, Some(&machine), false, None),
        ];
        for (ours, host, theirs, is_ours, claim) in table {
            let (us, entry) = (us(ours, &machine), entry(host, theirs));
            assert_eq!((us.owns(&entry), us.claim(&entry)), (is_ours, claim), "{us:?} {entry:?}");
        }
    }
}
