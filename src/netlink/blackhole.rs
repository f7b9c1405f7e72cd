//! A route that drops: packets for this host's own subnet that no container's interface takes end here,
//! rather than in a loop through the overlay's or the default route.

use super::route::{Present, ROUTE_PROTOCOL};
use super::{Changes, Error, Netlink};
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use rtnetlink::RouteMessageBuilder;
use std::net::Ipv4Addr;

/// The worst metric there is. The kernel takes the first of several routes with one destination and metric, so a
/// blackhole without a metric would come before the route of a bridge that is made later.
const METRIC: u32 = u32::MAX;

impl Netlink {
    /// Installs a blackhole route for `subnet` into the main table unless there is one, ours or not. It yields to
    /// every other route to that destination.
    pub async fn ensure_blackhole(&self, subnet: Ipv4Net) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        if self.routes().await?.iter().any(|route| route.is_blackhole_of(subnet)) {
            return Ok(changes);
        }
        let what = format!("add route blackhole {subnet}");
        self.handle.route().add(message(subnet)).execute().await.map_err(|e| Error::request(&what, e))?;
        changes.push(what);
        Ok(changes)
    }

    /// Removes our blackhole route for `subnet`, if there is one; nobody else's.
    pub async fn remove_blackhole(&self, subnet: Ipv4Net) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let ours = |route: &Present| route.is_blackhole_of(subnet) && route.protocol == ROUTE_PROTOCOL;
        if !self.routes().await?.iter().any(ours) {
            return Ok(changes);
        }
        let what = format!("delete route blackhole {subnet}");
        match self.handle.route().del(message(subnet)).execute().await.map_err(|e| Error::request(&what, e)) {
            Ok(()) => changes.push(what),
            // Somebody was faster.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(changes)
    }
}

fn message(subnet: Ipv4Net) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.network(), subnet.prefix_len())
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .priority(METRIC)
        .build()
}

impl Present {
    fn is_blackhole_of(&self, subnet: Ipv4Net) -> bool {
        self.main_table && self.kind == RouteType::BlackHole && self.destination == subnet.trunc()
    }
}
