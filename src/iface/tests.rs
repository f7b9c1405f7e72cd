//! The choice is made over snapshots, and once over a real namespace.

use super::*;
use crate::netlink::Scope;
use crate::netlink::namespace;

fn link(index: u32, name: &str) -> Link {
    Link { index, name: name.to_owned(), mtu: 1500, up: true, running: true, master: None, kind: None }
}

fn address(link_index: u32, text: &str) -> Address {
    Address {
        link_index,
        address: ip(text),
        prefix_len: 24,
        scope: Scope::Global,
        permanent: true,
        deprecated: false,
        secondary: false,
    }
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A host with `lo`, `eth0` (default route) with two addresses, `eth1` with one, `down`, `bare` and `nomtu`.
fn host() -> Snapshot {
    Snapshot {
        links: vec![
            link(1, "lo"),
            link(2, "eth0"),
            link(3, "eth1"),
            Link { up: false, ..link(4, "down") },
            link(5, "bare"),
            Link { mtu: 0, ..link(6, "nomtu") },
        ],
        addresses: vec![
            Address { scope: Scope::Host, ..address(1, "127.0.0.1") },
            address(2, "192.0.2.1"),
            address(2, "192.0.2.2"),
            address(3, "198.51.100.1"),
            address(4, "203.0.113.1"),
            address(6, "203.0.113.2"),
        ],
        default_link: Some(2),
        reach: None,
    }
}

fn names(names: &[&str]) -> Choice {
    Choice { names: names.iter().map(|s| (*s).to_owned()).collect(), ..Choice::default() }
}

fn regexes(patterns: &[&str]) -> Choice {
    Choice { regexes: patterns.iter().map(|s| Regex::new(s).unwrap()).collect(), ..Choice::default() }
}

/// The interface, the bound address and the advertised address of a choice.
fn selected(snapshot: &Snapshot, choice: &Choice) -> Result<(String, String, String), String> {
    let external = snapshot.select(choice).map_err(|e| e.to_string())?;
    assert_ne!(external.mtu, 0);
    Ok((external.name, external.address.to_string(), external.public_ip.to_string()))
}

fn found(name: &str, address: &str, public: &str) -> Result<(String, String, String), String> {
    Ok((name.to_owned(), address.to_owned(), public.to_owned()))
}

#[test]
fn with_no_flag_the_default_route_decides() {
    assert_eq!(selected(&host(), &Choice::default()), found("eth0", "192.0.2.1", "192.0.2.1"));
    let offline = Snapshot { default_link: None, ..host() };
    assert!(selected(&offline, &Choice::default()).unwrap_err().contains("-iface"));
    for (index, reason) in [
        (4, "interface down is down"),
        (5, "interface bare has no usable IPv4 address"),
        (6, "interface nomtu has no MTU"),
    ] {
        let broken = Snapshot { default_link: Some(index), ..host() };
        assert_eq!(selected(&broken, &Choice::default()), Err(reason.to_owned()));
    }
}

#[test]
fn a_public_address_alone_names_its_owner() {
    let choice = |text| Choice { public_ip: Some(ip(text)), ..Choice::default() };
    assert_eq!(selected(&host(), &choice("192.0.2.2")), found("eth0", "192.0.2.2", "192.0.2.2"));
    let reason = selected(&host(), &choice("203.0.113.99")).unwrap_err();
    assert!(reason.contains("203.0.113.99") && reason.contains("-iface"), "{reason}");
    assert!(selected(&host(), &choice("203.0.113.1")).unwrap_err().contains("down is down"));
}

#[test]
fn a_public_address_beside_an_interface_is_only_advertised() {
    let choice = Choice { public_ip: Some(ip("203.0.113.99")), ..names(&["eth1"]) };
    assert_eq!(selected(&host(), &choice), found("eth1", "198.51.100.1", "203.0.113.99"));
}

#[test]
fn names_and_addresses_are_tried_in_order() {
    assert_eq!(selected(&host(), &names(&["eth1"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    assert_eq!(selected(&host(), &names(&["192.0.2.2"])), found("eth0", "192.0.2.2", "192.0.2.2"));
    assert_eq!(selected(&host(), &names(&["127.0.0.1"])), found("lo", "127.0.0.1", "127.0.0.1"));
    let unusable = ["absent", "203.0.113.77", "lo", "down", "bare", "nomtu", "203.0.113.1"];
    let then = [unusable.as_slice(), ["eth1", "eth0"].as_slice()].concat();
    assert_eq!(selected(&host(), &names(&then)), found("eth1", "198.51.100.1", "198.51.100.1"));
    let reason = selected(&host(), &names(&unusable)).unwrap_err();
    for part in [
        "-iface absent: no interface of that name",
        "-iface 203.0.113.77: no interface has that address",
        "interface lo has no usable IPv4 address",
        "interface down is down",
        "interface nomtu has no MTU",
    ] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
}

#[test]
fn patterns_meet_all_addresses_before_any_name() {
    assert_eq!(selected(&host(), &regexes(&[r"^198\.51"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    assert_eq!(selected(&host(), &regexes(&[r"\.2$"])), found("eth0", "192.0.2.2", "192.0.2.2"));
    // The address of eth0 and the name of eth1 both hold a "1", and the address wins.
    assert_eq!(selected(&host(), &regexes(&["1$"])), found("eth0", "192.0.2.1", "192.0.2.1"));
    assert_eq!(selected(&host(), &regexes(&["^eth1$"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    assert_eq!(selected(&host(), &regexes(&["^zzz", "h1"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    assert!(selected(&host(), &regexes(&["^zzz"])).unwrap_err().contains("-iface-regex ^zzz"));
    assert_eq!(selected(&host(), &regexes(&["^203|^198"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    let down_first = Snapshot { links: host().links.into_iter().rev().collect(), ..host() };
    assert_eq!(
        selected(&down_first, &regexes(&["^203|^198"])),
        found("eth1", "198.51.100.1", "198.51.100.1")
    );
    let reason = selected(&host(), &regexes(&["^down"])).unwrap_err();
    assert!(reason.contains("-iface-regex ^down: interface down is down"), "{reason}");
    let both = Choice { regexes: regexes(&["^192"]).regexes, ..names(&["eth1"]) };
    assert_eq!(selected(&host(), &both), found("eth1", "198.51.100.1", "198.51.100.1"));
}

#[test]
fn reach_comes_last_and_brings_its_source_address() {
    let way = RouteTo { link_index: 2, source: Some(ip("192.0.2.2")), gateway: None };
    let host = Snapshot { reach: Some(Ok(way)), ..host() };
    let choice = Choice { can_reach: Some(ip("192.0.2.77")), ..Choice::default() };
    assert_eq!(selected(&host, &choice), found("eth0", "192.0.2.2", "192.0.2.2"));
    let after_name = Choice { can_reach: choice.can_reach, ..names(&["absent"]) };
    assert_eq!(selected(&host, &after_name), found("eth0", "192.0.2.2", "192.0.2.2"));
    let name_first = Choice { can_reach: choice.can_reach, ..names(&["eth1"]) };
    assert_eq!(selected(&host, &name_first), found("eth1", "198.51.100.1", "198.51.100.1"));
    let sourceless = Snapshot { reach: Some(Ok(RouteTo { source: None, ..way })), ..host.clone() };
    assert_eq!(selected(&sourceless, &choice), found("eth0", "192.0.2.1", "192.0.2.1"));
    let unreachable = Snapshot { reach: Some(Err("no way".to_owned())), ..host };
    assert!(selected(&unreachable, &choice).unwrap_err().contains("-iface-can-reach 192.0.2.77: no way"));
}

#[test]
fn of_several_addresses_the_best_is_bound() {
    let link_local = Address { scope: Scope::Link, ..address(2, "169.254.7.7") };
    let dynamic = Address { permanent: false, ..address(2, "192.0.2.5") };
    let deprecated = Address { deprecated: true, ..address(2, "192.0.2.6") };
    let permanent = address(2, "192.0.2.7");
    let best = |addresses: &[Address]| {
        let host = Snapshot { addresses: addresses.to_vec(), ..host() };
        selected(&host, &names(&["eth0"])).map(|found| found.1)
    };
    assert_eq!(best(&[link_local, deprecated, dynamic, permanent]).as_deref(), Ok("192.0.2.7"));
    assert_eq!(best(&[link_local, deprecated, dynamic]).as_deref(), Ok("192.0.2.5"));
    assert_eq!(best(&[deprecated, link_local]).as_deref(), Ok("169.254.7.7"));
    assert!(best(&[deprecated]).is_err());
    assert_eq!(best(&[address(2, "192.0.2.9"), permanent]).as_deref(), Ok("192.0.2.9"));
}

#[test]
fn the_kernels_tables_are_read_right() {
    namespace::run("iface::tests::the_kernels_tables_are_read_right", || async {
        for (name, address) in [("eth0", "192.0.2.1/24"), ("eth1", "198.51.100.1/24")] {
            namespace::ip(&format!("link add {name} mtu 1400 type veth peer name {name}-far"));
            namespace::ip(&format!("link set {name}-far up"));
            namespace::ip(&format!("link set {name} up"));
            namespace::ip(&format!("addr add {address} dev {name}"));
        }
        let netlink = Netlink::new().unwrap();
        let error = choose(&netlink, &Choice::default()).await.unwrap_err();
        assert!(matches!(error, ChoiceError::NoDefaultRoute), "{error}");
        namespace::ip("route add default via 198.51.100.254");
        let external = choose(&netlink, &Choice::default()).await.unwrap();
        assert_eq!((external.name.as_str(), external.mtu), ("eth1", 1400));
        assert_eq!((external.address, external.public_ip), (ip("198.51.100.1"), ip("198.51.100.1")));
        assert_eq!(netlink.link_by_name("eth1").await.unwrap().unwrap().index, external.index);

        let reach = Choice { can_reach: Some(ip("192.0.2.200")), ..Choice::default() };
        assert_eq!(choose(&netlink, &reach).await.unwrap().name, "eth0");
        let nat = Choice { public_ip: Some(ip("203.0.113.5")), ..names(&["absent", "192.0.2.1"]) };
        let external = choose(&netlink, &nat).await.unwrap();
        assert_eq!((external.address, external.public_ip), (ip("192.0.2.1"), ip("203.0.113.5")));
        namespace::ip("link set eth0 down");
        let error = choose(&netlink, &names(&["eth0"])).await.unwrap_err();
        assert_eq!(error.to_string(), "no usable interface: interface eth0 is down");
    });
}
