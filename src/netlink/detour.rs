//! Ways past the overlay: a host route for each outer address that a route of the overlay would swallow.
//!
//! A peer's subnet, or with udp the whole network, may hold the address of the store, of another peer or of a gateway.
//! Packets for that address would go into the overlay, and nobody there has it. A detour is a /32 route by the way that
//! the kernel would take without the overlay. It carries [`DETOUR_PROTOCOL`], and by that number the next run finds it.

use super::route::{Filter, Present};
use super::{Changes, Error, Netlink, ROUTE_PROTOCOL};
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::collections::{BTreeMap, BTreeSet};
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
    /// The network of the overlay: a detour outside of it is not ours.
    pub network: Ipv4Net,
    /// The destinations of the overlay's routes: the whole network, or the subnets of the peers.
    pub routed: BTreeSet<Ipv4Net>,
    /// This host's subnet, which a bridge has.
    pub own: Option<Ipv4Net>,
}

/// What came of a pass over the detours.
#[derive(Debug, Default)]
pub struct Detours {
    /// The addresses that have one now.
    pub present: BTreeSet<Ipv4Addr>,
    /// The addresses that the overlay swallows and to which no other way leads.
    pub lost: BTreeSet<Ipv4Addr>,
    /// What was written.
    pub changes: Changes,
}

/// A way that is not the overlay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    link: u32,
    gateway: Option<Ipv4Addr>,
    onlink: bool,
    source: Option<Ipv4Addr>,
}

impl Swallowed {
    /// The longest prefix of ours that leads to `address`; `None` if the overlay does not route it.
    fn prefix_of(&self, address: Ipv4Addr) -> Option<u8> {
        let own = self.own.filter(|own| own.contains(&address)).map(|own| own.prefix_len());
        let longer = own.map_or(0, |len| len + 1)..=32;
        let holds =
            |len: &u8| Ipv4Net::new(address, *len).is_ok_and(|net| self.routed.contains(&net.trunc()));
        longer.rev().find(holds).or(own)
    }

    /// Whether a present route is part of the ways that exist without the overlay.
    fn is_underlay(&self, route: &Present) -> bool {
        let by_protocol = route.protocol != ROUTE_PROTOCOL && route.protocol != DETOUR_PROTOCOL;
        let bridge = self.own.is_some_and(|own| own.contains(&route.destination));
        route.main_table && route.kind == RouteType::Unicast && route.tos == 0 && by_protocol && !bridge
    }
}

/// The detours that `outer` needs, and the addresses for which there is no way. A `local` address needs none.
fn plan(
    present: &[Present],
    local: &BTreeSet<Ipv4Addr>,
    outer: &BTreeSet<Ipv4Addr>,
    swallowed: &Swallowed,
) -> (BTreeMap<Ipv4Addr, Way>, BTreeSet<Ipv4Addr>) {
    let underlay: Vec<&Present> = present.iter().filter(|route| swallowed.is_underlay(route)).collect();
    let gateways = underlay.iter().filter_map(|route| route.next_hop());
    let all: BTreeSet<Ipv4Addr> = outer.iter().copied().chain(gateways).collect();
    let (mut ways, mut lost) = (BTreeMap::new(), BTreeSet::new());
    for address in all.difference(local).copied() {
        let Some(ours) = swallowed.prefix_of(address) else { continue };
        let candidates = underlay.iter().filter(|route| route.destination.contains(&address));
        let best = candidates.max_by_key(|route| (route.destination.prefix_len(), u32::MAX - route.metric));
        match best.and_then(|route| Some((route, route.way()?))) {
            // The kernel prefers the longer prefix, so the overlay's route does not get the packets.
            Some((route, _)) if route.destination.prefix_len() > ours => {}
            Some((_, way)) => drop(ways.insert(address, way)),
            None => drop(lost.insert(address)),
        }
    }
    (ways, lost)
}

impl Present {
    fn way(&self) -> Option<Way> {
        let gateway = self.next_hop();
        Some(Way { link: self.link_index?, gateway, onlink: self.onlink, source: self.source() })
    }

    fn is_detour_in(&self, network: Ipv4Net) -> bool {
        self.main_table
            && self.protocol == DETOUR_PROTOCOL
            && self.destination.prefix_len() == 32
            && network.contains(&self.destination)
    }
}

impl Netlink {
    /// The gateways of the routes that others than flannel have made.
    pub async fn gateways(&self) -> Result<BTreeSet<Ipv4Addr>, Error> {
        let nothing = Swallowed::default();
        let has_gateway = |route: &Present| nothing.is_underlay(route) && route.next_hop().is_some();
        let routes = self.routes(UNICAST, has_gateway).await?;
        Ok(routes.iter().filter_map(Present::next_hop).collect())
    }

    /// Makes the detours in the overlay's network those that `outer` and the gateways of this host's routes need.
    ///
    /// # Errors
    /// The kernel does not let us read or write routes.
    pub async fn ensure_detours(
        &self,
        outer: &BTreeSet<Ipv4Addr>,
        swallowed: &Swallowed,
    ) -> Result<Detours, Error> {
        let local = self.addresses(None).await?.iter().map(|one| one.address).collect();
        let present = self.routes(UNICAST, |_| true).await?;
        let (wanted, lost) = plan(&present, &local, outer, swallowed);
        let mut changes = Changes::default();
        let mut kept = BTreeSet::new();
        for route in present.iter().filter(|route| route.is_detour_in(swallowed.network)) {
            let address = route.destination.addr();
            if wanted.get(&address).copied() == route.way() {
                kept.insert(address);
            } else if !wanted.contains_key(&address) {
                self.drop_detour(address, &mut changes).await?;
            }
        }
        for (address, way) in &wanted {
            if !kept.contains(address) {
                self.make_detour(*address, way, &mut changes).await?;
            }
        }
        Ok(Detours { present: wanted.into_keys().collect(), lost, changes })
    }

    async fn make_detour(&self, address: Ipv4Addr, way: &Way, changes: &mut Changes) -> Result<(), Error> {
        let hop = way.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        let what = format!("add route {address}{hop} by link {}, past the overlay", way.link);
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
        let request = self.handle.route().add(builder.build()).replace();
        request.execute().await.map_err(|e| Error::request(&what, e))?;
        changes.push(what);
        Ok(())
    }

    async fn drop_detour(&self, address: Ipv4Addr, changes: &mut Changes) -> Result<(), Error> {
        let what = format!("delete route {address} past the overlay");
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .protocol(RouteProtocol::Other(DETOUR_PROTOCOL))
            .scope(RouteScope::NoWhere)
            .build();
        match self.handle.route().del(message).execute().await.map_err(|e| Error::request(&what, e)) {
            Ok(()) => changes.push(what),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
