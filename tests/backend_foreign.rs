//! Promise: of what others put on our devices and beside our routes only what is ours by its form or place is touched;
//! what an older flannel left gives way, and the log says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::{Api, Daemon, Lab, ms, secs};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Registers a peer of that backend: `10.10.<n>.0/24` at that address.
fn peer(lab: &Lab, kind: &str, n: u8, ip: &str) {
    let data = match kind {
        "vxlan" => format!(r#","BackendData":{{"VtepMAC":"0a:00:00:00:00:{n:02x}"}}"#),
        _ => String::new(),
    };
    let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"{kind}"{data}}}"#);
    lab.put(Api::V3, &format!("subnets/10.10.{n}.0-24"), &value);
}

/// Makes the daemon of host 1 look at all its tables: a foreign route of the network appears and goes.
fn look(lab: &Lab) {
    let host = lab.host(1);
    lab.ip(&format!("-n {host} route add 10.10.77.128/25 via 10.77.0.254 proto static"));
    std::thread::sleep(ms(400));
    lab.ip(&format!("-n {host} route del 10.10.77.128/25"));
    std::thread::sleep(ms(400));
}

const FOREIGN: &str = "ip addr add 192.168.5.1/24 dev flannel.1
    ip neigh add 192.168.5.5 lladdr 0e:00:00:00:00:05 dev flannel.1 nud permanent
    bridge fdb add 0e:00:00:00:00:05 dev flannel.1 dst 10.77.0.55 self permanent
    ip route add 172.16.0.0/12 via 192.168.5.5 dev flannel.1";

/// Lists what an operator has put on the device, and what is left of it.
fn foreign(lab: &Lab) -> Vec<String> {
    let script = "ip -4 -o addr show dev flannel.1 | grep -o 192.168.5.1/24; ip neigh show 192.168.5.5; \
                  bridge fdb show dev flannel.1 | grep 0e:; ip route show 172.16.0.0/12; true";
    lines(&lab.sh(&lab.host(1), script))
}

#[test]
fn what_an_operator_puts_on_the_vxlan_device_stays() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    peer(&lab, "vxlan", 201, "10.77.0.9");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    let peers = |n: usize| {
        let shown = || lab.sh(&host, "ip neigh show dev flannel.1 nud permanent | grep -c ^10.10.; true");
        lab::eventually(secs(3), &format!("{n} peers"), || (shown().trim() == n.to_string()).then_some(()));
    };
    peers(1);
    lab.sh(&host, FOREIGN);
    lab.ip(&format!("-n {host} link set flannel.1 mtu 1300"));
    let before = foreign(&lab);
    assert_eq!(before.len(), 4, "{before:?}");
    look(&lab);
    peer(&lab, "vxlan", 202, "10.77.0.10");
    peers(2);
    lab.delete_lease(Api::V3, "10.10.202.0-24");
    peers(1);
    look(&lab);
    assert_eq!(foreign(&lab), before);
    let link = lab.ip(&format!("-n {host} link show flannel.1"));
    assert!(link.contains(" mtu 1300 "), "{link}");
    assert_eq!(daemon.count("repairs"), 0, "{}", daemon.text());
    daemon.terminate();
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    look(&lab);
    assert_eq!(foreign(&lab), before, "after a restart");
    assert_eq!(daemon.count("repairs"), 0, "{}", daemon.text());
}

/// Starts the daemon of another network with the same VNI on host 1.
fn second(lab: &Lab, network: &str) -> Daemon {
    let json = format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#);
    let put = ["etcdctl", "--endpoints", "http://10.77.0.254:2379", "put", "/other/network/config", &json];
    lab.run(&lab.ns("sw"), &put);
    let args = ["--iface=eth0", "--etcd-api=v3", "--etcd-prefix=/other/network"];
    Daemon::start(lab, &lab.host(1), &lab.path("other.env"), &args, &[])
}

/// The IPv4 addresses of the device that both daemons share.
fn addresses(lab: &Lab) -> Vec<String> {
    let shown = lab.ip(&format!("-n {} -4 -o addr show dev flannel.1", lab.host(1)));
    let mut list: Vec<_> =
        shown.lines().map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect();
    list.sort();
    list
}

#[test]
fn two_daemons_of_one_vni_leave_each_other_alone() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    peer(&lab, "vxlan", 201, "10.77.0.9");
    let mut first = lab.daemon(1, &["--etcd-api=v3"]);
    let ours = first.subnet();
    let mut other = second(&lab, "10.11.0.0/16");
    let theirs = other.subnet();
    // The peer is in both networks, behind one device, and leaves the first.
    let value =
        r#"{"PublicIP":"10.77.0.9","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:00:00:00:00:c9"}}"#;
    let put = ["etcdctl", "--endpoints", "http://10.77.0.254:2379", "put"];
    lab.run(&lab.ns("sw"), &[&put[..], &["/other/network/subnets/10.11.201.0-24", value]].concat());
    let host = lab.host(1);
    let neighbours = || lines(&lab.ip(&format!("-n {host} neigh show dev flannel.1 nud permanent")));
    lab::eventually(secs(3), "the peer in both networks", || (neighbours().len() == 2).then_some(()));
    look(&lab);
    lab.delete_lease(Api::V3, "10.10.201.0-24");
    lab::eventually(secs(3), "the peer's leave", || (neighbours().len() == 1).then_some(()));
    look(&lab);
    let fdb = lab.run(&host, &["bridge", "fdb", "show", "dev", "flannel.1"]);
    assert_eq!(fdb.trim(), "0a:00:00:00:00:c9 dst 10.77.0.9 self permanent", "the other network needs it");
    assert_eq!(addresses(&lab), [format!("{}/32", ours.base()), format!("{}/32", theirs.base())]);
    for daemon in [&first, &other] {
        assert_eq!(daemon.count("repairs"), 0, "{}", daemon.text());
    }
}

/// Not even one network that is served twice on a host leads to a fight without end.
#[test]
fn an_address_that_always_comes_back_stays_in_the_end() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    let mut first = lab.daemon(1, &["--etcd-api=v3"]);
    let ours = first.subnet();
    let mut other = second(&lab, "10.10.0.0/16");
    let theirs = other.subnet();
    assert_ne!(ours.base(), theirs.base(), "two draws of 255");
    first.wait_text("again and again; from now on it stays", secs(8));
    other.wait_text("again and again; from now on it stays", secs(8));
    let mut both = [format!("{}/32", ours.base()), format!("{}/32", theirs.base())];
    both.sort();
    std::thread::sleep(ms(1200));
    assert_eq!(addresses(&lab), both);
    let before = [first.count("repairs"), other.count("repairs")];
    std::thread::sleep(ms(1200));
    assert_eq!([first.count("repairs"), other.count("repairs")], before, "{}", first.text());
}

/// An older flannel has left routes by the external interface: to a peer that has moved since, to one whose host has
/// another subnet now. Routes of others beside them stay, also those that have flannel's form but no peer as gateway.
fn older_routes(backend: &str, kind: &str) {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(backend));
    for (n, ip) in [(201, "10.77.0.9"), (202, "10.77.0.10"), (203, "10.77.0.11")] {
        peer(&lab, kind, n, ip);
    }
    lab.sh(
        &host,
        "ip route add 10.10.201.0/24 via 10.77.0.99 dev eth0
         ip route add 10.10.202.0/24 via 10.77.0.10 dev eth0
         ip route add 10.10.205.0/24 via 10.77.0.9 dev eth0
         ip route add 10.10.208.0/24 via 10.77.0.254 dev eth0
         ip route add 10.10.206.0/24 via 10.77.0.254 proto static
         ip route add 10.10.207.0/25 via 10.77.0.254
         ip route add 10.20.1.0/24 via 10.77.0.254",
    );
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    let shown = || lines(&lab.ip(&format!("-n {host} route show proto 78")));
    let expected = [
        "10.10.201.0/24 via 10.77.0.9 dev eth0",
        "10.10.202.0/24 via 10.77.0.10 dev eth0",
        "10.10.203.0/24 via 10.77.0.11 dev eth0",
    ];
    lab::eventually(secs(3), "the peers' routes", || (shown() == expected).then_some(()));
    daemon.wait_text("replaced 10.10.201.0/24 via 10.77.0.99", secs(3));
    daemon.wait_text("removed 10.10.205.0/24 via 10.77.0.9", secs(3));
    daemon.wait_text("stay, since no lease has their gateway: 10.10.208.0/24 via 10.77.0.254", secs(3));
    let boot = lines(&lab.ip(&format!("-n {host} route show proto boot")));
    let others = [
        "10.10.207.0/25 via 10.77.0.254 dev eth0",
        "10.10.208.0/24 via 10.77.0.254 dev eth0",
        "10.20.1.0/24 via 10.77.0.254 dev eth0",
    ];
    assert_eq!(
        boot.iter().filter(|line| !line.starts_with("default")).collect::<Vec<_>>(),
        others.iter().collect::<Vec<_>>()
    );
    assert_eq!(lab.ip(&format!("-n {host} route show 10.10.206.0/24")).lines().count(), 1);
    assert_eq!((daemon.count("repairs"), daemon.count("refused_entries")), (0, 0), "{}", daemon.text());

    // One of an older flannel that still runs, or of an operator who tries something, gives way too.
    lab.ip(&format!("-n {host} route replace 10.10.203.0/24 via 10.77.0.254"));
    lab::eventually(secs(3), "the peer's route again", || (shown() == expected).then_some(()));
    assert_eq!(daemon.count("repairs"), 1);
    // A peer that comes while its place is taken.
    lab.ip(&format!("-n {host} route add 10.10.204.0/24 via 10.77.0.254"));
    std::thread::sleep(ms(300));
    peer(&lab, kind, 204, "10.77.0.12");
    let route = format!("-n {host} route show 10.10.204.0/24");
    lab::eventually(secs(3), "the fourth peer's route", || {
        lab.ip(&route).contains("10.77.0.12").then_some(())
    });
    daemon.wait_text("replaced 10.10.204.0/24 via 10.77.0.254", secs(3));
}

#[test]
fn older_routes_give_way_to_host_gw() {
    older_routes(r#"{"Type":"host-gw"}"#, "host-gw");
}

#[test]
fn older_routes_give_way_to_direct_routing() {
    older_routes(r#"{"Type":"vxlan","DirectRouting":true}"#, "vxlan");
}

/// Beside the routes that an older flannel has left on its device are those of an operator and of a routing daemon.
#[test]
fn routes_of_others_over_the_vxlan_device_stay() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    peer(&lab, "vxlan", 201, "10.77.0.9");
    lab.sh(
        &host,
        "ip link add flannel.1 type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 nolearning
         ip addr add 10.10.3.0/32 dev flannel.1
         ip link set flannel.1 up
         ip route add 10.10.201.0/24 via 10.10.201.0 dev flannel.1 onlink
         ip route add 10.10.202.0/24 via 10.10.202.0 dev flannel.1 onlink
         ip route add 10.10.208.0/22 via 10.10.208.0 dev flannel.1 onlink proto static metric 50
         ip route add 10.10.212.0/22 dev flannel.1 proto bird
         ip route add 10.10.216.0/24 via 10.10.201.7 dev flannel.1 onlink",
    );
    let shown = |protocol: &str| lines(&lab.ip(&format!("-n {host} route show proto {protocol}")));
    let [operators, birds] = ["static", "bird"].map(shown);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    daemon.wait_text("removed 10.10.202.0/24 via 10.10.202.0", secs(3));
    assert_eq!(shown("78"), ["10.10.201.0/24 via 10.10.201.0 dev flannel.1 onlink"]);
    assert_eq!((operators.len(), birds.len()), (1, 1));
    assert_eq!(["static", "bird"].map(shown), [operators, birds]);
    let boot: Vec<_> = shown("boot").into_iter().filter(|line| !line.starts_with("default")).collect();
    assert_eq!(boot, ["10.10.216.0/24 via 10.10.201.7 dev flannel.1 onlink"], "a container is the gateway");
}

/// An older flannel ran vxlan with DirectRouting here before the network became udp's. Its routes are narrower than
/// udp's and would lead packets away.
#[test]
fn older_routes_are_not_in_the_way_of_udp() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    // This host was not restarted yet.
    peer(&lab, "host-gw", 202, "10.77.0.10");
    lab.sh(
        &host,
        "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472
         ip link set flannel.1 up
         ip route add 10.10.201.0/24 via 10.10.201.0 dev flannel.1 onlink
         ip route add 10.10.202.0/24 via 10.77.0.10 dev eth0
         ip route add 10.10.203.0/24 via 10.77.0.11 proto static
         ip route add 10.10.204.0/24 via 10.77.0.254 dev eth0",
    );
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    for removed in ["removed 10.10.201.0/24 via 10.10.201.0", "removed 10.10.202.0/24 via 10.77.0.10"] {
        daemon.wait_text(removed, secs(3));
    }
    daemon.wait_text("stay, since no lease has their gateway: 10.10.204.0/24 via 10.77.0.254", secs(3));
    let routes = lines(&lab.ip(&format!("-n {host} route show root 10.10.0.0/16")));
    let expected = [
        "10.10.0.0/16 dev flannel0 proto 78",
        "10.10.203.0/24 via 10.77.0.11 dev eth0 proto static",
        "10.10.204.0/24 via 10.77.0.254 dev eth0",
    ];
    assert_eq!(routes, expected, "the last one is an operator's, made with a plain `ip route add`");
    assert_eq!(daemon.count("repairs"), 0, "{}", daemon.text());
}

/// A persistent `flannel0` with the overlay's route, which nobody reads, is taken over: packets flow through ours.
#[test]
fn a_flannel0_that_nobody_holds_is_taken_over() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    for host in [lab.host(1), lab.host(2)] {
        lab.sh(
            &host,
            "ip tuntap add flannel0 mode tun
             ip link set flannel0 up
             ip addr add 10.10.9.0/16 dev flannel0",
        );
    }
    let mut daemons = [lab.daemon(1, &["--etcd-api=v3"]), lab.daemon(2, &["--etcd-api=v3"])];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    daemons[0].wait_text("flannel0 had the route to 10.10.0.0/16 and no reader", secs(1));
    let links = lab.ip(&format!("-n {} -br link show type tun", lab.host(1)));
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.starts_with("flannel0 "), "{links}");
    daemons[0].terminate();
    assert_eq!(lab.ip(&format!("-n {} -br link show type tun", lab.host(1))), "", "it is not persistent now");
}

/// One that is no TUN, or that another process reads, leads to an end with a sentence, and stays.
#[test]
fn a_flannel0_of_somebody_else_is_a_clear_refusal() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    for make in ["link add flannel0 type bridge", "tuntap add flannel0 mode tap"] {
        lab.ip(&format!("-n {host} {make}"));
        lab.ip(&format!("-n {host} link set flannel0 up"));
        lab.ip(&format!("-n {host} route add 10.10.0.0/16 dev flannel0"));
        let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
        let status = daemon.wait(secs(8)).expect("it should end");
        assert_eq!(status.code(), Some(1));
        let text = daemon.text();
        assert!(text.contains("the route to 10.10.0.0/16 leads through flannel0"), "{text}");
        assert!(text.contains("`ip link del flannel0`"), "{text}");
        lab.ip(&format!("-n {host} link del flannel0"));
    }
    // Another flanneld of the same network runs here, with a port of its own.
    let mut first = lab.daemon(1, &["--etcd-api=v3"]);
    first.subnet();
    let json = config(r#"{"Type":"udp","Port":9999}"#);
    let put = ["etcdctl", "--endpoints", "http://10.77.0.254:2379", "put", "/other/network/config", &json];
    lab.run(&lab.ns("sw"), &put);
    let args = ["--iface=eth0", "--etcd-api=v3", "--etcd-prefix=/other/network"];
    let mut second = Daemon::start(&lab, &host, &lab.path("other.env"), &args, &[]);
    assert_eq!(second.wait(secs(8)).expect("it should end").code(), Some(1));
    assert!(second.text().contains("leads through flannel0"), "{}", second.text());
    assert!(first.running());
}

/// The cluster gets another network. What this host had of the old one goes at the start, and nothing else.
fn renumbered(kind: &str, writes: &str) {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    let old = r#""Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.10.255.0""#;
    lab.put_config(Api::V3, &format!(r#"{{{old},"Backend":{{"Type":"{kind}"}}}}"#));
    // The first peer's host lies in the second one's subnet.
    for (subnet, ip) in [("10.10.201.0-24", "10.60.0.9"), ("10.60.0.0-24", "10.77.0.8")] {
        let mac = format!("0a:00:00:00:00:{}", &ip[ip.len() - 1..].repeat(2));
        let data = format!(r#""BackendType":"{kind}","BackendData":{{"VtepMAC":"{mac}"}}"#);
        lab.put(Api::V3, &format!("subnets/{subnet}"), &format!(r#"{{"PublicIP":"{ip}",{data}}}"#));
    }
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    let before = daemon.subnet();
    let left = |what: &str| lines(&lab.ip(&format!("-n {host} {what}")));
    lab::eventually(secs(5), "the detour", || (left("route show proto 79").len() == 1).then_some(()));
    // With host-gw the peer of the detour is not on the link; udp has one route for all.
    let routes = if kind == "vxlan" { 2 } else { 1 };
    lab::eventually(secs(5), "the routes", || (left("route show proto 78").len() == routes).then_some(()));
    lab.sh(
        &host,
        "ip route add 10.11.0.0/24 via 10.77.0.254
         ip route add 10.10.9.0/24 via 10.77.0.254 proto static
         ! ip link show flannel.1 2>/dev/null || ip addr add 192.168.5.1/24 dev flannel.1",
    );
    daemon.terminate();
    lab.clear(Api::V3);
    lab.put_config(Api::V3, &format!(r#"{{"Network":"172.20.0.0/16","Backend":{{"Type":"{kind}"}}}}"#));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "--cleanup-on-exit"]);
    let subnet = daemon.subnet();
    assert!(subnet.subnet.starts_with("172.20."), "{subnet:?} after {before:?}");
    daemon.wait_text("the network is 172.20.0.0/16 now and was 10.0.0.0/8: ", secs(1));
    daemon.wait_text(writes, secs(1));
    assert_eq!(left("route show proto 79"), [""; 0]);
    let routes = left("route show proto 78");
    assert!(routes.iter().all(|line| line.starts_with("172.20.")), "{routes:?}");
    if kind == "vxlan" {
        assert_eq!(left("neigh show dev flannel.1 nud permanent"), [""; 0]);
        assert_eq!(lab.run(&host, &["bridge", "fdb", "show", "dev", "flannel.1"]), "");
        let both = ["192.168.5.1/24".to_owned(), format!("{}/32", subnet.base())];
        assert_eq!(sorted(addresses(&lab)), sorted(both.to_vec()));
    }
    assert_eq!(left("route show 10.11.0.0/24").len(), 1, "an operator's");
    assert_eq!(left("route show 10.10.9.0/24").len(), 1, "an operator's");
    daemon.terminate();
    assert_eq!((left("route show proto 78").len(), left("route show proto 79").len()), (0, 0));
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

#[test]
fn a_new_network_leaves_nothing_of_the_old_one_vxlan() {
    renumbered(
        "vxlan",
        "remove 2 routes: 10.10.201.0/24, 10.60.0.0/24; remove 1 host routes past the overlay: 10.60.0.9/32",
    );
}

#[test]
fn a_new_network_leaves_nothing_of_the_old_one_host_gw() {
    renumbered("host-gw", "remove 1 host routes past the overlay: 10.60.0.9/32");
}

#[test]
fn a_new_network_leaves_nothing_of_the_old_one_udp() {
    renumbered("udp", "remove 1 host routes past the overlay: 10.60.0.9/32");
}
