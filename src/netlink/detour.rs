//! Ways past the overlay: a host route for each outer address that a route of the overlay would swallow.
//!
//! A peer's subnet, or with udp the whole network, may hold the address of the store, of another peer or of a gateway.
//! Packets for that address would go into the overlay, and nobody there has it. A detour is a /32 route by the way that
//! the kernel would take without the overlay. It carries [`DETOUR_PROTOCOL`], and by that number the next run finds it.
//!
//! A container may be a gateway too. Its address belongs to the overlay, and a detour would cut it off: a hop that leaves
//! by a device of the overlay, or by the bridge of this host's own subnet, is none of the underlay.

use super::route::{Filter, Hop, Present};
use super::route_set::unless_gone;
use super::{Error, Netlink, ROUTE_PROTOCOL};
use crate::subnet::overlap;
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// The protocol number of detours. It is another one than that of the overlay's routes, which a backend removes when no
/// peer wants them. Neither the kernel nor iproute2 gives it a name.
pub const DETOUR_PROTOCOL: u8 = 79;
const _: () = assert!(DETOUR_PROTOCOL != ROUTE_PROTOCOL && DETOUR_PROTOCOL > 4);

/// The routes that lead somewhere.
const UNICAST: Filter = Filter { protocol: None, link: None, kind: Some(RouteType::Unicast) };

/// What the overlay routes.
#[derive(Debug, Clone, Default)]
pub struct Swallowed {
    /// The destinations of the overlay's routes: the whole network, or the subnets of the peers.
    pub routed: BTreeSet<Ipv4Net>,
    /// This host's subnet, which a bridge has.
    pub own: Option<Ipv4Net>,
}

/// A way that is not the overlay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    link: u32,
    gateway: Option<Ipv4Addr>,
    onlink: bool,
    source: Option<Ipv4Addr>,
}

/// What becomes of an outer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// The overlay does not swallow it.
    Free,
    /// The overlay swallows it unless a detour leads there by this way.
    By(Way),
    /// The overlay swallows it, and no other way leads there.
    Nowhere,
}

/// The kernel's routes as far as they concern the addresses of one network, without those of the overlay.
#[derive(Debug, Default)]
pub struct Ground {
    /// The addresses of this host.
    local: BTreeSet<Ipv4Addr>,
    /// The devices of the overlay.
    overlay: BTreeSet<u32>,
    /// The route that the kernel prefers, by destination. They lie in the network, or around it.
    routes: BTreeMap<Ipv4Net, Present>,
    /// Next hops in the network, each with its device.
    hops: BTreeSet<(Ipv4Addr, u32)>,
    /// The detours that are there, with the ways that they lead; without one if its device is down.
    pub detours: BTreeMap<Ipv4Addr, Option<Way>>,
}

impl Swallowed {
    /// The longest prefix of ours that leads to `address`; `None` if the overlay does not route it.
    fn prefix_of(&self, address: Ipv4Addr) -> Option<u8> {
        let own = self.own.filter(|own| own.contains(&address)).map(|own| own.prefix_len());
        let longer = own.map_or(0, |len| len + 1)..=32;
        let holds = |len: &u8| self.routed.contains(&around(address, *len));
        longer.rev().find(holds).or(own)
    }
}

/// The prefix of that length that holds `address`.
fn around(address: Ipv4Addr, len: u8) -> Ipv4Net {
    Ipv4Net::new(address, len).map(|net| net.trunc()).unwrap_or_default()
}

/// Whether a route says where addresses of the network lead without the overlay, or is a detour there.
fn concerns(route: &Present, network: Ipv4Net) -> bool {
    let destination = route.destination;
    let is_detour = destination.prefix_len() == 32 && network.contains(&destination);
    let leads = || route.hops().any(|hop| hop.gateway.is_some_and(|ip| network.contains(&ip)));
    match route.protocol {
        DETOUR_PROTOCOL => is_detour,
        ROUTE_PROTOCOL => false,
        _ => route.tos == 0 && (overlap(destination, network) || leads()),
    }
}

impl Ground {
    /// Notes a route that [`concerns`] the network.
    fn note(&mut self, route: Present, network: Ipv4Net) {
        let destination = route.destination;
        if route.protocol == DETOUR_PROTOCOL {
            self.detours.insert(destination.addr(), self.way(&route));
            return;
        }
        let outer: Vec<Hop> = route.hops().filter(|hop| !self.overlay.contains(&hop.link)).collect();
        let gateways = outer.iter().filter_map(|hop| Some((hop.gateway?, hop.link)));
        self.hops.extend(gateways.filter(|(gateway, _)| network.contains(gateway)));
        if !outer.is_empty() && overlap(destination, network) {
            let best = self.routes.entry(destination).or_insert_with(|| route.clone());
            if route.metric < best.metric {
                *best = route;
            }
        }
    }

    /// The first of the ways by which packets may leave this host.
    fn way(&self, route: &Present) -> Option<Way> {
        let hop = route.hops().find(|hop| !self.overlay.contains(&hop.link))?;
        Some(Way { link: hop.link, gateway: hop.gateway, onlink: hop.onlink, source: route.source() })
    }

    /// The gateways of others' routes in the network, but for containers of this host, whose subnet is `own`.
    pub fn gateways(&self, own: Option<Ipv4Net>) -> BTreeSet<Ipv4Addr> {
        let is_container = |gateway: Ipv4Addr, link: u32| {
            let Some(own) = own.filter(|own| own.contains(&gateway)) else { return false };
            let routes = (own.prefix_len()..=32).filter_map(|len| self.routes.get(&around(gateway, len)));
            routes.into_iter().any(|route| route.hops().any(|hop| hop.link == link))
        };
        let outer = self.hops.iter().filter(|(gateway, link)| !is_container(*gateway, *link));
        outer.map(|(gateway, _)| *gateway).collect()
    }

    /// What becomes of an outer address. One of this host is always free.
    pub fn past(&self, address: Ipv4Addr, swallowed: &Swallowed) -> Past {
        let Some(ours) = swallowed.prefix_of(address).filter(|_| !self.local.contains(&address)) else {
            return Past::Free;
        };
        // The bridge of the own subnet is the overlay's.
        let own = swallowed.own.filter(|own| own.contains(&address));
        let longest = own.map_or(32, |own| own.prefix_len().saturating_sub(1));
        let route = (0..=longest).rev().find_map(|len| self.routes.get(&around(address, len)));
        match route.and_then(|route| Some((route, self.way(route)?))) {
            // The kernel prefers the longer prefix, so the overlay's route does not get the packets.
            Some((route, _)) if route.destination.prefix_len() > ours => Past::Free,
            Some((_, way)) => Past::By(way),
            None => Past::Nowhere,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(f, "by link {}", self.link)
    }
}

impl Netlink {
    /// Reads what leads to the addresses of `network` beside the overlay, and the detours that are there.
    ///
    /// # Errors
    /// The kernel does not let us read devices, addresses or routes.
    pub async fn survey_ground(&self, network: Ipv4Net) -> Result<Ground, Error> {
        let overlay: BTreeSet<u32> =
            self.links().await?.iter().filter(|link| link.is_overlay()).map(|link| link.index).collect();
        let local = self.addresses(None).await?.iter().map(|one| one.address).collect();
        let mut ground = Ground { local, overlay, ..Ground::default() };
        for route in self.routes(UNICAST, |route| concerns(route, network)).await? {
            ground.note(route, network);
        }
        Ok(ground)
    }

    /// Sets a detour. With `replace` it takes the place of one that is there.
    ///
    /// # Errors
    /// The kernel refuses; `EEXIST` says that somebody else's route is in its place.
    pub async fn set_detour(&self, address: Ipv4Addr, way: &Way, replace: bool) -> Result<(), Error> {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(way.link)
            .protocol(RouteProtocol::Other(DETOUR_PROTOCOL))
            .scope(if way.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link });
        if let Some(gateway) = way.gateway {
            builder = builder.gateway(gateway);
        }
        if way.onlink {
            builder = builder.onlink();
        }
        if let Some(source) = way.source {
            builder = builder.pref_source(source);
        }
        let request = self.handle.route().add(builder.build());
        let request = if replace { request.replace() } else { request };
        let done = request.execute().await;
        done.map_err(|e| Error::request(format!("add route {address} {way}, past the overlay"), e))
    }

    /// Removes a detour.
    ///
    /// # Errors
    /// The kernel refuses. A detour that is gone already is no error.
    pub async fn remove_detour(&self, address: Ipv4Addr) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .protocol(RouteProtocol::Other(DETOUR_PROTOCOL))
            .scope(RouteScope::NoWhere)
            .build();
        let done = self.handle.route().del(message).execute().await;
        unless_gone(done.map_err(|e| Error::request(format!("remove route {address} past the overlay"), e)))
    }
}

#[cfg(test)]
mod tests;
