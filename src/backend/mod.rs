//! What a lease does on this host: a backend makes a subnet work, and follows the leases of the peers.
//!
//! [`from_config`] reads the network config's `Backend` object. The [`Backend`] that comes out knows what to publish
//! in the lease and which MTU containers get, before there is a lease. [`Backend::register`] brings it to life for
//! the subnet that was leased. The [`Network`] that comes out takes [`Event`]s, and [`Network::maintain`] repairs
//! what others broke: a backend states what it wants, and compares with what is there.
//!
//! udp hands events to its engine at once. The backends that live in the kernel's tables only note them;
//! [`Network::is_pending`] then asks for a pass of [`Network::maintain`], which writes what a burst of events
//! has come to.
//!
//! A lease of another backend's type belongs to a node that this one cannot talk to: it is counted and left
//! alone.
//!
//! A new backend is a file that has the two traits, and a row of `KINDS`.

mod alloc;
mod command;
mod extension;
mod host_gw;
mod repairs;
mod udp;
mod upkeep;
mod vxlan;

pub use command::CommandError;
pub use udp::EngineSettings;

use crate::iface::External;
use crate::netlink::{self, Netlink};
use crate::report::DataPath;
use crate::subnet::{Config, ConfigError, Event, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Why a backend cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A type that this version does not serve, or none that exists.
    #[error(
        "network config: Backend.Type {0:?} is not served by this version; it serves {kinds}",
        kinds = served()
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

/// What a backend is made of.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The network config.
    pub config: &'a Config,
    /// The interface that carries the overlay.
    pub external: &'a External,
    /// The packet path, for udp.
    pub engine: &'a EngineSettings,
    /// The kernel's tables.
    pub netlink: &'a Netlink,
}

/// A backend that is being configured, or the reason why it cannot be.
type Configuring<'a> = LocalBoxFuture<'a, Result<Rc<dyn Backend>, BackendError>>;

/// What makes a backend of its kind.
type Configure = for<'a> fn(Setup<'a>) -> Configuring<'a>;

/// Every `Backend.Type` that is served, in the order in which errors name them, and what makes the backend.
const KINDS: [(&str, Configure); 5] = [
    (udp::KIND, |setup| udp::Config::configure(setup).map(shared).boxed_local()),
    (vxlan::KIND, |setup| vxlan::Config::configure(setup).map(shared).boxed_local()),
    (host_gw::KIND, |setup| std::future::ready(shared(host_gw::Config::configure(setup))).boxed_local()),
    (extension::KIND, |setup| extension::Config::configure(setup).map(shared).boxed_local()),
    (alloc::KIND, |setup| std::future::ready(shared(Ok(alloc::Config::configure(setup)))).boxed_local()),
];

fn shared<B: Backend + 'static>(made: Result<B, BackendError>) -> Result<Rc<dyn Backend>, BackendError> {
    Ok(Rc::new(made?))
}

/// What [`Backend::register`] gives.
fn boxed<N: Network + 'static>(made: Result<N, BackendError>) -> Result<Box<dyn Network>, BackendError> {
    Ok(Box::new(made?))
}

/// The types of [`KINDS`], as a sentence lists them.
fn served() -> String {
    let [first @ .., last] = KINDS.map(|(kind, _)| kind);
    format!("{} and {last}", first.join(", "))
}

/// The backend that the network config names. vxlan looks for the device of an earlier run, extension runs its
/// first command, udp removes the routes of an earlier backend.
///
/// # Errors
/// [`BackendError::Unknown`] for a type that is not served, [`BackendError::Config`] for its fields.
pub async fn from_config(setup: Setup<'_>) -> Result<Rc<dyn Backend>, BackendError> {
    let wanted = setup.config.backend.kind.as_str();
    match KINDS.iter().find(|(kind, _)| *kind == wanted) {
        Some((_, configure)) => configure(setup).await,
        None => Err(BackendError::Unknown(wanted.to_owned())),
    }
}

/// A backend as configured, without a lease yet.
pub trait Backend: fmt::Debug {
    /// What the lease's value says.
    fn attrs(&self) -> &LeaseAttrs;

    /// The MTU for containers, in bytes.
    fn mtu(&self) -> u32;

    /// Makes `subnet` work on this host.
    ///
    /// # Errors
    /// [`BackendError`] names what is missing.
    fn register<'a>(
        &'a self,
        netlink: &'a Netlink,
        subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>>;
}

/// A backend at work. What a method does by default is right for a backend that owns nothing in the kernel's tables.
pub trait Network: fmt::Debug {
    /// Follows the peers.
    fn apply(&mut self, events: &[Event]);

    /// Whether [`Network::maintain`] has something to write that is known already.
    fn is_pending(&self) -> bool {
        false
    }

    /// Whether a change of the kernel's tables could concern this network.
    fn concerns(&self, _change: &netlink::Change) -> bool {
        false
    }

    /// How long to wait before the next [`Network::maintain`] after a change that concerns this network: somebody
    /// may undo every repair at once, and is not to keep us at work.
    fn repair_pause(&self) -> Duration {
        Duration::ZERO
    }

    /// Compares what is there with what should be, and mends the difference. The first call comes after the
    /// first snapshot of peers was applied: entries of peers that are gone are removed then.
    ///
    /// # Errors
    /// What could not be mended now; try again later, except after [`BackendError::Unstable`].
    fn maintain<'a>(&'a mut self, _netlink: &'a Netlink) -> LocalBoxFuture<'a, Result<(), BackendError>> {
        std::future::ready(Ok(())).boxed_local()
    }

    /// Whether no part of its data path has ended by itself.
    fn is_alive(&self) -> bool {
        true
    }

    /// Ready when a part of its data path has ended by itself: [`Network::maintain`] mends it. One task may wait.
    fn poll_ended(&self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Counters and peers; `None` for a network without a data path.
    fn report<'a>(&'a self, netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_told_what_is_served() {
        let text = BackendError::Unknown("ipsec".to_owned()).to_string();
        assert_eq!(
            text,
            "network config: Backend.Type \"ipsec\" is not served by this version; \
             it serves udp, vxlan, host-gw, extension and alloc"
        );
    }
}
