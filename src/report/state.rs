//! One network of the daemon at one moment.

use super::Metric;
use std::fmt;
use std::time::SystemTime;

/// One network of the daemon at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The network's name; empty in the usual mode of one network, whose metrics then have no such label.
    pub network: String,
    /// Whether no worker has ended by itself.
    pub alive: bool,
    /// Whether the network has a subnet, the subnet file says so, and nothing hinders it.
    pub ready: bool,
    /// Why a network that is ready works less well than it should; `None` if it does not.
    pub degraded: Option<String>,
    /// Why a network that has come up does not work; `None` if it works.
    pub hindrance: Option<String>,
    /// The counters of the external interface and of repairs.
    pub upkeep: Vec<Sample>,
    /// The backend's type; empty before the network config is known.
    pub backend: String,
    /// Whether the store of the leases answered last time.
    pub store_up: bool,
    /// The lease of this host's subnet.
    pub lease: Lease,
    /// Whether masquerade and forward rules are as they should be; `None` if there should be none.
    pub rules_in_place: Option<bool>,
    /// The part that carries the packets; `None` before the subnet is up, and if somebody else carries them.
    pub data_path: Option<DataPath>,
}

/// The lease of this host's subnet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Whether we hold it at this moment.
    pub held: bool,
    /// The time at which the lease ends unless it is renewed; `None` without a lease and for a reservation.
    pub expiry: Option<SystemTime>,
    /// Whether it is known from the state directory alone: the store has not answered since the start.
    pub from_cache: bool,
    /// The counters of the lease machine.
    pub samples: Vec<Sample>,
}

/// The part of a network that carries the packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataPath {
    /// The engine's workers, in their order; none if the kernel carries the packets.
    pub workers: Vec<Worker>,
    /// The number of peers whose subnets are routed.
    pub peers: usize,
    /// The counters of backend and engine, in the order in which they are shown.
    pub samples: Vec<Sample>,
}

/// One worker of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// How the worker makes its system calls: `uring` or `poll`.
    pub carrier: String,
}

/// One value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The metric that the value belongs to.
    pub metric: &'static Metric,
    /// The name in the lines on SIGUSR1. It tells apart samples of one metric.
    pub name: &'static str,
    /// The label and its value, where the metric has samples of several kinds.
    pub label: Option<(&'static str, &'static str)>,
    /// The value, in the metric's unit.
    pub value: u64,
}

impl Sample {
    /// The one sample of `metric`, shown as `name` in the lines.
    #[must_use]
    pub fn new(metric: &'static Metric, name: &'static str, value: u64) -> Sample {
        Sample { metric, name, label: None, value }
    }

    /// One of several samples of `metric`, told apart by `label`.
    #[must_use]
    pub fn labelled(
        metric: &'static Metric,
        name: &'static str,
        label: (&'static str, &'static str),
        value: u64,
    ) -> Sample {
        debug_assert!(!label.0.is_empty() && !label.1.is_empty(), "a label tells samples apart");
        Sample { metric, name, label: Some(label), value }
    }
}

/// The sample as a line on SIGUSR1: `count turns 7`, `drop ttl 2`.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_assert!(!self.name.contains(' '), "a line has three words");
        write!(f, "{} {} {}", self.metric.word, self.name, self.value)
    }
}
