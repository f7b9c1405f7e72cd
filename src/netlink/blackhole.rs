//! A route that drops packets. Packets for this host's own subnet that no container's interface takes end here; without
//! it, the route of the overlay or the default route would send them round in a loop.

use super::route::{Filter, Present, ROUTE_PROTOCOL};
use super::{Changes, Error, Netlink};
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::net::Ipv4Addr;

/// The worst metric that exists. Of several routes with the same destination and metric, the kernel takes the first. So
/// a blackhole without a metric would come before the route of a bridge that is made later.
const METRIC: u32 = u32::MAX;
/// The routes among which ours is.
const BLACKHOLES: Filter = Filter { protocol: None, link: None, kind: Some(RouteType::BlackHole) };

impl Netlink {
    /// Installs a blackhole route for `subnet` into the main table, unless there is one already, ours or not. Every other
    /// route to that destination comes before it.
    pub async fn ensure_blackhole(&self, subnet: Ipv4Net) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        if !self.routes(BLACKHOLES, |route| route.is_blackhole_of(subnet)).await?.is_empty() {
            return Ok(changes);
        }
        let what = format!("add route blackhole {subnet}");
        self.handle.route().add(message(subnet)).execute().await.map_err(|e| Error::request(&what, e))?;
        changes.push(what);
        Ok(changes)
    }

    /// Removes our blackhole route for `subnet`, if there is one. A blackhole route of another program stays.
    pub async fn remove_blackhole(&self, subnet: Ipv4Net) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let ours = |route: &Present| route.is_blackhole_of(subnet) && route.protocol == ROUTE_PROTOCOL;
        if self.routes(BLACKHOLES, ours).await?.is_empty() {
            return Ok(changes);
        }
        let what = format!("delete route blackhole {subnet}");
        match self.handle.route().del(message(subnet)).execute().await.map_err(|e| Error::request(&what, e)) {
            Ok(()) => changes.push(what),
            // Another program has removed it in the meantime.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(changes)
    }
}

/// The message that installs or removes our blackhole route for `subnet`.
fn message(subnet: Ipv4Net) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.network(), subnet.prefix_len())
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .priority(METRIC)
        .build()
}

impl Present {
    /// Whether this is a blackhole route for `subnet`, ours or not.
    fn is_blackhole_of(&self, subnet: Ipv4Net) -> bool {
        self.main_table && self.kind == RouteType::BlackHole && self.destination == subnet.trunc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, ip_shows, run};

    #[test]
    fn a_blackhole_is_kept_yields_to_a_bridge_and_only_ours_is_removed() {
        run(
            "netlink::blackhole::tests::a_blackhole_is_kept_yields_to_a_bridge_and_only_ours_is_removed",
            || async {
                let netlink = Netlink::new().unwrap();
                let subnet: Ipv4Net = "10.1.5.0/24".parse().unwrap();
                assert!(netlink.remove_blackhole(subnet).await.unwrap().is_empty());
                let changes = netlink.ensure_blackhole(subnet).await.unwrap();
                assert_eq!(changes.to_string(), "add route blackhole 10.1.5.0/24");
                assert!(netlink.ensure_blackhole(subnet).await.unwrap().is_empty());
                let routes = ip_shows("route show");
                assert_eq!(routes.trim(), "blackhole 10.1.5.0/24 proto 78 metric 4294967295");

                // A bridge with the same destination comes later.
                ip("link add b0 type bridge");
                ip("link set b0 up");
                ip("addr add 10.1.5.1/24 dev b0");
                assert!(ip_shows("route get 10.1.5.7").starts_with("10.1.5.7 dev b0"));
                // The bridge is there first.
                ip("route del blackhole 10.1.5.0/24 metric 4294967295");
                assert!(!netlink.ensure_blackhole(subnet).await.unwrap().is_empty());
                assert!(ip_shows("route get 10.1.5.7").starts_with("10.1.5.7 dev b0"));

                let changes = netlink.remove_blackhole(subnet).await.unwrap();
                assert_eq!(changes.to_string(), "delete route blackhole 10.1.5.0/24");
                assert_eq!(ip_shows("route show type blackhole"), "");
                ip("route add blackhole 10.1.5.0/24 metric 9");
                assert!(netlink.ensure_blackhole(subnet).await.unwrap().is_empty());
                assert!(netlink.remove_blackhole(subnet).await.unwrap().is_empty());
                assert_eq!(ip_shows("route show type blackhole").trim(), "blackhole 10.1.5.0/24 metric 9");
            },
        );
    }
}
