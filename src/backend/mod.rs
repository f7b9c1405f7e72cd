//! What a lease does on this host: a backend makes a subnet work, and follows the leases of the peers.
//!
//! [`Backend::from_config`] reads the network config's `Backend` object: it knows what to publish in the lease
//! and which MTU containers get, before there is a lease. [`Backend::register`] brings it to life for the
//! subnet that was leased. The [`Network`] that comes out takes [`Event`]s, and [`Network::maintain`] repairs
//! what others broke: a backend states what it wants, and compares with what is there.
//!
//! udp hands events to its engine at once. The backends that live in the kernel's tables only note them;
//! [`Network::is_pending`] then asks for a pass of [`Network::maintain`], which writes what a burst of events
//! has come to.
//!
//! A lease of another backend's type belongs to a node that this one cannot talk to: it is counted and left
//! alone.

mod command;
mod extension;
mod host_gw;
mod repairs;
mod udp;
mod upkeep;
mod vxlan;

pub use command::CommandError;
pub use udp::{EngineSettings, Snapshot};

use crate::iface::External;
use crate::lease::Event;
use crate::netlink::{self, Netlink, Stale, Territory};
use crate::subnet::{Config, ConfigError, LeaseAttrs};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::task::{Context, Poll};
use std::time::Duration;

/// Why a backend cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A type that this version does not serve, or none that exists.
    #[error(
        "network config: Backend.Type {0:?} is not served by this version; \
         it serves udp, vxlan, host-gw, extension and alloc"
    )]
    Unknown(String),
    /// A field of the `Backend` object.
    #[error("network config: {0}")]
    Config(#[from] ConfigError),
    /// The link is too narrow for any packet.
    #[error("interface {name} has MTU {mtu}: too small for an overlay")]
    Mtu {
        /// The external interface.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// No TUN device.
    #[error(transparent)]
    Tun(#[from] crate::tun::TunError),
    /// No socket.
    #[error(transparent)]
    Udp(#[from] crate::udp::UdpError),
    /// The engine did not start, or does not answer.
    #[error(transparent)]
    Engine(#[from] udp::EngineError),
    /// A worker's second handle on its socket could not be made.
    #[error("cannot share a socket: {0}")]
    ShareSocket(#[source] std::io::Error),
    /// Somebody deleted the overlay's device before it was ready.
    #[error("{0} vanished while it was set up")]
    Vanished(String),
    /// The kernel's tables.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The overlay's device disappears again and again.
    #[error("the overlay's device was deleted {0} times within a minute: something else manages it")]
    Unstable(usize),
    /// The interface that was chosen at the start is away.
    #[error("there is no interface {0} now")]
    NoLink(String),
    /// host-gw's peers route to the interface itself.
    #[error(
        "host-gw needs peers to reach this host at an address of its own: the public IP {public_ip} is not \
         {name}'s address {address}"
    )]
    PublicIp {
        /// What peers are told.
        public_ip: Ipv4Addr,
        /// The external interface.
        name: String,
        /// Its address.
        address: Ipv4Addr,
    },
    /// An extension's command.
    #[error("extension: {0}")]
    Command(#[from] CommandError),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl BackendError {
    /// Whether waiting may help: a daemon that was killed lets go of its port only when the kernel has closed
    /// its io_uring, some time after the process is gone.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, BackendError::Udp(crate::udp::UdpError::InUse { .. }))
    }
}

/// A backend as configured, without a lease yet.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Packets through our own engine, over UDP.
    Udp(udp::Config),
    /// Packets through the kernel's VXLAN device.
    Vxlan(vxlan::Config),
    /// A route to each peer.
    HostGw(host_gw::Config),
    /// The operator's commands.
    Extension(extension::Config),
    /// No data path: only the lease and `subnet.env`.
    Alloc {
        /// The external interface's MTU.
        mtu: u32,
        /// What to publish.
        attrs: LeaseAttrs,
    },
}

impl Backend {
    /// The backend that `config` names. vxlan looks for the device of an earlier run, extension runs its first
    /// command.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] for a type that is not served, [`BackendError::Config`] for its fields.
    pub async fn from_config(
        config: &Config,
        external: &External,
        engine: &EngineSettings,
        netlink: &Netlink,
    ) -> Result<Backend, BackendError> {
        // udp and alloc publish no type, as flannel does.
        let attrs = LeaseAttrs { public_ip: external.public_ip, backend_type: None, backend_data: None };
        Ok(match config.backend.kind.as_str() {
            "udp" => {
                let backend = udp::Config::new(config, external, engine, attrs)?;
                // Those that vxlan or host-gw left before the network became udp's: they are narrower than its
                // own route and would lead packets away from it.
                let territory = Territory { network: config.network, device: None };
                netlink.ensure_routes(&BTreeMap::new(), territory, Stale::Remove).await?;
                Backend::Udp(backend)
            }
            vxlan::KIND => Backend::Vxlan(vxlan::Config::new(config, external, netlink).await?),
            host_gw::KIND => Backend::HostGw(host_gw::Config::new(config, external)?),
            extension::KIND => Backend::Extension(extension::Config::new(config, external).await?),
            "alloc" => Backend::Alloc { mtu: external.mtu, attrs },
            other => return Err(BackendError::Unknown(other.to_owned())),
        })
    }

    /// What the lease's value says.
    #[must_use]
    pub fn attrs(&self) -> &LeaseAttrs {
        match self {
            Backend::Udp(config) => config.attrs(),
            Backend::Vxlan(config) => config.attrs(),
            Backend::HostGw(config) => config.attrs(),
            Backend::Extension(config) => config.attrs(),
            Backend::Alloc { attrs, .. } => attrs,
        }
    }

    /// The MTU for containers, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        match self {
            Backend::Udp(config) => config.mtu(),
            Backend::Vxlan(config) => config.mtu(),
            Backend::HostGw(config) => config.mtu(),
            Backend::Extension(config) => config.mtu(),
            Backend::Alloc { mtu, .. } => *mtu,
        }
    }

    /// Makes `subnet` work on this host.
    ///
    /// # Errors
    /// [`BackendError`] names what is missing.
    pub async fn register(&self, netlink: &Netlink, subnet: Ipv4Net) -> Result<Network, BackendError> {
        Ok(match self.clone() {
            Backend::Udp(config) => {
                Network::Udp(Box::new(udp::Network::start(config, netlink, subnet).await?))
            }
            Backend::Vxlan(config) => {
                Network::Vxlan(Box::new(vxlan::Network::start(config, netlink, subnet).await?))
            }
            Backend::HostGw(config) => Network::HostGw(Box::new(host_gw::Network::new(config))),
            Backend::Extension(config) => {
                Network::Extension(Box::new(extension::Network::start(config, subnet).await?))
            }
            Backend::Alloc { .. } => Network::Alloc,
        })
    }
}

/// A backend at work.
#[derive(Debug)]
pub enum Network {
    /// See [`Backend::Udp`].
    Udp(Box<udp::Network>),
    /// See [`Backend::Vxlan`].
    Vxlan(Box<vxlan::Network>),
    /// See [`Backend::HostGw`].
    HostGw(Box<host_gw::Network>),
    /// See [`Backend::Extension`].
    Extension(Box<extension::Network>),
    /// See [`Backend::Alloc`].
    Alloc,
}

impl Network {
    /// Follows the peers.
    pub fn apply(&mut self, events: &[Event]) {
        match self {
            Network::Udp(network) => network.apply(events),
            Network::Vxlan(network) => network.apply(events),
            Network::HostGw(network) => network.apply(events),
            Network::Extension(network) => network.apply(events),
            Network::Alloc => {}
        }
    }

    /// Whether [`Network::maintain`] has something to write that is known already.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        match self {
            Network::Vxlan(network) => network.is_pending(),
            Network::HostGw(network) => network.is_pending(),
            Network::Udp(network) => network.is_pending(),
            Network::Extension(_) | Network::Alloc => false,
        }
    }

    /// Whether a change of the kernel's tables could concern this network.
    #[must_use]
    pub fn concerns(&self, change: &netlink::Change) -> bool {
        match self {
            Network::Udp(network) => network.concerns(change),
            Network::Vxlan(network) => network.concerns(change),
            Network::HostGw(network) => network.concerns(change),
            Network::Extension(_) | Network::Alloc => false,
        }
    }

    /// How long to wait before the next [`Network::maintain`] after a change that concerns this network: somebody
    /// may undo every repair at once, and is not to keep us at work.
    #[must_use]
    pub fn repair_pause(&self) -> Duration {
        match self {
            Network::Udp(network) => network.repair_pause(),
            Network::Vxlan(network) => network.repair_pause(),
            Network::HostGw(network) => network.repair_pause(),
            Network::Extension(_) | Network::Alloc => Duration::ZERO,
        }
    }

    /// Compares what is there with what should be, and mends the difference. The first call comes after the
    /// first snapshot of peers was applied: entries of peers that are gone are removed then.
    ///
    /// # Errors
    /// What could not be mended now; try again later, except after [`BackendError::Unstable`].
    pub async fn maintain(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        match self {
            Network::Udp(network) => network.maintain(netlink).await,
            Network::Vxlan(network) => network.maintain(netlink).await,
            Network::HostGw(network) => network.maintain(netlink).await,
            Network::Extension(_) | Network::Alloc => Ok(()),
        }
    }

    /// Whether no part of its data path has ended by itself.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self {
            Network::Udp(network) => network.workers_alive(),
            _ => true,
        }
    }

    /// Ready when a part of its data path has ended by itself: [`Network::maintain`] mends it. One task may wait.
    pub fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Network::Udp(network) => network.poll_ended(context),
            _ => Poll::Pending,
        }
    }

    /// A few lines for the operator: counters and peers; empty for a network without a data path.
    #[must_use]
    pub async fn report(&self, netlink: &Netlink) -> String {
        match self {
            Network::Udp(network) => network.report(netlink).await,
            Network::Vxlan(network) => network.report(),
            Network::HostGw(network) => network.report(),
            Network::Extension(network) => network.report(),
            Network::Alloc => String::new(),
        }
    }
}
