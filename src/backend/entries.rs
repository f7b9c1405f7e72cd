//! The entries of one peer in the kernel's tables: a route, and behind a tunnel an ARP and a forwarding entry too.

use crate::log::few;
use crate::netlink::{Changes, Error, Mac, Netlink, Placed, Route, StaleRoute, write_all};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use tracing::info;

/// How many routes of an older flannel a line names; the rest is counted.
const MOST_NAMED: usize = 20;

/// The writes for one peer.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// The device of ARP and forwarding entries.
    pub(super) device: u32,
    pub(super) set_arp: Option<(Ipv4Addr, Mac)>,
    pub(super) set_fdb: Option<(Mac, Ipv4Addr)>,
    pub(super) set_route: Option<Route>,
    pub(super) drop_route: Option<Route>,
    pub(super) drop_fdb: Option<(Mac, Ipv4Addr)>,
    pub(super) drop_arp: Option<Ipv4Addr>,
}

/// An entry of ours that no peer wants.
#[derive(Debug, Clone)]
pub(super) enum Stale {
    Route(StaleRoute),
    Fdb(Mac, Ipv4Addr),
    Arp(Ipv4Addr),
}

/// The number of writes, by kind, and what else is to be said of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    set_arp: usize,
    set_fdb: usize,
    set_routes: usize,
    removed_arp: usize,
    removed_fdb: usize,
    removed_routes: usize,
    /// The routes of an older flannel that were replaced or removed.
    older: Vec<String>,
}

impl Job {
    /// Makes the writes: what leads to the peer is set before what no longer does is removed. Returns the writes that
    /// succeeded and the first error.
    pub(super) async fn run(self, netlink: &Netlink) -> (Tally, Option<Error>) {
        let mut done = Tally::default();
        let arp = async {
            match self.set_arp {
                Some((ip, mac)) => netlink.set_neighbour(self.device, ip, mac).await.map(|()| 1),
                None => Ok(0),
            }
        };
        let fdb = async {
            match self.set_fdb {
                Some((mac, ip)) => netlink.set_fdb(self.device, mac, ip).await.map(|()| 1),
                None => Ok(0),
            }
        };
        let route = async {
            match self.set_route {
                Some(route) => netlink.place_route(route).await,
                None => Ok(Placed::Found),
            }
        };
        // The requests go out in this order, and the kernel acts on them in the order in which they come.
        let (arp, fdb, route) = futures_util::join!(arp, fdb, route);
        let mut error = None;
        done.set_arp = arp.unwrap_or_else(|e| note(&mut error, e));
        done.set_fdb = fdb.unwrap_or_else(|e| note(&mut error, e));
        match route {
            Ok(Placed::Found) => {}
            Ok(Placed::Set) => done.set_routes = 1,
            Ok(Placed::Replaced(other)) => {
                done.set_routes = 1;
                done.older.push(format!("replaced {other}"));
            }
            Err(e) => drop(note(&mut error, e)),
        }
        if let Some(route) = self.drop_route {
            let gone = netlink.withdraw_route(route).await;
            done.removed_routes = gone.map(|()| 1).unwrap_or_else(|e| note(&mut error, e));
        }
        if let Some((mac, ip)) = self.drop_fdb {
            let gone = netlink.remove_fdb(self.device, mac, ip).await;
            done.removed_fdb = gone.map(|()| 1).unwrap_or_else(|e| note(&mut error, e));
        }
        if let Some(ip) = self.drop_arp {
            let gone = netlink.remove_neighbour(self.device, ip).await;
            done.removed_arp = gone.map(|()| 1).unwrap_or_else(|e| note(&mut error, e));
        }
        (done, error)
    }
}

/// Keeps the first error; the result is the number of writes that have succeeded.
fn note(first: &mut Option<Error>, error: Error) -> usize {
    first.get_or_insert(error);
    0
}

/// Removes routes of ours that no peer wants, or that a peer's packets would take instead of ours. Returns what was done
/// and the first error.
pub(super) async fn clear_routes(
    netlink: &Netlink,
    routes: impl IntoIterator<Item = StaleRoute>,
    network: Ipv4Net,
) -> (Changes, Option<Error>) {
    let (mut sum, mut first) = (Tally::default(), None);
    let writes = routes.into_iter().map(|route| Stale::Route(route).remove(netlink, 0));
    for (done, error) in write_all(writes).await {
        sum.add(done);
        if let Some(error) = error {
            note(&mut first, error);
        }
    }
    (sum.changes(network), first)
}

/// Says which routes stay although an older flannel may have left them.
pub(super) fn tell_unclear(routes: &[String]) {
    if !routes.is_empty() {
        let named = few(routes.iter().cloned(), routes.len(), MOST_NAMED);
        info!(
            "these routes (proto boot) stay, since no lease has their gateway: {named}; if an older flannel has \
             left them, remove them with `ip route del`"
        );
    }
}

impl Stale {
    /// The place in the order in which entries stand in a list that is removed from its end.
    pub(super) fn order(&self) -> u8 {
        match self {
            Stale::Arp(_) => 0,
            Stale::Fdb(..) => 1,
            Stale::Route(_) => 2,
        }
    }

    /// Removes the entry from the table, or from that of `device`.
    pub(super) async fn remove(self, netlink: &Netlink, device: u32) -> (Tally, Option<Error>) {
        let mut done = Tally::default();
        let gone = match self {
            Stale::Route(route) => {
                done.removed_routes = 1;
                done.older.extend(route.older().map(|route| format!("removed {route}")));
                netlink.remove_route(route).await
            }
            Stale::Fdb(mac, ip) => {
                done.removed_fdb = 1;
                netlink.remove_fdb(device, mac, ip).await
            }
            Stale::Arp(ip) => {
                done.removed_arp = 1;
                netlink.remove_neighbour(device, ip).await
            }
        };
        match gone {
            Ok(()) => (done, None),
            Err(error) => (Tally::default(), Some(error)),
        }
    }
}

impl Tally {
    /// Adds the writes of another one.
    pub(super) fn add(&mut self, other: Tally) {
        self.set_arp += other.set_arp;
        self.set_fdb += other.set_fdb;
        self.set_routes += other.set_routes;
        self.removed_arp += other.removed_arp;
        self.removed_fdb += other.removed_fdb;
        self.removed_routes += other.removed_routes;
        self.older.extend(other.older);
    }

    /// The writes in sentences.
    pub(super) fn changes(&self, network: Ipv4Net) -> Changes {
        let mut changes = Changes::default();
        for (set, removed, what) in [
            (self.set_arp, self.removed_arp, "ARP entries"),
            (self.set_fdb, self.removed_fdb, "FDB entries"),
            (self.set_routes, self.removed_routes, &format!("routes into {network}")),
        ] {
            changes.note(set, &format!("set {set} {what}"));
            changes.note(removed, &format!("remove {removed} {what}"));
        }
        if !self.older.is_empty() {
            let named = few(self.older.iter().cloned(), self.older.len(), MOST_NAMED);
            changes.remark(format!("of routes of an older flannel (proto boot): {named}"));
        }
        changes
    }
}
