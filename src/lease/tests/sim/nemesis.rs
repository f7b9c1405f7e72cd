//! The nemesis: what goes wrong, as the seed decides.

use super::check::is_of;
use super::world::{Ev, QUIET, World};
use crate::lease::{Call, Input, Reply};
use crate::store::Error;
use crate::subnet::{LeaseAttrs, SubnetKey};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::net::Ipv4Addr;
use std::time::Duration;

impl World {
    pub(super) fn nemesis(&mut self) {
        if self.now >= QUIET {
            return;
        }
        let node = self.rng.random_range(0..self.nodes.len());
        let until = self.within(100, 45_000).min(QUIET);
        match self.rng.random_range(0..18) {
            0..=2 => self.nodes[node].partition_until = until,
            3 | 4 => self.nodes[node].paused_until = until,
            5 | 6 if self.nodes[node].manager.is_some() => {
                if self.rng.random_bool(0.3) {
                    self.nodes[node].env_file = None;
                }
                if self.rng.random_bool(0.3) {
                    self.nodes[node].kept = None;
                }
                self.stop(node);
            }
            7 | 8 => {
                self.summary.compactions += 1;
                self.store.compact();
            }
            action @ 9..=13 => self.tamper(action),
            14 => self.snapshots.push(self.store.clone()),
            15 if self.rng.random_bool(0.4) => self.restore(),
            // A node that sleeps learns of it when it wakes, as if it came then.
            16 | 17 if self.nodes[node].paused_until <= self.now && !self.has_reservation(node) => {
                self.readdress(node);
            }
            _ => {}
        }
        let at = self.within(100, 5000);
        self.at(at, Ev::Nemesis);
    }

    /// The host of this node gets an address that nobody has had.
    pub(super) fn readdress(&mut self, index: usize) {
        self.summary.readdressed += 1;
        let number = u16::try_from(self.summary.readdressed).unwrap_or(u16::MAX);
        let [third, fourth] = number.to_be_bytes();
        let ip = Ipv4Addr::new(198, 18, third, fourth);
        let node = &mut self.nodes[index];
        node.readdress(ip);
        // The connections of the old address are given up, with the answers that were on their way.
        node.life += 1;
        node.watch += 1;
        node.watch_from = None;
        self.input(index, Input::Publish(LeaseAttrs::new(ip)));
    }

    /// Whether the store reserves a subnet for a node. With another address, it would not find that at its next start.
    fn has_reservation(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let entries = self.store.list().entries;
        entries.iter().any(|entry| entry.lease.is_none() && is_of(node, &entry.attrs))
    }

    /// An operator changes keys by hand, but never a reservation that was there at the start.
    fn tamper(&mut self, action: u32) {
        let mut keys = self.store.list().entries;
        keys.retain(|entry| self.reserved.iter().all(|(reserved, _)| *reserved != entry.key));
        if action == 13 && self.rng.random_bool(0.5) {
            // The store is wiped.
            for entry in keys {
                self.rob(entry.key);
                self.store.remove(entry.key);
            }
            return;
        }
        let Some(entry) = keys.choose(&mut self.rng).cloned() else { return };
        let holder = self.nodes.iter().find(|node| self.hold(node) == Some(entry.key.ipv4));
        if action == 12 && holder.is_none_or(|node| node.attrs.public_ip != entry.attrs.public_ip) {
            return; // a reservation for nobody would only make the pool smaller
        }
        let expires = Some(self.within(1000, 20_000));
        self.rob(entry.key);
        match action {
            9 | 10 => self.store.remove(entry.key),
            11 => drop(self.store.put(entry.key, &LeaseAttrs::new(Ipv4Addr::new(203, 0, 113, 77)), expires)),
            12 => drop(self.store.put(entry.key, &entry.attrs, None)),
            _ => self.store.put_garbage(entry.key, expires),
        }
        if self.verbose {
            println!("{:>12.3?} nemesis {action} on {}", self.now, entry.key);
        }
    }

    /// A call gets no answer.
    pub(super) fn no_answer(&mut self, node: usize, life: u64, call: &Call, at: Duration) {
        let error = Error::Unavailable("no answer".to_owned());
        let reply = match call {
            Call::List => Reply::Listed(Err(error)),
            Call::Create { .. } => Reply::Created(Err(error)),
            Call::Update { .. } => Reply::Updated(Err(error)),
            Call::Delete { .. } => Reply::Deleted(Err(error)),
        };
        // Some networks refuse at once, some are silent.
        let at =
            if self.rng.random_bool(0.3) { self.now + Duration::from_millis(5) } else { at.max(self.now) };
        self.at(at, Ev::Reply { node, life, reply, restores: self.restores });
    }

    fn rob(&mut self, key: SubnetKey) {
        let revision = self.store.revision + 1;
        for node in &mut self.nodes {
            let held = node.believes();
            let owns = self.store.get(key).is_some_and(|entry| is_of(node, &entry.attrs));
            if owns || held.is_some_and(|entry| entry.key == key) {
                // What the node knows may be of a store before a restore.
                node.robbed = Some(held.map_or(revision, |entry| entry.revision.max(revision)));
            }
        }
    }
}
