//! A set of routes, one for each peer: the wanted ones are compared with all present ones that are ours.

use super::route::Present;
use super::{Error, Netlink, Outcome, ROUTE_PROTOCOL, Route, Stale};
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

/// The routes of the main table that are ours to remove: those into `network` that carry [`ROUTE_PROTOCOL`] or lead
/// through our own device.
#[derive(Debug, Clone, Copy)]
pub struct Territory {
    /// The network of the whole overlay.
    pub network: Ipv4Net,
    /// The device that only we use, if there is one. Routes that an older flannel left there are ours, too.
    pub device: Option<u32>,
}

impl Territory {
    /// Whether a route is ours to remove.
    fn holds(&self, route: &Present) -> bool {
        route.main_table
            && route.kind == RouteType::Unicast
            && self.network.contains(&route.destination)
            && (route.protocol == ROUTE_PROTOCOL
                || (route.link_index == self.device
                    && self.device.is_some()
                    && route.protocol != u8::from(RouteProtocol::Kernel)))
    }
}

/// What to do about one wanted route.
enum Verdict {
    /// A present route serves.
    Fine,
    /// There is no route in its place yet.
    Add,
    /// A present route gives way to it.
    Replace,
    /// A foreign route holds its place, and leads elsewhere.
    Taken(Error),
}

impl Netlink {
    /// Makes `wanted`, which is ordered by destination, the routes of our territory. A route of ours that leads elsewhere
    /// is replaced, and a route of flannel's (`proto boot`) that leads the same way is adopted. Any other foreign route
    /// to the same destination stays: if it leads the same way it serves as well, and if not it is a failure (`EEXIST`).
    ///
    /// # Errors
    /// The kernel does not let us read the present routes. Refused writes are in [`Outcome::failures`].
    pub async fn ensure_routes(
        &self,
        wanted: &BTreeMap<Ipv4Net, Route>,
        territory: Territory,
        stale: Stale,
    ) -> Result<Outcome, Error> {
        debug_assert!(wanted.iter().all(|(to, route)| *to == route.destination.trunc()), "by destination");
        let present = self.routes().await?;
        let mut rivals: BTreeMap<Ipv4Net, Vec<&Present>> = BTreeMap::new();
        for route in present.iter().filter(|route| route.main_table) {
            rivals.entry(route.destination).or_default().push(route);
        }
        let mut outcome = Outcome::default();
        let mut set = Vec::new();
        for (destination, route) in wanted {
            let rivals = rivals.get(destination).map_or(&[][..], Vec::as_slice);
            match judge(route, rivals, territory) {
                Verdict::Fine => {}
                Verdict::Add => set.push(self.set_route(*route, false)),
                Verdict::Replace => set.push(self.set_route(*route, true)),
                Verdict::Taken(error) => outcome.failures.push(error),
            }
        }
        let unwanted = |route: &&Present| territory.holds(route) && !wanted.contains_key(&route.destination);
        let remove = present.iter().filter(unwanted).map(|route| self.delete_route(*route)).collect();
        let what = format!("routes into {}", territory.network);
        outcome.write(&what, set, remove, stale).await;
        Ok(outcome)
    }

    async fn set_route(&self, route: Route, replace: bool) -> Result<(), Error> {
        let request = self.handle.route().add(route.message());
        let request = if replace { request.replace() } else { request };
        request.execute().await.map_err(|error| Error::request(describe("set", &route), error))
    }

    async fn delete_route(&self, route: Present) -> Result<(), Error> {
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
        done.map_err(|error| Error::request(format!("remove route {destination}"), error))
    }
}

/// What to do about `wanted`, given the routes to its destination.
fn judge(wanted: &Route, rivals: &[&Present], territory: Territory) -> Verdict {
    let mut verdict = Verdict::Add;
    for present in rivals.iter().filter(|present| present.holds_the_place_of(wanted)) {
        let same_way = present.leads_like(wanted);
        let ours = territory.holds(present);
        let flannels = present.protocol == u8::from(RouteProtocol::Boot);
        verdict = match (same_way, ours) {
            (true, _) if present.protocol == ROUTE_PROTOCOL && present.scope == RouteScope::Universe => {
                return Verdict::Fine;
            }
            (true, false) if !flannels => return Verdict::Fine,
            (true, _) | (_, true) => Verdict::Replace,
            (false, false) => {
                let reason = format!(
                    "{}: a route of protocol {} is in its place and not ours to replace",
                    describe("set", wanted),
                    present.protocol
                );
                Verdict::Taken(Error::new(reason, io::Error::from_raw_os_error(libc::EEXIST)))
            }
        };
    }
    verdict
}

/// The route in words, for a log line.
fn describe(verb: &str, route: &Route) -> String {
    let hop = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
    format!("{verb} route {}{hop} by link {}", route.destination, route.link_index)
}

#[cfg(test)]
mod tests;
