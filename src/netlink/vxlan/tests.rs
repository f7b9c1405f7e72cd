//! These tests run against the real kernel, each in a network namespace of its own.

use super::super::Mtu;
use super::super::namespace::{ip, ip_shows, run};
use super::*;

async fn wanted(netlink: &Netlink) -> Vxlan {
    ip("link add d0 type veth peer name d0-peer");
    ip("link set d0 up");
    Vxlan {
        name: "flannel.7".to_owned(),
        vni: 7,
        link_index: netlink.link_by_name("d0").await.unwrap().unwrap().index,
        local: "192.0.2.1".parse().unwrap(),
        port: DEFAULT_VXLAN_PORT,
        learning: false,
        gbp: false,
        mtu: 1450,
        mac: "0a:00:00:00:00:07".parse().unwrap(),
    }
}

#[test]
fn a_device_is_made_once() {
    run("netlink::vxlan::tests::a_device_is_made_once", || async {
        let netlink = Netlink::new().unwrap();
        let wanted = wanted(&netlink).await;
        assert_eq!(netlink.vxlan_mac("flannel.7").await.unwrap(), None);
        let (index, changes) = netlink.ensure_vxlan(&wanted).await.unwrap();
        assert_eq!(changes.to_string(), "create flannel.7");
        let shown = ip_shows("-d link show flannel.7");
        for text in [
            "mtu 1450",
            "0a:00:00:00:00:07",
            "vxlan id 7 local 192.0.2.1 dev d0",
            "dstport 8472",
            "nolearning",
        ] {
            assert!(shown.contains(text), "{text} in {shown}");
        }
        let (same, changes) = netlink.ensure_vxlan(&wanted).await.unwrap();
        assert!(changes.is_empty() && same == index, "{changes}");
        assert_eq!(netlink.vxlan_mac("flannel.7").await.unwrap(), Some(wanted.mac));
    });
}

#[test]
fn a_changed_mac_is_put_right_in_a_living_device() {
    run("netlink::vxlan::tests::a_changed_mac_is_put_right_in_a_living_device", || async {
        let netlink = Netlink::new().unwrap();
        let wanted = wanted(&netlink).await;
        let (index, _) = netlink.ensure_vxlan(&wanted).await.unwrap();
        netlink.ensure_link(index, Mtu::Exactly(1450), true).await.unwrap();
        ip("link set flannel.7 address 0e:11:22:33:44:55");
        let (same, changes) = netlink.ensure_vxlan(&wanted).await.unwrap();
        assert_eq!(changes.to_string(), "set MAC of flannel.7 to 0a:00:00:00:00:07");
        assert_eq!((same, netlink.vxlan_mac("flannel.7").await.unwrap()), (index, Some(wanted.mac)));
    });
}

/// The kernel changes these in a living device: its routes, ARP and forwarding entries stay.
#[test]
fn link_address_and_learning_change_in_place() {
    run("netlink::vxlan::tests::link_address_and_learning_change_in_place", || async {
        let netlink = Netlink::new().unwrap();
        let first = wanted(&netlink).await;
        let (index, _) = netlink.ensure_vxlan(&first).await.unwrap();
        netlink.ensure_link(index, Mtu::Exactly(1450), true).await.unwrap();
        ip("link add d1 type bridge");
        ip("addr add 10.1.1.0/32 dev flannel.7");
        ip("route add 10.1.7.0/24 via 10.1.7.0 dev flannel.7 onlink");
        ip("neigh add 10.1.7.0 lladdr 0a:00:00:00:00:09 dev flannel.7 nud permanent");
        let peer: Mac = "0a:00:00:00:00:09".parse().unwrap();
        let host = "192.0.2.9".parse().unwrap();
        netlink.set_fdb(index, peer, host).await.unwrap();
        let tables = || ip_shows("neigh show dev flannel.7") + &ip_shows("route show dev flannel.7");
        let before = tables();
        assert!(before.contains("PERMANENT") && before.contains("10.1.7.0/24"), "{before}");
        let bridge = netlink.link_by_name("d1").await.unwrap().unwrap().index;
        let moved = Vxlan {
            link_index: bridge,
            local: "192.0.2.2".parse().unwrap(),
            learning: true,
            ..first.clone()
        };
        for wanted in [
            Vxlan { local: moved.local, ..first.clone() },
            Vxlan { local: moved.local, link_index: bridge, ..first.clone() },
            moved,
        ] {
            let (same, changes) = netlink.ensure_vxlan(&wanted).await.unwrap();
            assert!(same == index && changes.to_string().starts_with("set flannel.7 "), "{changes}");
            assert!(netlink.ensure_vxlan(&wanted).await.unwrap().1.is_empty());
        }
        let shown = ip_shows("-d link show flannel.7");
        for text in ["local 192.0.2.2 dev d1", ",UP", "mtu 1450"] {
            assert!(shown.contains(text) && !shown.contains("nolearning"), "{text} in {shown}");
        }
        assert_eq!(tables(), before);
        let found = netlink.survey_fdb(index, |mac| (mac == peer).then_some(host), |_| true).await.unwrap();
        assert!(found.right.contains(&peer) && found.stale.is_empty(), "{found:?}");
    });
}

/// The kernel drops a device's permanent ARP entries when its MAC changes: a caller that compares afterwards finds them
/// missing.
#[test]
fn a_new_mac_takes_the_arp_entries_along() {
    run("netlink::vxlan::tests::a_new_mac_takes_the_arp_entries_along", || async {
        let netlink = Netlink::new().unwrap();
        let wanted = wanted(&netlink).await;
        let (index, _) = netlink.ensure_vxlan(&wanted).await.unwrap();
        netlink.ensure_link(index, Mtu::Exactly(1450), true).await.unwrap();
        let (base, peer) = ("10.1.7.0".parse().unwrap(), "0a:00:00:00:00:09".parse().unwrap());
        netlink.set_neighbour(index, base, peer).await.unwrap();
        ip("link set flannel.7 address 0e:11:22:33:44:55");
        netlink.ensure_vxlan(&wanted).await.unwrap();
        assert!(!ip_shows("neigh show dev flannel.7").contains("PERMANENT"));
        let network = "10.1.0.0/16".parse().unwrap();
        let found = netlink.survey_neighbours(index, network, |_| Some(peer)).await.unwrap();
        assert!(found.right.is_empty(), "{found:?}");
    });
}

#[test]
fn a_device_that_differs_is_made_anew() {
    run("netlink::vxlan::tests::a_device_that_differs_is_made_anew", || async {
        let netlink = Netlink::new().unwrap();
        let first = wanted(&netlink).await;
        netlink.ensure_vxlan(&first).await.unwrap();
        let steps = [
            (Vxlan { port: 4789, ..first.clone() }, "not port 4789"),
            (Vxlan { gbp: true, ..first.clone() }, "not port 8472, not GBP true"),
            (Vxlan { vni: 8, ..first.clone() }, "not VNI 8, not GBP false"),
        ];
        for (wanted, differences) in steps {
            let (_, changes) = netlink.ensure_vxlan(&wanted).await.unwrap();
            assert_eq!(changes.to_string(), format!("delete flannel.7 ({differences}); create flannel.7"));
            assert!(netlink.ensure_vxlan(&wanted).await.unwrap().1.is_empty());
        }
        ip("link del flannel.7");
        ip("link add flannel.7 type bridge");
        assert_eq!(netlink.vxlan_mac("flannel.7").await.unwrap(), None);
        let (_, changes) = netlink.ensure_vxlan(&first).await.unwrap();
        assert!(changes.to_string().starts_with("delete flannel.7 (it is no VXLAN device)"), "{changes}");
        // We must not delete another device of the same VNI and port.
        let rival = Vxlan { name: "flannel.x".to_owned(), ..first };
        let error = netlink.ensure_vxlan(&rival).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
    });
}
