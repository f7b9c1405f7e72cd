//! The choice is made over snapshots, and once over a real namespace.

use super::*;
use crate::netlink::Scope;
use crate::netlink::namespace;

fn link(index: u32, name: &str) -> Link {
    let name = name.to_owned();
    Link { index, name, mtu: 1500, up: true, running: true, master: None, mac: None, kind: None }
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
    let (external, _) = snapshot.select(choice).map_err(|e| e.to_string())?;
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
    for (index, reason) in
        [(5, "interface bare has no usable IPv4 address"), (6, "interface nomtu has no MTU")]
    {
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
    // Nothing else is asked for, so flanneld starts and waits for the interface.
    assert_eq!(selected(&host(), &choice("203.0.113.1")), found("down", "203.0.113.1", "203.0.113.1"));
}

#[test]
fn an_interface_that_is_down_is_taken_if_no_other_is_named() {
    assert_eq!(selected(&host(), &names(&["down"])), found("down", "203.0.113.1", "203.0.113.1"));
    assert_eq!(selected(&host(), &names(&["203.0.113.1"])), found("down", "203.0.113.1", "203.0.113.1"));
    assert_eq!(selected(&host(), &regexes(&["^203.0.113.1$"])), found("down", "203.0.113.1", "203.0.113.1"));
    assert_eq!(selected(&host(), &names(&["down", "eth1"])), found("eth1", "198.51.100.1", "198.51.100.1"));
    let (external, passed_over) = host().select(&names(&["down", "absent"])).unwrap();
    assert_eq!((external.name.as_str(), external.by), ("down", By::Name("down".to_owned())));
    assert_eq!(passed_over, ["interface down is down", "-iface absent: no interface of that name"]);
    let bare = Snapshot { addresses: Vec::new(), ..host() };
    assert_eq!(
        selected(&bare, &names(&["down"])),
        Err("no usable interface: interface down is down".to_owned())
    );
}

/// A port of a bridge or bond stands for it, through two levels; a device of a VRF does not.
#[test]
fn a_port_stands_for_its_bridge() {
    let port = |kind: &str| {
        let mut host = host();
        host.links[4].master = Some(7);
        host.links.push(Link { master: Some(8), kind: Some(kind.to_owned()), ..link(7, "bond0") });
        host.links.push(Link { kind: Some("bridge".to_owned()), ..link(8, "br0") });
        host.addresses.push(address(8, "192.0.2.80"));
        host
    };
    assert_eq!(selected(&port("bond"), &names(&["bare"])), found("br0", "192.0.2.80", "192.0.2.80"));
    assert!(selected(&port("vrf"), &names(&["bare"])).is_err());
    let mut own = port("bond");
    own.addresses.push(address(5, "192.0.2.50"));
    assert_eq!(selected(&own, &names(&["bare"])), found("bare", "192.0.2.50", "192.0.2.50"));
    // A circle, which the kernel would not make, is no endless way.
    own.addresses.retain(|address| address.link_index < 5);
    own.links[7].master = Some(7);
    assert!(selected(&own, &names(&["bare"])).is_err());
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
    let unusable = ["absent", "203.0.113.77", "lo", "bare", "nomtu"];
    let then = [unusable.as_slice(), ["down", "203.0.113.1", "eth1", "eth0"].as_slice()].concat();
    assert_eq!(selected(&host(), &names(&then)), found("eth1", "198.51.100.1", "198.51.100.1"));
    let reason = selected(&host(), &names(&unusable)).unwrap_err();
    for part in [
        "-iface absent: no interface of that name",
        "-iface 203.0.113.77: no interface has that address",
        "interface lo has no usable IPv4 address",
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
    let reason = selected(&host(), &regexes(&["^nomtu"])).unwrap_err();
    assert!(reason.contains("-iface-regex ^nomtu: interface nomtu has no MTU"), "{reason}");
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

/// The interface that a choice leads to on [`host`].
fn chosen(choice: &Choice) -> External {
    host().select(choice).unwrap().0
}

/// The host after `address` went from its link to another; without `to` it is gone.
fn moved(address: &str, to: Option<u32>) -> Snapshot {
    let mut host = host();
    match to {
        Some(to) => {
            host.addresses.iter_mut().filter(|a| a.address == ip(address)).for_each(|a| a.link_index = to);
        }
        None => host.addresses.retain(|a| a.address != ip(address)),
    }
    host
}

#[test]
fn an_address_that_is_there_is_followed_wherever_it_is() {
    let all = [Choice::default(), names(&["eth0"]), names(&["192.0.2.1"]), regexes(&["^eth0$"])];
    for choice in all {
        let before = chosen(&choice);
        assert_eq!((before.name.as_str(), before.address), ("eth0", ip("192.0.2.1")));
        let there = |host: &Snapshot| match host.standing(&choice, &before) {
            Standing::There { external, trouble, beside } => (external, trouble, beside),
            other => panic!("{other:?}"),
        };
        let (external, trouble, beside) = there(&host());
        assert_eq!((&external, trouble), (&before, None));
        assert!(beside.contains(&ip("192.0.2.2")) && !beside.contains(&before.address), "{beside:?}");
        let (external, trouble, _) = there(&moved("192.0.2.1", Some(3)));
        assert_eq!((external.name.as_str(), external.index, trouble), ("eth1", 3, None));
        let mut renamed = host();
        renamed.links[1] = Link { running: false, mtu: 1400, ..link(2, "wan") };
        let (external, trouble, _) = there(&renamed);
        assert_eq!((external.name.as_str(), external.mtu), ("wan", before.mtu));
        assert_eq!(trouble.as_deref(), Some("wan has no carrier"));
        // On its way the address is on the bridge and still on the port: the bridge it is.
        let mut both = host();
        both.links[1].master = Some(3);
        both.addresses.push(address(3, "192.0.2.1"));
        assert_eq!(there(&both).0.name, "eth1");
    }
}

/// What takes the place of a lost address: what the flag that chose it allows.
#[test]
fn the_flag_decides_what_takes_the_place_of_a_lost_address() {
    let lost = || {
        let mut host = moved("192.0.2.1", None);
        host.addresses.retain(|a| a.address != ip("192.0.2.2"));
        host
    };
    let after = |host: &Snapshot, choice: &Choice| match host.standing(choice, &chosen(choice)) {
        Standing::Replaced { external, trouble } => {
            assert_eq!(trouble, "eth0 has lost its address 192.0.2.1");
            format!("{} {} {}", external.name, external.address, external.public_ip)
        }
        Standing::Left(trouble) => trouble,
        there => panic!("{there:?}"),
    };
    let gone = "eth0 has lost its address 192.0.2.1";
    let nat = Choice { public_ip: Some(ip("203.0.113.99")), ..names(&["eth0"]) };
    let owned = Choice { public_ip: Some(ip("192.0.2.1")), ..Choice::default() };
    // Another address of the same device.
    let second = moved("192.0.2.1", None);
    assert_eq!(after(&second, &Choice::default()), "eth0 192.0.2.2 192.0.2.2");
    assert_eq!(after(&second, &names(&["eth0"])), "eth0 192.0.2.2 192.0.2.2");
    assert_eq!(after(&second, &nat), "eth0 192.0.2.2 203.0.113.99");
    assert_eq!(after(&second, &regexes(&["^192"])), "eth0 192.0.2.2 192.0.2.2");
    assert_eq!(after(&second, &regexes(&["^192.0.2.1$", "h0"])), gone, "another pattern is not this one");
    for fixed in [names(&["192.0.2.1"]), owned] {
        let waits = format!("{gone} and has 192.0.2.2, but the flags ask for 192.0.2.1");
        assert_eq!(after(&second, &fixed), waits);
    }
    // One that the host gave to itself is none.
    let mut alone = lost();
    alone.addresses.push(address(2, "169.254.7.7"));
    for choice in [Choice::default(), names(&["eth0"]), regexes(&["^eth0$"])] {
        assert_eq!(after(&alone, &choice), gone);
    }
    // No other address of the device.
    assert_eq!(after(&lost(), &names(&["eth0", "eth1"])), gone, "the second name was for the start");
    assert_eq!(after(&lost(), &Choice::default()), gone);
    let elsewhere = Snapshot { default_link: Some(3), ..lost() };
    assert_eq!(after(&elsewhere, &Choice::default()), "eth1 198.51.100.1 198.51.100.1");
    let mut bridged = lost();
    bridged.links[1].master = Some(3);
    for choice in [Choice::default(), names(&["eth0"])] {
        assert_eq!(after(&bridged, &choice), "eth1 198.51.100.1 198.51.100.1");
    }
    bridged.links[2].up = false;
    assert_eq!(after(&bridged, &names(&["eth0"])), gone, "not while it is down");
    let mut away = lost();
    away.links.remove(1);
    let before = chosen(&names(&["eth0"]));
    assert_eq!(away.standing(&names(&["eth0"]), &before), Standing::Left("eth0 is gone".to_owned()));
}

#[test]
fn the_way_to_the_address_to_reach_is_asked_for_again() {
    let way = RouteTo { link_index: 2, source: Some(ip("192.0.2.1")), gateway: None };
    let choice = Choice { can_reach: Some(ip("192.0.2.77")), ..Choice::default() };
    let before = Snapshot { reach: Some(Ok(way)), ..host() }.select(&choice).unwrap().0;
    assert_eq!(before.by, By::Reach);
    let other = RouteTo { link_index: 3, source: Some(ip("198.51.100.1")), gateway: None };
    let now = Snapshot { reach: Some(Ok(other)), ..moved("192.0.2.1", None) };
    let Standing::Replaced { external, .. } = now.standing(&choice, &before) else {
        panic!("it has another")
    };
    assert_eq!((external.name.as_str(), external.address), ("eth1", ip("198.51.100.1")));
    let none = Snapshot { reach: Some(Err("no way".to_owned())), ..moved("192.0.2.1", None) };
    assert!(matches!(none.standing(&choice, &before), Standing::Left(_)));
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
        let external = choose(&netlink, &names(&["eth0"])).await.unwrap();
        let Standing::There { trouble, .. } = stand(&netlink, &names(&["eth0"]), &external).await.unwrap()
        else {
            panic!("the address of a device that is down is there");
        };
        assert_eq!(trouble.as_deref(), Some("eth0 is down"));
        let external = choose(&netlink, &names(&["eth1"])).await.unwrap();
        for line in ["link set eth1 down", "link set eth1 name wan", "link add br0 type bridge"] {
            namespace::ip(line);
        }
        for line in ["link set wan master br0 up", "link set br0 up", "addr flush dev wan"] {
            namespace::ip(line);
        }
        namespace::ip("addr add 203.0.113.7/24 dev br0");
        let standing = stand(&netlink, &names(&["eth1"]), &external).await.unwrap();
        let Standing::Replaced { external, trouble } = standing else { panic!("{standing:?}") };
        assert_eq!((external.name.as_str(), external.address), ("br0", ip("203.0.113.7")));
        assert_eq!(trouble, "eth1 has lost its address 198.51.100.1");
    });
}
