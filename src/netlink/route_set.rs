//! A set of routes, one for each peer: which of them are there, which are ours and not wanted, and how one is set.

use super::route::{Filter, Present, serves};
use super::{Error, Netlink, ROUTE_PROTOCOL, Route};
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

/// The protocol number of routes that flannel set, and of those that `ip route add` sets.
const BOOT: u8 = 3;

/// The routes of the main table that are ours to remove. All lie within `network`; we, or an older flannel, have set
/// them.
#[derive(Debug, Clone, Copy)]
pub struct Territory {
    /// The network of the whole overlay.
    pub network: Ipv4Net,
    /// The prefix length of a peer's subnet.
    pub subnet_len: u8,
    /// The device of the overlay, if there is one. An older flannel has left routes there.
    pub device: Option<u32>,
    /// The external interface, if an older flannel may have set routes with a peer as gateway there (host-gw,
    /// DirectRouting). Such a route is known by its form (protocol `boot`, the length of a subnet) and by its gateway, which
    /// is the address of a host with a lease.
    pub external: Option<u32>,
}

impl Territory {
    /// Whether we have set the route.
    fn is_ours(&self, route: &Present) -> bool {
        self.may_hold(route) && route.protocol == ROUTE_PROTOCOL
    }

    /// Whether an older flannel has left the route, by its form. `hosts` says whether a host of the network has or had an
    /// address.
    fn is_left(&self, route: &Present, hosts: impl Fn(Ipv4Addr) -> bool) -> bool {
        let device = self.leads_through(route, self.device);
        // vxlan's form: the gateway is the subnet's first address, which no other program would take.
        let onlink = route.onlink && route.gateway == Some(route.destination.network());
        let whole = route.gateway.is_none() && route.destination == self.network;
        let by_peer = self.is_like_host_gw(route) && route.gateway.is_some_and(hosts);
        let is_subnet = route.destination.prefix_len() == self.subnet_len;
        self.may_be_flannels(route) && ((onlink && (device || is_subnet)) || (whole && device) || by_peer)
    }

    /// Whether host-gw or DirectRouting of an older flannel could have set the route. So could an operator.
    fn is_like_host_gw(&self, route: &Present) -> bool {
        let is_subnet = route.destination.prefix_len() == self.subnet_len;
        let external = self.leads_through(route, self.external);
        self.may_be_flannels(route) && is_subnet && external && route.gateway.is_some() && !route.onlink
    }

    /// Whether the route has what all routes of flannel have. `ip route add` sets such routes too.
    fn may_be_flannels(&self, route: &Present) -> bool {
        self.may_hold(route) && route.protocol == BOOT && route.metric == 0 && route.tos == 0
    }

    fn leads_through(&self, route: &Present, device: Option<u32>) -> bool {
        device.is_some() && route.link_index == device
    }

    fn may_hold(&self, route: &Present) -> bool {
        route.main_table && route.kind == RouteType::Unicast && self.network.contains(&route.destination)
    }
}

/// What a look at the present routes has found.
#[derive(Debug, Default)]
pub struct RouteSurvey {
    /// The destinations whose route is as wanted.
    pub right: BTreeSet<Ipv4Net>,
    /// The routes of the territory whose destination is not wanted.
    pub stale: Vec<StaleRoute>,
    /// Routes in words that have the form of an older flannel's, and no gateway by which to know them for certain.
    pub unclear: Vec<String>,
}

/// A route of ours that nobody wants.
#[derive(Debug, Clone)]
pub struct StaleRoute(Present);

impl StaleRoute {
    /// The destination of the route.
    #[must_use]
    pub fn destination(&self) -> Ipv4Net {
        self.0.destination
    }

    /// The route in words, if an older flannel has set it.
    #[must_use]
    pub fn older(&self) -> Option<String> {
        (self.0.protocol == BOOT).then(|| self.0.describe())
    }
}

/// How a wanted route came into its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// It, or one that serves as well, was there.
    Found,
    /// It was set.
    Set,
    /// It was set in the place of a route of an older flannel that led elsewhere; the sentence names that one.
    Replaced(String),
}

impl Netlink {
    /// Compares the present routes with the wanted ones. Routes that an older flannel has left are looked for only if
    /// `thorough`; `hosts` says whether a host of the network has or had an address. A wanted destination that is in
    /// neither list is for [`Netlink::place_route`].
    ///
    /// # Errors
    /// The kernel does not let us read the present routes.
    pub async fn survey_routes(
        &self,
        territory: Territory,
        thorough: bool,
        hosts: impl Fn(Ipv4Addr) -> bool,
        wanted: impl Fn(Ipv4Net) -> Option<Route>,
    ) -> Result<RouteSurvey, Error> {
        let of = |protocol| Filter { protocol: Some(protocol), ..Filter::default() };
        let mut present = self.routes(of(ROUTE_PROTOCOL), |route| territory.is_ours(route)).await?;
        let mut survey = RouteSurvey::default();
        if thorough {
            let like = |route: &Present| territory.is_left(route, &hosts) || territory.is_like_host_gw(route);
            for route in self.routes(of(BOOT), like).await? {
                if territory.is_left(&route, &hosts) {
                    present.push(route);
                } else if wanted(route.destination).is_none() {
                    survey.unclear.push(route.describe());
                }
            }
        }
        for route in present {
            match wanted(route.destination) {
                None => survey.stale.push(StaleRoute(route)),
                Some(wanted) if is_right(&route, &wanted) => drop(survey.right.insert(route.destination)),
                Some(_) => {}
            }
        }
        Ok(survey)
    }

    /// Sets a route. A route of ours that leads elsewhere gives way, and so does one of an older flannel (`proto boot`),
    /// as it does to flannel itself. Another foreign route to the same destination serves if it leads the same way.
    ///
    /// # Errors
    /// `EEXIST` if a foreign route that leads elsewhere is in its place and stays; else what the kernel says.
    pub async fn place_route(&self, route: Route) -> Result<Placed, Error> {
        match self.add_route(route, false).await {
            Ok(()) => return Ok(Placed::Set),
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
        let rivals = self.rivals(route.destination).await?;
        if rivals.iter().any(|rival| is_right(rival, &route) || is_as_good(rival, &route)) {
            return Ok(Placed::Found);
        }
        if let Some(foreign) = rivals.iter().find(|rival| !gives_way(rival)) {
            let reason = format!(
                "{}: a route of protocol {} is in its place and not ours to replace",
                route.describe("set"),
                foreign.protocol
            );
            return Err(Error::new(reason, io::Error::from_raw_os_error(libc::EEXIST)));
        }
        self.add_route(route, true).await?;
        let other = rivals.iter().find(|rival| rival.protocol == BOOT && !rival.leads_like(&route));
        Ok(other.map_or(Placed::Set, |other| Placed::Replaced(other.describe())))
    }

    /// Removes a route that [`Netlink::survey_routes`] has found.
    ///
    /// # Errors
    /// The kernel refuses. A route that is gone already is no error.
    pub async fn remove_route(&self, route: StaleRoute) -> Result<(), Error> {
        self.remove_present(&route.0).await
    }

    /// Removes a route. One that is gone already is no error.
    pub(super) async fn remove_present(&self, route: &Present) -> Result<(), Error> {
        let destination = route.destination;
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .protocol(RouteProtocol::from(route.protocol))
            .priority(route.metric)
            .tos(route.tos)
            // This stands for any scope (Linux net/ipv4/fib_trie.c, fib_table_delete).
            .scope(RouteScope::NoWhere);
        if let Some(index) = route.link_index {
            builder = builder.output_interface(index);
        }
        if let Some(gateway) = route.gateway {
            builder = builder.gateway(gateway);
        }
        let done = self.handle.route().del(builder.build()).execute().await;
        unless_gone(done.map_err(|error| Error::request(format!("remove route {destination}"), error)))
    }

    /// Removes a route that we have set with [`Netlink::place_route`].
    ///
    /// # Errors
    /// The kernel refuses. A route that is gone already is no error.
    pub async fn withdraw_route(&self, route: Route) -> Result<(), Error> {
        let mut message = route.message();
        message.header.scope = RouteScope::NoWhere;
        let done = self.handle.route().del(message).execute().await;
        unless_gone(done.map_err(|error| Error::request(route.describe("remove"), error)))
    }
}

/// Whether the route is the wanted one, as we set it.
fn is_right(present: &Present, wanted: &Route) -> bool {
    present.protocol == ROUTE_PROTOCOL
        && present.holds_the_place(wanted.destination)
        && serves(present, wanted)
}

/// Whether a foreign route leads the same way. One of flannel's is made ours, so that it does not outlive the peer.
fn is_as_good(present: &Present, wanted: &Route) -> bool {
    !gives_way(present) && serves(present, wanted)
}

/// Whether a route in the place of a wanted one may be replaced.
fn gives_way(present: &Present) -> bool {
    present.kind == RouteType::Unicast && matches!(present.protocol, ROUTE_PROTOCOL | BOOT)
}

/// Makes a success of the error that the entry is gone.
pub(super) fn unless_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.is_not_found() => Ok(()),
        done => done,
    }
}

impl Present {
    /// The route in words, for a log line.
    fn describe(&self) -> String {
        let hop = self.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        format!("{}{hop} by link {}", self.destination, self.link_index.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
