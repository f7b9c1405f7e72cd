//! What the daemon runs with, and the ranges of what the operator may set about the packet path.

use crate::subnet::NodeId;
use crate::{etcd, iface, lease, masq};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

pub use crate::engine::{
    BUFFERS_RANGE, Carrier, LONGEST_MODERATION, LONGEST_SPIN, MAX_WORKERS, PeerFilter, READS_PER_TURN_RANGE,
    Settings as Engine, TunOffload, UdpOffload,
};

/// Everything that the operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach etcd.
    pub etcd: etcd::Settings,
    /// Which interface carries the overlay.
    pub iface: iface::Choice,
    /// The path of `subnet.env`.
    pub subnet_file: PathBuf,
    /// The directory of what must outlive this process; `None` if nothing is to be kept.
    pub state_dir: Option<PathBuf>,
    /// Masquerade and forward rules and the blackhole route; `FLANNEL_IPMASQ` says whether we masquerade.
    pub masq: masq::Settings,
    /// `NodeID` in the lease; `None`: the one in the state directory, else one derived from the machine id.
    pub node_id: Option<NodeId>,
    /// How long the lease lives, when it is renewed and what happens when it is lost.
    pub lease: lease::Settings,
    /// The settings of the packet path.
    pub engine: Engine,
    /// The address of `/healthz`, `/readyz` and `/metrics`; `None` if they are not served.
    pub status: Option<StatusAddress>,
    /// Which networks below the prefix to run; `None` for the one network at the prefix.
    pub networks: Option<Networks>,
    /// How much is logged.
    pub log: Log,
}

/// Where to serve `/healthz`, `/readyz` and `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusAddress {
    /// An address of this host, or a name that means one.
    pub host: String,
    /// The TCP port, which is not 0.
    pub port: u16,
}

impl fmt::Display for StatusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Which networks to run, and where their subnet files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// The networks to run; if empty, all that the store holds.
    pub names: BTreeSet<String>,
    /// The directory in which `<name>.env` is written.
    pub dir: PathBuf,
}

impl Networks {
    /// Whether a network may have this name: one element of a key and of a path, and not the way out of either.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && !name.contains('/') && name != "." && name != ".."
    }
}

/// How much is logged to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Log {
    /// The verbosity of `-v`: 0 is the default, 1 and more add debug messages.
    pub v: u8,
}

/// The settings as they were read again on SIGHUP.
#[derive(Debug)]
pub struct Reloaded {
    /// All settings as they are now.
    pub settings: Settings,
    /// The names of the changed flags that a running daemon takes over, as the operator wrote them.
    pub applied: Vec<String>,
    /// The names of the changed flags and variables that need a restart.
    pub stale: Vec<String>,
    /// What the log should say about the files.
    pub remarks: Vec<String>,
}

/// Reads the settings again. An error is one line, and then nothing has changed.
pub type Reread = Box<dyn FnMut() -> Result<Reloaded, String> + Send>;
