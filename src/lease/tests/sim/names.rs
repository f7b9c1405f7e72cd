//! Who the nodes are: most have a NodeID, some worlds have two hosts with one address or one NodeID, hosts are installed
//! anew and change their address while they are away.

use super::check::is_of;
use super::world::{Ev, Node, QUIET, World, ms};
use crate::lease::{Call, Input, Manager, OnLost};
use crate::subnet::{LeaseAttrs, NodeId};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// After this time without faults a host that lives has answered whoever asks.
const CALM: Duration = Duration::from_secs(90 + 70);

impl Node {
    /// Whether the node has this address, or had it.
    pub(super) fn had(&self, ip: Ipv4Addr) -> bool {
        self.attrs.public_ip == ip || self.former.contains(&ip)
    }

    /// The node gets another address.
    pub(super) fn readdress(&mut self, ip: Ipv4Addr) {
        let before = std::mem::replace(&mut self.attrs.public_ip, ip);
        self.former.push(before);
    }
}

impl World {
    /// Makes so many nodes, each with a clock of its own.
    pub(super) fn populate(&mut self, count: u8) {
        for i in 1..=count {
            let on_lost = [OnLost::Exit, OnLost::Exit, OnLost::Reacquire, OnLost::Keep];
            self.nodes.push(Node {
                attrs: LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, i)),
                former: Vec::new(),
                clock: Duration::from_secs(self.rng.random_range(0..1_000_000)),
                on_lost: *on_lost.choose(&mut self.rng).unwrap(),
                manager: None,
                life: 0,
                generation: 0,
                watch: 0,
                watch_from: None,
                env_file: None,
                kept: None,
                partition_until: Duration::ZERO,
                paused_until: Duration::ZERO,
                written: None,
                robbed: None,
                doubt: None,
                routes: BTreeMap::new(),
            });
            let at = ms(self.rng.random_range(0..200));
            self.at(at, Ev::Start { node: usize::from(i - 1) });
        }
        self.name_nodes();
    }

    /// Gives the nodes their names. In half of the worlds two of them have one address, and in a quarter one is a copy of
    /// another: it has the same NodeID.
    fn name_nodes(&mut self) {
        let last = self.nodes.len() - 1;
        for index in 0..=last {
            if self.rng.random_bool(0.8) {
                self.nodes[index].attrs.node_id = Some(NodeId::random(self.rng.random()));
            }
        }
        if self.rng.random_bool(0.5) {
            let twin = self.rng.random_range(0..last);
            self.nodes[last].attrs.public_ip = self.nodes[twin].attrs.public_ip;
            for index in [twin, last] {
                self.nodes[index].attrs.node_id = Some(NodeId::random(self.rng.random()));
            }
        } else if self.rng.random_bool(0.5) {
            // The first node has a reservation, whose end could not be judged.
            let original = self.rng.random_range(1..last);
            for index in [original, last] {
                self.nodes[index].attrs.node_id = Some(NodeId::random(1));
            }
        }
        self.has_arp = self.rng.random_bool(0.3);
    }

    /// Gives every node an address and a name of its own.
    pub(super) fn part_twins(&mut self) {
        for (node, host) in self.nodes.iter_mut().zip(1..) {
            node.attrs.public_ip = Ipv4Addr::new(192, 0, 2, host);
            if node.attrs.node_id.is_some() {
                node.attrs.node_id = Some(NodeId::random(u128::from(host)));
            }
        }
    }

    /// The other node with this node's address or name.
    fn twin(&self, index: usize) -> Option<usize> {
        let own = &self.nodes[index].attrs;
        let same = |other: &usize| {
            let attrs = &self.nodes[*other].attrs;
            let one_name = own.node_id.is_some() && attrs.node_id == own.node_id;
            *other != index && (attrs.public_ip == own.public_ip || one_name)
        };
        (0..self.nodes.len()).find(same)
    }

    /// Whether another node with this address or name holds a subnet, so that this one is refused.
    pub(super) fn is_second(&self, index: usize) -> bool {
        let holds = |node: usize| {
            let manager = self.nodes[node].manager.as_ref();
            manager.and_then(|manager| manager.status().subnet).is_some()
        };
        !holds(index) && self.twin(index).is_some_and(holds)
    }

    /// A node was refused: its unit waits before it starts it again.
    pub(super) fn refused(&mut self, index: usize) {
        self.summary.refused += 1;
        let start = self.within(5000, 30_000);
        self.stop_until(index, start);
    }

    /// While a node is away, its address may change, or it may be installed anew. The node of the reservation and
    /// those that share an address or a name stay as they are, so that the end can be judged.
    pub(super) fn rename(&mut self, index: usize) {
        if index == 0 || self.now >= QUIET || self.twin(index).is_some() || !self.rng.random_bool(0.3) {
            return;
        }
        self.summary.moves += 1;
        if self.rng.random_bool(0.5) {
            let host = self.rng.random_range(100..200);
            self.nodes[index].readdress(Ipv4Addr::new(198, 51, 100, host));
        } else {
            self.nodes[index].attrs.node_id = Some(NodeId::random(self.rng.random()));
            (self.nodes[index].env_file, self.nodes[index].kept) = (None, None);
        }
    }

    /// A node asks the link who has an address.
    pub(super) fn probe(&mut self, node: usize, address: Ipv4Addr) {
        let at = self.now + Duration::from_millis(900);
        self.at(at, Ev::Probed { node, life: self.nodes[node].life, address });
    }

    /// The link's answer.
    pub(super) fn probed(&mut self, index: usize, life: u64, address: Ipv4Addr) {
        if self.nodes[index].life != life {
            return;
        }
        let here = |(other, node): &(usize, &Node)| {
            *other != index && node.attrs.public_ip == address && node.manager.is_some()
        };
        let found = self.has_arp && self.nodes.iter().enumerate().any(|one| here(&one));
        let mac = found.then(|| "02:00:00:00:00:01".to_owned());
        self.input(index, Input::Probed { address, mac });
    }

    /// A write that makes a lease another node's robs the one that held it. Once nothing fails any more, that one must
    /// not have been alive.
    pub(super) fn before_write(&mut self, writer: usize, call: &Call) {
        let Call::Update { held, attrs, .. } = call else { return };
        let Some(former) = self.store.get(held.key).filter(|entry| *entry == held) else { return };
        let one_name = former.attrs.node_id.is_some() && former.attrs.node_id == attrs.node_id;
        let is_question = attrs.asked_by.is_some();
        let is_of_writer = one_name && self.nodes[writer].had(former.attrs.public_ip);
        if is_of_writer || is_question || attrs.says(&former.attrs) {
            return;
        }
        let former = former.clone();
        let lives = self.nodes.iter().enumerate().find(|(index, node)| {
            let status = node.manager.as_ref().map(Manager::status);
            let holds = status.is_some_and(|status| status.subnet == Some(held.key.ipv4));
            *index != writer && holds && former.attrs.node_id.is_some() && is_of(node, &former.attrs)
        });
        if let Some((index, _)) = lives.filter(|_| self.now > CALM) {
            let now = self.now;
            self.broken =
                Some(format!("{now:?}: {attrs:?} took {} from node {index}, which lives", held.key));
        }
        let revision = self.store.revision + 1;
        for (_, node) in self.nodes.iter_mut().enumerate().filter(|(index, _)| *index != writer) {
            let known = node.believes().filter(|entry| entry.key == held.key);
            if let Some(known) = known {
                node.robbed = Some(known.revision.max(revision));
            }
        }
    }
}
