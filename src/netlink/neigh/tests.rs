//! These tests run against the real kernel, each in a network namespace of its own.

use super::super::namespace::{ip, ip_shows, run};
use super::super::{DEFAULT_VXLAN_PORT, Mtu, Vxlan, write_all};
use super::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn addr(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

/// Makes a VXLAN device that is up.
pub(in super::super) async fn overlay(netlink: &Netlink) -> u32 {
    ip("link add d0 type veth peer name d0-peer");
    ip("link set d0 up");
    let link_index = netlink.link_by_name("d0").await.unwrap().unwrap().index;
    let wanted = Vxlan {
        name: "flannel.9".to_owned(),
        vni: 9,
        link_index,
        local: addr("192.0.2.1"),
        port: DEFAULT_VXLAN_PORT,
        learning: false,
        gbp: false,
        mtu: 1450,
        mac: mac("0a:00:00:00:00:01"),
    };
    let (index, _) = netlink.ensure_vxlan(&wanted).await.unwrap();
    netlink.ensure_link(index, Mtu::Exactly(1450), true).await.unwrap();
    index
}

/// The output of `bridge fdb show` for the overlay.
fn fdb() -> Vec<String> {
    let output = std::process::Command::new("bridge").args(["fdb", "show", "dev", "flannel.9"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn macs_are_read_and_written() {
    assert_eq!(mac("0a:1b:2c:3D:4E:5f").to_string(), "0a:1b:2c:3d:4e:5f");
    assert_eq!(mac("0a-1b-2c-3d-4e-5f"), mac("0a:1b:2c:3d:4e:5f"));
    for bad in ["", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60", "a:1b:2c:3d:4e:5f0", "+a:1b:2c:3d:4e:5f", "x"] {
        assert_eq!(bad.parse::<Mac>(), Err(MacError), "{bad}");
    }
    assert!(mac("0a:00:00:00:00:01").is_unicast());
    assert!(!mac("01:00:5e:00:00:01").is_unicast());
    assert!(!mac("00:00:00:00:00:00").is_unicast());
    assert_eq!(mac("ff:00:00:00:00:00").locally_administered(), mac("fe:00:00:00:00:00"));
}

fn bridge(words: &str) {
    let words = words.split_whitespace();
    assert!(std::process::Command::new("bridge").args(words).status().unwrap().success());
}

#[test]
fn arp_entries_are_ours_within_the_network_only() {
    run("netlink::neigh::tests::arp_entries_are_ours_within_the_network_only", || async {
        let netlink = Netlink::new().unwrap();
        let index = overlay(&netlink).await;
        ip("neigh add 10.1.9.0 lladdr 0a:00:00:00:00:09 dev flannel.9 nud permanent");
        ip("neigh add 10.1.1.0 lladdr 0a:00:00:00:00:01 dev flannel.9 nud permanent");
        ip("neigh add 10.1.2.0 lladdr 0a:00:00:00:00:ff dev flannel.9 nud permanent");
        ip("neigh add 10.1.3.7 lladdr 0a:00:00:00:00:03 dev flannel.9 nud reachable");
        ip("neigh add 10.1.3.0 lladdr 0a:00:00:00:00:03 dev flannel.9 nud reachable");
        ip("neigh add 192.168.5.5 lladdr 0e:00:00:00:00:05 dev flannel.9 nud permanent");
        ip("neigh add 10.1.8.0 lladdr 0a:00:00:00:00:08 dev d0 nud permanent");
        let wanted: BTreeMap<_, _> =
            [1, 2, 3].map(|n| (Ipv4Addr::new(10, 1, n, 0), Mac([10, 0, 0, 0, 0, n]))).into();
        let network = "10.1.0.0/16".parse().unwrap();
        let survey =
            async || netlink.survey_neighbours(index, network, |ip| wanted.get(&ip).copied()).await.unwrap();

        let found = survey().await;
        assert_eq!(found.right, [addr("10.1.1.0")].into());
        assert_eq!(found.stale, [addr("10.1.9.0")]);
        assert_eq!(found.left, [mac("0a:00:00:00:00:09"), mac("0a:00:00:00:00:ff")].into());
        assert_eq!(found.foreign, [mac("0e:00:00:00:00:05")].into());
        for (ip, mac) in &wanted {
            netlink.set_neighbour(index, *ip, *mac).await.unwrap();
        }
        netlink.remove_neighbour(index, addr("10.1.9.0")).await.unwrap();
        netlink.remove_neighbour(index, addr("10.1.9.0")).await.unwrap();
        let found = survey().await;
        assert_eq!((found.right.len(), found.stale.len()), (3, 0));

        let shown = ip_shows("neigh show dev flannel.9 nud permanent");
        let mut shown: Vec<_> = shown.lines().map(str::trim).collect();
        shown.sort_unstable();
        let expected = [1, 2, 3].map(|n| format!("10.1.{n}.0 lladdr 0a:00:00:00:00:0{n} PERMANENT"));
        assert_eq!(shown[..3], expected);
        assert_eq!(shown[3..], ["192.168.5.5 lladdr 0e:00:00:00:00:05 PERMANENT"]);
        assert!(ip_shows("neigh show 10.1.3.7").contains("REACHABLE"), "a learned entry stays");
    });
}

#[test]
fn forwarding_entries_are_ours_by_their_mac() {
    run("netlink::neigh::tests::forwarding_entries_are_ours_by_their_mac", || async {
        let netlink = Netlink::new().unwrap();
        let index = overlay(&netlink).await;
        ip("link add flannel.10 type vxlan id 10 dev d0 dstport 8472");
        bridge("fdb add 0a:00:00:00:00:08 dev flannel.10 dst 192.0.2.8 self permanent");
        bridge("fdb add 0a:00:00:00:00:09 dev flannel.9 dst 192.0.2.9 self permanent");
        bridge("fdb add 0e:00:00:00:00:05 dev flannel.9 dst 192.0.2.5 self permanent");
        bridge("fdb add 0a:00:00:00:00:01 dev flannel.9 dst 192.0.2.1 self permanent");
        bridge("fdb add 0a:00:00:00:00:02 dev flannel.9 dst 192.0.2.99 self permanent");
        bridge("fdb append 00:00:00:00:00:00 dev flannel.9 dst 192.0.2.77 self permanent");
        let wanted: BTreeMap<_, _> =
            [1, 2].map(|n| (Mac([10, 0, 0, 0, 0, n]), Ipv4Addr::new(192, 0, 2, n))).into();
        let left = mac("0a:00:00:00:00:09");
        let survey = async || {
            netlink.survey_fdb(index, |mac| wanted.get(&mac).copied(), |mac| mac == left).await.unwrap()
        };
        let found = survey().await;
        assert_eq!(found.right, [mac("0a:00:00:00:00:01")].into());
        assert_eq!(found.stale, [(left, addr("192.0.2.9"))]);
        for (mac, ip) in &wanted {
            netlink.set_fdb(index, *mac, *ip).await.unwrap();
        }
        netlink.remove_fdb(index, left, addr("192.0.2.9")).await.unwrap();
        netlink.remove_fdb(index, left, addr("192.0.2.9")).await.unwrap();
        let found = survey().await;
        assert_eq!((found.right.len(), found.stale.len()), (2, 0));
        let flood = "00:00:00:00:00:00 dst 192.0.2.77 self permanent";
        let first = "0a:00:00:00:00:01 dst 192.0.2.1 self permanent";
        let foreign = "0e:00:00:00:00:05 dst 192.0.2.5 self permanent";
        assert_eq!(fdb(), [flood, first, "0a:00:00:00:00:02 dst 192.0.2.2 self permanent", foreign]);
    });
}

/// A thousand peers are written within two seconds, and compared in no time.
#[test]
fn a_thousand_entries_take_no_time() {
    run("netlink::neigh::tests::a_thousand_entries_take_no_time", || async {
        let netlink = Netlink::new().unwrap();
        let index = overlay(&netlink).await;
        let peer = |n: u16| {
            let [high, low] = n.to_be_bytes();
            (
                Ipv4Addr::new(10, 9, high, low),
                Mac([10, 0, 0, 0, high, low]),
                Ipv4Addr::new(198, 18, high, low),
            )
        };
        let arp: BTreeMap<_, _> = (0..1000).map(peer).map(|(ip, mac, _)| (ip, mac)).collect();
        let fdb: BTreeMap<_, _> = (0..1000).map(peer).map(|(_, mac, outer)| (mac, outer)).collect();
        let start = Instant::now();
        let set = arp.iter().map(|(ip, mac)| netlink.set_neighbour(index, *ip, *mac));
        assert!(write_all(set).await.iter().all(Result::is_ok));
        let set = fdb.iter().map(|(mac, ip)| netlink.set_fdb(index, *mac, *ip));
        assert!(write_all(set).await.iter().all(Result::is_ok));
        eprintln!("2000 writes in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(2));
        let start = Instant::now();
        let network = "10.9.0.0/16".parse().unwrap();
        let found = netlink.survey_neighbours(index, network, |ip| arp.get(&ip).copied()).await.unwrap();
        assert_eq!((found.right.len(), found.stale.len()), (1000, 0));
        let found = netlink.survey_fdb(index, |mac| fdb.get(&mac).copied(), |_| true).await.unwrap();
        assert_eq!((found.right.len(), found.stale.len()), (1000, 0));
        eprintln!("compared in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_millis(500));
    });
}
