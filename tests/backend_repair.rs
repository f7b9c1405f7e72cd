//! Promise: what others do to a kernel backend's device, addresses, entries and routes is put right within two
//! seconds and counted; what was there before the start is brought in order; foreign things stay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::{Pair, config};
use lab::{Api, Lab, ms, secs};
use std::time::Instant;

const PEER: &str =
    r#"{"PublicIP":"10.77.0.9","BackendType":"vxlan","BackendData":{"VtepMAC":"0a:00:00:00:00:09"}}"#;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

impl Pair {
    /// Lists all that the backend has made on host 1.
    fn state(&self) -> String {
        let script = "ip -o addr show dev flannel.1 | sed 's/.*inet/inet/'; \
             ip -o link show flannel.1 | grep -o 'mtu [0-9]*\\|,UP\\|ether [^ ]*'; \
             ip -4 neigh show dev flannel.1; bridge fdb show dev flannel.1; ip route show proto 78";
        self.lab.sh(&self.lab.host(1), script)
    }

    /// Does something on host 1 while pings run, and waits until all is as it was.
    fn survives(&mut self, what: &str, commands: &[String]) {
        std::thread::sleep(ms(200));
        let (host, before) = (self.lab.host(1), self.state());
        let repairs = self.daemons[0].count("repairs");
        let to = self.ends[1].addr.to_string();
        let mut pings = self.lab.spawn(&self.ends[0].ns, &format!("ping-{what}"), &["ping", "-i0.02", &to]);
        pings.wait_text("icmp_seq=2", secs(2));
        for command in commands {
            self.lab.sh(&host, command);
        }
        let start = Instant::now();
        lab::eventually(secs(4), &format!("the repair after {what}"), || {
            (self.state() == before).then_some(())
        });
        let took = start.elapsed();
        eprintln!("{what}: repaired after {took:?}");
        assert!(took < secs(2), "{what}: repaired only after {took:?}");
        let seen = pings.text().len();
        lab::eventually(secs(2), &format!("pings after {what}"), || {
            pings.text()[seen..].contains("bytes from").then_some(())
        });
        assert!(pings.running() && self.daemons[0].running(), "{}", self.daemons[0].text());
        assert!(self.daemons[0].count("repairs") > repairs, "{what} was not counted");
    }
}

fn owned(commands: &[&str]) -> Vec<String> {
    commands.iter().map(ToString::to_string).collect()
}

#[test]
fn vxlan_is_repaired() {
    let Some(mut pair) = Pair::set(r#"{"Type":"vxlan","MTU":1450}"#) else { return };
    let peer = pair.subnets[1].base();
    pair.survives("a deleted device", &owned(&["ip link del flannel.1"]));
    pair.survives("an address flush", &owned(&["ip addr flush dev flannel.1"]));
    pair.survives("a second address", &owned(&["ip addr add 10.10.77.7/16 dev flannel.1"]));
    pair.survives("a route delete", &[format!("ip route del {peer}/24")]);
    pair.survives("a moved route", &[format!("ip route replace {peer}/24 via 10.77.0.254 proto 78")]);
    pair.survives("down and up", &owned(&["ip link set flannel.1 down", "ip link set flannel.1 up"]));
    pair.survives("down", &owned(&["ip link set flannel.1 down"]));
    pair.survives("a higher MTU", &owned(&["ip link set flannel.1 mtu 1450"]));
    pair.survives("another MAC", &owned(&["ip link set flannel.1 address 0e:11:22:33:44:55"]));
    // One process does both, since the daemon makes the device anew after 50 ms.
    let other = r"printf 'link del flannel.1\nlink add flannel.1 type vxlan id 1 dev eth0 dstport 4789\n' | ip -batch -";
    pair.survives("another device in its place", &owned(&[other]));
    let flush = "ip neigh flush dev flannel.1 nud permanent; \
                 for m in $(bridge fdb show dev flannel.1 | cut -d' ' -f1); do bridge fdb del $m dev flannel.1; done; \
                 ip addr add 10.77.0.99/24 dev eth0; ip addr del 10.77.0.99/24 dev eth0";
    pair.survives("flushed entries, seen at the next change", &owned(&[flush]));
}

/// The link below the device goes and comes back, with the device on it or without.
#[test]
fn vxlan_survives_its_underlay() {
    let Some(mut pair) = Pair::set(r#"{"Type":"vxlan"}"#) else { return };
    let host = pair.lab.host(1);
    pair.lab.ip(&format!("-n {host} link set eth0 down"));
    std::thread::sleep(ms(300));
    pair.lab.ip(&format!("-n {host} link set eth0 up"));
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(2));
    let before = pair.state();
    // The kernel takes the VXLAN device along, and eth0 comes back with another number.
    let sw = pair.lab.ns("sw");
    pair.lab.ip(&format!("-n {host} link del eth0"));
    std::thread::sleep(ms(500));
    pair.lab.ip(&format!("-n {host} link add eth0 type veth peer name p1 netns {sw}"));
    pair.lab.ip(&format!("-n {sw} link set p1 master br0 up"));
    pair.lab.ip(&format!("-n {host} addr add 10.77.0.1/24 dev eth0"));
    pair.lab.ip(&format!("-n {host} link set eth0 up"));
    let took = pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(5));
    eprintln!("reachable {took:?} after the return of eth0");
    assert_eq!(pair.state(), before);
    assert!(pair.daemons[0].running());
}

#[test]
fn host_gw_is_repaired() {
    let Some(mut pair) = Pair::set(r#"{"Type":"host-gw"}"#) else { return };
    // `state` shows the routes; this backend has no device.
    pair.lab.ip(&format!("-n {} link add flannel.1 type bridge", pair.lab.host(1)));
    let peer = pair.subnets[1].base();
    pair.survives("a route delete", &[format!("ip route del {peer}/24")]);
    pair.survives("a moved route", &[format!("ip route replace {peer}/24 via 10.77.0.254 proto 78")]);
    pair.survives("the underlay down and up", &owned(&["ip link set eth0 down", "ip link set eth0 up"]));
    let readdress = "ip addr flush dev eth0; ip addr add 10.77.0.1/24 dev eth0";
    pair.survives("the underlay without and with its address", &owned(&[readdress]));
}

/// Peers that host-gw cannot reach are logged and counted; the others work.
#[test]
fn host_gw_says_who_is_off_link() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"host-gw"}"#));
    let peer = |n: u8, ip: &str, kind: &str| {
        let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"{kind}"}}"#);
        lab.put(Api::V3, &format!("subnets/10.10.{n}.0-24"), &value);
    };
    peer(201, "198.51.100.1", "host-gw");
    peer(202, "10.77.0.22", "Host-GW");
    peer(203, "10.77.0.23", "host-gw");
    peer(204, "10.77.0.24", "vxlan");
    lab.ip(&format!("-n {} route add 10.10.203.0/24 via 10.77.0.254 proto static", lab.host(1)));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    daemon.wait_text("1 peers are not on eth0's own link", secs(3));
    assert_eq!(daemon.count("off_link_peers"), 1);
    daemon.wait_text("set route 10.10.201.0/24 via 198.51.100.1", secs(3));
    assert_eq!(daemon.count("refused_entries"), 2, "{}", daemon.text());
    assert_eq!(daemon.count("foreign_leases"), 1);
    assert_eq!(daemon.count("repairs"), 0);
    let routes = lab.ip(&format!("-n {} route show root 10.10.0.0/16", lab.host(1)));
    let routes: Vec<_> =
        routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "10.10.202.0/24 via 10.77.0.22 dev eth0 proto 78",
        "10.10.203.0/24 via 10.77.0.254 dev eth0 proto static",
    ];
    assert_eq!(routes, expected);
}

/// The original flanneld leaves a device with a random MAC, an address of the whole network, routes without a
/// protocol number, entries of peers that are gone. All is taken over, the MAC is kept, foreign things stay.
#[test]
fn an_older_flannels_things_are_taken_over() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    lab.put(Api::V3, "subnets/10.10.200.0-24", PEER);
    lab.sh(
        &lab.host(1),
        "ip link add flannel.1 address 16:22:33:44:55:66 mtu 1450 type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 nolearning
         ip addr add 10.10.9.0/16 dev flannel.1
         ip link set flannel.1 up
         for n in 200 201; do
             ip neigh add 10.10.$n.0 lladdr 0a:00:00:00:00:0$((n - 200)) dev flannel.1 nud permanent
             ip route add 10.10.$n.0/24 via 10.10.$n.0 dev flannel.1 onlink
         done
         bridge fdb add 0a:00:00:00:00:01 dev flannel.1 dst 10.77.0.8 self permanent
         ip route add 10.10.210.0/24 via 10.77.0.254
         ip route add 10.20.0.0/16 dev flannel.1",
    );
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    let subnet = daemon.subnet();
    let host = lab.host(1);
    let show = |words: &str| {
        let shown = lab.ip(&format!("-n {host} {words}"));
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    lab::eventually(secs(3), "the stale route's end", || {
        show("route show 10.10.201.0/24").is_empty().then_some(())
    });
    assert_eq!(show("neigh show dev flannel.1"), ["10.10.200.0 lladdr 0a:00:00:00:00:09 PERMANENT"]);
    let fdb = lab.run(&host, &["bridge", "fdb", "show", "dev", "flannel.1"]);
    assert_eq!(fdb.trim(), "0a:00:00:00:00:09 dst 10.77.0.9 self permanent");
    assert_eq!(
        show("route show dev flannel.1"),
        ["10.10.200.0/24 via 10.10.200.0 proto 78 onlink", "10.20.0.0/16 scope link"]
    );
    assert_eq!(show("route show 10.10.210.0/24"), ["10.10.210.0/24 via 10.77.0.254 dev eth0"]);
    assert_eq!(
        show("-o -4 addr show dev flannel.1")[0].split(' ').nth(3).unwrap(),
        format!("{}/32", subnet.base())
    );
    let value = &lab.leases(Api::V3)[&subnet.key()];
    assert!(value.contains(r#""VtepMAC":"16:22:33:44:55:66""#), "{value}");
    assert_eq!(daemon.count("repairs"), 0);
}

/// Peers leave while the daemon is down: their entries go at its start, unless they are so many that the store is
/// suspect.
#[test]
fn entries_of_peers_that_left_meanwhile_are_removed() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"vxlan"}"#));
    for n in 201..=209 {
        lab.put(
            Api::V3,
            &format!("subnets/10.10.{n}.0-24"),
            &PEER.replace("00:09", &format!("00:{:02x}", n)),
        );
    }
    let routes = || lab.ip(&format!("-n {host} route show proto 78")).lines().count();
    let until = |n: usize| lab::eventually(secs(3), &format!("{n} routes"), || (routes() == n).then_some(()));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    until(9);
    daemon.terminate();
    assert_eq!(routes(), 9, "they stay at exit");
    for n in 201..=203 {
        lab.delete_lease(Api::V3, &format!("10.10.{n}.0-24"));
    }
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    until(6);
    let fdb = lab.run(&host, &["bridge", "fdb", "show", "dev", "flannel.1"]);
    assert_eq!(fdb.lines().count(), 6, "{fdb}");
    daemon.terminate();
    for n in 204..=208 {
        lab.delete_lease(Api::V3, &format!("10.10.{n}.0-24"));
    }
    let daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("the store knows 1 peers and the kernel 5 more", secs(3));
    assert_eq!(routes(), 6, "a suspect loss is kept");
    // Peers that come back have their entries still; the few others are no longer suspect.
    lab.put(Api::V3, "subnets/10.10.204.0-24", &PEER.replace("00:09", "00:cc"));
    lab.put(Api::V3, "subnets/10.10.205.0-24", &PEER.replace("00:09", "00:cd"));
    until(3);
}

/// The answer of `/readyz` on host 1.
fn ready(lab: &Lab) -> (String, String) {
    let url = "http://10.77.0.1:8471/readyz";
    let out = lab.run(&lab.ns("sw"), &["curl", "-sSm5", "-w", "\n%{http_code}", url]);
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

/// Waits until `/readyz` has that code and a text with these words.
fn becomes(lab: &Lab, code: &str, words: &str) {
    let is_so = |(got, body): &(String, String)| got == code && body.contains(words);
    let end = Instant::now() + secs(5);
    while !is_so(&ready(lab)) {
        assert!(Instant::now() < end, "no {code} with {words:?}: {:?}", ready(lab));
        std::thread::sleep(ms(50));
    }
}

/// Whether a metric of host 1 has that value.
fn shows(lab: &Lab, line: &str) {
    let text = lab.run(&lab.ns("sw"), &["curl", "-sSm5", "http://10.77.0.1:8471/metrics"]);
    assert!(text.lines().any(|one| one == line), "no {line} in {text}");
}

#[test]
fn udp_is_not_ready_while_its_route_is_anothers() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    lab.ip(&format!("-n {host} route add 10.10.0.0/16 via 10.77.0.254 dev eth0"));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "--healthz-port=8471"]);
    daemon.subnet();
    becomes(&lab, "503", "flanneld is not ready: another route to 10.10.0.0/16 leads elsewhere and stays: ");
    shows(&lab, "flanneld_repair_failing 1");
    shows(&lab, "flanneld_refused_entries 1");
    assert_eq!(lab.ip(&format!("-n {host} route show 10.10.0.0/16")).lines().count(), 1, "it stays");
    lab.ip(&format!("-n {host} route del 10.10.0.0/16 via 10.77.0.254"));
    becomes(&lab, "200", "flanneld is ready");
    shows(&lab, "flanneld_repair_failing 0");
    shows(&lab, "flanneld_refused_entries 0");
}

#[test]
fn host_gw_is_ready_when_it_reaches_more_than_half_of_its_peers() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    lab.put_config(Api::V3, &config(r#"{"Type":"host-gw"}"#));
    let peer = |n: u8, ip: &str| {
        let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"host-gw"}}"#);
        lab.put(Api::V3, &format!("subnets/10.10.{n}.0-24"), &value);
    };
    peer(201, "198.51.100.1");
    peer(203, "10.77.0.23");
    lab.ip(&format!("-n {host} route add 10.10.203.0/24 via 10.77.0.254 proto static"));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "--healthz-port=8471"]);
    daemon.subnet();
    becomes(
        &lab,
        "503",
        "flanneld is not ready: 2 of 2 peers are not reached: set route 10.10.201.0/24 via 198.51",
    );
    shows(&lab, "flanneld_repair_failing 1");
    shows(&lab, "flanneld_refused_entries 2");
    for n in 204..=206 {
        peer(n, &format!("10.77.0.{}", n - 180));
    }
    becomes(&lab, "200", "flanneld is ready; degraded: 2 of 5 peers are not reached: ");
    shows(&lab, "flanneld_repair_failing 1");
    lab.ip(&format!("-n {host} route del 10.10.203.0/24 via 10.77.0.254"));
    becomes(&lab, "200", "flanneld is ready; degraded: 1 of 5 peers are not reached: ");
    lab.delete_lease(Api::V3, "10.10.201.0-24");
    becomes(&lab, "200", "flanneld is ready");
    lab::eventually(secs(3), "the end of the trouble", || {
        (ready(&lab).1 == "flanneld is ready").then_some(())
    });
    shows(&lab, "flanneld_repair_failing 0");
    shows(&lab, "flanneld_refused_entries 0");
}
