//! Detours in a namespace of their own.

use super::*;
use crate::netlink::namespace::{ip, ip_shows, run};

/// What came of a pass over the detours.
#[derive(Debug, Default)]
struct Outcome {
    /// The addresses that have one now.
    present: BTreeSet<Ipv4Addr>,
    /// The addresses that the overlay swallows and to which no other way leads.
    lost: BTreeSet<Ipv4Addr>,
    writes: usize,
}

impl Netlink {
    /// Makes the detours in `network` those that `outer` and the gateways need, all at once.
    async fn ensure_detours(
        &self,
        outer: &BTreeSet<Ipv4Addr>,
        network: Ipv4Net,
        swallowed: &Swallowed,
    ) -> Outcome {
        let ground = self.survey_ground(network).await.unwrap();
        let mut outcome = Outcome::default();
        let outer = outer.iter().copied().filter(|address| network.contains(address));
        for address in outer.chain(ground.gateways(swallowed.own)) {
            match ground.past(address, swallowed) {
                Past::Free => {}
                Past::Nowhere => drop(outcome.lost.insert(address)),
                Past::By(way) => {
                    outcome.present.insert(address);
                    let present = ground.detours.get(&address);
                    if present != Some(&Some(way)) {
                        self.set_detour(address, &way, present.is_some()).await.unwrap();
                        outcome.writes += 1;
                    }
                }
            }
        }
        for address in ground.detours.keys().filter(|address| !outcome.present.contains(address)) {
            self.remove_detour(*address).await.unwrap();
            outcome.writes += 1;
        }
        outcome
    }
}

fn set(addresses: &[&str]) -> BTreeSet<Ipv4Addr> {
    addresses.iter().map(|text| text.parse().unwrap()).collect()
}

fn detours() -> Vec<String> {
    ip_shows("route show proto 79").lines().map(|line| line.trim().replace("  ", " ")).collect()
}

/// A host in 10.1.0.0/16 whose gateway is 10.1.9.1, with one more network behind another router.
fn host() {
    for line in [
        "link add eth0 type veth peer name eth0p",
        "link set eth0p up",
        "link set eth0 up",
        "link set lo up",
        "addr add 10.1.2.3/16 dev eth0",
        "route add default via 10.1.9.1 src 10.1.2.3",
        "route add 10.8.0.0/13 via 10.1.9.2 metric 50",
        "route add 10.8.0.0/13 via 10.1.9.3 metric 20",
        "link add over type veth peer name overp",
        "link set overp up",
        "link set over up",
    ] {
        ip(line);
    }
}

#[test]
fn a_whole_network_swallows_only_what_no_narrower_route_has() {
    run("netlink::detour::tests::a_whole_network_swallows_only_what_no_narrower_route_has", || async {
        host();
        ip("route add 10.0.0.0/8 dev over proto 78");
        let netlink = Netlink::new().unwrap();
        let network: Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let swallowed = Swallowed { routed: BTreeSet::from([network]), own: None };
        // By the default route, on the link, by the better of two routes, outside of the network, and our own.
        let outer = set(&["10.200.0.7", "10.1.7.7", "10.9.0.7", "192.0.2.7", "10.1.2.3"]);
        assert!(ip_shows("route get 10.200.0.7").contains("dev over"));
        let done = netlink.ensure_detours(&outer, network, &swallowed).await;
        assert_eq!((done.present, done.lost), (set(&["10.200.0.7"]), set(&[])));
        assert!(ip_shows("route get 10.200.0.7").contains("via 10.1.9.1 dev eth0 src 10.1.2.3"));
        assert!(ip_shows("route get 10.9.0.7").contains("via 10.1.9.3 dev eth0"));
        assert!(ip_shows("route get 10.200.0.8").contains("dev over"), "nothing else changed its way");
        // All is in place; then the gateway changes, and at last nobody wants the detour.
        assert!(netlink.ensure_detours(&outer, network, &swallowed).await.writes == 0);
        ip("route replace default via 10.1.9.4");
        assert_eq!(netlink.ensure_detours(&outer, network, &swallowed).await.writes, 1);
        assert_eq!(detours(), ["10.200.0.7 via 10.1.9.4 dev eth0"]);
        ip("route add 10.200.0.9 via 10.1.9.9");
        let done = netlink.ensure_detours(&set(&[]), network, &swallowed).await;
        assert_eq!((done.writes, detours().len()), (1, 0));
        assert!(ip_shows("route show 10.200.0.9").contains("10.1.9.9"), "an operator's route stays");
        ip("route del default");
        let done = netlink.ensure_detours(&outer, network, &swallowed).await;
        assert_eq!((done.present, done.lost), (set(&[]), set(&["10.200.0.7"])));
    });
}

#[test]
fn a_peers_subnet_over_the_hosts_own_network_takes_neither_gateway_nor_store() {
    run(
        "netlink::detour::tests::a_peers_subnet_over_the_hosts_own_network_takes_neither_gateway_nor_store",
        || async {
            host();
            ip("route add 10.1.9.0/24 dev over proto 78");
            ip("link add b0 type bridge");
            ip("link set b0 up");
            ip("addr add 10.1.5.1/24 dev b0");
            let netlink = Netlink::new().unwrap();
            let network = "10.1.0.0/16".parse().unwrap();
            let ground = netlink.survey_ground(network).await.unwrap();
            assert_eq!(ground.gateways(None), set(&["10.1.9.1", "10.1.9.2", "10.1.9.3"]));
            let swallowed = Swallowed {
                routed: BTreeSet::from(["10.1.9.0/24".parse().unwrap()]),
                own: Some("10.1.5.0/24".parse().unwrap()),
            };
            // The store is in a peer's subnet, a peer in ours, where the bridge has it.
            let outer = set(&["10.1.9.8", "10.1.5.9", "10.1.6.6"]);
            let done = netlink.ensure_detours(&outer, network, &swallowed).await;
            let expected = ["10.1.5.9", "10.1.9.1", "10.1.9.2", "10.1.9.3", "10.1.9.8"];
            assert_eq!((done.present, done.lost), (set(&expected), set(&[])));
            for address in expected {
                let way = ip_shows(&format!("route get {address}"));
                assert!(way.contains("dev eth0") && !way.contains("via"), "{way}");
            }
            assert!(ip_shows("route get 10.1.9.77").contains("dev over"), "the rest is the peer's");
            assert!(ip_shows("route get 10.1.5.77").contains("dev b0"), "the rest is ours");
            assert!(ip_shows("route get 192.0.2.1").contains("via 10.1.9.1 dev eth0"));
        },
    );
}

/// A VPN in a container of this host, one in a peer's container, and what a stock flannel with vxlan has left.
#[test]
fn a_container_that_is_a_gateway_is_no_underlay() {
    run("netlink::detour::tests::a_container_that_is_a_gateway_is_no_underlay", || async {
        host();
        for line in [
            "link add docker0 type bridge",
            "link set docker0 up",
            "addr add 10.1.5.1/24 dev docker0",
            "route add 10.88.0.0/24 via 10.1.5.7 dev docker0",
            "link add flannel.1 type veth peer name vtep",
            "link set vtep up",
            "link set flannel.1 up",
            "addr add 10.1.5.0/32 dev flannel.1",
            "route add 10.89.0.0/24 via 10.1.7.7 dev flannel.1 onlink",
            "route add 10.1.7.0/24 via 10.1.7.0 dev flannel.1 onlink",
        ] {
            ip(line);
        }
        let netlink = Netlink::new().unwrap();
        let network: Ipv4Net = "10.1.0.0/16".parse().unwrap();
        let own: Ipv4Net = "10.1.5.0/24".parse().unwrap();
        let ground = netlink.survey_ground(network).await.unwrap();
        let host = ["10.1.9.1", "10.1.9.2", "10.1.9.3"];
        assert_eq!(ground.gateways(Some(own)), set(&host), "the host's own");
        assert_eq!(ground.gateways(None), set(&[&host[..], &["10.1.5.7"]].concat()), "whose bridge is it?");
        for routed in [network, "10.1.7.0/24".parse().unwrap()] {
            let swallowed = Swallowed { routed: BTreeSet::from([routed]), own: Some(own) };
            netlink.ensure_detours(&set(&["10.1.7.9"]), network, &swallowed).await;
            for container in ["10.1.5.7", "10.1.7.7", "10.1.7.0"] {
                assert!(!detours().iter().any(|line| line.starts_with(container)), "{:?}", detours());
            }
            // The older flannel's route is no way for an outer address.
            assert!(ip_shows("route get 10.1.7.9").contains("dev eth0"));
        }
        assert!(ip_shows("route get 10.1.5.7").contains("dev docker0"));
        assert!(ip_shows("route get 10.1.7.7").contains("dev flannel.1"));
    });
}

/// The kernel takes no hop whose device is down, and says so in the route.
#[test]
fn of_a_route_with_several_hops_a_dead_one_is_passed_over() {
    run("netlink::detour::tests::of_a_route_with_several_hops_a_dead_one_is_passed_over", || async {
        for n in [0, 1] {
            ip(&format!("link add eth{n} type veth peer name eth{n}p"));
            ip(&format!("link set eth{n}p up"));
            ip(&format!("link set eth{n} up"));
            ip(&format!("addr add 172.16.{n}.1/24 dev eth{n}"));
        }
        ip("route add default nexthop via 172.16.0.254 dev eth0 nexthop via 172.16.1.254 dev eth1");
        let netlink = Netlink::new().unwrap();
        let network: Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let swallowed = Swallowed { routed: BTreeSet::from([network]), own: None };
        let outer = set(&["10.200.0.7"]);
        let index = async |name| netlink.link_by_name(name).await.unwrap().unwrap().index;
        for (change, way, device) in [
            ("link set lo up", "10.200.0.7 via 172.16.0.254 dev eth0", "eth0"),
            ("link set eth0p down", "10.200.0.7 via 172.16.1.254 dev eth1", "eth1"),
            ("link set eth0p up", "10.200.0.7 via 172.16.0.254 dev eth0", "eth0"),
            ("link set eth0 down", "10.200.0.7 via 172.16.1.254 dev eth1", "eth1"),
        ] {
            ip(change);
            // The carrier is noticed a moment later.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            netlink.ensure_detours(&outer, network, &swallowed).await;
            assert_eq!(detours(), [way], "{change}");
            assert_eq!(netlink.default_route_link().await.unwrap(), Some(index(device).await), "{change}");
        }
    });
}

#[test]
fn of_a_route_with_several_hops_the_first_is_taken() {
    run("netlink::detour::tests::of_a_route_with_several_hops_the_first_is_taken", || async {
        host();
        ip("route del default");
        ip("route add default nexthop via 10.1.9.5 dev eth0 nexthop via 10.1.9.6 dev eth0");
        let netlink = Netlink::new().unwrap();
        let network: Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let swallowed = Swallowed { routed: BTreeSet::from([network]), own: None };
        netlink.ensure_detours(&set(&["10.200.0.7"]), network, &swallowed).await;
        assert_eq!(detours(), ["10.200.0.7 via 10.1.9.5 dev eth0"]);
    });
}
