//! What an overlay network leaves when this host gets another one in its place.
//!
//! Routes and entries outlive the process on purpose. When the network is another one at the next start, no peer of it
//! wants them any more, and nobody else would remove them. Ours are known by their mark: the protocol number, or an address of
//! the former network on a VXLAN device of the overlay.

use super::route::{Filter, Present};
use super::{Changes, DETOUR_PROTOCOL, Error, Link, Netlink, ROUTE_PROTOCOL, write_all};
use crate::log::few;
use ipnet::Ipv4Net;
use netlink_packet_route::route::RouteType;
use std::collections::BTreeSet;

/// How many entries the log names of each kind; the rest is counted.
const MOST_NAMED: usize = 20;

/// What belongs to a network that this host was in, and not to the one that it is in.
#[derive(Debug, Clone, Copy)]
struct Former {
    former: Ipv4Net,
    present: Ipv4Net,
}

impl Former {
    /// Whether `net` lies in the former network alone. The whole of it is another daemon's, if it is there.
    fn holds(self, net: Ipv4Net) -> bool {
        net != self.former && self.former.contains(&net) && !self.present.contains(&net)
    }

    /// Whether we have set the route.
    fn has_left(self, route: &Present) -> bool {
        matches!(route.protocol, ROUTE_PROTOCOL | DETOUR_PROTOCOL) && self.holds(route.destination)
    }
}

impl Netlink {
    /// Removes what is ours of the network `former` and not of `present`: routes, detours, and on the VXLAN devices of the
    /// overlay addresses, ARP and forwarding entries. Returns what was removed and the first error.
    pub async fn leave_network(&self, former: Ipv4Net, present: Ipv4Net) -> (Changes, Option<Error>) {
        let former = Former { former, present };
        let mut changes = Changes::default();
        let done = self.leave(former, &mut changes).await;
        (changes, done.err())
    }

    async fn leave(&self, former: Former, changes: &mut Changes) -> Result<(), Error> {
        let plain = Filter { kind: Some(RouteType::Unicast), ..Filter::default() };
        let routes = self.routes(plain, |route| former.has_left(route)).await?;
        let (detours, routes): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|route| route.protocol == DETOUR_PROTOCOL);
        // A detour goes after the route that swallows its address.
        for (what, some) in [("routes", routes), ("host routes past the overlay", detours)] {
            let gone = write_all(some.iter().map(|route| self.remove_present(route))).await;
            tell(changes, what, some.iter().map(|route| route.destination.to_string()), gone)?;
        }
        let is_vxlan = |link: &&Link| link.kind.as_deref() == Some("vxlan");
        let links = self.links().await?;
        for link in links.iter().filter(is_vxlan).filter(|link| link.is_overlay()) {
            self.leave_device(link.index, former, changes).await?;
        }
        Ok(())
    }

    /// Removes what is ours of the former network from a VXLAN device. Another daemon may have a network on it too.
    async fn leave_device(&self, index: u32, former: Former, changes: &mut Changes) -> Result<(), Error> {
        let mut arp = self.neighbours(index).await?;
        // The kernel lists them in the order of a hash.
        arp.sort_unstable();
        let (ours, others): (Vec<_>, Vec<_>) =
            arp.into_iter().partition(|(address, _)| former.holds(Ipv4Net::from(*address)));
        let others: BTreeSet<_> = others.into_iter().filter_map(|(_, mac)| mac).collect();
        let macs: BTreeSet<_> =
            ours.iter().filter_map(|(_, mac)| *mac).filter(|mac| !others.contains(mac)).collect();
        let fdb = self.survey_fdb(index, |_| None, |mac| macs.contains(&mac)).await?.stale;
        let gone = write_all(fdb.iter().map(|(mac, ip)| self.remove_fdb(index, *mac, *ip))).await;
        tell(changes, "FDB entries", fdb.iter().map(|(mac, _)| mac.to_string()), gone)?;
        let gone = write_all(ours.iter().map(|(ip, _)| self.remove_neighbour(index, *ip))).await;
        tell(changes, "ARP entries", ours.iter().map(|(ip, _)| ip.to_string()), gone)?;
        changes.extend(self.remove_addresses(index, |ip| former.holds(Ipv4Net::from(ip))).await?);
        Ok(())
    }
}

/// Notes what has come of some removals.
fn tell(
    changes: &mut Changes,
    what: &str,
    of: impl Iterator<Item = String>,
    gone: Vec<Result<(), Error>>,
) -> Result<(), Error> {
    let (mut names, mut error) = (Vec::new(), None);
    for (name, done) in of.zip(gone) {
        match done {
            Ok(()) => names.push(name),
            Err(e) => drop(error.get_or_insert(e)),
        }
    }
    let count = names.len();
    changes.note(count, &format!("remove {count} {what}: {}", few(names, count, MOST_NAMED)));
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::super::namespace::{ip, ip_shows, run};
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_ours_of_the_former_network_goes() {
        run("netlink::former::tests::only_what_is_ours_of_the_former_network_goes", || async {
            for line in [
                "link add eth0 type veth peer name eth0p",
                "link set eth0p up",
                "link set eth0 up",
                "addr add 192.0.2.1/24 dev eth0",
                "link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning",
                "link set flannel.1 up",
                "addr add 10.1.5.0/32 dev flannel.1",
                "addr add 10.2.5.0/32 dev flannel.1",
                "route add 10.1.7.0/24 via 10.1.7.0 dev flannel.1 onlink proto 78",
                "route add 10.1.8.0/24 via 192.0.2.8 proto 78",
                "route add 10.1.7.9/32 via 192.0.2.254 proto 79",
                "neigh add 10.1.7.0 lladdr 0a:00:00:00:00:07 dev flannel.1 nud permanent",
                // A peer of both networks, behind one device.
                "neigh add 10.1.6.0 lladdr 0a:00:00:00:00:06 dev flannel.1 nud permanent",
                "neigh add 10.2.6.0 lladdr 0a:00:00:00:00:06 dev flannel.1 nud permanent",
                // Others', or of the network that is there now.
                "route add 10.2.7.0/24 via 10.2.7.0 dev flannel.1 onlink proto 78",
                "route add 10.2.7.9/32 via 192.0.2.254 proto 79",
                "route add 10.3.7.0/24 via 192.0.2.7 proto 78",
                "route add 10.1.0.0/16 dev flannel.1 proto 78",
                "route add 10.1.9.0/24 via 10.1.9.0 dev flannel.1 onlink",
                "route add 10.1.20.0/24 via 192.0.2.9",
                "route add 10.1.21.0/24 via 10.1.7.7 dev flannel.1 onlink",
                "route add 10.1.22.0/24 via 10.1.22.0 dev flannel.1 onlink proto static",
                "route add 10.1.23.0/24 via 192.0.2.9 proto 78 table 88",
            ] {
                ip(line);
            }
            for (mac, host) in [("0a:00:00:00:00:07", "192.0.2.7"), ("0a:00:00:00:00:06", "192.0.2.6")] {
                let line = format!("fdb append {mac} dev flannel.1 dst {host} self permanent");
                assert!(
                    std::process::Command::new("bridge").args(line.split(' ')).status().unwrap().success()
                );
            }
            let netlink = Netlink::new().unwrap();
            let (done, error) = netlink.leave_network(net("10.1.0.0/16"), net("10.2.0.0/16")).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(
                done.to_string().split(" of link").next().unwrap(),
                "remove 2 routes: 10.1.7.0/24, 10.1.8.0/24; remove 1 host routes past the overlay: \
                 10.1.7.9/32; remove 1 FDB entries: 0a:00:00:00:00:07; remove 2 ARP entries: 10.1.6.0, 10.1.7.0; \
                 remove address 10.1.5.0/32"
            );
            assert_eq!(ip_shows("route show proto 78").lines().count(), 3);
            assert_eq!(ip_shows("route show table 88").lines().count(), 1);
            assert!(ip_shows("route show proto 79").starts_with("10.2.7.9 "));
            assert_eq!(ip_shows("route show proto boot").lines().count(), 3);
            assert_eq!(ip_shows("route show proto static").lines().count(), 1);
            assert_eq!(ip_shows("neigh show nud permanent").lines().count(), 1);
            let (again, _) = netlink.leave_network(net("10.1.0.0/16"), net("10.2.0.0/16")).await;
            assert!(again.is_empty(), "{again}");
            let (none, _) = netlink.leave_network(net("10.2.0.0/16"), net("10.0.0.0/8")).await;
            assert!(none.is_empty(), "the former network lies in the present one: {none}");
        });
    }
}
