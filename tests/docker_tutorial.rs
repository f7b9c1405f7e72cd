//! Promise: flannel's tutorial works with real Docker, on udp and on vxlan: containers of two hosts reach each
//! other in spite of Docker's firewall, and go on through restarts of flanneld and of dockerd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::docker::{self, Docker};
use lab::{Api, Daemon, Lab, Subnet, TUTORIAL, eventually, ms, secs};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "a tool of the lab, not a test"]
fn tool_entry() {
    lab::tools::entry();
}

/// The tutorial's config for vxlan, verbatim.
const VXLAN: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan","VNI":100,"Port":8472}}"#;
const BOTH_WAYS: [(usize, usize); 2] = [(0, 1), (1, 0)];
/// The container on each host.
const WEB: &str = "web";

#[test]
fn udp_with_docker() {
    // In the tutorial flanneld does not masquerade, so Docker does.
    let Some(mut pair) = Pair::start(TUTORIAL, &[]) else { return };
    pair.tutorial(1472);
    for (from, to) in BOTH_WAYS {
        assert_eq!(pair.iperf3(from, to), pair.subnets[from].base(), "masqueraded as flannel0");
    }
    let lost = pair.restart_flanneld();
    eprintln!("udp: {lost} of 40 pings lost while flanneld restarted");
    assert!(lost < 20, "{lost} of 40 pings lost");
    pair.restart_everything();
}

#[test]
fn vxlan_with_docker() {
    let Some(mut pair) = Pair::start(VXLAN, &["--ip-masq"]) else { return };
    pair.tutorial(1450);
    for (from, to) in BOTH_WAYS {
        assert_eq!(pair.iperf3(from, to), pair.addrs[from], "the container's own address");
    }
    // The kernel carries the packets, and the device stays.
    assert_eq!(pair.restart_flanneld(), 0, "pings lost while flanneld restarted");
    pair.restart_everything();
}

/// Two hosts with flanneld, dockerd and one container each. The fields are dropped in this order.
struct Pair {
    dockers: Vec<Docker>,
    daemons: Vec<Daemon>,
    subnets: Vec<Subnet>,
    addrs: Vec<Ipv4Addr>,
    args: &'static [&'static str],
    lab: Lab,
}

impl Pair {
    /// Starts flanneld without its forward rules, then dockerd and a container on each host.
    fn start(config: &str, args: &'static [&'static str]) -> Option<Self> {
        if let Some(why) = docker::missing() {
            lab::skip(&why);
            return None;
        }
        let lab = Lab::start(2)?;
        lab.put_config(Api::V2, config);
        let bare = [args, &["--iptables-forward-rules=false"]].concat();
        let mut daemons = vec![lab.daemon(1, &bare), lab.daemon(2, &bare)];
        let subnets: Vec<_> = daemons.iter_mut().map(Daemon::subnet).collect();
        for i in [1, 2] {
            // On a new host dockerd turns this on, and only then also sets the FORWARD policy to DROP.
            lab.sh(&lab.host(i), "echo 0 >/proc/sys/net/ipv4/ip_forward");
        }
        let mut pair = Self { dockers: Vec::new(), daemons, subnets, addrs: Vec::new(), args, lab };
        pair.dockers = (0..2).map(|i| Docker::spawn(&pair.lab, i + 1, &pair.options(i))).collect();
        let image = pair.lab.path("image.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/image.sh");
        assert!(Command::new(script).arg(&image).status().unwrap().success());
        for docker in &mut pair.dockers {
            docker.ready();
            docker.cli(&["import", image.to_str().unwrap(), "lab"]);
            let name = format!("--name={WEB}");
            docker.cli(&["run", "-d", &name, "--restart=always", "lab", "iperf3", "-s", "--forceflush"]);
        }
        pair.addrs = pair.dockers.iter().map(|docker| docker.addr(WEB)).collect();
        Some(pair)
    }

    /// Makes dockerd's options of the host's subnet file.
    fn options(&self, i: usize) -> Vec<String> {
        let file = self.daemons[i].subnet_file.display().to_string();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mk-docker-opts.sh");
        let out = self.lab.path(&format!("docker_opts{i}.env")).display().to_string();
        self.lab.run(&self.lab.host(i + 1), &[script.to_str().unwrap(), "-f", &file, "-d", &out, "-c"]);
        let text = fs::read_to_string(out).unwrap();
        let options = text.trim().strip_prefix("DOCKER_OPTS=\"").and_then(|rest| rest.strip_suffix('"'));
        let options: Vec<_> = lab::words(options.unwrap()).into_iter().map(str::to_owned).collect();
        let subnet = &self.subnets[i];
        let docker_masquerades = subnet.ipmasq == "false";
        let mut sorted = options.clone();
        sorted.sort();
        assert_eq!(
            sorted,
            [
                format!("--bip={}", subnet.subnet),
                format!("--ip-masq={docker_masquerades}"),
                format!("--mtu={}", subnet.mtu)
            ]
        );
        options
    }

    /// Checks that containers have what flanneld gave the host, and that Docker's firewall is in the way until our
    /// rules are there.
    fn tutorial(&mut self, mtu: u32) {
        for i in 0..2 {
            let host = self.lab.host(i + 1);
            let in_subnet = |addr: Ipv4Addr| u32::from(addr) >> 12 == u32::from(self.subnets[i].base()) >> 12;
            assert!(in_subnet(self.addrs[i]), "{} is not in {}", self.addrs[i], self.subnets[i].subnet);
            let link = self.dockers[i].cli(&["exec", WEB, "ip", "addr", "show", "dev", "eth0"]);
            assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
            assert!(link.contains(&format!("inet {}/20 ", self.addrs[i])), "{link}");
            let policy = self.lab.run(&host, &["iptables", "-S", "FORWARD"]);
            assert!(policy.starts_with("-P FORWARD DROP\n"), "{policy}");
            assert_eq!(self.lab.sh(&host, "cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        }
        // The overlay itself is up: the other host's bridge answers, because nothing is forwarded there.
        for (from, to) in BOTH_WAYS {
            self.lab.reaches(&self.lab.host(from + 1), self.subnets[to].gateway(), secs(5));
        }
        for (from, to) in BOTH_WAYS {
            assert!(!self.pings(from, to), "Docker's DROP policy lets new connections in");
        }
        for i in 0..2 {
            self.daemons[i].terminate();
            self.daemons[i] = self.lab.daemon(i + 1, self.args);
        }
        self.same_subnets();
        for (from, to) in BOTH_WAYS {
            self.reaches(from, to);
            let out = self.dockers[from].cli(&self.ping(&self.addrs[to].to_string(), "5"));
            assert!(out.contains(" 0% packet loss"), "{out}");
        }
    }

    fn same_subnets(&mut self) {
        for (daemon, subnet) in self.daemons.iter_mut().zip(&self.subnets) {
            assert_eq!(daemon.subnet(), *subnet);
        }
    }

    fn ping<'a>(&self, to: &'a str, count: &'a str) -> [&'a str; 10] {
        ["exec", WEB, "ping", "-c", count, "-i", "0.1", "-W", "1", to]
    }

    fn pings(&self, from: usize, to: usize) -> bool {
        self.dockers[from].try_cli(&self.ping(&self.addrs[to].to_string(), "1")).status.success()
    }

    fn reaches(&self, from: usize, to: usize) {
        let what = format!("a ping from container {} to container {}", from + 1, to + 1);
        eventually(secs(5), &what, || self.pings(from, to).then_some(()));
    }

    /// Runs one TCP stream for a second. Returns the sender's address as the other container sees it.
    fn iperf3(&self, from: usize, to: usize) -> Ipv4Addr {
        let addr = self.addrs[to].to_string();
        let report = self.dockers[from].cli(&["exec", WEB, "iperf3", "-c", &addr, "-t1", "-J"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        assert!(bits > 1e6, "{bits} bit/s");
        eprintln!("container {} to {}: {:.0} Mbit/s", from + 1, to + 1, bits / 1e6);
        let log = self.dockers[to].cli(&["logs", WEB]);
        let line = log.lines().rev().find_map(|line| line.strip_prefix("Accepted connection from ")).unwrap();
        line.split(',').next().unwrap().parse().unwrap()
    }

    /// Restarts host 1's flanneld under 40 pings at 0.1 s from its container and tells how many were lost. The
    /// containers must not notice otherwise.
    fn restart_flanneld(&mut self) -> u32 {
        let started = |pair: &Self| pair.dockers[0].inspect(WEB, "{{.Id}} {{.State.StartedAt}}");
        let before = started(self);
        let to = self.addrs[1].to_string();
        let report = std::thread::scope(|scope| {
            let (docker, ping) = (&self.dockers[0], self.ping(&to, "40"));
            let pings = scope.spawn(move || docker.try_cli(&ping));
            std::thread::sleep(ms(500));
            self.daemons[0].terminate();
            std::thread::sleep(ms(200));
            self.daemons[0] = self.lab.daemon(1, self.args);
            assert_eq!(self.daemons[0].subnet(), self.subnets[0]);
            pings.join().unwrap()
        });
        assert_eq!(started(self), before, "the container was restarted");
        for (from, to) in BOTH_WAYS {
            self.reaches(from, to);
        }
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        let counts = report.lines().find(|line| line.contains("packets transmitted")).expect(&report);
        let numbers: Vec<u32> = lab::words(counts).iter().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers[0], 40, "{report}");
        40 - numbers[1]
    }

    /// Stops dockerd and flanneld on host 1 and starts them as a boot does: the container comes back by itself,
    /// in the same subnet.
    fn restart_everything(&mut self) {
        let took = self.dockers.remove(0).terminate();
        self.daemons[0].terminate();
        self.daemons[0] = self.lab.daemon(1, self.args);
        self.same_subnets();
        self.dockers.insert(0, Docker::start(&self.lab, 1, &self.options(0)));
        eventually(secs(10), "the container's return", || {
            (self.dockers[0].inspect(WEB, "{{.State.Running}}") == "true").then_some(())
        });
        eprintln!("dockerd stopped in {took:?}");
        self.addrs[0] = self.dockers[0].addr(WEB);
        assert_eq!(u32::from(self.addrs[0]) >> 12, u32::from(self.subnets[0].base()) >> 12);
        for (from, to) in BOTH_WAYS {
            self.reaches(from, to);
        }
        self.iperf3(0, 1);
    }
}
