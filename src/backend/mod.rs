//! A backend makes the leased subnet work on this host, and follows the leases of the peers.
//!
//! [`from_config`] reads the network config's `Backend` object. The [`Backend`] that comes out knows what to publish
//! in the lease and which MTU containers get, before there is a lease. [`Backend::register`] brings it to life for
//! the subnet that was leased. The [`Network`] that comes out takes [`Event`]s, and [`Network::maintain`] repairs
//! what others broke: a backend states what it wants, and compares that with what is there.
//!
//! udp hands events to its engine at once. The backends that live in the kernel's tables only note them;
//! [`Network::is_pending`] then asks for a call of [`Network::maintain`], which writes what a burst of events
//! has come to. They share `wanted.rs` (what each peer needs), `entries.rs` (the writes for one peer), `tables.rs`
//! (the order of the writes, in steps) and `upkeep.rs` (what is counted and said).
//!
//! A lease of another backend's type belongs to a node that this one cannot talk to: it is counted and left
//! alone.
//!
//! A new backend is a file that implements the two traits, and a row of `KINDS`.

mod alloc;
mod command;
mod entries;
mod extension;
mod host_gw;
mod repairs;
mod restarts;
mod strangers;
mod tables;
mod udp;
mod upkeep;
mod vxlan;
mod wanted;

pub use command::CommandError;

use crate::iface::External;
use crate::masq::Guard;
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
use udp::{EngineSettings, PeerFilter};

/// Why a backend cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// This version does not serve the type, or no such type exists.
    #[error(
        "network config: Backend.Type {0:?} is not served by this version; it serves {kinds}",
        kinds = served()
    )]
    Unknown(String),
    /// A field of the `Backend` object is wrong.
    #[error("network config: {0}")]
    Config(#[from] ConfigError),
    /// The link is too narrow for any packet.
    #[error("interface {name} has MTU {mtu}: too small for an overlay")]
    Mtu {
        /// The external interface.
        name: String,
        /// The MTU of that interface.
        mtu: u32,
    },
    /// The TUN device could not be made.
    #[error(transparent)]
    Tun(#[from] crate::tun::TunError),
    /// A socket could not be made.
    #[error(transparent)]
    Udp(#[from] crate::udp::UdpError),
    /// Another flannel's device has the route of the overlay, and is no leftover.
    #[error(
        "the route to {network} leads through {name}, which another process holds or which is no TUN device: end the \
         other flanneld, or remove the device with `ip link del {name}`"
    )]
    Occupied {
        /// The network of the overlay.
        network: Ipv4Net,
        /// The device that is in the way.
        name: String,
    },
    /// The engine did not start, or does not answer.
    #[error(transparent)]
    Engine(#[from] udp::EngineError),
    /// A worker's second handle on its socket could not be made.
    #[error("cannot share a socket: {0}")]
    ShareSocket(#[source] std::io::Error),
    /// A second handle on a queue of the TUN device could not be made.
    #[error("cannot share a queue of the TUN device: {0}")]
    ShareQueue(#[source] std::io::Error),
    /// Somebody deleted the overlay's device before it was ready.
    #[error("{0} vanished while it was set up")]
    Vanished(String),
    /// The kernel's tables could not be read or written.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The overlay's device disappears again and again.
    #[error("the overlay's device was deleted {0} times within a minute: something else manages it")]
    Unstable(usize),
    /// The interface that was chosen at the start is away.
    #[error("there is no interface {0} now")]
    NoLink(String),
    /// The kernel refuses to set a VXLAN device up, since its UDP port serves something else.
    #[error(
        "cannot set {name} up: UDP port {port} is in use, by another VXLAN device whose settings differ \
         (such as GBP) or by a program; `ip -d link show type vxlan` and `ss -lunp` name it; give this network \
         another Backend.Port, or both devices the same settings"
    )]
    VxlanPort {
        /// The device, which was removed again.
        name: String,
        /// The port that it shares.
        port: u16,
    },
    /// The public IP is not the interface's own address, which host-gw's peers need as their gateway.
    #[error(
        "host-gw needs peers to reach this host at an address of its own: the public IP {public_ip} is not \
         {name}'s address {address}"
    )]
    PublicIp {
        /// The address that peers are told.
        public_ip: Ipv4Addr,
        /// The external interface.
        name: String,
        /// The address of that interface.
        address: Ipv4Addr,
    },
    /// A command of the extension backend failed.
    #[error("extension: {0}")]
    Command(#[from] CommandError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl BackendError {
    /// Whether waiting may help. The port and the device of a daemon that was killed are free only when the kernel has
    /// closed its io_uring, some time after the process is gone.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, BackendError::Udp(crate::udp::UdpError::InUse { .. }) | BackendError::Occupied { .. })
    }
}

/// What a backend is made of.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The network config.
    pub config: &'a Config,
    /// The interface that carries the overlay.
    pub external: &'a External,
    /// The settings of the packet path, which udp needs.
    pub engine: &'a EngineSettings,
    /// The way to the kernel's tables.
    pub netlink: &'a Netlink,
}

/// The future of a backend that is being configured.
type Configuring<'a> = LocalBoxFuture<'a, Result<Rc<dyn Backend>, BackendError>>;

/// A function that makes a backend of its kind.
type Configure = for<'a> fn(Setup<'a>) -> Configuring<'a>;

/// Every `Backend.Type` that is served, in the order in which errors name them, with the function that makes it.
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

/// The network that was made, in the shape that [`Backend::register`] returns.
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
        Some((_, configure)) => {
            let backend = configure(setup).await?;
            let published = backend.attrs().backend_type.as_deref();
            debug_assert!(published.is_none_or(|kind| kind == wanted), "{wanted} publishes {published:?}");
            Ok(backend)
        }
        None => Err(BackendError::Unknown(wanted.to_owned())),
    }
}

/// A backend as configured, without a lease yet.
pub trait Backend: fmt::Debug {
    /// The attributes that are published as the lease's value.
    fn attrs(&self) -> &LeaseAttrs;

    /// The MTU for containers, in bytes.
    fn mtu(&self) -> u32;

    /// The UDP port on which hosts send each other packets, which containers must not reach; `None` if the backend has
    /// none.
    fn guard(&self) -> Option<Guard> {
        None
    }

    /// This backend over `external`, which has taken the place of the interface or address that it had. The MTU for
    /// containers stays, since they exist already.
    ///
    /// # Errors
    /// The [`BackendError`] says why this backend cannot work over it.
    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError>;

    /// Makes `subnet` work on this host.
    ///
    /// # Errors
    /// The [`BackendError`] names what is missing.
    fn register<'a>(
        &'a self,
        netlink: &'a Netlink,
        subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>>;
}

/// What a call of [`Network::maintain`] is to see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What events have left to write, and the rest of a look that has begun.
    Changes,
    /// Everything: a look at all tables begins.
    Everything,
}

/// What a call of [`Network::maintain`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to do.
    Done,
    /// There is more to do: call it again as soon as everybody else was served.
    More,
}

/// Routes that are wanted and cannot be set, since the kernel refuses them or somebody else's are in their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is missing and why, in words.
    pub reason: String,
    /// Whether half of the peers or more are not reached.
    pub is_grave: bool,
}

/// A backend at work. What a method does by default is right for a backend that owns nothing in the kernel's tables.
pub trait Network: fmt::Debug {
    /// Follows the peers: takes the events of their leases, in order.
    fn apply(&mut self, events: &[Event]);

    /// Takes note that `external` has taken the place of the interface or address that this network used. The next
    /// [`Network::maintain`] with [`Look::Everything`] follows it.
    ///
    /// # Errors
    /// The [`BackendError`] says why this network cannot work over it; then nothing has changed.
    fn follow(&mut self, _external: &External) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether events have left something for the next [`Network::maintain`] to write.
    fn is_pending(&self) -> bool {
        false
    }

    /// Changes which packets from the network are let in, where this network looks at packets itself.
    fn set_peer_filter(&mut self, _filter: PeerFilter, _netlink: &Netlink) {}

    /// Whether a change of the kernel's tables could concern this network.
    fn concerns(&self, _change: &netlink::Change) -> bool {
        false
    }

    /// How long to wait before the next [`Network::maintain`] after a change that concerns this network. The pause
    /// keeps us from working without end against somebody who undoes every repair at once.
    fn repair_pause(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether a look at all tables is under way, so that another one has to wait.
    fn is_looking(&self) -> bool {
        false
    }

    /// Writes what events have left, or compares what is there with what should be, and mends the difference. With many
    /// peers it does a part of that and asks for another call. The first call comes after the first snapshot of peers
    /// was applied, so entries of peers that are gone may be removed.
    ///
    /// # Errors
    /// Something could not be mended now. The caller tries again later, except after [`BackendError::Unstable`].
    fn maintain<'a>(
        &'a mut self,
        _netlink: &'a Netlink,
        _look: Look,
    ) -> LocalBoxFuture<'a, Result<Progress, BackendError>> {
        std::future::ready(Ok(Progress::Done)).boxed_local()
    }

    /// What is wanted and cannot be set; `None` if all is in place, as far as the last [`Network::maintain`] has seen.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Whether every part of the data path still runs.
    fn is_alive(&self) -> bool {
        true
    }

    /// Ready when a part of the data path has ended by itself, which [`Network::maintain`] mends. One task may wait.
    fn poll_ended(&self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Reports the counters and peers; `None` for a network without a data path.
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
