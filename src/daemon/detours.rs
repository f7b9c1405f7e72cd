//! Ways past the overlay for what lies under it: the store, the peers' outer addresses and this host's gateways. The
//! first pass comes before the overlay has a route, the later ones come before a peer's route is made. The lease hears
//! from here when this host has other addresses or gateways, since no subnet may take them.
//!
//! A change of one peer costs what that peer needs: the kernel's tables are read again only after a change that others
//! have made, and every so often. Many writes go in slices, so that the control loop serves the lease in between.

use super::NEVER;
use super::underlay::{addresses_of, look};
use crate::etcd;
use crate::iface::External;
use crate::log::{Complaint, few};
use crate::netlink::{Change, DETOUR_PROTOCOL, Error, Ground, Netlink, Past, ROUTE_PROTOCOL, Way, write_all};
use crate::subnet::{Config, Event, Underlay};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use outer::Outer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

mod outer;

/// How often the routes are compared while the overlay swallows an outer address.
const RESYNC: Duration = Duration::from_secs(30);
/// The wait after a change of others' routes, for the rest of a burst, and after a pass that failed.
const CALM: Duration = Duration::from_secs(1);
/// How often the names of the store's endpoints are looked up.
const LOOK_UP: Duration = Duration::from_secs(60);
/// How long a slice of the work takes, and at most one part longer.
const SLICE: Duration = Duration::from_millis(5);
/// How many addresses one part has; a write takes some 20 µs.
const PART: usize = 64;
/// How many addresses the log names; the rest is counted.
const MOST_SAID: usize = 3;
const _: () = assert!(CALM.as_secs() < RESYNC.as_secs() && RESYNC.as_secs() < NEVER.as_secs());

/// A look-up of names under way.
type LookUp = LocalBoxFuture<'static, BTreeSet<Ipv4Addr>>;

/// The detours of one network.
pub(super) struct Detours {
    network: Ipv4Net,
    external: External,
    /// What may need a detour, and which routes the overlay has.
    outer: Outer,
    /// The subnet of an earlier run, whose containers may be gateways.
    previous: Option<Ipv4Net>,
    /// What lies under the overlay, as the lease was told.
    underlay: watch::Sender<Underlay>,
    /// Whether the addresses or gateways of this host may be others than `underlay` says.
    outdated: bool,
    /// The kernel's routes at the last look at them; `None` if that is to be done.
    ground: Option<Ground>,
    /// The detours that are there, by their addresses.
    present: BTreeMap<Ipv4Addr, Option<Way>>,
    /// The writes that are still to be made; without a way the detour goes.
    writes: BTreeMap<Ipv4Addr, Option<Way>>,
    /// What this pass has come to so far.
    pass: Pass,
    /// The addresses that the overlay swallows and to which no other way leads.
    nowhere: BTreeSet<Ipv4Addr>,
    /// Addresses whose detours the log has told of.
    told: BTreeSet<Ipv4Addr>,
    /// Addresses of which the log has said that they lie inside the overlay.
    warned: BTreeSet<Ipv4Addr>,
    check_at: Instant,
    /// When the kernel's tables are read again although nobody has changed them.
    survey_at: Instant,
    /// Where the store is reached.
    endpoints: Vec<String>,
    /// The names of the endpoints are being looked up.
    look_up: LookUp,
    lost: Complaint<Instant>,
    failing: Complaint<Instant>,
}

/// What a call of [`Detours::look`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The pass has ended.
    Done,
    /// The pass goes on with the next call.
    More,
}

/// What a pass has come to so far.
#[derive(Debug, Default)]
struct Pass {
    set: BTreeMap<Ipv4Addr, Way>,
    removed: BTreeSet<Ipv4Addr>,
    failed: BTreeMap<Ipv4Addr, Error>,
    /// Addresses with a detour that the log has not told of.
    news: BTreeSet<Ipv4Addr>,
}

/// Looks at what lies under the overlay, and makes the detours that it needs before it has any route. `previous` is the
/// subnet of an earlier run.
pub(super) async fn start(
    netlink: &Netlink,
    config: &Config,
    external: &External,
    etcd: &etcd::Settings,
    previous: Option<Ipv4Net>,
) -> Result<(Detours, watch::Receiver<Underlay>), Error> {
    let store = addresses_of(&etcd.endpoints).await;
    let ground = netlink.survey_ground(config.network).await?;
    let mut others = ground.gateways(previous);
    others.extend(&store);
    let underlay = look(netlink, external, others).await?;
    let (told, hears) = watch::channel(underlay);
    let mut detours = Detours::new(config, external, told, store, etcd.endpoints.clone());
    detours.previous = previous;
    detours.take_over(ground);
    detours.warn_of_underlay();
    // Nothing else is served yet, so all writes are made at once.
    while detours.look(netlink).await == Progress::More {}
    Ok((detours, hears))
}

impl Detours {
    /// The detours of the network of `config`. `store` are the addresses of `endpoints`.
    fn new(
        config: &Config,
        external: &External,
        underlay: watch::Sender<Underlay>,
        store: BTreeSet<Ipv4Addr>,
        endpoints: Vec<String>,
    ) -> Detours {
        Detours {
            network: config.network,
            external: external.clone(),
            outer: Outer::new(config, store),
            previous: None,
            underlay,
            outdated: false,
            ground: None,
            present: BTreeMap::new(),
            writes: BTreeMap::new(),
            pass: Pass::default(),
            nowhere: BTreeSet::new(),
            told: BTreeSet::new(),
            warned: BTreeSet::new(),
            check_at: Instant::now(),
            survey_at: Instant::now() + RESYNC,
            look_up: look_up(endpoints.clone(), LOOK_UP),
            endpoints,
            lost: Complaint::default(),
            failing: Complaint::default(),
        }
    }

    /// Says once which hosts are not reached any more, if the one route of udp takes the network that this host is in.
    fn warn_of_underlay(&mut self) {
        let network = self.network;
        let outer: BTreeSet<Ipv4Addr> = {
            let underlay = self.underlay.borrow();
            // The addresses of the host's other devices, such as Docker's bridge, may be the overlay's own.
            let host = underlay.host.iter().filter(|one| one.external).map(|one| one.net.addr());
            let outer = host.chain(underlay.others.iter().copied());
            outer.filter(|address| network.contains(address)).collect()
        };
        if self.outer.is_whole() && !outer.is_subset(&self.warned) {
            warn!(
                "the network {network} holds {}: its route takes all of {network} that no narrower route leads \
                 elsewhere; peers, etcd and gateways are led past it, other hosts there are not reached",
                named(&outer, ToString::to_string)
            );
            self.warned.extend(outer);
        }
    }

    /// The external interface is another one, or has another address. The next pass is due at once.
    pub(super) fn moved(&mut self, external: &External) {
        self.external = external.clone();
        self.outdated = true;
        self.look_again(Instant::now());
    }

    /// The store is to be reached at these endpoints from now on.
    pub(super) fn set_endpoints(&mut self, endpoints: &[String]) {
        if self.endpoints != endpoints {
            self.endpoints = endpoints.to_vec();
            self.look_up = look_up(endpoints.to_vec(), Duration::ZERO);
        }
    }

    /// How many outer addresses have a detour.
    pub(super) fn count(&self) -> usize {
        self.present.len()
    }

    /// The time at which [`Detours::look`] is due.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Why an outer address is not led past the overlay; `None` if all are.
    pub(super) fn trouble(&self) -> Option<String> {
        let failing = self.failing.text().map(|text| format!("a way past the overlay is missing: {text}"));
        let lost = self.lost.text().map(|text| format!("the overlay swallows {text}"));
        failing.or(lost)
    }

    /// Takes note of the subnet of this host, which a bridge is about to get.
    pub(super) fn acquired(&mut self, subnet: Ipv4Net) {
        self.outer.set_own(subnet);
        self.look_again(Instant::now());
    }

    /// Follows the peers.
    pub(super) fn apply(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Added(lease) => self.outer.added(lease.subnet, lease.attrs.public_ip),
                Event::Removed(lease) => self.outer.removed(lease.subnet),
            }
        }
        if self.outer.is_touched() {
            self.check_at = Instant::now();
        }
    }

    /// Waits until the names of the store's endpoints were looked up again, and takes note of their addresses. A look-up
    /// that finds none changes nothing. Cancel-safe.
    pub(super) async fn look_up(&mut self) {
        let found = (&mut self.look_up).await;
        self.look_up = look_up(self.endpoints.clone(), LOOK_UP);
        if !found.is_empty() && self.outer.set_store(found) {
            self.outdated = true;
            self.look_again(Instant::now());
        }
    }

    /// Reads the kernel's tables again at that time, or before if a look is due then.
    fn look_again(&mut self, at: Instant) {
        self.ground = None;
        self.check_at = self.check_at.min(at);
    }

    /// Brings the next pass forward if `change` can concern the detours.
    pub(super) fn changed(&mut self, change: &Change) {
        let active = !self.present.is_empty() || !self.nowhere.is_empty();
        self.outdated |= match change {
            Change::Address { .. } | Change::Overrun => true,
            Change::Route { protocol, destination, .. } => {
                destination.prefix_len() == 0 && *protocol != ROUTE_PROTOCOL
            }
            Change::Link { .. } => false,
        };
        let concerns = match change {
            Change::Route { protocol: DETOUR_PROTOCOL, destination, deleted, .. } => {
                *deleted && self.present.contains_key(&destination.addr())
            }
            Change::Route { protocol: ROUTE_PROTOCOL, .. } => return,
            Change::Route { destination, .. } => active || destination.prefix_len() == 0,
            Change::Link { .. } => active,
            Change::Address { .. } | Change::Overrun => true,
        };
        // What was read is old now, also for a peer that comes meanwhile.
        self.ground = None;
        if concerns {
            self.check_at = self.check_at.min(Instant::now() + CALM);
        }
    }

    /// Looks at the addresses of this host again, and tells the lease of others.
    async fn look_under(&mut self, netlink: &Netlink, mut others: BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        if !self.outdated {
            return Ok(());
        }
        others.extend(self.outer.store());
        let underlay = look(netlink, &self.external, others).await?;
        self.outdated = false;
        if !self.underlay.send_if_modified(|told| {
            *told != underlay && {
                *told = underlay;
                true
            }
        }) {
            return Ok(());
        }
        self.warn_of_underlay();
        let own = self.outer.swallowed().own;
        let taken = own.and_then(|own| Some((own, self.underlay.borrow().taken_by(own)?)));
        if let Some((own, address)) = taken {
            warn!(
                "this host's subnet {own} holds its own address {address}; restart flanneld, which takes another \
                 subnet, and make containers anew"
            );
        }
        Ok(())
    }
}

impl Detours {
    /// Compares the detours with what the overlay swallows, and mends the difference. With many peers it does a part of
    /// that, and is due again at once.
    pub(super) async fn look(&mut self, netlink: &Netlink) -> Progress {
        let now = Instant::now();
        if let Err(error) = self.survey(netlink).await {
            self.complain(now, &error.to_string());
            return Progress::Done;
        }
        let end = Instant::now() + SLICE;
        while Instant::now() < end && self.outer.is_touched() {
            self.outer.take_touched(PART).into_iter().for_each(|address| self.decide(address));
        }
        self.write(netlink, end).await;
        if self.writes.is_empty() && !self.outer.is_touched() {
            self.conclude(now);
            return Progress::Done;
        }
        self.check_at = now;
        Progress::More
    }

    /// Reads the kernel's tables if that is due, or others have changed them.
    async fn survey(&mut self, netlink: &Netlink) -> Result<(), Error> {
        if self.ground.is_none() || self.outdated || Instant::now() >= self.survey_at {
            let ground = netlink.survey_ground(self.network).await?;
            let own = self.outer.swallowed().own;
            self.look_under(netlink, ground.gateways(own.or(self.previous))).await?;
            self.take_over(ground);
        }
        Ok(())
    }

    /// Takes over what a look at the kernel's tables has found. All outer addresses are to be decided on again.
    fn take_over(&mut self, mut ground: Ground) {
        self.present = std::mem::take(&mut ground.detours);
        self.outer.set_gateways(ground.gateways(self.outer.swallowed().own));
        self.ground = Some(ground);
        self.survey_at = Instant::now() + RESYNC;
        let led = self.present.keys().chain(&self.nowhere).chain(self.writes.keys());
        self.outer.touch_all(led.copied());
    }

    /// Notes what is to be written for an address.
    fn decide(&mut self, address: Ipv4Addr) {
        let Some(ground) = &self.ground else { return };
        let is_outer = self.outer.holds(address);
        let past = if is_outer { ground.past(address, self.outer.swallowed()) } else { Past::Free };
        if past == Past::Nowhere {
            self.nowhere.insert(address);
        } else {
            self.nowhere.remove(&address);
        }
        let present = self.present.get(&address);
        let write = match past {
            Past::By(way) if present == Some(&Some(way)) => {
                if self.told.insert(address) {
                    self.pass.news.insert(address);
                }
                None
            }
            Past::By(way) => Some(Some(way)),
            Past::Free | Past::Nowhere => present.map(|_| None),
        };
        match write {
            Some(write) => drop(self.writes.insert(address, write)),
            None => drop(self.writes.remove(&address)),
        }
    }

    /// Makes the writes until `end`, or all of them.
    async fn write(&mut self, netlink: &Netlink, end: Instant) {
        while Instant::now() < end && !self.writes.is_empty() {
            let rest = self.writes.keys().nth(PART).copied().map(|first| self.writes.split_off(&first));
            let part = std::mem::replace(&mut self.writes, rest.unwrap_or_default());
            let present = &self.present;
            let made = part.into_iter().map(|(address, way)| async move {
                let done = match &way {
                    Some(way) => netlink.set_detour(address, way, present.contains_key(&address)).await,
                    None => netlink.remove_detour(address).await,
                };
                (address, way, done)
            });
            for (address, way, done) in write_all(made).await {
                self.note(address, way, done);
            }
        }
    }

    /// Notes what has come of a write. One that has failed does not hold up the others.
    fn note(&mut self, address: Ipv4Addr, way: Option<Way>, done: Result<(), Error>) {
        match (way, done) {
            (_, Err(error)) => drop(self.pass.failed.insert(address, error)),
            (Some(way), Ok(())) => {
                self.present.insert(address, Some(way));
                self.pass.set.insert(address, way);
                if self.told.insert(address) {
                    self.pass.news.insert(address);
                }
            }
            (None, Ok(())) => {
                self.present.remove(&address);
                self.told.remove(&address);
                self.pass.removed.insert(address);
            }
        }
    }

    /// Ends a pass.
    fn conclude(&mut self, now: Instant) {
        let pass = std::mem::take(&mut self.pass);
        let active = !self.present.is_empty() || !self.nowhere.is_empty();
        self.check_at = if active { self.survey_at } else { now + NEVER };
        pass.tell_writes();
        if !pass.news.is_empty() {
            warn!(
                "the overlay's routes would swallow {}: a host route leads past them, and no container with such an \
                 address is reached from here; give the overlay a network that the hosts do not use",
                named(&pass.news, |address| self.outer.describe(*address))
            );
        }
        if self.nowhere.is_empty() {
            self.lost.settle();
        } else {
            let text = named(&self.nowhere, |address| self.outer.describe(*address));
            if self.lost.is_news(now, &text) {
                warn!("the overlay's routes swallow {text}, and no other route leads there");
            }
        }
        if pass.failed.is_empty() {
            self.failing.settle();
        } else {
            self.complain(now, &named(&pass.failed.into_values().collect::<Vec<_>>(), ToString::to_string));
        }
    }

    /// Says why not all is in place; the kernel's tables are read again soon.
    fn complain(&mut self, now: Instant, text: &str) {
        self.ground = None;
        self.check_at = now + CALM;
        if self.failing.is_news(now, text) {
            warn!("cannot lead outer addresses past the overlay: {text}; trying again");
        }
    }
}

impl Pass {
    /// Says what was written.
    fn tell_writes(&self) {
        if !self.set.is_empty() {
            let way = |(address, way): (&Ipv4Addr, &Way)| format!("{address} {way}");
            info!("add host routes past the overlay: {}", named(&self.set, way));
        }
        if !self.removed.is_empty() {
            info!("delete host routes past the overlay: {}", named(&self.removed, ToString::to_string));
        }
    }
}

/// Looks up the addresses of the endpoints after that time.
fn look_up(endpoints: Vec<String>, after: Duration) -> LookUp {
    async move {
        sleep(after).await;
        addresses_of(&endpoints).await
    }
    .boxed_local()
}

/// The first of these in words, and the number of the others.
fn named<T>(
    all: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    text: impl Fn(T) -> String,
) -> String {
    let all = all.into_iter();
    let count = all.len();
    few(all.map(text), count, MOST_SAID)
}
