//! Ways past the overlay for what lies under it: the store, the peers' outer addresses and this host's gateways. The
//! first pass comes before the overlay has a route, the later ones come before a peer's route is made. The lease hears
//! from here when this host has other addresses or gateways, since no subnet may take them.

use super::NEVER;
use super::underlay::{addresses_of, look};
use crate::etcd;
use crate::iface::External;
use crate::log::Complaint;
use crate::netlink::{Change, DETOUR_PROTOCOL, Error, Netlink, ROUTE_PROTOCOL, Swallowed};
use crate::subnet::{Config, Event, Underlay};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How often the routes are compared while the overlay swallows an outer address.
const RESYNC: Duration = Duration::from_secs(30);
/// The wait after a change of others' routes, for the rest of a burst, and after a pass that failed.
const CALM: Duration = Duration::from_secs(1);
/// How often the names of the store's endpoints are looked up.
const LOOK_UP: Duration = Duration::from_secs(60);
/// How many addresses the log names; the rest is counted.
const MOST_SAID: usize = 3;
const _: () = assert!(CALM.as_secs() < RESYNC.as_secs() && RESYNC.as_secs() < NEVER.as_secs());

/// Whether the overlay has one route for all, or one for each peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routes {
    Whole,
    Peers,
    /// The backend makes no routes, or nobody knows which.
    None,
}

/// A look-up of names under way.
type LookUp = LocalBoxFuture<'static, BTreeSet<Ipv4Addr>>;

/// The detours of one network.
pub(super) struct Detours {
    network: Ipv4Net,
    routes: Routes,
    external: External,
    store: BTreeSet<Ipv4Addr>,
    /// What lies under the overlay, as the lease was told.
    underlay: watch::Sender<Underlay>,
    /// Whether the addresses or gateways of this host may be others than `underlay` says.
    outdated: bool,
    /// The PublicIP of each peer, by its subnet.
    peers: BTreeMap<Ipv4Net, Ipv4Addr>,
    own: Option<Ipv4Net>,
    present: BTreeSet<Ipv4Addr>,
    check_at: Instant,
    /// Where the store is reached.
    endpoints: Vec<String>,
    /// The names of the endpoints are being looked up.
    look_up: LookUp,
    lost: Complaint<Instant>,
    failing: Complaint<Instant>,
}

/// Looks at what lies under the overlay, and makes the detours that it needs before it has any route.
pub(super) async fn start(
    netlink: &Netlink,
    config: &Config,
    external: &External,
    etcd: &etcd::Settings,
) -> Result<(Detours, watch::Receiver<Underlay>), Error> {
    let store = addresses_of(&etcd.endpoints).await;
    let underlay = look(netlink, external, store.clone()).await?;
    let (told, hears) = watch::channel(underlay);
    let mut detours = Detours::new(config, external, told, store, etcd.endpoints.clone());
    detours.warn_of_underlay();
    detours.look(netlink).await;
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
        let routes = match config.backend.kind.as_str() {
            "udp" => Routes::Whole,
            "vxlan" | "host-gw" => Routes::Peers,
            _ => Routes::None,
        };
        Detours {
            network: config.network,
            routes,
            external: external.clone(),
            store,
            underlay,
            outdated: false,
            peers: BTreeMap::new(),
            own: None,
            present: BTreeSet::new(),
            check_at: Instant::now(),
            look_up: look_up(endpoints.clone(), LOOK_UP),
            endpoints,
            lost: Complaint::default(),
            failing: Complaint::default(),
        }
    }

    /// Says which hosts are not reached any more, if the one route of udp takes the network that this host is in.
    fn warn_of_underlay(&self) {
        let (network, underlay) = (self.network, self.underlay.borrow());
        // The addresses of the host's other devices, such as Docker's bridge, may be the overlay's own.
        let host = underlay.host.iter().filter(|one| one.external).map(|one| one.net.addr());
        let outer = host.chain(underlay.others.iter().copied()).filter(|address| network.contains(address));
        let outer: BTreeSet<String> = outer.map(|address| address.to_string()).collect();
        if self.routes == Routes::Whole && !outer.is_empty() {
            warn!(
                "the network {network} holds {}: its route takes all of {network} that no narrower route leads \
                 elsewhere; peers, etcd and gateways are led past it, other hosts there are not reached",
                named(&outer)
            );
        }
    }

    /// The external interface is another one, or has another address. The next pass is due at once.
    pub(super) fn moved(&mut self, external: &External) {
        self.external = external.clone();
        self.outdated = true;
        self.check_at = Instant::now();
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

    /// Takes note of the subnet of this host, which a bridge is about to get.
    pub(super) fn acquired(&mut self, subnet: Ipv4Net) {
        self.own = Some(subnet);
        self.hurry();
    }

    /// Follows the peers.
    pub(super) fn apply(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Added(lease) => drop(self.peers.insert(lease.subnet, lease.attrs.public_ip)),
                Event::Removed(lease) => drop(self.peers.remove(&lease.subnet)),
            }
        }
        self.hurry();
    }

    /// Waits until the names of the store's endpoints were looked up again, and takes note of their addresses. A look-up
    /// that finds none changes nothing. Cancel-safe.
    pub(super) async fn look_up(&mut self) {
        let found = (&mut self.look_up).await;
        self.look_up = look_up(self.endpoints.clone(), LOOK_UP);
        if !found.is_empty() && found != self.store {
            self.store = found;
            self.outdated = true;
            self.check_at = Instant::now();
        }
    }

    /// Brings the next pass forward if `change` can concern the detours.
    pub(super) fn changed(&mut self, change: &Change) {
        let active = !self.present.is_empty() || self.lost.text().is_some();
        self.outdated |= match change {
            Change::Address { .. } | Change::Overrun => true,
            Change::Route { protocol, destination, .. } => {
                destination.prefix_len() == 0 && *protocol != ROUTE_PROTOCOL
            }
            Change::Link { .. } => false,
        };
        let concerns = match change {
            Change::Route { protocol: DETOUR_PROTOCOL, destination, deleted, .. } => {
                *deleted && self.present.contains(&destination.addr())
            }
            Change::Route { protocol: ROUTE_PROTOCOL, .. } => false,
            Change::Route { destination, .. } => active || destination.prefix_len() == 0,
            Change::Link { .. } => active,
            Change::Address { .. } | Change::Overrun => true,
        };
        if concerns {
            self.check_at = self.check_at.min(Instant::now() + CALM);
        }
    }

    /// A pass is due at once if an outer address lies in the network.
    fn hurry(&mut self) {
        let in_network = |address: &Ipv4Addr| self.network.contains(address);
        let gateway = self.underlay.borrow().others.iter().any(in_network);
        if gateway || self.store.iter().any(in_network) || self.peers.values().any(in_network) {
            self.check_at = Instant::now();
        }
    }

    /// Looks at the addresses and gateways of this host again, and tells the lease of others.
    async fn look_under(&mut self, netlink: &Netlink) -> Result<(), Error> {
        if !self.outdated {
            return Ok(());
        }
        let underlay = look(netlink, &self.external, self.store.clone()).await?;
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
        let taken = self.own.and_then(|own| Some((own, self.underlay.borrow().taken_by(own)?)));
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
    /// Compares the detours with what the overlay swallows, and mends the difference.
    pub(super) async fn look(&mut self, netlink: &Netlink) {
        let now = Instant::now();
        let seen = self.look_under(netlink).await;
        let routed = match self.routes {
            Routes::Whole => BTreeSet::from([self.network]),
            Routes::Peers => self.peers.keys().copied().collect(),
            Routes::None => BTreeSet::new(),
        };
        let swallowed = Swallowed { network: self.network, routed, own: self.own };
        let mut outer = self.store.clone();
        outer.extend(self.peers.values().copied().filter(|address| self.network.contains(address)));
        let made = netlink.ensure_detours(&outer, &swallowed).await;
        match seen.and(made) {
            Ok(detours) => {
                self.failing.settle();
                if !detours.changes.is_empty() {
                    info!("{}", detours.changes);
                }
                let active = !detours.present.is_empty() || !detours.lost.is_empty();
                self.check_at = now + if active { RESYNC } else { NEVER };
                self.tell(now, detours.present, &detours.lost);
            }
            Err(error) => {
                self.check_at = now + CALM;
                let text = error.to_string();
                if self.failing.is_news(now, &text) {
                    warn!("cannot lead outer addresses past the overlay: {text}; trying again");
                }
            }
        }
    }

    fn tell(&mut self, now: Instant, present: BTreeSet<Ipv4Addr>, lost: &BTreeSet<Ipv4Addr>) {
        let news: BTreeSet<String> =
            present.difference(&self.present).map(|one| self.describe(*one)).collect();
        if !news.is_empty() {
            warn!(
                "the overlay's routes would swallow {}: a host route leads past them, and no container with such an \
                 address is reached from here; give the overlay a network that the hosts do not use",
                named(&news)
            );
        }
        self.present = present;
        if lost.is_empty() {
            self.lost.settle();
            return;
        }
        let text = named(&lost.iter().map(|one| self.describe(*one)).collect());
        if self.lost.is_news(now, &text) {
            warn!("the overlay's routes swallow {text}, and no other route leads there");
        }
    }

    /// An outer address with the reason why it matters.
    fn describe(&self, address: Ipv4Addr) -> String {
        let holder = |net: &Ipv4Net| net.contains(&address);
        let what = if self.store.contains(&address) {
            "of etcd"
        } else if self.peers.values().any(|peer| *peer == address) {
            "of a peer"
        } else {
            "of a gateway"
        };
        match self.peers.iter().find(|(net, _)| holder(net)) {
            Some((net, owner)) => format!("{address} {what} (in {owner}'s subnet {net})"),
            None => format!("{address} {what}"),
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

/// The first of these texts, and the number of the others.
fn named(texts: &BTreeSet<String>) -> String {
    let first: Vec<&str> = texts.iter().take(MOST_SAID).map(String::as_str).collect();
    match texts.len().saturating_sub(MOST_SAID) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
