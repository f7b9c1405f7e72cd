//! These tests run against the real kernel, each in a network namespace of its own.

use super::super::namespace::{ip, ip_shows, run};
use super::super::{DEFAULT_VXLAN_PORT, Vxlan};
use super::*;
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
    netlink.ensure_link(index, 1450, true).await.unwrap();
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

#[test]
fn arp_entries_become_what_is_wanted() {
    run("netlink::neigh::tests::arp_entries_become_what_is_wanted", || async {
        let netlink = Netlink::new().unwrap();
        let index = overlay(&netlink).await;
        ip("neigh add 10.1.9.0 lladdr 0a:00:00:00:00:09 dev flannel.9 nud permanent");
        ip("neigh add 10.1.2.0 lladdr 0a:00:00:00:00:ff dev flannel.9 nud permanent");
        ip("neigh add 10.1.3.7 lladdr 0a:00:00:00:00:03 dev flannel.9 nud reachable");
        ip("neigh add 10.1.3.0 lladdr 0a:00:00:00:00:03 dev flannel.9 nud reachable");
        ip("neigh add 192.0.2.9 lladdr 0a:00:00:00:00:09 dev d0 nud permanent");
        let wanted: BTreeMap<_, _> =
            [1, 2, 3].map(|n| (Ipv4Addr::new(10, 1, n, 0), Mac([10, 0, 0, 0, 0, n]))).into();

        let kept = netlink.ensure_neighbours(index, &wanted, Stale::Keep).await.unwrap();
        assert_eq!(kept.changes.to_string(), "set 3 ARP entries");
        assert_eq!((kept.stale, kept.removed, kept.failures.len()), (1, 0, 0));
        let done = netlink.ensure_neighbours(index, &wanted, Stale::Remove).await.unwrap();
        assert_eq!(done.changes.to_string(), "remove 1 ARP entries");
        assert_eq!((done.changes.writes(), done.removed), (1, 1));
        let again = netlink.ensure_neighbours(index, &wanted, Stale::Remove).await.unwrap();
        assert!(again.changes.is_empty() && again.failures.is_empty());

        let shown = ip_shows("neigh show dev flannel.9 nud permanent");
        let mut shown: Vec<_> = shown.lines().map(str::trim).collect();
        shown.sort_unstable();
        let expected = [1, 2, 3].map(|n| format!("10.1.{n}.0 lladdr 0a:00:00:00:00:0{n} PERMANENT"));
        assert_eq!(shown, expected);
        assert!(ip_shows("neigh show 192.0.2.9").contains("PERMANENT"), "another device's entry stays");
        assert!(ip_shows("neigh show 10.1.3.7").contains("REACHABLE"), "a learned entry stays");
    });
}

#[test]
fn fdb_entries_become_what_is_wanted() {
    run("netlink::neigh::tests::fdb_entries_become_what_is_wanted", || async {
        let netlink = Netlink::new().unwrap();
        let index = overlay(&netlink).await;
        let bridge = |words: &str| {
            let words = words.split_whitespace();
            assert!(std::process::Command::new("bridge").args(words).status().unwrap().success());
        };
        bridge("fdb add 0a:00:00:00:00:09 dev flannel.9 dst 192.0.2.9 self permanent");
        bridge("fdb add 0a:00:00:00:00:02 dev flannel.9 dst 192.0.2.99 self permanent");
        bridge("fdb append 00:00:00:00:00:00 dev flannel.9 dst 192.0.2.77 self permanent");
        let wanted: BTreeMap<_, _> =
            [1, 2].map(|n| (Mac([10, 0, 0, 0, 0, n]), Ipv4Addr::new(192, 0, 2, n))).into();
        let done = netlink.ensure_fdb(index, &wanted, Stale::Remove).await.unwrap();
        assert_eq!(done.changes.to_string(), "set 2 FDB entries; remove 1 FDB entries");
        assert!(done.failures.is_empty(), "{:?}", done.failures);
        let again = netlink.ensure_fdb(index, &wanted, Stale::Remove).await.unwrap();
        assert!(again.changes.is_empty(), "{}", again.changes);
        let flood = "00:00:00:00:00:00 dst 192.0.2.77 self permanent";
        let first = "0a:00:00:00:00:01 dst 192.0.2.1 self permanent";
        assert_eq!(fdb(), [flood, first, "0a:00:00:00:00:02 dst 192.0.2.2 self permanent"]);
    });
}

/// A thousand peers are written within two seconds, and a second round writes nothing.
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
        for (round, writes) in [(0, 2000), (1, 0)] {
            let start = Instant::now();
            let mut outcome = netlink.ensure_neighbours(index, &arp, Stale::Remove).await.unwrap();
            outcome.extend(netlink.ensure_fdb(index, &fdb, Stale::Remove).await.unwrap());
            eprintln!("round {round}: {} writes in {:?}", outcome.changes.writes(), start.elapsed());
            assert_eq!((outcome.changes.writes(), outcome.failures.len()), (writes, 0));
            assert!(start.elapsed() < Duration::from_secs(2));
        }
        let (arp, fdb) = (arp.into_iter().skip(300).collect(), fdb.into_iter().skip(300).collect());
        let start = Instant::now();
        let mut outcome = netlink.ensure_neighbours(index, &arp, Stale::Remove).await.unwrap();
        outcome.extend(netlink.ensure_fdb(index, &fdb, Stale::Remove).await.unwrap());
        assert_eq!((outcome.removed, outcome.failures.len()), (600, 0));
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}
