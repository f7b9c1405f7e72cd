//! The `udp` backend has a TUN device, sockets, and the engine between them.
//!
//! The device carries the subnet's base address as a /32 and the route of the whole overlay, as flannel's does.
//! It is not persistent: when the process goes, so do device, address and route. If somebody deletes the device, the
//! engine is started anew on a new one; the sockets stay, so the port stays ours. If the external interface gets another
//! address, the engine is started anew on sockets of that address; the device stays.
//!
//! | file | |
//! |---|---|
//! | `config` | port, MTU and sockets |
//! | `device` | the TUN device with the engine on it |
//! | `peers` | what the events of peers mean for the routes |

mod config;
mod device;
mod peers;

pub(super) use crate::engine::{EngineError, PeerFilter, Settings as EngineSettings};
pub(super) use config::Config;

use super::repairs::Repairs;
use super::restarts::Restarts;
use super::{Backend, BackendError, Look, Network, Progress, Trouble, boxed, shared};
use crate::engine::Snapshot;
use crate::iface::External;
use crate::log::Complaint;
use crate::masq::Guard;
use crate::netlink::{Change, Changes, Mtu, Netlink, Route};
use crate::report::{DataPath, Sample, Worker, metric};
use crate::subnet::{Event, LeaseAttrs};
use crate::udp::Socket;
use device::Device;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use peers::Peers;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "udp";
/// How often within a minute we make a deleted device anew before we conclude that somebody else manages it.
const MOST_RESTARTS: usize = 3;

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    fn mtu(&self) -> u32 {
        self.mtu.into()
    }

    fn guard(&self) -> Option<Guard> {
        Some(self.port).filter(|port| *port != 0).map(|port| Guard { port, direct: false })
    }

    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError> {
        shared(self.over(external))
    }

    fn register<'a>(
        &'a self,
        netlink: &'a Netlink,
        subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>> {
        Overlay::start(self.clone(), netlink, subnet).map(boxed).boxed_local()
    }
}

/// The `udp` backend at work.
#[derive(Debug)]
struct Overlay {
    config: Config,
    subnet: Ipv4Net,
    receivers: Vec<Socket>,
    device: Option<Device>,
    peers: Peers,
    /// The repairs of device, address or route.
    repairs: Repairs,
    restarts: Restarts,
    /// Whether a worker does not answer, so that the engine must be started anew.
    broken: bool,
    /// Whether the sockets are still bound to an address that we have left, or the MTU is still that of the link before.
    outdated: bool,
    /// What the kernel had dropped at sockets that were closed since.
    past_overflows: u64,
    /// The addresses of hosts that have or had a lease; `None` once the routes of an older flannel by them are gone.
    hosts: Option<BTreeSet<Ipv4Addr>>,
    /// The sentence about somebody else's route that stands in the way of ours.
    blocked: Option<String>,
    /// The complaint about that route. It is never settled, so a route that comes and goes does not fill the log.
    complaint: Complaint<Instant>,
    /// The sum of the counters of earlier engines.
    past: Snapshot,
}

impl Overlay {
    async fn start(config: Config, netlink: &Netlink, subnet: Ipv4Net) -> Result<Overlay, BackendError> {
        let mut overlay = Overlay {
            receivers: config.receivers()?,
            peers: Peers::new(config.port),
            config,
            subnet,
            device: None,
            repairs: Repairs::default(),
            restarts: Restarts::new(MOST_RESTARTS),
            broken: false,
            outdated: false,
            past_overflows: 0,
            hosts: Some(BTreeSet::new()),
            blocked: None,
            complaint: Complaint::default(),
            past: Snapshot::default(),
        };
        overlay.launch(netlink).await?;
        Ok(overlay)
    }

    /// Makes the device, starts the engine on it and gives it its address and route.
    async fn launch(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        debug_assert!(self.device.is_none() && !self.broken, "the old engine is stopped first");
        let routes = self.peers.routes();
        debug_assert_eq!(routes.len(), self.peers.len(), "every peer has one route");
        let device = Device::start(&self.config, &self.receivers, routes, netlink, self.subnet).await?;
        let name = device.name().to_owned();
        self.device = Some(device);
        let changes = self.ensure(netlink).await?;
        info!("{name}: {changes}");
        Ok(())
    }

    /// Moves to sockets on the present address. The device stays, with all that leads through it.
    fn rebind(&mut self) -> Result<(), BackendError> {
        let bound = self.receivers.first().and_then(|socket| socket.local_addr().ok());
        if bound.is_none_or(|bound| *bound.ip() != self.config.bind) {
            // The new sockets come first, so that the old ones serve on if the address cannot be bound yet.
            let receivers = self.config.receivers()?;
            self.past_overflows += self.overflows();
            self.receivers = receivers;
            info!("the sockets are bound to {} now", self.config.bind);
        }
        self.outdated = false;
        let Some(device) = self.device.take() else { return Ok(()) };
        let (past, device) = device.restart(&self.config, &self.receivers, self.peers.routes());
        self.past += past;
        self.device = Some(device?);
        self.broken = false;
        Ok(())
    }

    /// What the kernel has dropped at the present sockets.
    fn overflows(&self) -> u64 {
        self.receivers.iter().map(|socket| u64::from(socket.overflows().unwrap_or(0))).sum()
    }

    /// Sets address, MTU, state and route of the device; returns what was missing.
    async fn ensure(&mut self, netlink: &Netlink) -> Result<Changes, BackendError> {
        let Some(index) = self.device.as_ref().map(Device::index) else { return Ok(Changes::default()) };
        let base = Ipv4Net::from(self.subnet.network());
        let mut changes = netlink.ensure_link(index, Mtu::Exactly(self.config.mtu.into()), true).await?;
        let (more, _) = netlink.ensure_address(index, base, self.config.network, |_| false).await?;
        changes.extend(more);
        let route =
            Route { destination: self.config.network, link_index: index, gateway: None, onlink: false };
        match netlink.ensure_route(route).await {
            Ok(more) => {
                self.blocked = None;
                changes.extend(more);
            }
            // The route is not ours to replace. flannel goes on too, without a word.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let text =
                    format!("another route to {} leads elsewhere and stays: {error}", self.config.network);
                if self.blocked.is_none() && self.complaint.is_news(Instant::now(), "") {
                    warn!("{text}");
                }
                self.blocked = Some(text);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(changes)
    }

    async fn compare(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        self.repairs.settle(Instant::now());
        if self.outdated {
            self.rebind()?;
        }
        self.clear_way(netlink).await?;
        if !self.is_whole(netlink).await? {
            if self.stop() {
                self.restarts.note(Instant::now())?;
            }
            self.launch(netlink).await?;
            self.repairs.count();
            info!("the TUN device is back");
            return Ok(());
        }
        let changes = self.ensure(netlink).await?;
        if let Some(device) = self.device.as_ref().filter(|_| !changes.is_empty()) {
            self.repairs.note(Instant::now(), format!("{}: {changes}", device.name()));
        }
        Ok(())
    }

    /// Removes, once, the routes to peers that an older flannel has left.
    async fn clear_way(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let (changes, error) = self.config.clear_way(netlink, Some(hosts)).await?;
        if !changes.is_empty() {
            info!("{changes}");
        }
        if let Some(error) = error {
            return Err(error.into());
        }
        self.hosts = None;
        Ok(())
    }

    async fn is_whole(&self, netlink: &Netlink) -> Result<bool, BackendError> {
        let Some(device) = &self.device else { return Ok(false) };
        if let Some(worker) = device.engine().ended() {
            warn!(worker, "a worker has ended");
            return Ok(false);
        }
        if self.broken {
            return Ok(false);
        }
        device.is_there(netlink).await
    }

    /// Stops the engine; false if none was running.
    fn stop(&mut self) -> bool {
        self.broken = false;
        let Some(device) = self.device.take() else { return false };
        self.past += device.stop();
        true
    }

    /// Gathers workers, peers and counters. The kernel's counters are of packets that it dropped before we saw them.
    async fn gather(&self, netlink: &Netlink) -> DataPath {
        let mut sum = self.past;
        let (mut workers, mut queue_full) = (Vec::new(), 0);
        if let Some(device) = &self.device {
            sum += device.engine().snapshot();
            let carriers = device.engine().carriers().iter();
            workers = carriers.map(|carrier| Worker { carrier: carrier.to_string() }).collect();
            queue_full = netlink.dropped_on_send(device.index()).await.ok().flatten().unwrap_or(0);
        }
        let overflows = self.past_overflows + self.overflows();
        let kernel =
            |queue, value| Sample::labelled(&metric::KERNEL_DROPPED_PACKETS, queue, ("reason", queue), value);
        let mut samples = self.peers.strangers.samples().to_vec();
        samples.push(Sample::new(&metric::RECONCILE_REPAIRS, "repairs", self.repairs.total()));
        let refused = u64::from(self.blocked.is_some());
        samples.push(Sample::new(&metric::REFUSED_ENTRIES, "refused_entries", refused));
        samples.extend(sum.samples());
        samples.extend([kernel("tun_queue_full", queue_full), kernel("socket_overflow", overflows)]);
        DataPath { workers, peers: self.peers.len(), samples }
    }
}

impl Network for Overlay {
    fn apply(&mut self, events: &[Event]) {
        if let Some(hosts) = &mut self.hosts {
            hosts.extend(events.iter().map(Event::public_ip));
        }
        for event in events {
            let Some(command) = self.peers.follow(event) else { continue };
            let Some(device) = self.device.as_ref().filter(|_| !self.broken) else { continue };
            if let Err(error) = device.engine().route(command) {
                // The next pass starts a new engine with all the peers that are noted.
                warn!("{error}");
                self.broken = true;
            }
        }
        self.peers.strangers.tell(KIND);
    }

    fn set_peer_filter(&mut self, filter: PeerFilter, netlink: &Netlink) {
        if self.config.engine.peer_filter == filter {
            return;
        }
        // A device that is made later gets it from here.
        self.config.engine.peer_filter = filter;
        let Some(device) = self.device.as_ref().filter(|_| !self.broken) else { return };
        match device.set_peer_filter(filter, netlink) {
            Ok(()) => info!("{}: the peer filter is {filter} now", device.name()),
            Err(error) => {
                warn!("{error}");
                self.broken = true;
            }
        }
    }

    fn follow(&mut self, external: &External) -> Result<(), BackendError> {
        let config = self.config.over(external)?;
        let same = (config.bind, config.mtu) == (self.config.bind, self.config.mtu);
        self.outdated |= !same;
        self.config = config;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.broken || self.outdated || self.hosts.is_some()
    }

    fn concerns(&self, change: &Change) -> bool {
        let index = self.device.as_ref().map(Device::index);
        match change {
            Change::Link { index: changed, .. } | Change::Address { link_index: changed, .. } => {
                Some(*changed) == index
            }
            Change::Route { destination, .. } => *destination == self.config.network,
            Change::Overrun => true,
        }
    }

    fn repair_pause(&self) -> Duration {
        self.repairs.pause(Instant::now())
    }

    fn maintain<'a>(
        &'a mut self,
        netlink: &'a Netlink,
        _look: Look,
    ) -> LocalBoxFuture<'a, Result<Progress, BackendError>> {
        self.compare(netlink).map(|done| done.map(|()| Progress::Done)).boxed_local()
    }

    fn trouble(&self) -> Option<Trouble> {
        Some(Trouble { reason: self.blocked.clone()?, is_grave: true })
    }

    fn is_alive(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.engine().ended().is_none())
    }

    fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        self.device.as_ref().map_or(Poll::Pending, |device| device.poll_ended(context))
    }

    fn report<'a>(&'a self, netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>> {
        self.gather(netlink).map(Some).boxed_local()
    }
}
