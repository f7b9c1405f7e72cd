//! What a node keeps for its next life, as the daemon keeps it in its state directory.

use super::world::{Node, World};
use crate::lease::{Basis, Cached, How, Manager, Notice};
use crate::store::Entry;
use crate::subnet::Generation;
use std::time::Duration;

/// The least time between two writes, as the daemon has it.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// How long a start waits for the store before it uses what was kept.
const PATIENCE: Duration = Duration::from_millis(300);

/// What a node has kept, and when it was written.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    cached: Cached,
    at: Duration,
}

impl Kept {
    /// The lease that was kept.
    pub(super) fn entry(&self) -> &Entry {
        &self.cached.entry
    }
}

impl Node {
    /// The lease that the node holds or wants back, or, while it is down, the one that it will begin with.
    pub(super) fn believes(&self) -> Option<&Entry> {
        let kept = self.kept.as_ref().map(|kept| &kept.cached.entry);
        self.manager.as_ref().and_then(Manager::lease).or(kept)
    }

    /// Gives a manager that starts now what the node has kept.
    pub(super) fn resume(&self, manager: Manager, now: Duration) -> Manager {
        match &self.kept {
            Some(kept) => manager.with_cached(kept.cached.clone(), now + self.clock + PATIENCE),
            None => manager,
        }
    }
}

impl World {
    /// Keeps what a node knows, at most every few seconds; a lease that is gone is forgotten at once.
    pub(super) fn keep(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(manager) = node.manager.as_ref().filter(|one| one.status().basis == Basis::Store) else {
            return;
        };
        let Some((entry, deadline)) = manager.held() else {
            if manager.lease().is_some() {
                node.kept = None;
            }
            return;
        };
        if node.kept.as_ref().is_some_and(|kept| self.now < kept.at + WRITE_EVERY) {
            return;
        }
        let peers = manager.leases().map(|(key, attrs)| Entry {
            key,
            attrs: attrs.clone(),
            value: attrs.encode(Generation::V3),
            revision: 0,
            lease: None,
        });
        let cached = Cached { entry: entry.clone(), deadline, peers: peers.collect() };
        node.kept = Some(Kept { cached, at: self.now });
    }

    /// Takes note of what concerns a life that began with what was kept.
    pub(super) fn note_kept(&mut self, index: usize, notice: &Notice) {
        match notice {
            Notice::Acquired { how: How::Cached, .. } => self.summary.cached += 1,
            Notice::Lapsed { .. } => self.summary.lapsed += 1,
            Notice::Conflict { .. } | Notice::Forgotten { .. } => self.nodes[index].kept = None,
            _ => {}
        }
    }

    /// Beyond the deadline of an earlier life nothing is forwarded.
    pub(super) fn check_lapsed(&self) -> Result<(), String> {
        let lapsed = |node: &Node| {
            let status = node.manager.as_ref().map(Manager::status);
            status.is_some_and(|one| one.basis != Basis::Store && one.subnet.is_none())
        };
        match self.nodes.iter().find(|node| lapsed(node) && !node.routes.is_empty()) {
            Some(node) => Err(format!("{:?}: routes beyond the deadline: {:?}", self.now, node.routes)),
            None => Ok(()),
        }
    }
}
