//! The settings of all rooms, as the command line and the environment give them.

use crate::{engine, etcd, iface, lease, masq};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Everything that the operator may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the store.
    pub etcd: etcd::Settings,
    /// Which interface carries the overlay.
    pub iface: iface::Choice,
    /// Where `subnet.env` goes.
    pub subnet_file: PathBuf,
    /// Masquerade and forward rules, and the blackhole route.
    pub masq: masq::Settings,
    /// The lease's life.
    pub lease: lease::Settings,
    /// The packet path.
    pub engine: engine::Settings,
    /// Where health and metrics are served, if anywhere.
    pub status: Option<SocketAddr>,
    /// Several networks instead of one.
    pub networks: Option<NetworksOptions>,
    /// What is logged.
    pub log: LogOptions,
}

/// What is logged, to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Verbosity of `-v`: 0 is the default, 1 adds data-path messages.
    pub v: u8,
}

/// flannel's mode of several networks, up to v0.7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworksOptions {
    /// Only these, if there are any; else all that the store holds.
    pub names: BTreeSet<String>,
    /// Where their subnet files go.
    pub dir: PathBuf,
}
