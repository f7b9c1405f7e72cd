//! The world of one run: nodes with clocks of their own, one store, and a network that fails.

use super::kept::Kept;
use super::store::Store;
use super::summary::{Sabotage, Summary};
use crate::lease::{Call, Identity, Input, Manager, Notice, OnLost, Output, Reply, Settings};
use crate::store::{Change, Entry, Error, Revision, Seen};
use crate::subnet::{Config, Event, LeaseAttrs, SubnetKey};
use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Faults happen before this time and none after it.
pub(super) const QUIET: Duration = Duration::from_secs(90);
/// By this time all must be well again: a TTL, the longest back-off and the list on the timer have passed.
const END: Duration = Duration::from_secs(90 + 60 + 120 + 365 + 30);
/// How long a node waits for the answer to a call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Ev {
    Wake {
        node: usize,
        generation: u64,
    },
    /// A call reaches the store. Without `reply_by` the caller has given up already.
    Request {
        node: usize,
        life: u64,
        call: Call,
        reply_by: Option<Duration>,
    },
    Reply {
        node: usize,
        life: u64,
        reply: Reply,
        /// How often the store had been restored when it gave the answer.
        restores: u64,
    },
    WatchOpen {
        node: usize,
        watch: u64,
        from: Revision,
        seen: Option<Seen>,
    },
    WatchFail {
        node: usize,
        watch: u64,
        error: Error,
    },
    Deliver {
        node: usize,
        watch: u64,
    },
    /// The link answers who has an address.
    Probed {
        node: usize,
        life: u64,
        address: Ipv4Addr,
    },
    Start {
        node: usize,
    },
    Nemesis,
    Expiry,
}

pub(super) struct Node {
    /// What it publishes: its address and its NodeID.
    pub(super) attrs: LeaseAttrs,
    /// The addresses that it had before.
    pub(super) former: Vec<Ipv4Addr>,
    /// How far its clock is ahead of the world's.
    pub(super) clock: Duration,
    pub(super) on_lost: OnLost,
    pub(super) manager: Option<Manager>,
    /// How often it was started or stopped. Answers to an earlier life are dropped.
    pub(super) life: u64,
    pub(super) generation: u64,
    pub(super) watch: u64,
    pub(super) watch_from: Option<Revision>,
    pub(super) env_file: Option<Ipv4Net>,
    /// What its next life may begin with.
    pub(super) kept: Option<Kept>,
    pub(super) partition_until: Duration,
    pub(super) paused_until: Duration,
    /// The newest write that the store has confirmed to it.
    pub(super) written: Option<Entry>,
    /// The nemesis took its key at that revision. Nobody promises anything until it has written anew.
    pub(super) robbed: Option<Revision>,
    /// The store was restored, and this node may not know it.
    pub(super) doubt: Option<Doubt>,
    /// The peers as the events have told them.
    pub(super) routes: BTreeMap<Ipv4Net, LeaseAttrs>,
}

/// What a node may know of a store that was restored. As long as the doubt lasts nobody promises anything.
#[derive(Debug, Clone, Copy)]
pub(super) enum Doubt {
    /// The node has not heard from the store since the restore, or not since its last call failed.
    Deaf,
    /// The node has heard from the store since this time.
    Hears(Duration),
}

pub(crate) struct World {
    pub(super) now: Duration,
    pub(super) rng: StdRng,
    pub(super) queue: BTreeMap<(Duration, u64), Ev>,
    pub(super) sequence: u64,
    pub(super) store: Store,
    /// Copies of the store, from which the nemesis may restore it.
    pub(super) snapshots: Vec<Store>,
    pub(super) restores: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) config: Config,
    pub(super) settings: Settings,
    pub(super) reserved: Vec<(SubnetKey, Ipv4Addr)>,
    pub(super) summary: Summary,
    pub(super) verbose: bool,
    sabotage: Sabotage,
    /// Whether the hosts are on one link, where they hear each other's ARP.
    pub(super) has_arp: bool,
    /// What was found broken in the midst of an event.
    pub(super) broken: Option<String>,
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(3..=6_u8);
        // The first subnet is skipped and two are reserved; the pool is as tight as that leaves it.
        let last = count + 2 + rng.random_range(0..=2);
        let text = format!(r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.{last}.0"}}"#);
        // In some worlds a lease outlives the patience with its owner.
        let longest = if rng.random_bool(0.25) { 120 } else { 40 };
        let ttl = Duration::from_secs(rng.random_range(longest - 25..=longest));
        let mut world = Self {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            store: Store::default(),
            snapshots: Vec::new(),
            restores: 0,
            nodes: Vec::new(),
            config: Config::parse(&text).unwrap(),
            settings: Settings::new(ttl, None, OnLost::Exit).unwrap(),
            reserved: Vec::new(),
            summary: Summary::default(),
            verbose,
            sabotage: Sabotage::None,
            has_arp: false,
            broken: None,
            rng,
        };
        world.populate(count);
        // One reservation is for the first node, one for a host that is not there.
        for (third, ip) in [(2, Ipv4Addr::new(192, 0, 2, 1)), (3, Ipv4Addr::new(203, 0, 113, 9))] {
            let key: SubnetKey = format!("10.5.{third}.0-24").parse().unwrap();
            world.store.put(key, &LeaseAttrs::new(ip), None);
            world.reserved.push((key, ip));
        }
        world.snapshots.push(world.store.clone());
        world.at(ms(300), Ev::Nemesis);
        world
    }

    /// Breaks the store, for the checker's own test. Each node has an address of its own then, and no lease
    /// lives long.
    pub(crate) fn sabotage(&mut self, sabotage: Sabotage) {
        self.part_twins();
        let ttl = Duration::from_secs(15 + self.settings.ttl().as_secs() % 26);
        self.settings = Settings::new(ttl, None, OnLost::Exit).unwrap();
        self.sabotage = sabotage;
    }

    pub(super) fn at(&mut self, at: Duration, ev: Ev) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), ev);
    }

    pub(super) fn within(&mut self, from: u64, to: u64) -> Duration {
        self.now + ms(self.rng.random_range(from..=to))
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.now < QUIET && self.rng.random_bool(probability)
    }

    pub(crate) fn run(&mut self) -> Result<Summary, String> {
        let mut steps = 0_u32;
        while let Some(((at, _), ev)) = self.queue.pop_first() {
            if at > END {
                break;
            }
            steps += 1;
            if steps > 200_000 {
                return Err("too many events: something spins".to_owned());
            }
            self.now = at;
            let before = self.store.revision;
            self.store.tick(at);
            self.step(ev);
            if self.store.revision != before {
                self.announce();
            }
            self.check()?;
        }
        self.check_end()?;
        for node in &self.nodes {
            let counters = node.manager.as_ref().map(|m| m.status().counters).unwrap_or_default();
            self.summary.repairs += counters.repairs;
            self.summary.withheld += counters.withheld;
        }
        Ok(self.summary)
    }

    /// The store has changed: tells the watches, and waits for what expires next.
    fn announce(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].watch_from.is_some() {
                let at = self.within(1, 40);
                self.at(at, Ev::Deliver { node, watch: self.nodes[node].watch });
            }
        }
        if let Some(at) = self.store.next_expiry() {
            self.at(at, Ev::Expiry);
        }
    }

    fn step(&mut self, ev: Ev) {
        let target = match &ev {
            Ev::Wake { node, .. } | Ev::Reply { node, .. } | Ev::WatchOpen { node, .. } => Some(*node),
            Ev::WatchFail { node, .. } | Ev::Deliver { node, .. } => Some(*node),
            _ => None,
        };
        if let Some(until) = target.map(|node| self.nodes[node].paused_until)
            && until > self.now
        {
            return self.at(until, ev);
        }
        match ev {
            Ev::Expiry => {}
            Ev::Nemesis => self.nemesis(),
            Ev::Start { node } => self.start(node),
            Ev::Wake { node, generation } => {
                if self.nodes[node].generation == generation {
                    self.input(node, Input::Tick);
                }
            }
            Ev::Request { node, life, call, reply_by } => self.request(node, life, &call, reply_by),
            Ev::Reply { node, life, reply, restores } => {
                if self.nodes[node].life == life {
                    self.hear(node, &reply, restores);
                    self.input(node, Input::Reply(reply));
                }
            }
            Ev::Probed { node, life, address } => self.probed(node, life, address),
            Ev::WatchOpen { node, watch, from, seen } => self.open_watch(node, watch, from, seen.as_ref()),
            Ev::WatchFail { node, watch, error } => {
                if self.nodes[node].watch == watch {
                    self.nodes[node].watch_from = None;
                    if error != Error::Compacted {
                        self.deafen(node);
                    }
                    self.input(node, Input::WatchFailed(error));
                }
            }
            Ev::Deliver { node, watch } => self.deliver(node, watch),
        }
    }

    fn start(&mut self, index: usize) {
        let mut settings = self.settings;
        settings.on_lost = self.nodes[index].on_lost;
        let seed = self.rng.random();
        let config = self.config.clone();
        let node = &mut self.nodes[index];
        if node.manager.is_some() {
            return;
        }
        node.life += 1;
        node.routes.clear();
        if node.kept.is_none() {
            node.robbed = None;
            node.doubt = None;
        }
        let us = Identity::new(node.attrs.clone(), None);
        node.kept.take_if(|kept| !us.owns(kept.entry()));
        let manager = Manager::new(config, us, node.env_file, settings, seed);
        node.manager = Some(node.resume(manager, self.now));
        self.input(index, Input::Tick);
    }

    pub(super) fn stop(&mut self, index: usize) {
        let start = self.within(10, if self.now < QUIET { 20_000 } else { 2000 });
        self.stop_until(index, start);
    }

    pub(super) fn stop_until(&mut self, index: usize, start: Duration) {
        let node = &mut self.nodes[index];
        node.manager = None;
        node.life += 1;
        node.generation += 1;
        node.watch += 1;
        node.watch_from = None;
        self.rename(index);
        self.at(start, Ev::Start { node: index });
    }

    pub(super) fn input(&mut self, index: usize, input: Input) {
        let now = self.now;
        if self.verbose {
            println!("{now:>12.3?} node {index} <- {input:?}");
        }
        let node = &mut self.nodes[index];
        let local = now + node.clock;
        let Some(manager) = &mut node.manager else { return };
        let outputs = manager.handle(local, input);
        for output in outputs {
            if self.verbose {
                println!("{now:>12.3?} node {index} -> {output:?}");
            }
            match output {
                Output::Call(call) => self.send(index, call),
                Output::Watch { from, seen } => {
                    let node = &mut self.nodes[index];
                    node.watch += 1;
                    node.watch_from = None;
                    let watch = node.watch;
                    let at = self.within(1, 20);
                    self.at(at, Ev::WatchOpen { node: index, watch, from, seen });
                }
                Output::Probe(address) => self.probe(index, address),
                Output::Notice(notice) => self.notice(index, notice),
            }
        }
        self.keep(index);
        let node = &mut self.nodes[index];
        let Some(manager) = &node.manager else { return };
        node.generation += 1;
        let generation = node.generation;
        if let Some(at) = manager.wake_at() {
            // A timer may fire a little late, but never early.
            let at = at.saturating_sub(node.clock).max(now) + ms(1);
            self.at(at, Ev::Wake { node: index, generation });
        }
    }

    fn notice(&mut self, index: usize, notice: Notice) {
        self.note_kept(index, &notice);
        let node = &mut self.nodes[index];
        match notice {
            Notice::Acquired { subnet, how, .. } => {
                self.summary.acquired += 1;
                self.summary.regained += u64::from(how == crate::lease::How::Regained);
                node.env_file = Some(subnet);
            }
            Notice::Renewed { .. } => self.summary.renewed += 1,
            Notice::Lost { .. } => self.summary.lost += 1,
            Notice::Revoked { .. } => self.summary.revoked += 1,
            Notice::Conflict { then, .. } => {
                self.summary.conflicts += 1;
                if then == OnLost::Exit {
                    self.stop(index);
                }
            }
            Notice::Peers(events) => {
                for event in events {
                    match event {
                        Event::Added(lease) => drop(node.routes.insert(lease.subnet, lease.attrs)),
                        Event::Removed(lease) => drop(node.routes.remove(&lease.subnet)),
                    }
                }
            }
            Notice::Readdressed { .. } => self.summary.published += 1,
            Notice::StoreReset => self.summary.resets += 1,
            Notice::Claimed { .. } => self.refused(index),
            Notice::TakenOver { .. } => self.summary.takeovers += 1,
            Notice::Asked { .. } => self.summary.asked += 1,
            Notice::Namesake { .. } => self.summary.namesakes += 1,
            _ => {}
        }
    }

    fn cut(&self, node: usize) -> bool {
        self.nodes[node].partition_until > self.now
    }

    fn send(&mut self, node: usize, call: Call) {
        let life = self.nodes[node].life;
        let reply_by = self.now + TIMEOUT;
        if self.cut(node) || self.chance(0.03) {
            return self.no_answer(node, life, &call, reply_by);
        }
        if self.chance(0.04) {
            // The call arrives after the caller has given up.
            self.no_answer(node, life, &call, reply_by);
            let at = self.within(5000, 60_000);
            self.summary.late += 1;
            return self.at(at, Ev::Request { node, life, call, reply_by: None });
        }
        let at = if self.chance(0.05) { self.within(100, 4900) } else { self.within(1, 40) };
        self.at(at, Ev::Request { node, life, call, reply_by: Some(reply_by) });
    }

    fn request(&mut self, node: usize, life: u64, call: &Call, reply_by: Option<Duration>) {
        let now = self.now;
        self.before_write(node, call);
        let reply = match call {
            Call::List => Reply::Listed(Ok(self.store.list())),
            Call::Create { key, attrs, ttl, .. } => {
                let result = match self.sabotage {
                    Sabotage::BlindCreate => Ok(self.store.put(*key, attrs, Some(now + *ttl))),
                    _ => self.store.create(now, *key, attrs, *ttl),
                };
                self.summary.races += u64::from(result.is_err());
                Reply::Created(result)
            }
            Call::Update { held, attrs, ttl } => Reply::Updated(match self.sabotage {
                Sabotage::BlindUpdate => Ok(self.store.put(held.key, attrs, held.lease.map(|_| now + *ttl))),
                Sabotage::ShortTtl => self.store.update(now, held, attrs, ttl.mul_f64(0.7)),
                _ => self.store.update(now, held, attrs, *ttl),
            }),
            Call::Delete { held } => Reply::Deleted(self.store.delete(held)),
        };
        let Some(reply_by) = reply_by else { return };
        if self.cut(node) || self.chance(0.03) {
            return self.no_answer(node, life, call, reply_by);
        }
        let at = self.within(1, 40);
        self.at(at, Ev::Reply { node, life, reply, restores: self.restores });
    }

    fn open_watch(&mut self, index: usize, watch: u64, from: Revision, seen: Option<&Seen>) {
        if self.nodes[index].watch != watch {
            return;
        }
        if self.cut(index) {
            let at = self.within(5, 5000);
            let error = Error::Unavailable("no answer".to_owned());
            return self.at(at, Ev::WatchFail { node: index, watch, error });
        }
        if let Err(error) = self.shown(index, from, seen) {
            return self.at(self.now, Ev::WatchFail { node: index, watch, error });
        }
        self.nodes[index].watch_from = Some(from);
        self.heard(index);
        self.input(index, Input::WatchStarted);
        self.at(self.now + ms(1), Ev::Deliver { node: index, watch });
    }

    fn deliver(&mut self, index: usize, watch: u64) {
        if self.nodes[index].watch != watch {
            return;
        }
        let Some(from) = self.nodes[index].watch_from else { return };
        if self.cut(index) {
            // Half of the watches notice, the others hang until the network is back.
            if self.rng.random_bool(0.5) {
                let error = Error::Unavailable("reset".to_owned());
                return self.at(self.now, Ev::WatchFail { node: index, watch, error });
            }
            let at = self.nodes[index].partition_until;
            return self.at(at, Ev::Deliver { node: index, watch });
        }
        let changes = match self.store.changes(from) {
            Ok(changes) => changes,
            Err(error) => return self.at(self.now, Ev::WatchFail { node: index, watch, error }),
        };
        let Some(&(last, _)) = changes.last() else { return };
        self.nodes[index].watch_from = Some(last);
        let mut seen: Vec<Change> = Vec::new();
        for (_, change) in changes {
            if !self.chance(0.05) {
                seen.push(change);
            }
        }
        if !seen.is_empty() {
            self.input(index, Input::Changes(seen));
        }
    }
}
