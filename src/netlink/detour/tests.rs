//! Detours in a namespace of their own.

use super::*;
use crate::netlink::namespace::{ip, ip_shows, run};

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
        let swallowed = Swallowed { network, routed: BTreeSet::from([network]), own: None };
        // By the default route, on the link, by the better of two routes, outside of the network, and our own.
        let outer = set(&["10.200.0.7", "10.1.7.7", "10.9.0.7", "192.0.2.7", "10.1.2.3"]);
        assert!(ip_shows("route get 10.200.0.7").contains("dev over"));
        let done = netlink.ensure_detours(&outer, &swallowed).await.unwrap();
        assert_eq!((done.present, done.lost), (set(&["10.200.0.7"]), set(&[])));
        assert!(ip_shows("route get 10.200.0.7").contains("via 10.1.9.1 dev eth0 src 10.1.2.3"));
        assert!(ip_shows("route get 10.9.0.7").contains("via 10.1.9.3 dev eth0"));
        assert!(ip_shows("route get 10.200.0.8").contains("dev over"), "nothing else changed its way");
        // All is in place; then the gateway changes, and at last nobody wants the detour.
        assert!(netlink.ensure_detours(&outer, &swallowed).await.unwrap().changes.is_empty());
        ip("route replace default via 10.1.9.4");
        assert_eq!(netlink.ensure_detours(&outer, &swallowed).await.unwrap().changes.writes(), 1);
        assert_eq!(detours(), ["10.200.0.7 via 10.1.9.4 dev eth0"]);
        ip("route add 10.200.0.9 via 10.1.9.9");
        let done = netlink.ensure_detours(&set(&[]), &swallowed).await.unwrap();
        assert_eq!((done.changes.writes(), detours().len()), (1, 0));
        assert!(ip_shows("route show 10.200.0.9").contains("10.1.9.9"), "an operator's route stays");
        ip("route del default");
        let done = netlink.ensure_detours(&outer, &swallowed).await.unwrap();
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
            assert_eq!(netlink.gateways().await.unwrap(), set(&["10.1.9.1", "10.1.9.2", "10.1.9.3"]));
            let swallowed = Swallowed {
                network: "10.1.0.0/16".parse().unwrap(),
                routed: BTreeSet::from(["10.1.9.0/24".parse().unwrap()]),
                own: Some("10.1.5.0/24".parse().unwrap()),
            };
            // The store is in a peer's subnet, a peer in ours, where the bridge has it.
            let done = netlink
                .ensure_detours(&set(&["10.1.9.8", "10.1.5.9", "10.1.6.6"]), &swallowed)
                .await
                .unwrap();
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

#[test]
fn of_a_route_with_several_hops_the_first_is_taken() {
    run("netlink::detour::tests::of_a_route_with_several_hops_the_first_is_taken", || async {
        host();
        ip("route del default");
        ip("route add default nexthop via 10.1.9.5 dev eth0 nexthop via 10.1.9.6 dev eth0");
        let netlink = Netlink::new().unwrap();
        let network: Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let swallowed = Swallowed { network, routed: BTreeSet::from([network]), own: None };
        netlink.ensure_detours(&set(&["10.200.0.7"]), &swallowed).await.unwrap();
        assert_eq!(detours(), ["10.200.0.7 via 10.1.9.5 dev eth0"]);
    });
}
