//! The peers in the kernel's tables (vxlan, host-gw), and how the two are kept alike.
//!
//! - An event of a lease costs the writes for that peer; nothing is read.
//! - A *look* compares all tables with what is wanted. It comes at the start, every so often, and after a change that
//!   another program has made.
//!
//! Both advance in steps of a few milliseconds ([`Tables::step`]), so that the control loop serves the lease, signals
//! and requests in between, however many peers there are. An event that comes during a look waits for the end of it.

use super::entries::{Stale, Tally, tell_unclear};
use super::upkeep::{Reason, Upkeep};
use super::wanted::{Parts, Wanted};
use super::{BackendError, Look, Progress, Trouble};
use crate::log::Complaint;
use crate::netlink::{Changes, Mac, Netlink, write_all};
use crate::subnet::Event;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tracing::warn;

/// How long a step takes, and at most one part of the work longer. An answer to a request takes a handful of steps.
const STEP: Duration = Duration::from_millis(2);
/// How many peers one part of the work writes, or asks the kernel for. Each takes three requests of some 20 µs, and a new
/// route up to 250 µs more: the kernel compares its next hop with that of every route over the device
/// (`fib_find_info`), ten thousand in a large network.
const PART: usize = 16;

/// The tables of one network.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) wanted: Wanted,
    pub(super) upkeep: Upkeep,
    /// Whether a peer on the external interface's own link gets a plain route in the place of the tunnel.
    direct_routing: bool,
    pass: Option<Pass>,
    /// Peers that publish one VtepMAC, as long as they do.
    rivals: Complaint<Instant>,
}

/// What a pass does next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Ask the kernel which peers are on the link; those up to this one are done.
    Decide(Option<Ipv4Net>),
    /// Write the changes that events have left.
    Changes,
    /// List the routes.
    Routes,
    /// List the ARP entries.
    Arp,
    /// List the forwarding entries.
    Fdb,
    /// Write what was found to be missing.
    Set,
    /// Remove what no peer wants.
    Sweep,
}

/// A pass over the tables, between two parts of it.
#[derive(Debug)]
struct Pass {
    reason: Reason,
    stage: Stage,
    /// What was done to the device.
    device: Changes,
    right_routes: BTreeSet<Ipv4Net>,
    right_arp: BTreeSet<Ipv4Addr>,
    /// The MACs in ARP entries of ours that are stale or wrong.
    stale_macs: BTreeSet<Mac>,
    missing: BTreeMap<Ipv4Net, Parts>,
    stale: Vec<Stale>,
    /// Whether this pass is the first to remove anything.
    opening: bool,
    /// The writes of events.
    events: Tally,
    /// The writes of the comparison.
    repaired: Tally,
    /// The removal of what an earlier run left.
    swept: Tally,
}

impl Pass {
    fn new(reason: Reason, stage: Stage, device: Changes) -> Pass {
        Pass {
            reason,
            stage,
            device,
            right_routes: BTreeSet::new(),
            right_arp: BTreeSet::new(),
            stale_macs: BTreeSet::new(),
            missing: BTreeMap::new(),
            stale: Vec::new(),
            opening: false,
            events: Tally::default(),
            repaired: Tally::default(),
            swept: Tally::default(),
        }
    }
}

impl Tables {
    /// Tables that nobody has looked at yet.
    pub(super) fn new(wanted: Wanted, direct_routing: bool) -> Tables {
        Tables { wanted, upkeep: Upkeep::new(), direct_routing, pass: None, rivals: Complaint::default() }
    }

    /// Notes at which addresses peers are or were, whatever their backend, as long as that tells which routes an older
    /// flannel has left.
    pub(super) fn note_hosts(&mut self, events: &[Event]) {
        if self.upkeep.keeps() {
            self.wanted.hosts.extend(events.iter().map(Event::public_ip));
        } else {
            self.wanted.hosts.clear();
        }
    }

    /// What cannot be set of the peers' entries.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.upkeep.trouble(self.wanted.len(), |subnet| self.wanted.peer(subnet).is_some())
    }

    /// Whether something waits to be written.
    pub(super) fn is_pending(&self) -> bool {
        self.upkeep.is_new() || self.pass.is_some() || self.wanted.has_changed()
    }

    /// Whether a look is under way.
    pub(super) fn is_looking(&self) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.reason != Reason::Events)
    }

    /// Whether a look begins with the next step, for which the caller has to bring the device in order:
    /// [`Tables::begin`].
    pub(super) fn begins(&self, look: Look) -> bool {
        // As long as the store is suspect, each peer that comes back may end the suspicion.
        let may_open = self.upkeep.keeps() && self.wanted.has_changed();
        !self.is_looking() && (look == Look::Everything || self.upkeep.is_new() || may_open)
    }

    /// Begins a look; `device` is what was done to the device.
    pub(super) fn begin(&mut self, device: Changes) {
        debug_assert!(!self.is_looking(), "one look at a time");
        let reason = if self.upkeep.is_new() { Reason::Start } else { Reason::Look };
        let before = self.pass.take();
        let mut pass = Pass::new(reason, Stage::Decide(None), device);
        pass.events = before.map(|pass| pass.events).unwrap_or_default();
        self.pass = Some(pass);
    }

    /// Does the next part of what is under way; without a look, that is to write what events have left. `name` is
    /// for the log.
    ///
    /// # Errors
    /// The kernel does not let us read its tables. The look is given up.
    pub(super) async fn step(&mut self, netlink: &Netlink, name: &str) -> Result<Progress, BackendError> {
        let end = Instant::now() + STEP;
        if self.pass.is_none() && self.wanted.has_changed() {
            self.pass = Some(Pass::new(Reason::Events, Stage::Changes, Changes::default()));
        }
        while let Some(pass) = self.pass.take() {
            self.pass = self.advance(pass, netlink, name).await?;
            if Instant::now() >= end {
                break;
            }
        }
        Ok(if self.is_pending() { Progress::More } else { Progress::Done })
    }

    /// Does one part of a pass; `None` at its end.
    async fn advance(
        &mut self,
        mut pass: Pass,
        netlink: &Netlink,
        name: &str,
    ) -> Result<Option<Pass>, BackendError> {
        pass.stage = match pass.stage {
            Stage::Decide(cursor) => match self.decide(netlink, cursor).await {
                Some(cursor) => Stage::Decide(Some(cursor)),
                None => Stage::Changes,
            },
            // Nothing was written yet, and much may be there from an earlier run: it is compared first.
            Stage::Changes if pass.reason == Reason::Start => {
                self.wanted.forget_changes();
                Stage::Routes
            }
            Stage::Changes => {
                let done = self.write_changes(netlink).await;
                pass.events.add(done);
                match pass.reason {
                    _ if self.wanted.has_changed() => Stage::Changes,
                    Reason::Events => {
                        self.conclude(pass, name);
                        return Ok(None);
                    }
                    Reason::Start | Reason::Look => Stage::Routes,
                }
            }
            Stage::Routes => {
                self.list_routes(&mut pass, netlink).await?;
                if self.wanted.territory.device.is_some() { Stage::Arp } else { self.compare(&mut pass) }
            }
            Stage::Arp => {
                self.list_arp(&mut pass, netlink).await?;
                Stage::Fdb
            }
            Stage::Fdb => {
                self.list_fdb(&mut pass, netlink).await?;
                self.compare(&mut pass)
            }
            Stage::Set => {
                self.set(&mut pass, netlink).await;
                if pass.missing.is_empty() { Stage::Sweep } else { Stage::Set }
            }
            Stage::Sweep => {
                self.sweep(&mut pass, netlink).await;
                if pass.stale.is_empty() {
                    self.conclude(pass, name);
                    return Ok(None);
                }
                Stage::Sweep
            }
        };
        Ok(Some(pass))
    }

    /// Asks the kernel which of the peers after `cursor` are on the external interface's own link. Returns the last one
    /// that it asked for; `None` if that was all.
    async fn decide(&mut self, netlink: &Netlink, cursor: Option<Ipv4Net>) -> Option<Ipv4Net> {
        if !self.direct_routing {
            return None;
        }
        let some: Vec<_> = self.wanted.after(cursor).take(PART).collect();
        let last = some.last().map(|(subnet, _)| *subnet);
        self.ask(netlink, some.into_iter().map(|(subnet, peer)| (subnet, peer.address)).collect()).await;
        last
    }

    /// Asks the kernel which of these peers are on the external interface's own link, and notes it.
    async fn ask(&mut self, netlink: &Netlink, peers: Vec<(Ipv4Net, Ipv4Addr)>) {
        let external = self.wanted.external;
        let asked = peers.into_iter().map(|(subnet, address)| async move {
            let way = netlink.route_to(address).await;
            (subnet, way.is_ok_and(|way| way.gateway.is_none() && way.link_index == external))
        });
        for (subnet, direct) in write_all(asked).await {
            self.wanted.decide(subnet, direct);
        }
    }

    /// Writes some of the changes that events have left.
    async fn write_changes(&mut self, netlink: &Netlink) -> Tally {
        let changes = self.wanted.take_changes(PART);
        if self.direct_routing {
            let new = |subnet: &Ipv4Net| self.wanted.peer(*subnet).map(|peer| (*subnet, peer.address));
            let asked = changes.iter().filter_map(|(subnet, _)| new(subnet)).collect();
            self.ask(netlink, asked).await;
            // What was decided just now is written below.
            for (subnet, _) in &changes {
                self.wanted.forget_change(*subnet);
            }
        }
        let jobs: Vec<_> = changes
            .into_iter()
            .map(|(subnet, written)| {
                let all = written.is_none() || self.upkeep.is_refused(subnet);
                (subnet, self.wanted.difference(subnet, written, all))
            })
            .collect();
        let jobs = jobs.into_iter().map(|(subnet, job)| async move { (subnet, job.run(netlink).await) });
        let mut tally = Tally::default();
        for (subnet, (done, error)) in write_all(jobs).await {
            tally.add(done);
            self.upkeep.note(subnet, error);
        }
        if !self.wanted.has_changed() {
            let jobs = self.wanted.settle().into_iter().map(|job| job.run(netlink));
            for (done, _) in write_all(jobs).await {
                tally.add(done);
            }
        }
        tally
    }

    async fn list_routes(&self, pass: &mut Pass, netlink: &Netlink) -> Result<(), BackendError> {
        let wanted = &self.wanted;
        let route = |to: Ipv4Net| wanted.peer(to).map(|peer| wanted.route(to, peer));
        let thorough = self.upkeep.keeps();
        let found =
            netlink.survey_routes(wanted.territory, thorough, |ip| wanted.hosts.contains(&ip), route).await?;
        if pass.reason == Reason::Start {
            tell_unclear(&found.unclear);
        }
        pass.right_routes = found.right;
        pass.stale = found.stale.into_iter().map(Stale::Route).collect();
        Ok(())
    }

    async fn list_arp(&mut self, pass: &mut Pass, netlink: &Netlink) -> Result<(), BackendError> {
        let wanted = &self.wanted;
        let Some(device) = wanted.territory.device else { return Ok(()) };
        let found = netlink.survey_neighbours(device, wanted.territory.network, |ip| wanted.arp(ip)).await?;
        pass.right_arp = found.right;
        pass.stale_macs = found.left;
        pass.stale.extend(found.stale.into_iter().map(Stale::Arp));
        self.wanted.foreign_macs = found.foreign;
        Ok(())
    }

    async fn list_fdb(&mut self, pass: &mut Pass, netlink: &Netlink) -> Result<(), BackendError> {
        let wanted = &self.wanted;
        let Some(device) = wanted.territory.device else { return Ok(()) };
        let stale = |mac| pass.stale_macs.contains(&mac) && !wanted.foreign_macs.contains(&mac);
        let found = netlink.survey_fdb(device, |mac| wanted.fdb(mac), stale).await?;
        for (subnet, peer) in wanted.after(None).filter(|(_, peer)| !peer.direct) {
            let arp = !pass.right_arp.contains(&subnet.network());
            let fdb = peer.mac.is_some_and(|mac| !found.right.contains(&mac));
            if arp || fdb {
                pass.missing.insert(subnet, Parts { arp, fdb, route: false });
            }
        }
        pass.stale.extend(found.stale.into_iter().map(|(mac, ip)| Stale::Fdb(mac, ip)));
        found.right.into_iter().for_each(|mac| self.wanted.found_fdb(mac));
        Ok(())
    }

    /// Notes which entries are missing, now that all tables were read.
    fn compare(&mut self, pass: &mut Pass) -> Stage {
        for (subnet, _) in self.wanted.after(None) {
            if !pass.right_routes.contains(&subnet) {
                pass.missing.entry(subnet).or_default().route = true;
            }
        }
        // An event that came meanwhile is written after this look.
        pass.missing.retain(|subnet, parts| parts.any() && !self.wanted.is_changed(*subnet));
        self.upkeep
            .retain_refusals(|subnet| pass.missing.contains_key(&subnet) || self.wanted.is_changed(subnet));
        // What is last goes first: routes, then forwarding entries, then ARP entries.
        pass.stale.sort_by_key(Stale::order);
        Stage::Set
    }

    /// Writes some of what is missing.
    async fn set(&mut self, pass: &mut Pass, netlink: &Netlink) {
        let rest = pass.missing.keys().nth(PART).copied().map(|first| pass.missing.split_off(&first));
        let now = std::mem::replace(&mut pass.missing, rest.unwrap_or_default());
        let jobs: Vec<_> =
            now.into_iter().map(|(subnet, parts)| (subnet, self.wanted.job(subnet, parts))).collect();
        let jobs = jobs.into_iter().map(|(subnet, job)| async move { (subnet, job.run(netlink).await) });
        for (subnet, (done, error)) in write_all(jobs).await {
            pass.repaired.add(done);
            self.upkeep.note(subnet, error);
        }
    }

    /// Removes some of what no peer wants, if that may go.
    async fn sweep(&mut self, pass: &mut Pass, netlink: &Netlink) {
        let routes = pass.stale.iter().filter(|stale| matches!(stale, Stale::Route(_))).count();
        let kept = self.upkeep.keeps();
        if !self.upkeep.may_sweep(Instant::now(), routes, self.wanted.len()) {
            return pass.stale.clear();
        }
        let device = self.wanted.territory.device.unwrap_or_default();
        // A peer may have come meanwhile, and want an entry that was stale.
        let unwanted = |stale: &Stale| !self.is_wanted(stale);
        let from = pass.stale.len().saturating_sub(PART);
        let some = pass.stale.split_off(from).into_iter().filter(unwanted);
        let writes = some.map(|stale| async move { (stale.clone(), stale.remove(netlink, device).await) });
        pass.opening |= kept;
        for (stale, (done, error)) in write_all(writes).await {
            let tally = if pass.opening { &mut pass.swept } else { &mut pass.repaired };
            tally.add(done);
            if error.is_some() {
                self.upkeep.note(subject(&stale), error);
            }
        }
    }

    /// Whether a peer wants this entry as it is.
    fn is_wanted(&self, stale: &Stale) -> bool {
        match stale {
            Stale::Route(route) => self.wanted.peer(route.destination()).is_some(),
            Stale::Fdb(mac, ip) => self.wanted.fdb(*mac) == Some(*ip),
            Stale::Arp(ip) => self.wanted.arp(*ip).is_some(),
        }
    }

    /// Ends a pass.
    fn conclude(&mut self, pass: Pass, name: &str) {
        let network = self.wanted.territory.network;
        let mut other = pass.events;
        other.add(pass.swept);
        self.upkeep.conclude(Reason::Events, name, Changes::default(), other.changes(network));
        self.upkeep.conclude(pass.reason, name, pass.device, pass.repaired.changes(network));
        let text = self.wanted.rivals().join("; ");
        if text.is_empty() {
            self.rivals.settle();
        } else if self.rivals.is_news(Instant::now(), &text) {
            warn!("{text}");
        }
    }
}

/// The subnet or address under which a refusal to remove an entry is noted.
fn subject(stale: &Stale) -> Ipv4Net {
    match stale {
        Stale::Route(route) => route.destination(),
        Stale::Fdb(_, ip) | Stale::Arp(ip) => Ipv4Net::from(*ip),
    }
}
