//! IPv4 routes of the main table.

use super::{Changes, Error, Netlink};
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;
use std::io;
use std::net::Ipv4Addr;

/// The protocol number (`rtm_protocol`) of our routes. Numbers above 4 (`RTPROT_STATIC`) are free for user programs, and
/// neither the kernel's `rtnetlink.h` nor iproute2's `rt_protos` gives a name to 78. `ip route show proto 78` lists the
/// routes that we installed.
pub const ROUTE_PROTOCOL: u8 = 78;
const _: () = assert!(ROUTE_PROTOCOL > 4, "not a number of the kernel's own");

/// A route that we want, in the main table, with global scope and no metric (as flannel sets it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The destination of the route; its host bits are ignored.
    pub destination: Ipv4Net,
    /// The index of the device that it leads through.
    pub link_index: u32,
    /// The next hop, if the destination is not directly at the device.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the next hop counts as on-link although no prefix of the device covers it.
    pub onlink: bool,
}

/// How the kernel would reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTo {
    /// The index of the device that packets would leave by.
    pub link_index: u32,
    /// The source address that the kernel would pick.
    pub source: Option<Ipv4Addr>,
    /// The next hop, if the address is not on-link.
    pub gateway: Option<Ipv4Addr>,
}

/// One of the ways that a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) link: u32,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) onlink: bool,
}

/// A route as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) destination: Ipv4Net,
    /// The device; with several hops, that of the first in [`Present::hops`].
    pub(super) link_index: Option<u32>,
    pub(super) protocol: u8,
    pub(super) main_table: bool,
    pub(super) gateway: Option<Ipv4Addr>,
    /// The hops of a route that has several, as [`live`] leaves them.
    several: Vec<Hop>,
    /// Whether the kernel does not use the route, since its device is down.
    dead: bool,
    source: Option<Ipv4Addr>,
    pub(super) onlink: bool,
    pub(super) metric: u32,
    pub(super) tos: u8,
    pub(super) kind: RouteType,
    pub(super) scope: RouteScope,
}

impl Present {
    /// Reads a route from a message of the kernel.
    pub(super) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut destination = Ipv4Addr::UNSPECIFIED;
        let mut table = u32::from(header.table);
        let (mut link_index, mut gateway, mut source, mut metric) = (None, None, None, 0);
        let mut several = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = *ip,
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
                RouteAttribute::Oif(index) => link_index = Some(*index),
                RouteAttribute::MultiPath(hops) => several = live(hops),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::Table(value) => table = *value,
                _ => {}
            }
        }
        Some(Self {
            destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
            link_index: link_index.or(several.first().map(|hop: &Hop| hop.link)),
            protocol: header.protocol.into(),
            main_table: table == u32::from(RouteHeader::RT_TABLE_MAIN),
            gateway,
            several,
            dead: header.flags.contains(RouteFlags::Dead),
            source,
            onlink: header.flags.contains(RouteFlags::Onlink),
            metric,
            tos: header.tos,
            kind: header.kind,
            scope: header.scope,
        })
    }

    /// The ways that packets may take by this route now; the kernel prefers none of several.
    pub(super) fn hops(&self) -> impl Iterator<Item = Hop> {
        let only = |link| Hop { link, gateway: self.gateway, onlink: self.onlink };
        let only = self.link_index.filter(|_| self.several.is_empty() && !self.dead).map(only);
        self.several.iter().copied().chain(only)
    }

    /// The source address that the route prefers.
    pub(super) fn source(&self) -> Option<Ipv4Addr> {
        self.source
    }

    /// Whether this route is where ours to `destination` would be: the kernel keeps one for each destination, TOS and
    /// metric.
    pub(super) fn holds_the_place(&self, destination: Ipv4Net) -> bool {
        self.main_table && self.destination == destination.trunc() && self.tos == 0 && self.metric == 0
    }

    /// Whether this route sends packets where `wanted` would send them.
    pub(super) fn leads_like(&self, wanted: &Route) -> bool {
        self.kind == RouteType::Unicast
            && self.several.is_empty()
            && self.link_index == Some(wanted.link_index)
            && self.gateway == wanted.gateway
            && self.onlink == wanted.onlink
    }
}

/// The hops that packets may take. Those of a device that is down are none, and those of a link without a carrier count
/// only if no other is left.
fn live(hops: &[RouteNextHop]) -> Vec<Hop> {
    let with = |unwanted: RouteNextHopFlags| -> Vec<Hop> {
        let wanted = hops.iter().filter(|hop| !hop.flags.intersects(unwanted));
        wanted
            .map(|hop| {
                let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(*ip),
                    _ => None,
                });
                let onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
                Hop { link: hop.interface_index, gateway, onlink }
            })
            .collect()
    };
    let live = with(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown);
    if live.is_empty() { with(RouteNextHopFlags::Dead) } else { live }
}

/// Which routes of the main table to list; what is `None` is not asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filter {
    /// The protocol number.
    pub(super) protocol: Option<u8>,
    /// The device of the only next hop.
    pub(super) link: Option<u32>,
    /// Plain, blackhole and so on.
    pub(super) kind: Option<RouteType>,
}

impl Filter {
    /// The request for a list. With `NETLINK_GET_STRICT_CHK` the kernel passes over all other routes, which costs next to
    /// nothing even where there are hundreds of thousands.
    fn message(self) -> RouteMessage {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.header.protocol = self.protocol.unwrap_or_default().into();
        request.header.kind = self.kind.unwrap_or_default();
        request.attributes.extend(self.link.map(RouteAttribute::Oif));
        request
    }

    /// Whether the list holds this route. A kernel before Linux 4.20 lists all routes of all tables.
    fn takes(self, route: &Present) -> bool {
        route.main_table
            && self.protocol.is_none_or(|protocol| route.protocol == protocol)
            && self.link.is_none_or(|link| route.link_index == Some(link))
            && self.kind.is_none_or(|kind| route.kind == kind)
    }
}

impl Netlink {
    /// Lists the IPv4 routes of the main table that `filter` takes and `keep` says yes to, in the order of the kernel.
    pub(super) async fn routes(
        &self,
        filter: Filter,
        keep: impl Fn(&Present) -> bool,
    ) -> Result<Vec<Present>, Error> {
        let read = |message| match message {
            RouteNetlinkMessage::NewRoute(message) => {
                Present::from_message(&message).filter(|route| filter.takes(route) && keep(route))
            }
            _ => None,
        };
        let list = self.dump("list IPv4 routes", RouteNetlinkMessage::GetRoute(filter.message()), read).await;
        match list {
            // The kernel makes the main table with its first route.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            list => list,
        }
    }

    /// The routes that hold the place of ours to `destination`. Most are found by one look-up, which finds the route that
    /// packets to the first address take; where another one hides it, all routes are listed.
    pub(super) async fn rivals(&self, destination: Ipv4Net) -> Result<Vec<Present>, Error> {
        let mut request = lookup(destination.network());
        request.header.flags = RouteFlags::FibMatch;
        let mut answers = std::pin::pin!(self.handle.route().get(request).execute());
        let answer = answers.try_next().await.ok().flatten();
        if let Some(route) = answer.as_ref().and_then(Present::from_message)
            && route.holds_the_place(destination)
        {
            return Ok(vec![route]);
        }
        self.routes(Filter::default(), |route| route.holds_the_place(destination)).await
    }

    /// The device of the first IPv4 default route in the kernel's list. Of several, that is the one with the least
    /// metric.
    pub async fn default_route_link(&self) -> Result<Option<u32>, Error> {
        let filter = Filter { kind: Some(RouteType::Unicast), ..Filter::default() };
        let routes = self.routes(filter, |route| route.destination.prefix_len() == 0).await?;
        Ok(routes.iter().find_map(|route| route.link_index))
    }

    /// Asks the kernel how it would reach `ip`.
    pub async fn route_to(&self, ip: Ipv4Addr) -> Result<RouteTo, Error> {
        let operation = format!("look up the route to {ip}");
        let mut answers = std::pin::pin!(self.handle.route().get(lookup(ip)).execute());
        let answer = answers.try_next().await.map_err(|e| Error::request(&operation, e))?;
        let route = answer.as_ref().and_then(Present::from_message);
        route
            .and_then(|r| Some(RouteTo { link_index: r.link_index?, source: r.source, gateway: r.gateway }))
            .ok_or_else(|| Error::new(operation, io::Error::from_raw_os_error(libc::ENETUNREACH)))
    }

    /// Installs the route if it is absent, and corrects a route of ours that leads elsewhere. A foreign route to the same
    /// destination serves as well if it leads the same way. If it leads elsewhere, it stays and the result is an error
    /// (`EEXIST`).
    pub async fn ensure_route(&self, wanted: Route) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let hop = wanted.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        let what = format!("add route {} dev {}{hop}", wanted.destination, wanted.link_index);
        let here = Filter { link: Some(wanted.link_index), ..Filter::default() };
        let in_place = |route: &Present| route.holds_the_place(wanted.destination);
        if self.routes(here, in_place).await?.iter().any(|route| serves(route, &wanted)) {
            return Ok(changes);
        }
        let rivals = match self.add_route(wanted, false).await {
            Ok(()) => {
                changes.push(what);
                return Ok(changes);
            }
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                self.routes(Filter::default(), in_place).await?
            }
            Err(error) => return Err(error),
        };
        if rivals.iter().any(|route| serves(route, &wanted)) {
            return Ok(changes);
        }
        if let Some(foreign) = rivals.iter().find(|route| route.protocol != ROUTE_PROTOCOL) {
            let reason = format!(
                "{what}: a route of protocol {} by link {} is in its place and not ours to replace",
                foreign.protocol,
                foreign.link_index.unwrap_or_default()
            );
            return Err(Error::new(reason, io::Error::from_raw_os_error(libc::EEXIST)));
        }
        self.add_route(wanted, true).await?;
        changes.push(what);
        Ok(changes)
    }

    /// Adds the route; with `replace` in the place of the one that is there, else `EEXIST` says that there is one.
    pub(super) async fn add_route(&self, route: Route, replace: bool) -> Result<(), Error> {
        let request = self.handle.route().add(route.message());
        let request = if replace { request.replace() } else { request };
        request.execute().await.map_err(|error| Error::request(route.describe("set"), error))
    }
}

/// Whether a route that is there is as good as `wanted`. Ours must have the scope that we give it.
pub(super) fn serves(present: &Present, wanted: &Route) -> bool {
    let ours = present.protocol == ROUTE_PROTOCOL;
    present.leads_like(wanted) && (!ours || present.scope == RouteScope::Universe)
}

/// The request for the route to one address.
fn lookup(ip: Ipv4Addr) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.destination_prefix_length = 32;
    request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(ip)));
    request
}

impl Route {
    /// The route in words, for a log line.
    pub(super) fn describe(&self, verb: &str) -> String {
        let hop = self.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        format!("{verb} route {}{hop} by link {}", self.destination, self.link_index)
    }

    /// The message that installs this route.
    pub(super) fn message(&self) -> RouteMessage {
        debug_assert!(!self.onlink || self.gateway.is_some(), "only a next hop can be on-link");
        let destination = self.destination.trunc();
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .output_interface(self.link_index)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .scope(RouteScope::Universe);
        if let Some(gateway) = self.gateway {
            builder = builder.gateway(gateway);
        }
        if self.onlink {
            builder = builder.onlink();
        }
        builder.build()
    }
}
