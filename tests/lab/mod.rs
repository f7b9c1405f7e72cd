//! A lab on one machine: hosts and containers in network namespaces of a random name, a real etcd, real daemons.
//!
//! ```text
//!   h1: eth0 10.77.0.1 ──┐                  ┌── h2: eth0 10.77.0.2        one bridge in `sw`, etcd on 10.77.0.254
//!       flannel0, cbr0   ├── br0 (in `sw`) ─┤       flannel0, cbr0
//!          │ veth        │    10.77.0.254   │          │ veth
//!   c1: eth0 FLANNEL_SUBNET.2               └── … c2: eth0 FLANNEL_SUBNET.2
//! ```
//!
//! Labs of one test binary take turns, so that none disturbs another's timing. A dropped lab, also one dropped by
//! a panic, ends what it started and removes its namespaces.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part of the lab")]
#![allow(clippy::print_stderr)]

pub mod capture;
pub mod daemon;
pub mod docker;
pub mod front;
pub mod ipv4;
pub mod pair;
pub mod process;
pub mod store;
pub mod stream;
pub mod systemd;
pub mod tools;

pub use daemon::{Daemon, Subnet};
pub use process::{Proc, Tool};
pub use store::Api;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The binary under test: this build's, or the one that `FLANNELD_TEST_BIN` names.
pub fn flanneld() -> String {
    std::env::var("FLANNELD_TEST_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_flanneld").to_owned())
}

/// flannel's tutorial, verbatim.
pub const TUTORIAL: &str = r#"{ "Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0", "Backend": { "Type": "udp", "Port": 7890 } }"#;

static TURN: Mutex<()> = Mutex::new(());

/// Namespaces, an etcd and a directory for logs. See the module's text.
pub struct Lab {
    name: String,
    hosts: usize,
    dir: tempfile::TempDir,
    etcd: Option<Proc>,
    _turn: MutexGuard<'static, ()>,
}

/// A container behind its host's bridge.
#[derive(Clone)]
pub struct Container {
    /// The container's network namespace.
    pub ns: String,
    /// Its address: the subnet's base plus two.
    pub addr: Ipv4Addr,
}

/// Whether the long forms of the tests are asked for.
pub fn long() -> bool {
    std::env::var_os("FLANNELD_TEST_LONG").is_some_and(|v| v == "1")
}

/// What this machine lacks for a lab, if anything.
fn missing() -> Option<String> {
    let uid = Command::new("id").arg("-u").output().ok()?;
    if uid.stdout != b"0\n" {
        return Some("it is not root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("/dev/net/tun is missing".to_owned());
    }
    let tools = ["ip", "etcd", "etcdctl", "curl", "ping", "iperf3", "tcpdump", "ethtool", "timeout"];
    let lacks = |tool: &&&str| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output();
        !found.is_ok_and(|o| o.status.success())
    };
    tools.iter().find(lacks).map(|tool| format!("{tool} is missing"))
}

/// Says why a test is skipped. With `FLANNELD_TEST_REQUIRE=1` or `CI=true` that is a failure instead.
pub fn skip(why: &str) {
    let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|v| v == value);
    let required = is("FLANNELD_TEST_REQUIRE", "1") || is("CI", "true");
    assert!(!required, "this test cannot run here: {why}");
    eprintln!("skipped: {why}");
}

/// Whether the firewall tools are here; says which one is missing otherwise.
pub fn has_firewall_tools() -> bool {
    let is_here = |tool: &str| {
        ["/usr/sbin", "/sbin", "/usr/local/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists())
    };
    let missing = ["iptables-save", "iptables-restore", "nft"].into_iter().find(|tool| !is_here(tool));
    missing.inspect(|tool| skip(&format!("{tool} is missing"))).is_none()
}

/// Polls until the closure gives a value; panics with `what` after `limit`.
pub fn eventually<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A random number, from the seed that the standard library gives every hash map.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Makes a command of blank-separated words.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A duration of whole seconds.
pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A duration of milliseconds.
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Lab {
    /// A lab of so many hosts with etcd running; `None`, and a sentence why, where there can be none. With
    /// `FLANNELD_TEST_REQUIRE=1` that is a failure instead.
    pub fn start(hosts: usize) -> Option<Self> {
        let mut lab = Self::without_etcd(hosts)?;
        lab.start_etcd();
        Some(lab)
    }

    /// A lab as [`Lab::start`] makes it, with etcd not yet started.
    pub fn without_etcd(hosts: usize) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("fl{:08x}", random() >> 32);
        let dir = tempfile::Builder::new().prefix("flanneld-lab-").tempdir().unwrap();
        let lab = Self { name, hosts, dir, etcd: None, _turn: turn };
        lab.build();
        Some(lab)
    }

    fn build(&self) {
        for ns in self.namespaces() {
            self.ip(&format!("netns add {ns}"));
            self.ip(&format!("-n {ns} link set lo up"));
        }
        let sw = self.ns("sw");
        self.ip(&format!("-n {sw} link add br0 type bridge"));
        self.ip(&format!("-n {sw} addr add 10.77.0.254/24 dev br0"));
        self.ip(&format!("-n {sw} link set br0 up"));
        for i in 1..=self.hosts {
            let h = self.host(i);
            self.ip(&format!("-n {h} link add eth0 type veth peer name p{i} netns {sw}"));
            self.ip(&format!("-n {sw} link set p{i} master br0 up"));
            self.ip(&format!("-n {h} addr add 10.77.0.{i}/24 dev eth0"));
            self.ip(&format!("-n {h} link set eth0 up"));
            self.ip(&format!("-n {h} route add default via 10.77.0.254"));
            self.sh(
                &h,
                "echo 1 >/proc/sys/net/ipv4/ip_forward; \
                 for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done",
            );
        }
    }

    fn namespaces(&self) -> Vec<String> {
        let pairs = (1..=self.hosts).flat_map(|i| [self.host(i), self.ns(&format!("c{i}"))]);
        std::iter::once(self.ns("sw")).chain(pairs).collect()
    }

    /// The full name of one of the lab's namespaces: `sw`, `h1`, `c1`, …
    pub fn ns(&self, short: &str) -> String {
        format!("{}-{short}", self.name)
    }

    /// Host `i`'s namespace, from 1.
    pub fn host(&self, i: usize) -> String {
        self.ns(&format!("h{i}"))
    }

    /// A path in the lab's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command in a namespace, for at most a minute.
    pub fn try_run(&self, ns: &str, argv: &[&str]) -> Output {
        let head = ["60", "ip", "netns", "exec", ns];
        Command::new("timeout").args(head).args(argv).env("ETCDCTL_API", "3").output().unwrap()
    }

    /// Runs a command in a namespace; it must succeed. Returns its standard output.
    pub fn run(&self, ns: &str, argv: &[&str]) -> String {
        let out = self.try_run(ns, argv);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{argv:?} in {ns}: {}\n{text}{errors}", out.status);
        text
    }

    /// Runs a shell script in a namespace.
    pub fn sh(&self, ns: &str, script: &str) -> String {
        self.run(ns, &["sh", "-c", script])
    }

    /// Runs `ip` with blank-separated words; it must succeed.
    pub fn ip(&self, line: &str) -> String {
        let out = Command::new("ip").args(words(line)).output().unwrap();
        assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Starts flanneld on host `i` with the lab's etcd, `--iface=eth0` and a subnet file of its own. Later
    /// arguments win.
    pub fn daemon(&self, i: usize, args: &[&str]) -> Daemon {
        let file = self.path(&format!("h{i}/flannel/subnet.env"));
        Daemon::start(self, &self.host(i), &file, &[&["--iface=eth0"], args].concat(), &[])
    }

    /// Puts a container behind host `i`, as Docker does with the subnet file's values; a second call replaces it.
    pub fn container(&self, i: usize, subnet: &Subnet) -> Container {
        let (h, c) = (self.host(i), self.ns(&format!("c{i}")));
        let (gateway, len) = (subnet.gateway(), subnet.prefix_len());
        let addr = Ipv4Addr::from(u32::from(gateway) + 1);
        let mtu = subnet.mtu;
        for old in ["cbr0", "vc"] {
            let _ = Command::new("ip").args(["-n", &h, "link", "del", old]).output();
        }
        self.ip(&format!("-n {h} link add cbr0 type bridge"));
        self.ip(&format!("-n {h} link set cbr0 mtu {mtu} up"));
        self.ip(&format!("-n {h} addr add {gateway}/{len} dev cbr0"));
        self.ip(&format!("-n {c} link add eth0 mtu {mtu} type veth peer name vc mtu {mtu} netns {h}"));
        self.ip(&format!("-n {h} link set vc master cbr0 up"));
        self.ip(&format!("-n {c} addr add {addr}/{len} dev eth0"));
        self.ip(&format!("-n {c} link set eth0 up"));
        self.ip(&format!("-n {c} route add default via {gateway}"));
        Container { ns: c, addr }
    }

    /// Whether one ping gets through.
    pub fn pings(&self, from: &str, to: Ipv4Addr) -> bool {
        self.try_run(from, &["ping", "-c1", "-W0.3", &to.to_string()]).status.success()
    }

    /// Waits until a ping gets through and returns how long that took.
    pub fn reaches(&self, from: &str, to: Ipv4Addr, limit: Duration) -> Duration {
        let start = Instant::now();
        eventually(limit, &format!("a ping from {from} to {to}"), || self.pings(from, to).then_some(()));
        start.elapsed()
    }

    /// Starts a long-running command in a namespace; its output goes to `<name>.log`.
    pub fn spawn(&self, ns: &str, name: &str, argv: &[&str]) -> Proc {
        Proc::start(ns, argv, &[], &self.path(&format!("{name}.log")))
    }

    /// Starts one of this test executable's own tools (see [`tools`]) in a namespace.
    pub fn tool(&self, ns: &str, line: &str) -> Tool {
        Tool::start(ns, line, self.dir.path())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", process::tails(self.dir.path()));
        }
        self.etcd = None;
        for ns in self.namespaces() {
            let _ = Command::new("ip").args(["netns", "del", &ns]).output();
        }
    }
}
