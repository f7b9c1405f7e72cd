//! Promise: every backend connects two hosts in the same way, and a restart of the daemon costs nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::{Pair, config};
use lab::store::named;
use lab::{Api, Daemon, Lab, Subnet, ms, secs};
use std::net::Ipv4Addr;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

impl Pair {
    /// Checks what flannel's functional test checks, and what a user looks at.
    fn works(&self, mtu: u32) {
        for (i, peer) in [(0, 1), (1, 0)] {
            let (own, theirs) =
                (self.subnets[i].gateway().to_string(), self.subnets[peer].gateway().to_string());
            let host = self.lab.host(i + 1);
            self.lab.run(&host, &["ping", "-I", &own, "-c3", "-i0.05", "-W1", &theirs]);
            self.lab
                .run(&self.ends[i].ns, &["ping", "-c3", "-i0.05", "-W1", &self.ends[peer].addr.to_string()]);
            assert_eq!(self.subnets[i].mtu, mtu);
            // The largest packet passes whole, and one more byte does not.
            let ping = |size: u32| {
                let (size, to) = (size.to_string(), self.ends[peer].addr.to_string());
                self.lab.try_run(&self.ends[i].ns, &["ping", "-Mdo", "-c1", "-W1", "-s", &size, &to])
            };
            assert!(ping(mtu - 28).status.success(), "a packet of {mtu} bytes is lost");
            assert!(!ping(mtu - 27).status.success());
        }
        let server =
            self.lab.spawn(&self.ends[1].ns, "iperf3-server", &["iperf3", "-s", "-1", "--forceflush"]);
        server.wait_text("Server listening", secs(5));
        let report =
            self.lab.run(&self.ends[0].ns, &["iperf3", "-c", &self.ends[1].addr.to_string(), "-t1", "-fm"]);
        let line = report.lines().find(|line| line.contains("receiver")).unwrap();
        eprintln!("{}", line.trim());
    }

    fn mac(&self, i: usize) -> String {
        let shown = self.lab.ip(&format!("-n {} -br link show flannel.1", self.lab.host(i)));
        shown.split_whitespace().nth(2).unwrap().to_owned()
    }

    /// Ends and restarts daemon 1 under a stream of numbered packets in both directions; none may be lost.
    fn restarts_unnoticed(&mut self, kill: bool) {
        let streams: Vec<_> = [(0, 1), (1, 0)]
            .map(|(from, to)| {
                let sink =
                    self.lab.tool(&self.ends[to].ns, &format!("pulse_sink {}:7000", self.ends[to].addr));
                let send = format!("pulse_send {}:7000 1000", self.ends[to].addr);
                (sink, self.lab.tool(&self.ends[from].ns, &send))
            })
            .into();
        std::thread::sleep(ms(200));
        if kill {
            self.daemons[0].kill();
        } else {
            let (status, took) = self.daemons[0].terminate();
            assert!(status.success() && took < secs(1), "{status} after {took:?}");
        }
        std::thread::sleep(ms(200));
        self.daemons[0] = self.lab.daemon(1, &["--etcd-api=v3"]);
        self.daemons[0].wait_text("Lease acquired", secs(5));
        std::thread::sleep(ms(700));
        assert_eq!(self.daemons[0].subnet(), self.subnets[0]);
        assert!(self.daemons[0].running());
        for (mut sink, mut send) in streams {
            send.finish();
            let sent: u64 = send.line(secs(5)).parse().unwrap();
            std::thread::sleep(ms(100));
            sink.finish();
            let said = sink.line(secs(5));
            let numbers: Vec<u64> = said.split(' ').map(|n| n.parse().unwrap()).collect();
            assert!(sent > 300, "only {sent} were sent");
            assert_eq!(
                (numbers[0], numbers[1], numbers[3]),
                (sent, sent, 0),
                "received, last, disordered of {sent}"
            );
        }
    }
}

#[test]
fn udp() {
    let Some(pair) = Pair::set(r#"{"Type":"udp"}"#) else { return };
    pair.works(1472);
}

#[test]
fn vxlan() {
    let Some(mut pair) = Pair::set(r#"{"Type":"vxlan"}"#) else { return };
    pair.works(1450);
    let (mac, host) = (pair.mac(1), pair.lab.host(1));
    let value = &pair.lab.leases(Api::V3)[&pair.subnets[0].key()];
    let expected = format!(
        r#"{{"PublicIP":"10.77.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    let (value, node) = named(value);
    assert_eq!(value, expected);
    assert!(!node.is_empty(), "no NodeID");
    let shown = pair.lab.ip(&format!("-n {host} -d addr show flannel.1"));
    let base = pair.subnets[0].base();
    for text in [
        "vxlan id 1 local 10.77.0.1 dev eth0",
        "dstport 8472 nolearning",
        "mtu 1450",
        &format!("inet {base}/32 "),
    ] {
        assert!(shown.contains(text), "{text} in {shown}");
    }
    assert!(!shown.contains("inet6"), "{shown}");
    let other = &pair.subnets[1];
    let route = pair.lab.ip(&format!("-n {host} route show {}/24", other.base()));
    assert!(route.contains(&format!("via {} dev flannel.1 proto 78 onlink", other.base())), "{route}");
    let arp = pair.lab.ip(&format!("-n {host} neigh show dev flannel.1"));
    assert_eq!(arp.trim(), format!("{} lladdr {} PERMANENT", other.base(), pair.mac(2)));
    let fdb = pair.lab.run(&host, &["bridge", "fdb", "show", "dev", "flannel.1"]);
    assert_eq!(fdb.trim(), format!("{} dst 10.77.0.2 self permanent", pair.mac(2)));

    pair.restarts_unnoticed(false);
    pair.restarts_unnoticed(true);
    assert_eq!(pair.mac(1), mac);
    // A reboot takes the device away; the new device has the same MAC.
    pair.daemons[0].terminate();
    pair.lab.ip(&format!("-n {host} link del flannel.1"));
    pair.daemons[0] = pair.lab.daemon(1, &["--etcd-api=v3"]);
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(5));
    assert_eq!(pair.mac(1), mac);
}

#[test]
fn host_gw() {
    let Some(mut pair) = Pair::set(r#"{"Type":"host-gw"}"#) else { return };
    pair.works(1500);
    let value = &pair.lab.leases(Api::V3)[&pair.subnets[0].key()];
    let (value, node) = named(value);
    assert_eq!(value, r#"{"PublicIP":"10.77.0.1","PublicIPv6":null,"BackendType":"host-gw"}"#);
    assert!(!node.is_empty(), "no NodeID");
    let route = pair.lab.ip(&format!("-n {} route show proto 78", pair.lab.host(1)));
    assert_eq!(
        route.split_whitespace().collect::<Vec<_>>().join(" "),
        format!("{}/24 via 10.77.0.2 dev eth0", pair.subnets[1].base())
    );
    pair.restarts_unnoticed(false);
    pair.restarts_unnoticed(true);
}

/// Peers on the same link need no tunnel; one behind a router does.
#[test]
fn direct_routing() {
    let Some(pair) = Pair::set(r#"{"Type":"vxlan","DirectRouting":true}"#) else { return };
    let host = pair.lab.host(1);
    pair.lab.put(
        Api::V3,
        "subnets/10.10.250.0-24",
        r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:00:00:00:00:09"}}"#,
    );
    let far = lab::eventually(secs(3), "the far peer's route", || {
        let route = pair.lab.ip(&format!("-n {host} route show 10.10.250.0/24"));
        (!route.is_empty()).then_some(route)
    });
    assert!(far.contains("via 10.10.250.0 dev flannel.1 proto 78 onlink"), "{far}");
    let near = pair.lab.ip(&format!("-n {host} route show {}/24", pair.subnets[1].base()));
    assert!(near.contains("via 10.77.0.2 dev eth0 proto 78"), "{near}");
    assert_eq!(pair.lab.ip(&format!("-n {host} neigh show dev flannel.1")).lines().count(), 1);
    pair.works(1450);
}

/// Two peers that publish one MAC are told of once, however often the tables are compared.
#[test]
fn a_duplicate_vtep_mac_is_said_once() {
    let Some(pair) = Pair::set(r#"{"Type":"vxlan"}"#) else { return };
    let lease = |last: u8, mac: u8| {
        format!(
            r#"{{"PublicIP":"198.51.100.{last}","BackendType":"vxlan","BackendData":{{"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#
        )
    };
    pair.lab.put(Api::V3, "subnets/10.10.240.0-24", &lease(1, 9));
    pair.lab.put(Api::V3, "subnets/10.10.241.0-24", &lease(2, 9));
    let said =
        |pair: &Pair| pair.daemons[0].text().matches("both have the VtepMAC 0a:00:00:00:00:09").count();
    lab::eventually(secs(3), "a word about the two", || (said(&pair) > 0).then_some(()));
    // Each of these peers brings another pass over the tables.
    let host = pair.lab.host(1);
    for n in 0..5 {
        let subnet = format!("10.10.{}.0", 242 + n);
        pair.lab.put(Api::V3, &format!("subnets/{subnet}-24"), &lease(10 + n, 10 + n));
        let route = format!("-n {host} route show {subnet}/24");
        lab::eventually(secs(3), "the peer's route", || (!pair.lab.ip(&route).is_empty()).then_some(()));
    }
    assert_eq!(said(&pair), 1, "{}", pair.daemons[0].text());
}

/// This is flannel's own test of two daemons on each of two hosts.
#[test]
fn two_networks_on_one_host_keep_apart() {
    let Some(lab) = Lab::start(2) else { return };
    let networks = [("vxlan", "10.11.0.0/16"), ("host-gw", "10.12.0.0/16")];
    let mut daemons = Vec::new();
    let mut gateways: Vec<Ipv4Addr> = Vec::new();
    for (kind, network) in networks {
        let prefix = format!("/{}/network", kind.replace('-', ""));
        let json = format!(r#"{{"Network":"{network}","Backend":{{"Type":"{kind}"}}}}"#);
        let put =
            ["etcdctl", "--endpoints", "http://10.77.0.254:2379", "put", &format!("{prefix}/config"), &json];
        lab.run(&lab.ns("sw"), &put);
        for i in [1, 2] {
            let (host, file) = (lab.host(i), lab.path(&format!("h{i}/{kind}.env")));
            let args = ["--iface=eth0", "--etcd-api=v3", &format!("--etcd-prefix={prefix}")];
            let mut daemon = Daemon::start(&lab, &host, &file, &args, &[]);
            let subnet = daemon.subnet();
            daemons.push(daemon);
            lab.ip(&format!("-n {host} link add {kind} type bridge"));
            lab.ip(&format!("-n {host} addr add {} dev {kind}", subnet.subnet));
            lab.ip(&format!("-n {host} link set {kind} up"));
            gateways.push(subnet.gateway());
        }
    }
    let host = lab.host(2);
    let (vxlan, host_gw) = (gateways[0], gateways[2]);
    lab.reaches(&host, vxlan, secs(5));
    lab.reaches(&host, host_gw, secs(5));
    let by = |device: &str, to: Ipv4Addr| {
        lab.try_run(&host, &["ping", "-I", device, "-c2", "-i0.2", "-W0.5", &to.to_string()]).status.success()
    };
    assert!(by("flannel.1", vxlan) && by("eth0", host_gw));
    assert!(!by("flannel.1", host_gw), "the host-gw network is reached through the vxlan device");
    assert!(!by("eth0", vxlan), "the vxlan network is reached without its device");
    // Neither daemon has touched what is the other's: a restart of both changes nothing.
    let before = lab.ip(&format!("-n {host} route show"));
    for daemon in &mut daemons {
        daemon.terminate();
    }
    for (n, (kind, _)) in networks.iter().enumerate() {
        let prefix = format!("--etcd-prefix=/{}/network", kind.replace('-', ""));
        let file = lab.path(&format!("h2/{kind}.env"));
        let args = ["--iface=eth0", "--etcd-api=v3", &prefix];
        daemons[n] = Daemon::start(&lab, &host, &file, &args, &[]);
        daemons[n].wait_text("Lease acquired", secs(5));
    }
    std::thread::sleep(ms(300));
    assert_eq!(lab.ip(&format!("-n {host} route show")), before);
}

#[test]
fn host_gw_refuses_a_foreign_public_ip() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"host-gw"}"#));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "--public-ip=203.0.113.1"]);
    let status = daemon.wait(secs(5)).expect("it should end");
    assert_eq!(status.code(), Some(1));
    let text = daemon.text();
    assert!(text.contains("the public IP 203.0.113.1 is not eth0's address 10.77.0.1"), "{text}");
    assert!(lab.leases(Api::V3).is_empty());
}

/// The kernel makes a device on a port that another one holds with other settings, and refuses to set it up.
#[test]
fn vxlan_names_who_may_hold_its_port() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    let host = lab.host(1);
    lab.sh(
        &host,
        "ip link add other type vxlan id 9 dev eth0 local 10.77.0.1 dstport 8472 gbp; ip link set other up",
    );
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    assert_eq!(daemon.wait(secs(5)).expect("it should end").code(), Some(1));
    let text = daemon.text();
    let said =
        "cannot set flannel.1 up: UDP port 8472 is in use, by another VXLAN device whose settings differ";
    assert!(text.contains(said), "{text}");
    let shown = lab.ip(&format!("-n {host} -br link show type vxlan"));
    assert!(shown.contains("other") && !shown.contains("flannel.1"), "{shown}");
}

#[test]
fn backends_that_are_not_served_are_refused_by_name() {
    let Some(lab) = Lab::start(1) else { return };
    for kind in ["ipip", "ipsec", "wireguard", "aws-vpc", "gce", "ali-vpc", "tencent-vpc"] {
        lab.put_config(Api::V3, &config(&format!(r#"{{"Type":"{kind}"}}"#)));
        let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
        assert_eq!(daemon.wait(secs(5)).expect("it should end").code(), Some(1));
        let text = daemon.text();
        assert!(text.contains(&format!("Backend.Type \"{kind}\" is not served")), "{text}");
        assert!(lab.leases(Api::V3).is_empty());
    }
}

/// A peer is made by hand as flannel 0.6.2 makes it: etcd v2, a lease without VNI, ARP entries of each container
/// in the place of one for the base address, a route for the whole network.
#[test]
fn a_miss_driven_peer_of_flannel_0_6() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V2, &config(r#"{"Type":"vxlan"}"#));
    lab.put(
        Api::V2,
        "subnets/10.10.200.0-24",
        r#"{"PublicIP":"10.77.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"16:00:00:00:00:02"}}"#,
    );
    let mut daemon = lab.daemon(1, &["--etcd-api=v2"]);
    let subnet = daemon.subnet();
    let ours = lab.container(1, &subnet);
    let value = &lab.leases(Api::V2)[&subnet.key()];
    let mac = value.split(r#""VtepMAC":""#).nth(1).unwrap()[..17].to_owned();
    let start = r#"{"PublicIP":"10.77.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"#;
    assert!(value.starts_with(start), "{value}");

    let old = Subnet { network: subnet.network.clone(), subnet: "10.10.200.1/24".to_owned(), ..subnet };
    let theirs = lab.container(2, &old);
    let peer_address = ours.addr;
    lab.sh(
        &lab.host(2),
        &format!(
            "ip link add flannel.1 address 16:00:00:00:00:02 type vxlan id 1 dev eth0 local 10.77.0.2 dstport 8472 nolearning
             ip addr add 10.10.200.0/16 dev flannel.1
             ip link set flannel.1 up
             bridge fdb add {mac} dev flannel.1 dst 10.77.0.1 self permanent
             ip neigh add {peer_address} lladdr {mac} dev flannel.1 nud reachable"
        ),
    );
    lab.reaches(&theirs.ns, ours.addr, secs(3));
    lab.reaches(&ours.ns, theirs.addr, secs(3));
}

/// An operator changes the network's type and restarts the daemons: nothing of the old type is in the way.
#[test]
fn one_backend_follows_another() {
    let Some(mut pair) = Pair::set(r#"{"Type":"vxlan"}"#) else { return };
    for kind in ["host-gw", "vxlan", "udp", "vxlan"] {
        pair.lab.put_config(Api::V3, &config(&format!(r#"{{"Type":"{kind}"}}"#)));
        for i in 0..2 {
            pair.daemons[i].terminate();
            pair.daemons[i] = pair.lab.daemon(i + 1, &["--etcd-api=v3"]);
            pair.daemons[i].wait_text("Lease acquired", secs(5));
        }
        pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(3));
        pair.lab.reaches(&pair.ends[1].ns, pair.ends[0].addr, secs(3));
        let peer = pair.subnets[1].gateway().to_string();
        let route = pair.lab.ip(&format!("-n {} route get {peer}", pair.lab.host(1)));
        let device = [("host-gw", "eth0"), ("vxlan", "flannel.1"), ("udp", "flannel0")]
            .iter()
            .find_map(|(name, device)| (*name == kind).then_some(*device))
            .unwrap();
        assert!(route.contains(&format!("dev {device} ")), "{kind}: {route}");
    }
}
