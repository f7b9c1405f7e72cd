//! What a lease does on this host: a backend makes a subnet work, and follows the leases of the peers.
//!
//! [`Backend::from_config`] reads the network config's `Backend` object: it knows what to publish in the lease
//! and which MTU containers get, before there is a lease. [`Backend::register`] brings it to life for the
//! subnet that was leased. The [`Network`] that comes out takes [`Event`]s, and [`Network::maintain`] repairs
//! what others broke: a backend states what it wants, and compares with what is there.
//!
//! A lease of another backend's type belongs to a node that this one cannot talk to: it is counted and left
//! alone.

mod udp;

pub use udp::{EngineSettings, Snapshot};

use crate::iface::External;
use crate::lease::Event;
use crate::netlink::{self, Netlink};
use crate::subnet::{Config, ConfigError, LeaseAttrs};
use ipnet::Ipv4Net;

/// Why a backend cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A type that this version does not serve, or none that exists.
    #[error("network config: Backend.Type {0:?} is not served by this version; it serves udp and alloc")]
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
    /// No engine.
    #[error("{0}")]
    Engine(String),
    /// The kernel's tables.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The TUN device disappears again and again.
    #[error("the TUN device was deleted {0} times within a minute: something else manages it")]
    Unstable(usize),
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
    /// No data path: only the lease and `subnet.env`.
    Alloc {
        /// The external interface's MTU.
        mtu: u32,
        /// What to publish.
        attrs: LeaseAttrs,
    },
}

impl Backend {
    /// The backend that `config` names.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] for a type that is not served, [`BackendError::Config`] for its fields.
    pub fn from_config(
        config: &Config,
        external: &External,
        engine: &EngineSettings,
    ) -> Result<Backend, BackendError> {
        // udp and alloc publish no type, as flannel does.
        let attrs = LeaseAttrs { public_ip: external.public_ip, backend_type: None, backend_data: None };
        match config.backend.kind.as_str() {
            "udp" => Ok(Backend::Udp(udp::Config::new(config, external, engine, attrs)?)),
            "alloc" => Ok(Backend::Alloc { mtu: external.mtu, attrs }),
            other => Err(BackendError::Unknown(other.to_owned())),
        }
    }

    /// What the lease's value says.
    #[must_use]
    pub fn attrs(&self) -> &LeaseAttrs {
        match self {
            Backend::Udp(config) => config.attrs(),
            Backend::Alloc { attrs, .. } => attrs,
        }
    }

    /// The MTU for containers, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        match self {
            Backend::Udp(config) => config.mtu(),
            Backend::Alloc { mtu, .. } => *mtu,
        }
    }

    /// Makes `subnet` work on this host.
    ///
    /// # Errors
    /// [`BackendError`] names what is missing; nothing stays behind.
    pub async fn register(&self, netlink: &Netlink, subnet: Ipv4Net) -> Result<Network, BackendError> {
        match self {
            Backend::Udp(config) => {
                Ok(Network::Udp(Box::new(udp::Network::start(config.clone(), netlink, subnet).await?)))
            }
            Backend::Alloc { .. } => Ok(Network::Alloc),
        }
    }
}

/// A backend at work.
#[derive(Debug)]
pub enum Network {
    /// See [`Backend::Udp`].
    Udp(Box<udp::Network>),
    /// See [`Backend::Alloc`].
    Alloc,
}

impl Network {
    /// Follows the peers.
    ///
    /// # Errors
    /// Only what needs a new start.
    pub fn apply(&mut self, events: &[Event]) -> Result<(), BackendError> {
        match self {
            Network::Udp(network) => network.apply(events),
            Network::Alloc => Ok(()),
        }
    }

    /// Whether a change of the kernel's tables could concern this network.
    #[must_use]
    pub fn concerns(&self, change: &netlink::Change) -> bool {
        match self {
            Network::Udp(network) => network.concerns(change),
            Network::Alloc => false,
        }
    }

    /// Compares what is there with what should be, and mends the difference.
    ///
    /// # Errors
    /// What could not be mended now; try again later, except after [`BackendError::Unstable`].
    pub async fn maintain(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        match self {
            Network::Udp(network) => network.maintain(netlink).await,
            Network::Alloc => Ok(()),
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

    /// A few lines for the operator: counters and peers; empty for a network without a data path.
    #[must_use]
    pub async fn report(&self, netlink: &Netlink) -> String {
        match self {
            Network::Udp(network) => network.report(netlink).await,
            Network::Alloc => String::new(),
        }
    }
}
