//! The nemesis: what goes wrong, as the seed decides.

use super::world::{Ev, QUIET, World};
use crate::subnet::{LeaseAttrs, SubnetKey};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::net::Ipv4Addr;

impl World {
    pub(super) fn nemesis(&mut self) {
        if self.now >= QUIET {
            return;
        }
        let node = self.rng.random_range(0..self.nodes.len());
        let until = self.within(100, 45_000).min(QUIET);
        match self.rng.random_range(0..16) {
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
            _ => {}
        }
        let at = self.within(100, 5000);
        self.at(at, Ev::Nemesis);
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
        if action == 12 && !self.nodes.iter().any(|node| self.hold(node) == Some(entry.key.ipv4)) {
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

    fn rob(&mut self, key: SubnetKey) {
        let revision = self.store.revision + 1;
        for node in &mut self.nodes {
            let held = node.believes();
            let owns = self.store.get(key).is_some_and(|entry| entry.attrs.public_ip == node.ip);
            if owns || held.is_some_and(|entry| entry.key == key) {
                // What the node knows may be of a store before a restore.
                node.robbed = Some(held.map_or(revision, |entry| entry.revision.max(revision)));
            }
        }
    }
}
