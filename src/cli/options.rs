//! The settings of all rooms, as the command line and the environment give them.

use crate::{engine, etcd, iface};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the operator may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the store.
    pub etcd: etcd::Settings,
    /// Which interface carries the overlay.
    pub iface: iface::Choice,
    /// Where `subnet.env` goes.
    pub subnet_file: PathBuf,
    /// Install masquerade rules; always false as long as that is not served.
    pub ip_masq: bool,
    /// The lease's life.
    pub lease: LeaseOptions,
    /// The packet path.
    pub engine: engine::Settings,
    /// What is logged.
    pub log: LogOptions,
}

/// The lease's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// How long a lease lives without renewal; 24 h by default, as flannel.
    pub ttl: Duration,
    /// How long before its end it is renewed; always shorter than the TTL.
    pub renew_margin: Duration,
    /// What to do when it is lost.
    pub on_lost: OnLeaseLost,
}

/// What to do when the lease is lost and its subnet taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLeaseLost {
    /// Exit with an error; a supervisor starts anew.
    #[default]
    Exit,
    /// Go on with the subnet and complain.
    Keep,
    /// Take another subnet.
    Reacquire,
}

/// What is logged, to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Verbosity of `-v`: 0 is the default, 1 adds data-path messages.
    pub v: u8,
}
