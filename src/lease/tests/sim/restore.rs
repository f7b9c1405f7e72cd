//! The store is restored from an older state: what it has promised since is void.
//!
//! After that two nodes can hold one subnet: the one whose key the store has forgotten, and one that it gives
//! the subnet to. The first cannot know before it has heard from the store again: it is in doubt. A list that
//! leaves nothing open or a write of its own ends the doubt at once. Either has to come soon: see [`BOUND`].

use super::check::is_of;
use super::world::{Doubt, Ev, QUIET, TIMEOUT, World};
use crate::lease::{Manager, Reply};
use crate::store::{Error, Listing, Revision, Seen};
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::time::Duration;

/// How long a node that hears from a restored store may believe in what it held before, apart from the time that
/// its [`CALLS`] take: the store has 5 s to prove by a watch that it is the same.
const BOUND: Duration = Duration::from_secs(2 + 5);
/// The calls of that time: one that is under way, a list within a second of it, a write.
const CALLS: u32 = 3;

impl World {
    /// The store goes down and comes back as it was at some time before.
    pub(super) fn restore(&mut self) {
        let Some(snapshot) = self.snapshots.choose(&mut self.rng).cloned() else { return };
        if self.verbose {
            println!("{:>12.3?} restored: {} -> {}", self.now, self.store.revision, snapshot.revision);
        }
        self.summary.restores += 1;
        self.restores += 1;
        let before = std::mem::replace(&mut self.store, snapshot);
        self.store.leases_after(&before);
        self.store.tick(self.now);
        self.drop_requests();
        for index in 0..self.nodes.len() {
            let up = self.within(100, 5000).min(QUIET);
            let node = &mut self.nodes[index];
            node.partition_until = node.partition_until.max(up);
            // A value that nobody can read tells nobody that a lease is void.
            let held = node.believes();
            let robbed = held.filter(|held| self.store.is_garbage(held.key));
            node.robbed = robbed.map(|held| held.revision.max(self.store.revision));
            node.doubt = (node.manager.is_some() || node.kept.is_some()).then_some(Doubt::Deaf);
            if node.watch_from.take().is_some() {
                let (watch, at) = (node.watch, node.partition_until);
                let error = Error::Unavailable("reset".to_owned());
                self.at(at, Ev::WatchFail { node: index, watch, error });
            }
        }
    }

    /// What was on its way to the old store gets no answer. Half of it reaches the new store, late.
    fn drop_requests(&mut self) {
        let requests = self.queue.iter().filter(|(_, ev)| matches!(ev, Ev::Request { .. }));
        let requests: Vec<_> = requests.map(|(at, _)| *at).collect();
        for at in requests {
            let Some(Ev::Request { node, life, call, reply_by }) = self.queue.remove(&at) else { continue };
            if let Some(by) = reply_by {
                self.no_answer(node, life, &call, by);
            }
            if self.rng.random_bool(0.5) {
                let late = self.within(0, 20_000);
                self.at(at.0.max(late), Ev::Request { node, life, call, reply_by: None });
            }
        }
    }

    /// A node gets an answer, which the store gave after so many restores.
    pub(super) fn hear(&mut self, index: usize, reply: &Reply, restores: u64) {
        let (error, knows) = match reply {
            Reply::Listed(result) => {
                (result.as_ref().err(), result.as_ref().is_ok_and(|list| self.knows(index, list)))
            }
            Reply::Created(result) | Reply::Updated(result) => (result.as_ref().err(), result.is_ok()),
            Reply::Deleted(result) => (result.as_ref().err(), false),
            Reply::Outgrown(_) => (None, false),
        };
        if let Reply::Created(Ok(entry)) | Reply::Updated(Ok(entry)) = reply {
            self.nodes[index].written = Some(entry.clone());
        }
        if restores != self.restores
            && let Reply::Created(Ok(entry)) | Reply::Updated(Ok(entry)) = reply
        {
            // The store has forgotten this write, whose revision may be newer than what took the key since.
            let robbed = &mut self.nodes[index].robbed;
            *robbed = robbed.map(|robbed| robbed.max(entry.revision));
        }
        if matches!(error, Some(Error::Unavailable(_))) {
            self.deafen(index);
        } else if restores == self.restores {
            self.heard(index);
            if knows {
                self.nodes[index].doubt = None;
            }
        }
    }

    /// Whether this list tells a node that what it believes is right or that it is wrong. A lease of its own that
    /// it has not written last, perhaps an older copy, says nothing about when it ends, so the node has to write.
    fn knows(&self, index: usize, list: &Listing) -> bool {
        let node = &self.nodes[index];
        let Some(held) = node.manager.as_ref().and_then(Manager::lease) else { return true };
        let found = list.entries.iter().find(|entry| entry.key == held.key);
        let is_own = |entry| entry == held && node.written.as_ref() == Some(held);
        found.is_none_or(|entry| is_own(entry) || !is_of(node, &entry.attrs) || entry.lease.is_none())
    }

    /// Whether the store can start a watch, and has made what this node has seen.
    pub(super) fn shown(&mut self, index: usize, from: Revision, seen: Option<&Seen>) -> Result<(), Error> {
        self.store.changes(from)?;
        match seen {
            None => {}
            Some(seen) if self.store.shows(seen) => {
                self.summary.proven += 1;
                self.proven(index);
            }
            Some(_) => {
                self.summary.unproven += 1;
                return Err(Error::Compacted);
            }
        }
        Ok(())
    }

    /// The store has made all that this node has seen, so a restore has made nothing of it void. What it has made since,
    /// the watch brings.
    fn proven(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let held = node.manager.as_ref().and_then(Manager::lease);
        let is_own = held.is_none_or(|held| held.lease.is_none() || node.written.as_ref() == Some(held));
        if node.doubt.is_none() || !is_own {
            return;
        }
        node.doubt = None;
        let robbed = held.filter(|held| self.store.get(held.key) != Some(held));
        node.robbed = robbed.map(|held| held.revision.max(self.store.revision));
    }

    pub(super) fn heard(&mut self, index: usize) {
        let now = self.now;
        if let Some(doubt @ Doubt::Deaf) = &mut self.nodes[index].doubt {
            *doubt = Doubt::Hears(now);
        }
    }

    pub(super) fn deafen(&mut self, index: usize) {
        if let Some(doubt) = &mut self.nodes[index].doubt {
            *doubt = Doubt::Deaf;
        }
    }

    /// A node that hears from the store must not stay in doubt.
    pub(super) fn check_doubts(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            if self.nodes[index].paused_until > self.now {
                self.deafen(index);
            }
            let node = &self.nodes[index];
            let Some(Doubt::Hears(since)) = node.doubt else { continue };
            let holds = node.manager.as_ref().is_some_and(|manager| manager.status().subnet.is_some());
            if holds && self.now > since + BOUND + TIMEOUT * CALLS {
                return Err(format!("{:?}: {:?} has not looked since {since:?}", self.now, node.attrs));
            }
        }
        Ok(())
    }
}
