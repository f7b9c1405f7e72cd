//! What the daemon runs with, and the ranges of what the operator may set about the packet path.

use crate::{etcd, iface, lease, masq};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use crate::engine::{
    BUFFERS_RANGE, Carrier, LONGEST_MODERATION, LONGEST_SPIN, MAX_WORKERS, PeerFilter, READS_PER_TURN_RANGE,
    Settings as Engine, TunOffload, UdpOffload,
};

/// Everything that the operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the store.
    pub etcd: etcd::Settings,
    /// Which interface carries the overlay.
    pub iface: iface::Choice,
    /// Where `subnet.env` goes.
    pub subnet_file: PathBuf,
    /// Masquerade and forward rules and the blackhole route; `FLANNEL_IPMASQ` says whether we masquerade.
    pub masq: masq::Settings,
    /// The lease's life.
    pub lease: lease::Settings,
    /// The packet path.
    pub engine: Engine,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; `None`: nowhere.
    pub status: Option<SocketAddr>,
    /// Several networks below the prefix instead of the one at the prefix.
    pub networks: Option<Networks>,
    /// What is logged.
    pub log: Log,
}

/// Which networks, and where their subnet files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// Only these, if there are any; else all that the store holds.
    pub names: BTreeSet<String>,
    /// Where `<name>.env` is written.
    pub dir: PathBuf,
}

/// What is logged, to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Log {
    /// Verbosity of `-v`: 0 is the default, 1 and more add debug messages.
    pub v: u8,
}
