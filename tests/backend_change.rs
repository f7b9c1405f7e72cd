//! Promise: the backend of a running network is changed node by node. Nobody restarts by itself, nodes of one type keep
//! talking, each node names the peers of the other type, and they come in without a restart once both ends agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::{Api, Container, Daemon, Lab, Subnet, Tool, eventually, ms, secs, words};
use std::time::{Duration, Instant};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const NODES: usize = 3;
/// The start of the line that names peers of another type.
const NAMED: &str = "not reached from here, since they run another backend than";

struct Cluster {
    daemons: Vec<Daemon>,
    subnets: Vec<Subnet>,
    ends: Vec<Container>,
    lab: Lab,
}

/// Numbered packets from one container to another.
struct Pulse {
    sink: Tool,
    send: Tool,
}

impl Cluster {
    fn set(backend: &str) -> Option<Self> {
        let lab = Lab::start(NODES)?;
        lab.put_config(Api::V3, &config(backend));
        let mut cluster = Self { daemons: vec![], subnets: vec![], ends: vec![], lab };
        for i in 0..NODES {
            let mut daemon = cluster.daemon(i);
            let subnet = daemon.subnet();
            cluster.ends.push(cluster.lab.container(i + 1, &subnet));
            cluster.subnets.push(subnet);
            cluster.daemons.push(daemon);
        }
        cluster.all_reach_all();
        Some(cluster)
    }

    fn daemon(&self, i: usize) -> Daemon {
        self.lab.daemon(i + 1, &["--etcd-api=v3", "--healthz-port=8471"])
    }

    fn reach(&self, a: usize, b: usize) -> Duration {
        let one = self.lab.reaches(&self.ends[a].ns, self.ends[b].addr, secs(10));
        one.max(self.lab.reaches(&self.ends[b].ns, self.ends[a].addr, secs(10)))
    }

    fn all_reach_all(&self) {
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            self.reach(a, b);
        }
    }

    fn metric(&self, i: usize, name: &str) -> u64 {
        let url = "http://127.0.0.1:8471/metrics";
        let text = self.lab.run(&self.lab.host(i + 1), &["curl", "-fsSm5", url]);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until that many peers are of another type on this node, and sees that each change took one line.
    fn strangers(&self, i: usize, count: u64, lines: usize) {
        let what = format!("{count} peers of another type on node {i}");
        let is = || self.metric(i, "flanneld_other_backend_peers") == count;
        eventually(secs(10), &what, || is().then_some(()));
        let text = self.daemons[i].text();
        let said: Vec<&str> = text.lines().filter(|line| line.contains(NAMED)).collect();
        assert_eq!(said.len(), lines, "node {i}: {said:#?}");
    }

    fn pulse(&self, a: usize, b: usize) -> Pulse {
        let (from, to) = (&self.ends[a], &self.ends[b]);
        let port = 7000 + a * 10 + b;
        let sink = self.lab.tool(&to.ns, &format!("pulse_sink {}:{port}", to.addr));
        let send = self.lab.tool(&from.ns, &format!("pulse_send {}:{port} 2000", to.addr));
        std::thread::sleep(ms(200));
        Pulse { sink, send }
    }

    /// Restarts the daemon of a node, which reads the config anew. Returns when it began to stop.
    fn restart(&mut self, i: usize) -> Instant {
        let at = Instant::now();
        self.daemons[i].terminate();
        self.daemons[i] = self.daemon(i);
        assert_eq!(self.daemons[i].subnet().key(), self.subnets[i].key(), "the subnet stays");
        assert_eq!(self.metric(i, "flanneld_config_drift"), 0);
        at
    }
}

impl Pulse {
    /// The longest time without a packet, and how many packets were lost.
    fn finish(mut self) -> (Duration, u64) {
        self.send.finish();
        let sent: u64 = self.send.line(secs(5)).parse().unwrap();
        std::thread::sleep(ms(100));
        self.sink.finish();
        let said = self.sink.line(secs(5));
        let number = |n: usize| words(&said)[n].parse::<u64>().unwrap();
        (ms(number(2)), sent - number(0))
    }
}

/// Two nodes of one type talk on while the third is changed.
fn undisturbed(pulses: [Pulse; 2], what: &str) {
    for pulse in pulses {
        let (gap, lost) = pulse.finish();
        eprintln!("{what}: {gap:?} without a packet at most, {lost} lost");
        assert!(gap < ms(500) && lost == 0, "{what}: {gap:?}, {lost} lost");
    }
}

fn changes(from: &str, to: &str) {
    let Some(mut site) = Cluster::set(&format!(r#"{{"Type":"{from}"}}"#)) else { return };
    let what = format!("{from} to {to}");
    site.lab.put_config(Api::V3, &config(&format!(r#"{{"Type":"{to}"}}"#)));
    for i in 0..NODES {
        site.daemons[i].wait_text("Backend differs from what runs here; restart flanneld", secs(5));
        assert_eq!(site.metric(i, "flanneld_config_drift"), 1);
        assert!(site.daemons[i].running(), "it restarts by itself:\n{}", site.daemons[i].text());
    }
    site.all_reach_all();
    let first = [site.pulse(0, 1), site.pulse(1, 0)];

    let pulses = [site.pulse(1, 2), site.pulse(2, 1)];
    let stopped = site.restart(0);
    site.strangers(0, 2, 1);
    site.strangers(1, 1, 1);
    site.strangers(2, 1, 1);
    let told = format!("{} at 10.77.0.1 (\"{to}\")", site.subnets[0].key().replace('-', "/"));
    assert!(site.daemons[1].text().contains(&told), "{told}:\n{}", site.daemons[1].text());
    std::thread::sleep(ms(500));
    undisturbed(pulses, &format!("{what}, two old nodes"));

    let again = site.restart(1);
    let apart = stopped.elapsed() - again.elapsed();
    site.reach(0, 1);
    eprintln!("{what}: nodes 1 and 2 talk {:?} after node 2 began to stop", again.elapsed());
    let (gap, _) = first.map(Pulse::finish).into_iter().max().unwrap();
    eprintln!("{what}: {gap:?} without a packet, {apart:?} between the two restarts");
    assert!(gap < apart + secs(3), "{gap:?} without a packet, {apart:?} between the restarts");
    site.strangers(0, 1, 2);
    site.strangers(1, 1, 1);
    site.strangers(2, 2, 2);

    let pulses = [site.pulse(0, 1), site.pulse(1, 0)];
    site.restart(2);
    site.all_reach_all();
    for (i, lines) in [2, 1, 0].into_iter().enumerate() {
        site.strangers(i, 0, lines);
    }
    site.daemons[0].wait_text(&format!("no peer runs another backend than {to} any more"), secs(5));
    undisturbed(pulses, &format!("{what}, two new nodes"));
}

#[test]
fn udp_to_vxlan() {
    changes("udp", "vxlan");
}

#[test]
fn vxlan_to_udp() {
    changes("vxlan", "udp");
}

#[test]
fn host_gw_to_vxlan() {
    changes("host-gw", "vxlan");
}
