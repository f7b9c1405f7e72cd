//! The checker: what must hold at any instant, and what must hold at the end.

use super::world::{Node, World};
use crate::lease::OnLost;
use crate::subnet::{LeaseAttrs, SubnetKey, overlap};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Whether what the store holds is the lease of this node.
pub(super) fn is_of(node: &Node, stored: &LeaseAttrs) -> bool {
    let is_same_name = match (&stored.node_id, &node.attrs.node_id) {
        (Some(stored), Some(own)) => stored == own,
        (None, _) | (_, None) => true,
    };
    is_same_name && node.had(stored.public_ip)
}

impl World {
    /// What a node holds now, as far as anybody promises anything.
    pub(super) fn hold(&self, node: &Node) -> Option<Ipv4Net> {
        let manager = node.manager.as_ref()?;
        let status = manager.status();
        let subnet = status.subnet?;
        if status.deadline.is_some_and(|deadline| deadline <= self.now + node.clock) {
            return None;
        }
        if node.doubt.is_some() {
            return None;
        }
        let revision = manager.lease()?.revision;
        node.robbed.is_none_or(|robbed| revision > robbed).then_some(subnet)
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        self.check_doubts()?;
        self.check_lapsed()?;
        self.broken.take().map_or(Ok(()), Err)?;
        let holds: Vec<(&Node, Ipv4Net)> =
            self.nodes.iter().filter_map(|node| Some((node, self.hold(node)?))).collect();
        for (i, (node, subnet)) in holds.iter().enumerate() {
            let attrs = &node.attrs;
            if let Some((other, theirs)) = holds[..i].iter().find(|(_, net)| overlap(*net, *subnet)) {
                let other = &other.attrs;
                return Err(format!("{:?}: {attrs:?} holds {subnet}, {other:?} holds {theirs}", self.now));
            }
            let stored = self.store.get(SubnetKey::v4(*subnet)).map(|entry| &entry.attrs);
            if !stored.is_some_and(|stored| is_of(node, stored)) {
                return Err(format!("{:?}: {attrs:?} holds {subnet}, the store says {stored:?}", self.now));
            }
        }
        Ok(())
    }

    /// Whether an address is the one that it was, or one that the same node has got since.
    fn is_same(&self, before: Ipv4Addr, now: Ipv4Addr) -> bool {
        before == now || self.nodes.iter().any(|node| node.had(before) && node.had(now))
    }

    pub(super) fn check_end(&self) -> Result<(), String> {
        let listing = self.store.list();
        for (key, ip) in &self.reserved {
            match self.store.get(*key) {
                Some(entry) if entry.lease.is_none() && self.is_same(*ip, entry.attrs.public_ip) => {}
                other => return Err(format!("reservation {key} of {ip} became {other:?}")),
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let ip = node.attrs.public_ip;
            if self.is_second(index) {
                continue;
            }
            let Some(manager) = &node.manager else { return Err(format!("{ip} is down at the end")) };
            let Some(subnet) = manager.status().subnet else {
                let wanted = manager.lease().map(|entry| entry.key);
                let other = wanted.and_then(|key| self.store.get(key));
                if node.on_lost == OnLost::Keep && other.is_some_and(|other| !is_of(node, &other.attrs)) {
                    continue;
                }
                return Err(format!("{ip} holds nothing at the end: {manager:?}"));
            };
            let stored = self.store.get(SubnetKey::v4(subnet)).map(|entry| entry.attrs.public_ip);
            if stored != Some(ip) {
                return Err(format!("{ip} holds {subnet} at the end, and the store says {stored:?}"));
            }
            let wanted: BTreeMap<Ipv4Net, LeaseAttrs> = listing
                .entries
                .iter()
                .filter(|entry| entry.key.ipv4 != subnet && entry.attrs.public_ip != ip)
                .map(|entry| (entry.key.ipv4, LeaseAttrs { asked_by: None, ..entry.attrs.clone() }))
                .collect();
            let known = manager.peers().map(|(subnet, attrs)| (subnet, attrs.clone())).collect();
            if wanted != known {
                return Err(format!("{ip} knows {known:?}\nthe store has {wanted:?}"));
            }
            if node.routes != known {
                return Err(format!("{ip}: by events {:?}\nin the table {known:?}", node.routes));
            }
        }
        Ok(())
    }
}
