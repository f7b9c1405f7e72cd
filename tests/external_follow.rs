//! Promise: the daemon follows its external interface. The address may change or move to a bridge, the device may be
//! renamed or lose its link: subnet, device and containers stay, the same key gets the new PublicIP, peers reach the
//! host again within two seconds, and what the operator fixed by flags stays as it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::{Api, Container, Daemon, Lab, Proc, Subnet, eventually, ms, secs, words};
use std::fs;
use std::time::{Duration, Instant};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const HEALTH: &str = "--healthz-port=8471";
/// What an operator does, or a DHCP client: the old address goes, the new one comes. The default route goes with it.
const RENUMBER: &[&str] = &["addr del 10.77.0.1/24 dev eth0", "addr add 10.77.0.101/24 dev eth0"];
/// The address moves to a bridge that the interface becomes a port of.
const BRIDGE: &[&str] = &[
    "link add br0 type bridge",
    "link set br0 up",
    "link set eth0 master br0",
    "addr del 10.77.0.1/24 dev eth0",
    "addr add 10.77.0.1/24 dev br0",
];

/// Two hosts that reach each other; the first is the one whose interface changes.
struct Change {
    daemons: [Daemon; 2],
    subnet: Subnet,
    file: String,
    ends: [Container; 2],
    lab: Lab,
}

impl Change {
    fn set(backend: &str, args: &[&str]) -> Option<Self> {
        let lab = Lab::start(2)?;
        lab.put_config(Api::V3, &config(backend));
        // As systemd sets it: without it, an address takes along those of its prefix that were added later.
        lab.sh(&lab.host(1), "echo 1 >/proc/sys/net/ipv4/conf/all/promote_secondaries");
        let args = [&["--etcd-api=v3", HEALTH], args].concat();
        let mut daemons = [lab.daemon(1, &args), lab.daemon(2, &["--etcd-api=v3"])];
        let subnets = [daemons[0].subnet(), daemons[1].subnet()];
        let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
        lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
        let [subnet, _] = subnets;
        let file = fs::read_to_string(&daemons[0].subnet_file).unwrap();
        Some(Self { daemons, subnet, file, ends, lab })
    }

    fn ip(&self, lines: &[&str]) {
        for line in lines {
            self.lab.ip(&format!("-n {} {line}", self.lab.host(1)));
        }
    }

    fn log(&self) -> String {
        self.daemons[0].text()
    }

    /// The status and the body of `/readyz`.
    fn ready(&self) -> (String, String) {
        let url = "http://127.0.0.1:8471/readyz";
        let answer = self.lab.run(&self.lab.host(1), &["curl", "-sm4", "-w", " %{http_code}", url]);
        let (body, code) = answer.rsplit_once(' ').unwrap();
        (code.to_owned(), body.to_owned())
    }

    fn becomes_ready(&self) {
        eventually(secs(3), "readiness", || (self.ready().0 == "200").then_some(()));
    }

    /// Waits until `/readyz` says no, with this reason.
    fn is_not_ready(&self, reason: &str) {
        eventually(secs(3), reason, || {
            let (code, body) = self.ready();
            (code == "503" && body.contains(reason)).then_some(())
        });
    }

    fn published(&self) -> String {
        self.lab.leases(Api::V3).get(&self.subnet.key()).cloned().unwrap_or_default()
    }

    /// What must not change: the number of the overlay's device, its address and MAC, the subnet file, and the leases.
    fn state(&self) -> Vec<String> {
        let show = "ip -br link show | grep '^flannel' | sed 's/@[^ ]*//'; cat /sys/class/net/flannel*/ifindex; \
                    ip -4 -o addr show | grep -o 'flannel.*inet [^ ]*'; true";
        let keys = self.lab.leases(Api::V3).into_keys();
        let file = fs::read_to_string(&self.daemons[0].subnet_file).unwrap();
        let devices = self.lab.sh(&self.lab.host(1), show);
        [devices, file].into_iter().chain(keys).collect()
    }

    /// Changes the interface under two streams of numbered packets, and sees that both run on within two seconds and
    /// that all else stayed. Returns the longest time without a packet, either way.
    fn follows(&mut self, lines: &[&str], public_ip: &str) -> Duration {
        let before = self.state();
        assert_eq!(self.ready().0, "200");
        let streams = [(0, 1), (1, 0)].map(|(from, to)| {
            let (from, to) = (&self.ends[from], &self.ends[to]);
            let sink = self.lab.tool(&to.ns, &format!("pulse_sink {}:7000", to.addr));
            (sink, self.lab.tool(&from.ns, &format!("pulse_send {}:7000 2000", to.addr)))
        });
        std::thread::sleep(ms(300));
        let start = Instant::now();
        self.ip(lines);
        let wanted = format!(r#"{{"PublicIP":"{public_ip}","#);
        eventually(secs(5), public_ip, || self.published().starts_with(&wanted).then_some(()));
        self.lab.reaches(&self.ends[1].ns, self.ends[0].addr, secs(5));
        self.lab.reaches(&self.ends[0].ns, self.ends[1].addr, secs(5));
        let took = start.elapsed();
        self.becomes_ready();
        std::thread::sleep(ms(300));
        let mut longest = Duration::ZERO;
        for (mut sink, mut send) in streams {
            send.finish();
            let sent = send.line(secs(5));
            sink.finish();
            let said = sink.line(secs(5));
            eprintln!("{public_ip}: {said} of {sent}, reached again after {took:?}");
            longest = longest.max(ms(words(&said)[2].parse().unwrap()));
        }
        assert!(
            longest < secs(2) && took < secs(3),
            "{longest:?} without a packet, {took:?}: {}",
            self.log()
        );
        assert_eq!(self.state(), before, "{}", self.log());
        assert_eq!(fs::read_to_string(&self.daemons[0].subnet_file).unwrap(), self.file);
        assert!(self.daemons[0].running() && self.daemons[1].running());
        longest
    }
}

/// The address changes, and changes back; then it moves to a bridge, where it changes again.
fn an_address_that_changes(backend: &str, args: &[&str]) {
    let Some(mut change) = Change::set(backend, args) else { return };
    change.follows(RENUMBER, "10.77.0.101");
    let log = change.log();
    assert!(log.contains("10.77.0.101 on eth0 takes the place of 10.77.0.1 on eth0"), "{log}");
    assert!(log.contains("says 10.77.0.101 now; peers send there"), "{log}");
    change.follows(&["addr add 10.77.0.1/24 dev eth0", "addr del 10.77.0.101/24 dev eth0"], "10.77.0.1");
    change.follows(BRIDGE, "10.77.0.1");
    assert!(change.log().contains("external interface: 10.77.0.1 is on br0 now"), "{}", change.log());
    change.follows(&["addr add 10.77.0.102/24 dev br0", "addr del 10.77.0.1/24 dev br0"], "10.77.0.102");
    assert!(!change.log().contains("Lost the store"), "{}", change.log());
}

#[test]
fn udp_with_io_uring() {
    an_address_that_changes(r#"{"Type":"udp"}"#, &["--engine=uring"]);
}

#[test]
fn udp_with_poll_and_two_workers() {
    an_address_that_changes(r#"{"Type":"udp"}"#, &["--engine=poll", "--workers=2"]);
}

#[test]
fn vxlan() {
    an_address_that_changes(r#"{"Type":"vxlan"}"#, &[]);
}

#[test]
fn vxlan_with_direct_routing() {
    an_address_that_changes(r#"{"Type":"vxlan","DirectRouting":true}"#, &[]);
}

#[test]
fn host_gw() {
    an_address_that_changes(r#"{"Type":"host-gw"}"#, &[]);
}

/// Over etcd's keys API, whose connections come from the address that went.
#[test]
fn the_lease_follows_on_v2_too() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, &config(r#"{"Type":"udp"}"#));
    let mut daemon = lab.daemon(1, &["--etcd-api=v2"]);
    let subnet = daemon.subnet();
    for line in RENUMBER {
        lab.ip(&format!("-n {} {line}", lab.host(1)));
    }
    eventually(secs(2), "the new PublicIP", || {
        lab.leases(Api::V2)[&subnet.key()].contains("10.77.0.101").then_some(())
    });
    assert_eq!(lab.leases(Api::V2).len(), 1);
    assert!(lab.ttl(Api::V2, &subnet.key()).unwrap() > 86_000);
}

#[test]
fn a_renamed_interface_is_followed() {
    for backend in [r#"{"Type":"vxlan"}"#, r#"{"Type":"host-gw"}"#] {
        let Some(mut change) = Change::set(backend, &[]) else { return };
        let rename = ["link set eth0 down", "link set eth0 name wan", "link set wan up"];
        change.follows(&rename, "10.77.0.1");
        assert!(change.log().contains("10.77.0.1 is on wan now"), "{}", change.log());
        change.follows(&["addr del 10.77.0.1/24 dev wan", "addr add 10.77.0.101/24 dev wan"], "10.77.0.101");
    }
}

/// What the operator fixed stays: the address of `-iface`, the PublicIP of `-public-ip`.
#[test]
fn an_address_that_a_flag_names_is_waited_for() {
    let Some(mut change) = Change::set(r#"{"Type":"udp"}"#, &["--iface=10.77.0.1"]) else { return };
    // The lab's `--iface=eth0` comes first and would be taken.
    change.daemons[0].terminate();
    let file = change.daemons[0].subnet_file.clone();
    let args = ["--iface=10.77.0.1", "--etcd-api=v3", HEALTH];
    change.daemons[0] = Daemon::start(&change.lab, &change.lab.host(1), &file, &args, &[]);
    change.daemons[0].subnet();
    change.becomes_ready();
    change.ip(RENUMBER);
    let reason = "eth0 has lost its address 10.77.0.1 and has 10.77.0.101, but the flags ask for 10.77.0.1";
    change.is_not_ready(reason);
    std::thread::sleep(ms(1500));
    assert!(change.published().contains(r#""10.77.0.1""#), "{}", change.published());
    // On a bridge it is the same address.
    let bridge = ["link add br0 type bridge", "link set br0 up", "link set eth0 master br0"];
    change.ip(&bridge);
    change.ip(&["addr flush dev eth0", "addr add 10.77.0.1/24 dev br0"]);
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
    assert_eq!(change.log().matches(&format!("{reason}: no peer")).count(), 1, "{}", change.log());
}

#[test]
fn a_fixed_public_ip_stays_while_the_sockets_follow() {
    let args = ["--public-ip=10.77.0.50", "--peer-filter=off"];
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    let mut daemon = lab.daemon(1, &[&["--etcd-api=v3"], &args[..]].concat());
    let subnet = daemon.subnet();
    for line in RENUMBER {
        lab.ip(&format!("-n {} {line}", lab.host(1)));
    }
    daemon.wait_text("the sockets are bound to 10.77.0.101 now", secs(2));
    // The watch runs over a connection from the new address.
    lab.put(Api::V3, "subnets/10.10.250.0-24", r#"{"PublicIP":"10.77.0.77"}"#);
    daemon.wait_text("10.10.250.0/24 via 10.77.0.77", secs(2));
    assert!(lab.leases(Api::V3)[&subnet.key()].contains(r#""PublicIP":"10.77.0.50""#));
    assert!(daemon.running() && !daemon.text().contains("Lost the store"), "{}", daemon.text());
}

/// host-gw's peers need the address itself as their gateway, so one that is not the fixed PublicIP cannot be followed.
#[test]
fn host_gw_says_why_it_cannot_follow() {
    let Some(change) = Change::set(r#"{"Type":"host-gw"}"#, &["--public-ip=10.77.0.1"]) else { return };
    change.ip(RENUMBER);
    change.is_not_ready("the public IP 10.77.0.1 is not eth0's address 10.77.0.101");
    change.ip(&["addr add 10.77.0.1/24 dev eth0"]);
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
}

/// A second address that was there before is taken only when the first stays away for a second.
#[test]
fn an_address_that_comes_back_at_once_is_kept() {
    let Some(change) = Change::set(r#"{"Type":"udp"}"#, &[]) else { return };
    change.ip(&["addr add 10.77.0.101/24 dev eth0"]);
    std::thread::sleep(ms(300));
    change.ip(&["addr del 10.77.0.1/24 dev eth0"]);
    change.is_not_ready("eth0 has lost its address 10.77.0.1");
    change.ip(&["addr add 10.77.0.1/24 dev eth0"]);
    change.becomes_ready();
    std::thread::sleep(ms(1200));
    assert!(change.published().contains("10.77.0.1") && !change.log().contains("takes the place"));
    change.ip(&["addr del 10.77.0.1/24 dev eth0"]);
    let start = Instant::now();
    eventually(secs(3), "the second address", || change.published().contains("10.77.0.101").then_some(()));
    eprintln!("the second address is published after {:?}", start.elapsed());
}

/// A host gives itself a link-local address where DHCP is silent; nobody else can send to it.
#[test]
fn a_link_local_address_takes_no_place() {
    let Some(change) = Change::set(r#"{"Type":"udp"}"#, &["--iface=eth0"]) else { return };
    change.ip(&["addr add 169.254.7.7/16 dev eth0", "addr del 10.77.0.1/24 dev eth0"]);
    change.is_not_ready("eth0 has lost its address 10.77.0.1");
    std::thread::sleep(ms(1500));
    assert!(change.published().contains("10.77.0.1"), "{}", change.log());
    change.ip(&["addr add 10.77.0.1/24 dev eth0"]);
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
    assert!(!change.log().contains("takes the place"), "{}", change.log());
}

/// A dynamic address stands in for the permanent one, until that is back and stays.
#[test]
fn an_address_that_stood_in_gives_way() {
    let Some(change) = Change::set(r#"{"Type":"udp"}"#, &[]) else { return };
    let published = |public_ip: &str| {
        let wanted = format!(r#"{{"PublicIP":"{public_ip}","#);
        eventually(secs(8), public_ip, || change.published().starts_with(&wanted).then_some(()));
    };
    change.ip(&["addr add 10.77.0.101/24 dev eth0 valid_lft 600 preferred_lft 600"]);
    std::thread::sleep(ms(300));
    change.ip(&["addr del 10.77.0.1/24 dev eth0"]);
    published("10.77.0.101");
    // It is back for a moment only.
    change.ip(&["addr add 10.77.0.1/24 dev eth0"]);
    std::thread::sleep(secs(2));
    change.ip(&["addr del 10.77.0.1/24 dev eth0"]);
    std::thread::sleep(ms(3500));
    assert!(change.published().contains("10.77.0.101"), "{}", change.log());
    change.ip(&["addr add 10.77.0.1/24 dev eth0"]);
    published("10.77.0.1");
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
}

/// The address is there and the link is not: not ready, and ready again without anything else.
#[test]
fn a_link_that_is_lost_and_comes_back() {
    let Some(change) = Change::set(r#"{"Type":"vxlan"}"#, &[]) else { return };
    let sw = change.lab.ns("sw");
    change.lab.ip(&format!("-n {sw} link set p1 down"));
    change.is_not_ready("eth0 has no carrier");
    change.lab.ip(&format!("-n {sw} link set p1 up"));
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
    assert!(change.published().contains("10.77.0.1"));
}

/// Peers cannot know the new address while the store is away: not ready until it is written.
#[test]
fn a_change_while_etcd_is_away_is_published_when_it_is_back() {
    let Some(mut change) = Change::set(r#"{"Type":"udp"}"#, &[]) else { return };
    change.lab.stop_etcd();
    change.ip(RENUMBER);
    change.is_not_ready("peers still know 10.77.0.1, since the store has not taken 10.77.0.101 yet");
    change.lab.start_etcd();
    let start = Instant::now();
    eventually(secs(10), "the new PublicIP", || change.published().contains("10.77.0.101").then_some(()));
    eprintln!("published {:?} after etcd's return", start.elapsed());
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
    assert_eq!(change.lab.leases(Api::V3).len(), 2);
}

/// A repair that fails is told, and ends readiness until it succeeds.
#[test]
fn readiness_follows_a_repair_that_fails() {
    let Some(change) = Change::set(r#"{"Type":"udp"}"#, &[]) else { return };
    change.ip(&["addr add 10.77.0.101/24 dev eth0"]);
    let foreign = change.lab.tool(&change.lab.host(1), "udp_socket 10.77.0.101:8285");
    change.ip(&["addr del 10.77.0.1/24 dev eth0"]);
    change.is_not_ready("UDP port 8285 on 10.77.0.101 is in use");
    drop(foreign);
    change.becomes_ready();
    change.lab.reaches(&change.ends[1].ns, change.ends[0].addr, secs(2));
}

/// The interface that counts is the one after the wait for the config.
#[test]
fn the_address_is_chosen_after_the_wait_for_the_config() {
    let Some(mut lab) = Lab::without_etcd(1) else { return };
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("Couldn't fetch network config", secs(5));
    for line in RENUMBER {
        lab.ip(&format!("-n {} {line}", lab.host(1)));
    }
    lab.start_etcd();
    lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    let subnet = daemon.subnet();
    assert!(lab.leases(Api::V3)[&subnet.key()].contains("10.77.0.101"), "{}", daemon.text());
    assert!(daemon.text().contains("eth0 and address 10.77.0.101"), "{}", daemon.text());
    let bound = lab.run(&lab.host(1), &["ss", "-lun"]);
    assert!(bound.contains("10.77.0.101:8285"), "{bound}");
}

/// flannel starts over an interface that is down too: so do we, and wait for it.
#[test]
fn an_interface_that_is_down_is_waited_for() {
    for backend in [r#"{"Type":"udp"}"#, r#"{"Type":"vxlan"}"#, r#"{"Type":"host-gw"}"#] {
        let Some(lab) = Lab::start(2) else { return };
        lab.put_config(Api::V3, &config(backend));
        // etcd is reached by another way.
        let (host, sw) = (lab.host(1), lab.ns("sw"));
        lab.ip(&format!("-n {host} link add wan address 0a:00:00:00:00:33 type veth peer name w netns {sw}"));
        lab.ip(&format!("-n {sw} link set w master br0 up"));
        lab.ip(&format!("-n {host} addr add 10.77.0.33/32 dev wan"));
        lab.ip(&format!("-n {host} link set wan up"));
        lab.ip(&format!("-n {host} link set eth0 down"));
        lab.ip(&format!("-n {host} route add 10.77.0.254/32 dev wan src 10.77.0.33"));
        let mut daemons = [lab.daemon(1, &["--etcd-api=v3", HEALTH]), lab.daemon(2, &["--etcd-api=v3"])];
        let subnets = [daemons[0].subnet(), daemons[1].subnet()];
        let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
        let ready = || lab.run(&host, &["curl", "-sm4", "http://127.0.0.1:8471/readyz"]);
        eventually(secs(2), "the reason", || {
            (ready() == "flanneld is not ready: eth0 is down").then_some(())
        });
        lab.ip(&format!("-n {host} link set eth0 up"));
        let took = lab.reaches(&ends[0].ns, ends[1].addr, secs(4));
        eprintln!("{backend}: reachable {took:?} after eth0 came up");
        eventually(secs(3), "readiness", || (ready() == "flanneld is ready").then_some(()));
        assert!(daemons[0].running(), "{}", daemons[0].text());
    }
}

/// How long an iperf3 stream stands still when the address changes under it.
fn under_iperf3(backend: &str) {
    let Some(change) = Change::set(backend, &[]) else { return };
    let to = change.ends[0].addr.to_string();
    let server =
        change.lab.spawn(&change.ends[0].ns, "iperf3-server", &["iperf3", "-s", "-1", "--forceflush"]);
    server.wait_text("Server listening", secs(5));
    let line = ["iperf3", "-c", &to, "-t5", "-i0.1", "-fm", "--forceflush"];
    let client: Proc = change.lab.spawn(&change.ends[1].ns, "iperf3-client", &line);
    client.wait_text("1.00-", secs(5));
    change.ip(RENUMBER);
    client.wait_text("iperf Done", secs(15));
    let text = client.text();
    let rates = text.lines().filter(|line| line.contains(" sec ") && !line.ends_with("er"));
    let rates: Vec<f64> = rates
        .filter_map(|line| line.split_once("Bytes")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    let longest = rates.split(|rate| *rate > 0.0).map(<[f64]>::len).max().unwrap_or(0);
    let total = text.lines().find(|line| line.ends_with("receiver")).unwrap_or_default();
    eprintln!("{backend}: {longest} of {} tenths of a second without traffic; {}", rates.len(), total.trim());
    assert!(rates.len() >= 45 && longest < 20, "{text}");
    assert!(change.published().contains("10.77.0.101"));
    assert_eq!(fs::read_to_string(&change.daemons[0].subnet_file).unwrap(), change.file);
}

#[test]
fn a_tcp_stream_survives() {
    for backend in [r#"{"Type":"udp"}"#, r#"{"Type":"vxlan"}"#, r#"{"Type":"host-gw"}"#] {
        under_iperf3(backend);
    }
}
