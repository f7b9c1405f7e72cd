//! Promise: an overlay network over addresses that the hosts use is never a silent outage. No subnet takes a host's own
//! address, and etcd, peers and gateways stay reachable past the overlay's routes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, Subnet, TUTORIAL, eventually, ms, secs};

const URL: &str = "http://10.77.0.254:2379";
const HEALTH: &str = "--healthz-port=8471";

/// Gives the lab's etcd one more address, which the hosts reach by their default route only.
fn etcd_at(lab: &Lab, address: &str) -> String {
    let rule =
        format!("iptables -t nat -A PREROUTING -d {address} -p tcp --dport 2379 -j DNAT --to 10.77.0.254");
    lab.sh(&lab.ns("sw"), &rule);
    format!("--etcd-endpoints=http://{address}:2379")
}

/// A lease of host 1 with a TTL, as an earlier run leaves it.
fn leave_lease(lab: &Lab, key: &str) {
    let script = format!(
        "id=$(etcdctl --endpoints {URL} lease grant 86400 | cut -d' ' -f2) && etcdctl --endpoints {URL} put \
         --lease=$id '/coreos.com/network/subnets/{key}' '{{\"PublicIP\":\"10.77.0.1\",\"PublicIPv6\":null}}'"
    );
    lab.sh(&lab.ns("sw"), &script);
}

/// The value of a metric of host 1.
fn metric(lab: &Lab, name: &str) -> u64 {
    let text = lab.run(&lab.host(1), &["curl", "-fsSm5", "http://127.0.0.1:8471/metrics"]);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

fn way(lab: &Lab, to: &str) -> String {
    lab.ip(&format!("-n {} route get {to}", lab.host(1)))
}

/// Waits for a peer that etcd tells of now, so etcd is still reached.
fn hears_of(lab: &Lab, daemon: &Daemon, key: &str, value: &str) {
    lab.put(Api::V3, &format!("subnets/{key}"), value);
    daemon.wait_text(&format!("Subnet added: {}", key.replace('-', "/")), secs(10));
    assert!(!daemon.text().contains("Lost the store"), "{}", daemon.text());
}

#[test]
fn a_host_address_in_the_overlay_is_never_taken() {
    let Some(lab) = Lab::start(1) else { return };
    let config = |max: &str, kind: &str| {
        format!(
            r#"{{"Network":"10.77.0.0/16","SubnetMin":"10.77.0.0","SubnetMax":"{max}","Backend":{{"Type":"{kind}"}}}}"#
        )
    };
    // The only subnet holds 10.77.0.1, this host.
    lab.put_config(Api::V3, &config("10.77.0.0", "vxlan"));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("out of subnets: 0 leases and", secs(10));
    assert!(
        daemon.text().contains("addresses outside of the overlay take all 1 subnets"),
        "{}",
        daemon.text()
    );
    assert!(daemon.running() && lab.leases(Api::V3).is_empty());
    daemon.terminate();
    // A lease over it is given up for the other subnet, with a sentence.
    for kind in ["vxlan", "host-gw", "udp"] {
        lab.clear(Api::V3);
        lab.put_config(Api::V3, &config("10.77.1.0", kind));
        leave_lease(&lab, "10.77.0.0-24");
        let mut daemon = lab.daemon(1, &["--etcd-api=v3", HEALTH]);
        assert_eq!(daemon.subnet().key(), "10.77.1.0-24", "{kind}");
        let said = "Discarding our lease 10.77.0.0-24, and taking another subnet: it holds this host's own address \
                    10.77.0.1, which would no longer be reached";
        assert!(daemon.text().contains(said), "{}", daemon.text());
        // A peer that takes it is refused, and this host is still in its own network.
        let data = r#"{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#;
        let value = format!(r#"{{"PublicIP":"10.77.0.9","BackendType":"{kind}","BackendData":{data}}}"#);
        lab.put(Api::V3, "subnets/10.77.0.0-24", &value);
        daemon.wait_text("Ignoring lease 10.77.0.0-24: it holds this host's own address 10.77.0.1", secs(5));
        assert_eq!(metric(&lab, "flanneld_underlay_conflicts_total"), 2, "{kind}");
        assert!(lab.pings(&lab.host(1), "10.77.0.254".parse().unwrap()), "{kind}");
        daemon.terminate();
    }
}

/// flannel's tutorial on hosts of 10.0.0.0/8: etcd and one peer are behind the gateway. flannel loses both.
#[test]
fn the_tutorials_network_swallows_neither_etcd_nor_routed_peers() {
    let Some(lab) = Lab::start(2) else { return };
    let (sw, h2) = (lab.ns("sw"), lab.host(2));
    lab.sh(&sw, "echo 1 >/proc/sys/net/ipv4/ip_forward");
    lab.ip(&format!("-n {h2} addr flush dev eth0"));
    lab.ip(&format!("-n {h2} addr add 10.60.0.2/32 dev eth0"));
    lab.ip(&format!("-n {h2} route add 10.77.0.0/24 dev eth0"));
    lab.ip(&format!("-n {h2} route add default via 10.77.0.254"));
    lab.ip(&format!("-n {sw} route add 10.60.0.2/32 dev br0"));
    lab.put_config(Api::V3, TUTORIAL);
    let endpoint = etcd_at(&lab, "10.200.0.5");
    let mut one = lab.daemon(1, &["--etcd-api=v3", &endpoint, HEALTH]);
    let mut two = lab.daemon(2, &["--etcd-api=v3"]);
    let subnets: [Subnet; 2] = [one.subnet(), two.subnet()];
    let (a, b) = (lab.container(1, &subnets[0]), lab.container(2, &subnets[1]));
    lab.reaches(&a.ns, b.addr, secs(10));
    lab.reaches(&b.ns, a.addr, secs(3));
    for to in ["10.200.0.5", "10.60.0.2"] {
        assert!(way(&lab, to).contains("via 10.77.0.254 dev eth0"), "{}", way(&lab, to));
    }
    assert!(way(&lab, "10.200.0.6").contains("dev flannel0"), "the rest of the network is the overlay's");
    assert_eq!(metric(&lab, "flanneld_detours"), 2);
    assert!(one.text().contains("the overlay's routes would swallow 10.200.0.5 of etcd"), "{}", one.text());
    hears_of(&lab, &one, "10.98.0.0-20", r#"{"PublicIP":"10.77.0.99"}"#);
    // The gateway moves, and the detours with it.
    lab.ip(&format!("-n {sw} addr add 10.77.0.253/24 dev br0"));
    lab.ip(&format!("-n {} route replace default via 10.77.0.253", lab.host(1)));
    eventually(secs(5), "the detours by the new gateway", || {
        way(&lab, "10.60.0.2").contains("via 10.77.0.253").then_some(())
    });
    // Somebody removes one, and it is back.
    lab.ip(&format!("-n {} route del 10.200.0.5/32", lab.host(1)));
    eventually(secs(5), "the detour to etcd", || way(&lab, "10.200.0.5").contains("via").then_some(()));
    // The next start finds what this one has left, and a peer that leaves takes its detour along.
    one.terminate();
    let mut one = lab.daemon(1, &["--etcd-api=v3", &endpoint, HEALTH]);
    assert_eq!(one.subnet(), subnets[0]);
    lab.reaches(&a.ns, b.addr, secs(10));
    two.terminate();
    lab.delete_lease(Api::V3, &subnets[1].key());
    eventually(secs(5), "the end of a detour", || (metric(&lab, "flanneld_detours") == 1).then_some(()));
    assert_eq!(lab.ip(&format!("-n {} route show proto 79", lab.host(1))).lines().count(), 1);
}

/// A peer's subnet holds etcd's address: the peer gets the rest of it.
fn a_peer_over_etcd(kind: &str, data: &str) {
    let Some(lab) = Lab::start(1) else { return };
    let value = |ip: &str| format!(r#"{{"PublicIP":"{ip}","BackendType":"{kind}"{data}}}"#);
    lab.put_config(Api::V3, &format!(r#"{{"Network":"10.200.0.0/16","Backend":{{"Type":"{kind}"}}}}"#));
    let endpoint = etcd_at(&lab, "10.200.9.5");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", &endpoint, HEALTH]);
    assert_ne!(daemon.subnet().key(), "10.200.9.0-24");
    hears_of(&lab, &daemon, "10.200.9.0-24", &value("10.77.0.2"));
    let routed = || !way(&lab, "10.200.9.6").contains("via 10.77.0.254");
    eventually(secs(5), "the peer's route", || routed().then_some(()));
    // Long enough for a store that is lost to be noticed.
    std::thread::sleep(ms(1500));
    assert!(way(&lab, "10.200.9.5").contains("via 10.77.0.254 dev eth0"), "{}", way(&lab, "10.200.9.5"));
    let said = "10.200.9.5 of etcd (in 10.77.0.2's subnet 10.200.9.0/24)";
    assert!(daemon.text().contains(said), "{}", daemon.text());
    assert_eq!(metric(&lab, "flanneld_detours"), 1);
    hears_of(&lab, &daemon, "10.200.8.0-24", &value("10.77.0.3"));
}

#[test]
fn a_vxlan_peer_over_etcd_leaves_etcd_alone() {
    a_peer_over_etcd("vxlan", r#","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#);
}

#[test]
fn a_host_gw_peer_over_etcd_leaves_etcd_alone() {
    a_peer_over_etcd("host-gw", "");
}

const VXLAN: &str = r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}"#;
const PEER: &str =
    r#"{"PublicIP":"10.77.0.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;

/// This host is renumbered into a subnet that a peer has: the address is this host's.
#[test]
fn a_peer_loses_the_subnet_that_this_host_moves_into() {
    let Some(lab) = Lab::start(1) else { return };
    let (sw, h1) = (lab.ns("sw"), lab.host(1));
    lab.put_config(Api::V3, VXLAN);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", HEALTH]);
    let third = if daemon.subnet().key() == "10.200.5.0-24" { 6 } else { 5 };
    hears_of(&lab, &daemon, &format!("10.200.{third}.0-24"), PEER);
    lab.ip(&format!("-n {sw} addr add 10.200.{third}.254/24 dev br0"));
    lab.ip(&format!("-n {h1} addr del 10.77.0.1/24 dev eth0"));
    lab.ip(&format!("-n {h1} addr add 10.200.{third}.1/24 dev eth0"));
    lab.ip(&format!("-n {h1} route replace default via 10.200.{third}.254 dev eth0 onlink"));
    let said =
        format!("Ignoring lease 10.200.{third}.0-24: it holds this host's own address 10.200.{third}.1");
    daemon.wait_text(&said, secs(15));
    eventually(secs(5), "a way to the neighbours", || {
        lab.pings(&h1, format!("10.200.{third}.254").parse().unwrap()).then_some(())
    });
    assert_eq!(metric(&lab, "flanneld_underlay_conflicts_total"), 1);
    assert!(daemon.running());
}

/// The gateway moves to an address that a peer's subnet holds afterwards.
#[test]
fn a_gateway_that_moves_into_the_overlay_is_not_swallowed() {
    let Some(lab) = Lab::start(1) else { return };
    let (sw, h1) = (lab.ns("sw"), lab.host(1));
    lab.put_config(Api::V3, VXLAN);
    let endpoint = etcd_at(&lab, "10.201.0.5");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", &endpoint, HEALTH]);
    let third = if daemon.subnet().key() == "10.200.9.0-24" { 8 } else { 9 };
    let gateway = format!("10.200.{third}.9");
    lab.ip(&format!("-n {sw} addr add {gateway}/32 dev br0"));
    lab.ip(&format!("-n {h1} route add 10.200.0.0/16 dev eth0"));
    lab.ip(&format!("-n {h1} route replace default via {gateway} dev eth0"));
    // The daemon waits a second for the rest of a burst.
    std::thread::sleep(ms(1500));
    hears_of(&lab, &daemon, &format!("10.200.{third}.0-24"), PEER);
    let routed = || way(&lab, &format!("10.200.{third}.6")).contains("dev flannel.1");
    eventually(secs(5), "the peer's route", || routed().then_some(()));
    assert!(way(&lab, &gateway).contains("dev eth0"), "{}\n{}", way(&lab, &gateway), daemon.text());
    assert!(lab.pings(&h1, gateway.parse().unwrap()));
    assert!(daemon.text().contains(&format!("{gateway} of a gateway")), "{}", daemon.text());
}

/// The detours of host 1.
fn detours(lab: &Lab) -> String {
    lab.ip(&format!("-n {} route show proto 79", lab.host(1)))
}

/// A VPN runs in a container of this host, and another one in a container of a peer. The host routes the VPN's clients
/// to them, and both are gateways in the overlay that no detour may cut off.
fn a_container_as_gateway(kind: &str, remote: &str) {
    let Some(lab) = Lab::start(1) else { return };
    let h1 = lab.host(1);
    lab.put_config(Api::V3, &format!(r#"{{"Network":"10.10.0.0/16","Backend":{{"Type":"{kind}"}}}}"#));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", HEALTH]);
    let subnet = daemon.subnet();
    let vpn = lab.container(1, &subnet);
    let data = if kind == "vxlan" {
        r#","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#
    } else {
        ""
    };
    hears_of(&lab, &daemon, "10.10.250.0-24", &format!(r#"{{"PublicIP":"10.77.0.9"{data}}}"#));
    lab.ip(&format!("-n {h1} route add 10.200.0.0/24 via {} dev cbr0", vpn.addr));
    let restore = |lab: &Lab| {
        lab.ip(&format!("-n {h1} route replace 10.201.0.0/24 via 10.10.250.7 {remote}"));
    };
    eventually(secs(5), "the peer's route", || {
        way(&lab, "10.10.250.7").contains("dev flannel").then_some(())
    });
    restore(&lab);
    assert!(lab.pings(&h1, vpn.addr));
    for _ in 0..2 {
        daemon.terminate();
        daemon = lab.daemon(1, &["--etcd-api=v3", HEALTH]);
        assert_eq!(daemon.subnet(), subnet);
        // The TUN device takes its routes along.
        restore(&lab);
        // The look after a change of routes comes within a second.
        std::thread::sleep(ms(1500));
        assert_eq!(detours(&lab), "", "{}", daemon.text());
        assert!(lab.pings(&h1, vpn.addr), "{}", way(&lab, &vpn.addr.to_string()));
        assert!(way(&lab, "10.10.250.7").contains("dev flannel"), "{}", way(&lab, "10.10.250.7"));
        assert!(!daemon.text().contains("would swallow"), "{}", daemon.text());
    }
}

#[test]
fn a_container_that_is_a_gateway_is_not_cut_off_from_udp() {
    a_container_as_gateway("udp", "dev flannel0 onlink");
}

#[test]
fn a_container_that_is_a_gateway_is_not_cut_off_from_vxlan() {
    a_container_as_gateway("vxlan", "dev flannel.1 onlink");
}

/// One of two uplinks goes down. The kernel takes the other one, and so do the detours.
#[test]
fn the_detours_follow_the_uplink_that_lives() {
    let Some(lab) = Lab::start(1) else { return };
    let (sw, h1) = (lab.ns("sw"), lab.host(1));
    lab.ip(&format!("-n {h1} link add eth1 type veth peer name q1 netns {sw}"));
    lab.ip(&format!("-n {sw} addr add 10.78.0.254/24 dev q1"));
    lab.ip(&format!("-n {sw} link set q1 up"));
    lab.ip(&format!("-n {h1} addr add 10.78.0.1/24 dev eth1"));
    lab.ip(&format!("-n {h1} link set eth1 up"));
    let hops = "nexthop via 10.77.0.254 dev eth0 nexthop via 10.78.0.254 dev eth1";
    lab.ip(&format!("-n {h1} route replace default {hops}"));
    lab.put_config(Api::V3, TUTORIAL);
    let endpoint = etcd_at(&lab, "10.200.0.5");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", &endpoint, HEALTH]);
    daemon.subnet();
    let first = way(&lab, "10.200.0.5");
    assert!(first.contains("via 10.77.0.254 dev eth0"), "{first}");
    lab.ip(&format!("-n {h1} link set eth0 down"));
    eventually(secs(5), "the detour by the other uplink", || {
        way(&lab, "10.200.0.5").contains("via 10.78.0.254 dev eth1").then_some(())
    });
    assert!(!daemon.text().contains("cannot lead outer addresses"), "{}", daemon.text());
}

/// Somebody has a route of his own to one of two addresses of etcd. It stays, and the other address gets its detour.
#[test]
fn one_detour_that_cannot_be_made_holds_up_no_other() {
    let Some(lab) = Lab::start(1) else { return };
    let h1 = lab.host(1);
    lab.ip(&format!("-n {h1} link add flannelx type bridge"));
    lab.ip(&format!("-n {h1} link set flannelx up"));
    lab.ip(&format!("-n {h1} route add 10.200.0.4/32 dev flannelx"));
    lab.put_config(Api::V3, TUTORIAL);
    etcd_at(&lab, "10.200.0.5");
    let endpoints = "--etcd-endpoints=http://10.200.0.4:2379,http://10.200.0.5:2379";
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", endpoints, HEALTH]);
    daemon.subnet();
    assert!(way(&lab, "10.200.0.5").contains("via 10.77.0.254 dev eth0"), "{}", way(&lab, "10.200.0.5"));
    assert!(way(&lab, "10.200.0.4").contains("dev flannelx"), "{}", way(&lab, "10.200.0.4"));
    daemon.wait_text(
        "cannot lead outer addresses past the overlay: add route 10.200.0.4 via 10.77.0.254",
        secs(3),
    );
    // It is said once, and then once a minute.
    std::thread::sleep(ms(2500));
    assert_eq!(daemon.text().matches("cannot lead outer addresses").count(), 1, "{}", daemon.text());
    lab.ip(&format!("-n {h1} route del 10.200.0.4/32"));
    eventually(secs(5), "the other detour", || way(&lab, "10.200.0.4").contains("dev eth0").then_some(()));
}
