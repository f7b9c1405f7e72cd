//! flanneld as a user starts it, and what its subnet file says.

use super::{Lab, Proc, eventually, flanneld, ms, secs};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

/// A running flanneld.
pub struct Daemon {
    proc: Proc,
    /// Where the daemon writes its subnet file.
    pub subnet_file: PathBuf,
}

/// Drop counters by reason.
pub type Drops = BTreeMap<String, u64>;

/// What `subnet.env` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `FLANNEL_NETWORK`: the whole overlay.
    pub network: String,
    /// `FLANNEL_SUBNET`: the base plus one, with the prefix length.
    pub subnet: String,
    /// `FLANNEL_MTU`, in bytes, for containers.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: `true` or `false`.
    pub ipmasq: String,
}

impl Subnet {
    /// Reads a subnet file; every line must be one that flannel writes.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |key: &str| {
            let prefix = format!("FLANNEL_{key}=");
            text.lines().find_map(|l| l.strip_prefix(&prefix)).map(str::to_owned)
        };
        Some(Self {
            network: line("NETWORK")?,
            subnet: line("SUBNET")?,
            mtu: line("MTU")?.parse().ok()?,
            ipmasq: line("IPMASQ")?,
        })
    }

    /// The address of `FLANNEL_SUBNET`.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.split_once('/').unwrap().0.parse().unwrap()
    }

    /// The subnet's base address.
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway()) - 1)
    }

    /// The subnet's prefix length.
    pub fn prefix_len(&self) -> u8 {
        self.subnet.split_once('/').unwrap().1.parse().unwrap()
    }

    /// The last element of the lease's key.
    pub fn key(&self) -> String {
        format!("{}-{}", self.base(), self.prefix_len())
    }
}

impl Daemon {
    /// Starts it in a namespace. The log is `flanneld-<namespace>-<n>.log` in the lab's directory.
    pub fn start(lab: &Lab, ns: &str, file: &Path, args: &[&str], envs: &[(&str, &str)]) -> Self {
        let file_arg = format!("--subnet-file={}", file.display());
        let program = flanneld();
        let head = [&*program, "--etcd-endpoints=http://10.77.0.254:2379", &file_arg];
        let log = (0..).map(|n| lab.path(&format!("flanneld-{ns}-{n}.log"))).find(|p| !p.exists()).unwrap();
        let proc = Proc::start(ns, &[&head, args].concat(), envs, &log);
        Self { proc, subnet_file: file.to_owned() }
    }

    /// Waits until this run has written the subnet file, and reads it.
    pub fn subnet(&mut self) -> Subnet {
        eventually(secs(10), &format!("{}", self.subnet_file.display()), || {
            assert!(self.proc.running(), "flanneld is gone:\n{}", self.proc.text());
            let written = self.proc.text().contains("Wrote subnet file to ");
            Subnet::parse(&fs::read_to_string(&self.subnet_file).ok()?).filter(|_| written)
        })
    }

    /// Sends SIGUSR1 and reads a counter from the report, as its `count <name> <n>` line gives it.
    pub fn count(&self, name: &str) -> u64 {
        let before = self.text().len();
        self.signal("USR1");
        eventually(secs(3), &format!("the count of {name}"), || {
            let text = self.text()[before..].to_owned();
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("count {name} ")))?;
            line.parse().ok()
        })
    }

    /// Sends SIGUSR1 and reads the drops by reason, as `drop <reason> <n>` lines on standard error give them.
    pub fn drops(&self) -> Drops {
        let before = self.text().len();
        self.signal("USR1");
        eventually(secs(3), "the counters on SIGUSR1", || (self.text().len() > before).then_some(()));
        // The lines come in one burst; it is over when nothing has followed for a while.
        let mut text = self.text();
        loop {
            std::thread::sleep(ms(15));
            let now = self.text();
            if now.len() == text.len() {
                break;
            }
            text = now;
        }
        let mut drops = Drops::new();
        for line in text[before..].lines() {
            let mut rest = line.split_whitespace().skip_while(|word| *word != "drop").skip(1);
            if let (Some(reason), Some(Ok(n))) = (rest.next(), rest.next().map(str::parse::<u64>)) {
                *drops.entry(reason.to_owned()).or_insert(0) += n;
            }
        }
        drops
    }

    /// Waits until the drop counters have gained something since `before`, and a little more; returns the gain,
    /// zeros left out, and the counters as they are now.
    pub fn gained(&self, before: &Drops) -> (Drops, Drops) {
        let now = eventually(secs(3), "a counted drop", || {
            let now = self.drops();
            (now != *before).then_some(now)
        });
        std::thread::sleep(ms(20));
        let now = self.drops().max(now);
        let old = |reason: &String| before.get(reason).copied().unwrap_or(0);
        let gain = now.iter().map(|(reason, n)| (reason.clone(), n - old(reason)));
        (gain.filter(|(_, n)| *n > 0).collect(), now)
    }
}

impl Deref for Daemon {
    type Target = Proc;
    fn deref(&self) -> &Proc {
        &self.proc
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Proc {
        &mut self.proc
    }
}
