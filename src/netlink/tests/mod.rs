//! These tests run against the real kernel, each in a network namespace of its own.

pub(crate) mod namespace;

use super::*;
use ipnet::Ipv4Net;
use namespace::{ip, ip_shows, run};
use std::net::Ipv4Addr;
use std::time::Duration;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn addr(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Makes a device that is up and has a carrier and these addresses.
async fn device(netlink: &Netlink, name: &str, addresses: &[&str]) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}-peer"));
    ip(&format!("link set {name}-peer up"));
    ip(&format!("link set {name} up"));
    for address in addresses {
        ip(&format!("addr add {address} dev {name}"));
    }
    netlink.link_by_name(name).await.unwrap().unwrap().index
}

#[test]
fn links_are_listed_changed_once_and_deleted() {
    run("netlink::tests::links_are_listed_changed_once_and_deleted", || async {
        let netlink = Netlink::new().unwrap();
        ip("link add d0 type veth peer name d0-peer");
        let link = netlink.link_by_name("d0").await.unwrap().unwrap();
        assert_eq!((link.up, link.mtu, link.kind.as_deref()), (false, 1500, Some("veth")));
        assert_eq!(netlink.link_by_index(link.index).await.unwrap().as_ref(), Some(&link));
        assert!(netlink.links().await.unwrap().contains(&link));

        let changes = netlink.ensure_link(link.index, Mtu::Exactly(1472), true).await.unwrap();
        assert_eq!(changes.to_string(), "set MTU of d0 to 1472; set d0 up");
        let link = netlink.link_by_name("d0").await.unwrap().unwrap();
        assert_eq!((link.up, link.mtu), (true, 1472));
        assert!(netlink.ensure_link(link.index, Mtu::Exactly(1472), true).await.unwrap().is_empty());
        assert_eq!(
            netlink.ensure_link(link.index, Mtu::Exactly(1472), false).await.unwrap().to_string(),
            "set d0 down"
        );

        assert!(netlink.delete_link(link.index).await.unwrap());
        assert!(!netlink.delete_link(link.index).await.unwrap());
        assert_eq!(netlink.link_by_name("d0").await.unwrap(), None);
        let error = netlink.ensure_link(link.index, Mtu::Exactly(1472), true).await.unwrap_err();
        assert!(error.is_not_found());
        assert!(error.to_string().starts_with(&format!("set up link {}: ", link.index)), "{error}");
    });
}

#[test]
fn the_kernels_refusal_names_operation_and_object() {
    run("netlink::tests::the_kernels_refusal_names_operation_and_object", || async {
        let netlink = Netlink::new().unwrap();
        ip("link add v0 type veth peer name v1");
        let index = netlink.link_by_name("v0").await.unwrap().unwrap().index;
        let error = netlink.ensure_link(index, Mtu::Exactly(100_000), true).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert!(error.to_string().starts_with("set MTU of v0 to 100000: "), "{error}");
    });
}

#[test]
fn ipv6_is_kept_off_a_device() {
    run("netlink::tests::ipv6_is_kept_off_a_device", || async {
        let netlink = Netlink::new().unwrap();
        ip("link add d0 type veth peer name d0-peer");
        let changes = netlink.disable_ipv6("d0");
        ip("link set d0 up");
        assert_eq!(ip_shows("-6 addr show dev d0"), "");
        if std::path::Path::new("/proc/sys/net/ipv6/conf/d0").exists() {
            assert!(!changes.is_empty());
        }
        assert!(netlink.disable_ipv6("d0").is_empty());
        assert!(netlink.disable_ipv6("absent").is_empty());
    });
}

/// An MTU that an operator has lowered stays where that is asked for.
#[test]
fn a_lower_mtu_is_left() {
    run("netlink::tests::a_lower_mtu_is_left", || async {
        let netlink = Netlink::new().unwrap();
        let index = device(&netlink, "d0", &[]).await;
        ip("link set d0 mtu 1300");
        assert!(netlink.ensure_link(index, Mtu::AtMost(1400), true).await.unwrap().is_empty());
        ip("link set d0 mtu 1480");
        let changes = netlink.ensure_link(index, Mtu::AtMost(1400), true).await.unwrap();
        assert_eq!(changes.to_string(), "set MTU of d0 to 1400");
    });
}

#[test]
fn an_address_is_set_once_and_others_of_its_network_go() {
    run("netlink::tests::an_address_is_set_once_and_others_of_its_network_go", || async {
        let netlink = Netlink::new().unwrap();
        let present = ["10.10.9.1/24", "10.10.9.2/24", "10.10.0.0/16", "10.10.7.7/32", "192.168.5.1/24"];
        let index = device(&netlink, "d0", &present).await;
        let other = device(&netlink, "d1", &["10.20.0.1/24"]).await;

        let (wanted, network) = (net("10.10.0.0/32"), net("10.10.0.0/16"));
        let spared = net("10.10.7.7/32");
        let spare = |address| address == spared;
        let (changes, removed) = netlink.ensure_address(index, wanted, network, spare).await.unwrap();
        assert!(
            changes.to_string().starts_with(&format!("add address 10.10.0.0/32 to link {index}")),
            "{changes}"
        );
        assert_eq!(removed.len(), 3, "{removed:?}");
        let present = netlink.addresses(Some(index)).await.unwrap();
        let nets: Vec<_> = present.iter().map(|a| (a.address, a.prefix_len)).collect();
        let expected = [("10.10.0.0", 32), ("10.10.7.7", 32), ("192.168.5.1", 24)];
        for (address, len) in expected {
            assert!(nets.contains(&(addr(address), len)), "{address} in {nets:?}");
        }
        assert_eq!(nets.len(), expected.len(), "{nets:?}");
        let ours = present.iter().find(|a| a.address == wanted.addr()).unwrap();
        assert_eq!((ours.scope, ours.permanent), (Scope::Global, true));
        let (changes, removed) = netlink.ensure_address(index, wanted, network, spare).await.unwrap();
        assert!(changes.is_empty() && removed.is_empty(), "{changes}");
        assert_eq!(netlink.addresses(Some(other)).await.unwrap().len(), 1);
    });
}

#[test]
fn a_wanted_secondary_survives_its_primary() {
    run("netlink::tests::a_wanted_secondary_survives_its_primary", || async {
        let netlink = Netlink::new().unwrap();
        let index = device(&netlink, "d0", &["10.9.0.1/24", "10.9.0.2/24"]).await;
        std::fs::write("/proc/sys/net/ipv4/conf/d0/promote_secondaries", "0").unwrap();
        netlink.ensure_address(index, net("10.9.0.2/24"), net("10.9.0.0/16"), |_| false).await.unwrap();
        let present = netlink.addresses(Some(index)).await.unwrap();
        assert_eq!(present.iter().map(|a| a.address).collect::<Vec<_>>(), [addr("10.9.0.2")]);
    });
}

#[test]
fn a_dynamic_and_deprecated_address_is_told_apart() {
    run("netlink::tests::a_dynamic_and_deprecated_address_is_told_apart", || async {
        let netlink = Netlink::new().unwrap();
        let index = device(&netlink, "d0", &["192.0.2.1/24"]).await;
        ip("addr add 192.0.2.2/24 dev d0 valid_lft 100 preferred_lft 50");
        ip("addr add 198.51.100.3/24 dev d0 valid_lft 100 preferred_lft 0");
        ip("addr add 169.254.1.1/16 dev d0 scope link");
        let present = netlink.addresses(Some(index)).await.unwrap();
        let seen: Vec<_> = present
            .iter()
            .map(|a| {
                (a.address.to_string(), a.scope == Scope::Global, a.permanent, a.deprecated, a.secondary)
            })
            .collect();
        let expected = [
            ("192.0.2.1", true, true, false, false),
            ("198.51.100.3", true, false, true, false),
            ("169.254.1.1", false, true, false, false),
            ("192.0.2.2", true, false, false, true),
        ]
        .map(|(ip, global, permanent, deprecated, second)| {
            (ip.to_owned(), global, permanent, deprecated, second)
        });
        for one in &expected {
            assert!(seen.contains(one), "{one:?} in {seen:?}");
        }
        assert_eq!(seen.len(), expected.len());
        let position = |ip| seen.iter().position(|a| a.0 == ip);
        assert!(position("192.0.2.1") < position("198.51.100.3"), "the kernel's order: {seen:?}");
    });
}

#[test]
fn a_route_is_set_once_and_corrected() {
    run("netlink::tests::a_route_is_set_once_and_corrected", || async {
        let netlink = Netlink::new().unwrap();
        let first = device(&netlink, "d0", &["10.10.0.0/32"]).await;
        let second = device(&netlink, "d1", &["192.0.2.1/24"]).await;
        let wanted =
            Route { destination: net("10.0.0.0/8"), link_index: first, gateway: None, onlink: false };

        let changes = netlink.ensure_route(wanted).await.unwrap();
        assert_eq!(changes.to_string(), format!("add route 10.0.0.0/8 dev {first}"));
        let shown = ip_shows("route show 10.0.0.0/8");
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>().join(" "), "10.0.0.0/8 dev d0 proto 78");
        assert!(netlink.ensure_route(wanted).await.unwrap().is_empty());

        let moved = Route { link_index: second, gateway: Some(addr("192.0.2.9")), ..wanted };
        assert!(!netlink.ensure_route(moved).await.unwrap().is_empty());
        let shown = ip_shows("route show 10.0.0.0/8");
        assert_eq!(
            shown.split_whitespace().collect::<Vec<_>>().join(" "),
            "10.0.0.0/8 via 192.0.2.9 dev d1 proto 78"
        );
        assert!(netlink.ensure_route(moved).await.unwrap().is_empty());

        let onlink = Route { gateway: Some(addr("203.0.113.5")), onlink: true, ..moved };
        netlink.ensure_route(onlink).await.unwrap();
        assert!(ip_shows("route show 10.0.0.0/8").contains("via 203.0.113.5 dev d1 proto 78 onlink"));
        assert!(netlink.ensure_route(onlink).await.unwrap().is_empty());
    });
}

#[test]
fn foreign_routes_are_left_alone() {
    run("netlink::tests::foreign_routes_are_left_alone", || async {
        let netlink = Netlink::new().unwrap();
        let first = device(&netlink, "d0", &["10.10.0.0/32"]).await;
        device(&netlink, "d1", &[]).await;
        ip("route add 10.0.0.0/8 dev d1 proto static");
        ip("route add 10.0.0.0/8 dev d1 proto static metric 50");
        ip("route add 10.0.0.0/8 dev d1 table 77");
        let before = ip_shows("-4 route show table all");
        let wanted =
            Route { destination: net("10.0.0.0/8"), link_index: first, gateway: None, onlink: false };
        let error = netlink.ensure_route(wanted).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST));
        assert!(error.to_string().contains("a route of protocol 4"), "{error}");
        assert_eq!(ip_shows("-4 route show table all"), before);

        // A route of another metric is no obstacle, and stays.
        ip("route del 10.0.0.0/8 dev d1 metric 0");
        assert!(!netlink.ensure_route(wanted).await.unwrap().is_empty());
        assert!(ip_shows("route show 10.0.0.0/8").contains("dev d1 proto static scope link metric 50"));

        // A foreign route that leads the same way serves as well.
        ip("route add 172.16.0.0/12 dev d0 proto static");
        let same = Route { destination: net("172.16.0.0/12"), ..wanted };
        assert!(netlink.ensure_route(same).await.unwrap().is_empty());
        assert!(ip_shows("route show 172.16.0.0/12").contains("proto static"));
    });
}

#[test]
fn the_default_route_and_the_way_to_an_address() {
    run("netlink::tests::the_default_route_and_the_way_to_an_address", || async {
        let netlink = Netlink::new().unwrap();
        assert_eq!(netlink.default_route_link().await.unwrap(), None);
        let error = netlink.route_to(addr("198.51.100.1")).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENETUNREACH));
        assert!(error.to_string().starts_with("look up the route to 198.51.100.1: "), "{error}");

        let far = device(&netlink, "d0", &["192.0.2.1/24"]).await;
        let near = device(&netlink, "d1", &["203.0.113.1/24"]).await;
        ip("route add default via 192.0.2.254 dev d0 metric 100");
        ip("route add unreachable default table 88");
        assert_eq!(netlink.default_route_link().await.unwrap(), Some(far));
        ip("route add default via 203.0.113.254 dev d1 metric 20");
        assert_eq!(netlink.default_route_link().await.unwrap(), Some(near));

        let way = netlink.route_to(addr("192.0.2.77")).await.unwrap();
        assert_eq!(way, RouteTo { link_index: far, source: Some(addr("192.0.2.1")), gateway: None });
        let way = netlink.route_to(addr("198.51.100.1")).await.unwrap();
        let gateway = Some(addr("203.0.113.254"));
        assert_eq!(way, RouteTo { link_index: near, source: Some(addr("203.0.113.1")), gateway });
    });
}

/// Waits until the monitor reports a change that satisfies `wanted`.
async fn until(monitor: &mut Monitor, wanted: impl Fn(&Change) -> bool) -> Change {
    let found = async {
        loop {
            let change = monitor.next().await.unwrap();
            if wanted(&change) {
                return change;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), found).await.unwrap()
}

#[test]
fn the_monitor_sees_links_addresses_and_routes_change() {
    run("netlink::tests::the_monitor_sees_links_addresses_and_routes_change", || async {
        let netlink = Netlink::new().unwrap();
        let mut monitor = Monitor::new(netlink.port()).unwrap();
        let d0 = device(&netlink, "d0", &["10.10.0.0/32"]).await;
        let up =
            until(&mut monitor, |c| matches!(c, Change::Link { index, up: true, .. } if *index == d0)).await;
        assert!(matches!(up, Change::Link { name, deleted: false, .. } if name == "d0"));
        ip("route add 10.0.0.0/8 dev d0 proto 78");
        let route = |deleted| Change::Route {
            destination: net("10.0.0.0/8"),
            link_index: Some(d0),
            protocol: ROUTE_PROTOCOL,
            deleted,
        };
        until(&mut monitor, |c| *c == route(false)).await;
        ip("route del 10.0.0.0/8");
        until(&mut monitor, |c| *c == route(true)).await;
        ip("addr flush dev d0");
        let gone =
            Change::Address { link_index: d0, address: addr("10.10.0.0"), prefix_len: 32, deleted: true };
        until(&mut monitor, |c| *c == gone).await;
        ip("link set d0 down");
        until(
            &mut monitor,
            |c| matches!(c, Change::Link { index, up: false, deleted: false, .. } if *index == d0),
        )
        .await;
        ip("link del d0");
        until(&mut monitor, |c| matches!(c, Change::Link { index, deleted: true, .. } if *index == d0)).await;
    });
}

/// Thousands of changes of our own neither wake the monitor nor overrun it; a foreign one among them is told.
#[test]
fn the_monitor_does_not_hear_our_own_changes() {
    run("netlink::tests::the_monitor_does_not_hear_our_own_changes", || async {
        let netlink = Netlink::new().unwrap();
        let d0 = device(&netlink, "d0", &["10.10.0.0/32"]).await;
        let mut monitor = Monitor::new(netlink.port()).unwrap();
        let route = |n: u32| Route {
            destination: Ipv4Net::new(Ipv4Addr::from(0x0a10_0000 + (n << 8)), 24).unwrap(),
            link_index: d0,
            gateway: None,
            onlink: false,
        };
        for done in write_all((0..5000).map(|n| netlink.place_route(route(n)))).await {
            assert_eq!(done.unwrap(), Placed::Set);
        }
        netlink.ensure_address(d0, net("10.10.0.1/32"), net("10.10.0.0/16"), |_| false).await.unwrap();
        ip("route add 192.0.2.0/24 dev d0 proto static");
        let first = loop {
            // The kernel sets and removes local routes of its own for the address.
            match monitor.next().await.unwrap() {
                Change::Route { protocol: 2, .. } => {}
                other => break other,
            }
        };
        let foreign = net("192.0.2.0/24");
        assert!(matches!(first, Change::Route { destination, .. } if destination == foreign), "{first:?}");
        let other = Netlink::new().unwrap();
        other.withdraw_route(route(7)).await.unwrap();
        let gone = until(&mut monitor, |c| matches!(c, Change::Route { deleted: true, .. })).await;
        assert!(matches!(gone, Change::Route { destination, .. } if destination == route(7).destination));
    });
}

#[test]
fn the_monitor_tells_that_it_lost_events_and_goes_on() {
    run("netlink::tests::the_monitor_tells_that_it_lost_events_and_goes_on", || async {
        let netlink = Netlink::new().unwrap();
        let mut monitor = Monitor::new(netlink.port()).unwrap();
        let d0 = device(&netlink, "d0", &[]).await;
        // The runtime stands still while `ip` runs, so that the socket is not emptied.
        let mut batch = tempfile::NamedTempFile::new().unwrap();
        for i in 0..5000 {
            let line = format!("route add 10.{}.{}.0/24 dev d0\n", i / 250, i % 250);
            io::Write::write_all(&mut batch, line.as_bytes()).unwrap();
        }
        ip(&format!("-batch {}", batch.path().display()));
        until(&mut monitor, |c| *c == Change::Overrun).await;
        ip("link set d0 down");
        until(&mut monitor, |c| matches!(c, Change::Link { index, up: false, .. } if *index == d0)).await;
    });
}
