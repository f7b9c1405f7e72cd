//! The `udp` backend: a TUN device, sockets, and the engine between them.
//!
//! The device carries the subnet's base address as a /32 and the route of the whole overlay, as flannel's does.
//! It is not persistent: when the process goes, so do device, address and route. If somebody deletes it, the
//! engine is started anew on a new one; the sockets stay, so the port is never let go.

use super::BackendError;
use super::repairs::Repairs;
pub(super) use crate::engine::EngineError;
pub use crate::engine::{Settings as EngineSettings, Snapshot};

use crate::engine::{Engine, Link, PeerFilter, Setup, UdpOffload};
use crate::iface::External;
use crate::lease::{Event, Lease};
use crate::netlink::{Change, Changes, Netlink, Route};
use crate::route::{Peer, RouteCommand};
use crate::subnet::{self, LeaseAttrs};
use crate::tun::Device;
use crate::udp::{Socket, SocketOptions, max_segments};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// flannel's name for the device; the kernel puts the number in.
const DEVICE: &str = "flannel%d";
/// Outer IPv4 and UDP headers.
const OVERHEAD: u32 = 28;
/// 65 535 less both headers.
const LARGEST_PAYLOAD: u32 = 65_507;
/// The smallest MTU of an IPv4 link (RFC 791).
const LEAST_MTU: u32 = 68;
/// Workers by default: one on up to two cores (a second would fight the first for the core that the
/// kernel's half of the work needs), then one a core up to four.
const MOST_WORKERS: usize = 4;
/// A device that is deleted more often than this within a minute belongs to somebody else's management.
const MOST_RESTARTS: usize = 3;
/// A foreign route that comes and goes is told of this often at most.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The backend as configured.
#[derive(Debug, Clone)]
pub struct Config {
    network: Ipv4Net,
    port: u16,
    bind: Ipv4Addr,
    mtu: u16,
    engine: EngineSettings,
    attrs: LeaseAttrs,
}

impl Config {
    pub(super) fn new(
        config: &subnet::Config,
        external: &External,
        engine: &EngineSettings,
        attrs: LeaseAttrs,
    ) -> Result<Config, BackendError> {
        let mtu = external.mtu.saturating_sub(OVERHEAD);
        if mtu < LEAST_MTU {
            return Err(BackendError::Mtu { name: external.name.clone(), mtu: external.mtu });
        }
        Ok(Config {
            network: config.network,
            port: config.backend.port()?,
            bind: external.address,
            // No wider link can help: that is the largest UDP payload.
            mtu: u16::try_from(mtu.min(LARGEST_PAYLOAD)).unwrap_or(u16::MAX),
            engine: engine.clone(),
            attrs,
        })
    }

    pub(super) fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    pub(super) fn mtu(&self) -> u32 {
        self.mtu.into()
    }

    fn workers(&self) -> usize {
        self.engine.workers.unwrap_or_else(|| match std::thread::available_parallelism() {
            Ok(cores) if cores.get() > 2 => cores.get().min(MOST_WORKERS),
            _ => 1,
        })
    }

    /// One socket to receive on for each worker.
    fn receivers(&self) -> Result<Vec<Socket>, BackendError> {
        let address = SocketAddrV4::new(self.bind, self.port);
        let workers = self.workers();
        if workers > 1 {
            // With SO_REUSEPORT the kernel would let us share the port with another flanneld of ours.
            drop(Socket::bind(address, SocketOptions::default())?);
        }
        let options = self.socket_options(workers > 1);
        (0..workers).map(|_| Ok(Socket::bind(address, options)?)).collect()
    }

    fn socket_options(&self, reuse_port: bool) -> SocketOptions {
        SocketOptions {
            reuse_port,
            receive_buffer: self.engine.receive_buffer,
            send_buffer: self.engine.send_buffer,
            gro: matches!(self.engine.udp_offload, UdpOffload::Auto | UdpOffload::Receive),
        }
    }

    /// The sockets of a worker that receives on `receiver`, and sends from a port of its own or from that one.
    fn pair(&self, receiver: &Socket, own_port: bool) -> Result<(Socket, Socket), BackendError> {
        let copy = |socket: &Socket| socket.try_clone().map_err(BackendError::ShareSocket);
        let sender = if !own_port {
            copy(receiver)?
        } else {
            // Nobody reads what is sent to it: let it hold as little as the kernel allows.
            let options = SocketOptions { receive_buffer: 1, gro: false, ..self.socket_options(false) };
            Socket::bind(SocketAddrV4::new(self.bind, 0), options)?
        };
        Ok((copy(receiver)?, sender))
    }
}

/// The backend at work.
#[derive(Debug)]
pub struct Network {
    config: Config,
    subnet: Ipv4Net,
    receivers: Vec<Socket>,
    running: Option<Running>,
    peers: BTreeMap<Ipv4Net, SocketAddrV4>,
    /// Leases of another backend's nodes, by their events.
    foreign: u64,
    /// Repairs of device, address or route.
    repairs: Repairs,
    restarts: Vec<Instant>,
    /// A worker does not answer: the engine must be started anew.
    broken: bool,
    /// Somebody else's route stands in the way.
    blocked: bool,
    /// When that was said.
    blocked_said: Option<Instant>,
    /// Counters of engines that are no more.
    past: Snapshot,
}

/// A device with the engine on it. The engine goes first: it works on the device's queues.
#[derive(Debug)]
struct Running {
    engine: Engine,
    device: String,
    index: u32,
}

impl Network {
    pub(super) async fn start(
        config: Config,
        netlink: &Netlink,
        subnet: Ipv4Net,
    ) -> Result<Network, BackendError> {
        let mut network = Network {
            receivers: config.receivers()?,
            config,
            subnet,
            running: None,
            peers: BTreeMap::new(),
            foreign: 0,
            repairs: Repairs::default(),
            restarts: Vec::new(),
            broken: false,
            blocked: false,
            blocked_said: None,
            past: Snapshot::default(),
        };
        network.launch(netlink).await?;
        Ok(network)
    }

    /// Makes the device and starts the engine on it.
    async fn launch(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        let config = &self.config;
        let device = Device::create(DEVICE, self.receivers.len(), config.engine.tun_offload)?;
        let (name, offloads) = (device.name().to_owned(), device.offloads());
        let spread = !config.engine.one_source_port && device.keeps_flows();
        if !device.keeps_flows() {
            warn!(
                "no steering program on {name} (it takes CAP_BPF): a flow may change its worker once, out of order, \
                 and all workers send from one port lest it change again"
            );
        }
        let sending = matches!(config.engine.udp_offload, UdpOffload::Auto | UdpOffload::Send);
        let segments = sending.then(max_segments).flatten();
        let mut links = Vec::with_capacity(self.receivers.len());
        for (index, (queue, receiver)) in device.into_queues().into_iter().zip(&self.receivers).enumerate() {
            let (receiver, sender) = config.pair(receiver, index > 0 && spread)?;
            links.push(Link { queue, receiver, sender });
        }
        let gone = || BackendError::Vanished(name.clone());
        let index = netlink.link_by_name(&name).await?.ok_or_else(gone)?.index;
        netlink.disable_ipv6(&name);
        // Our ICMP errors need it. Without the peer filter it would let strangers speak as this host itself.
        if config.engine.peer_filter != PeerFilter::Off {
            netlink.accept_local(&name);
        }
        let setup = Setup {
            settings: config.engine.clone(),
            network: config.network,
            subnet: self.subnet,
            max_packet: config.mtu,
            offloads,
            segments,
            links,
            routes: self.peers.iter().map(|(subnet, address)| set(*subnet, *address)).collect(),
        };
        let engine = Engine::start(setup)?;
        info!(
            "{name}: {} worker(s), TSO {}, USO {}, UDP_SEGMENT {}, UDP_GRO {}",
            engine.carriers().len(),
            offloads.tso,
            offloads.uso,
            segments.is_some(),
            self.receivers.iter().all(Socket::gro),
        );
        self.running = Some(Running { engine, device: name.clone(), index });
        let changes = self.ensure(netlink).await?;
        info!("{name}: {changes}");
        Ok(())
    }

    /// Address, MTU, state and route of the device; what was missing.
    async fn ensure(&mut self, netlink: &Netlink) -> Result<Changes, BackendError> {
        let Some(running) = &self.running else { return Ok(Changes::default()) };
        let base = Ipv4Net::from(self.subnet.network());
        let mut changes = netlink.ensure_link(running.index, self.config.mtu(), true).await?;
        changes.extend(netlink.ensure_address(running.index, base).await?);
        let route = Route {
            destination: self.config.network,
            link_index: running.index,
            gateway: None,
            onlink: false,
        };
        match netlink.ensure_route(route).await {
            Ok(more) => {
                self.blocked = false;
                changes.extend(more);
            }
            // Not ours to replace; flannel goes on without a word.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let news = self.blocked_said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
                if !self.blocked && news {
                    self.blocked_said = Some(Instant::now());
                    warn!("another route to {} leads elsewhere and stays: {error}", self.config.network);
                }
                self.blocked = true;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(changes)
    }

    pub(super) fn apply(&mut self, events: &[Event]) {
        for event in events {
            let Some(command) = self.follow(event) else { continue };
            let Some(running) = self.running.as_ref().filter(|_| !self.broken) else { continue };
            if let Err(error) = running.engine.route(command) {
                // The next pass starts a new engine, with all the peers that are noted here.
                warn!("{error}");
                self.broken = true;
            }
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.broken
    }

    /// Notes one event; the command it makes for the workers, if any.
    fn follow(&mut self, event: &Event) -> Option<RouteCommand> {
        match event {
            Event::Added(lease) if is_ours(lease) => {
                let address = SocketAddrV4::new(lease.attrs.public_ip, self.config.port);
                let known = self.peers.insert(lease.subnet, address);
                (known != Some(address)).then(|| set(lease.subnet, address))
            }
            Event::Added(lease) => {
                self.foreign += 1;
                warn!(subnet = %lease.subnet, kind = ?lease.attrs.backend_type, "not a udp node's lease: ignored");
                self.forget(lease.subnet)
            }
            Event::Removed(lease) => self.forget(lease.subnet),
        }
    }

    fn forget(&mut self, subnet: Ipv4Net) -> Option<RouteCommand> {
        self.peers.remove(&subnet).map(|_| RouteCommand::Del { subnet })
    }

    pub(super) fn concerns(&self, change: &Change) -> bool {
        let index = self.running.as_ref().map(|running| running.index);
        match change {
            Change::Link { index: changed, .. } | Change::Address { link_index: changed, .. } => {
                Some(*changed) == index
            }
            Change::Route { destination, .. } => *destination == self.config.network,
            Change::Overrun => true,
        }
    }

    pub(super) fn repair_pause(&self) -> Duration {
        self.repairs.pause(Instant::now())
    }

    pub(super) async fn maintain(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        self.repairs.settle(Instant::now());
        if !self.is_alive(netlink).await? {
            if self.stop() {
                self.note_restart()?;
            }
            self.launch(netlink).await?;
            self.repairs.count();
            info!("the TUN device is back");
            return Ok(());
        }
        let changes = self.ensure(netlink).await?;
        if let Some(running) = self.running.as_ref().filter(|_| !changes.is_empty()) {
            self.repairs.note(Instant::now(), format!("{}: {changes}", running.device));
        }
        Ok(())
    }

    async fn is_alive(&self, netlink: &Netlink) -> Result<bool, BackendError> {
        let Some(running) = &self.running else { return Ok(false) };
        if let Some(worker) = running.engine.ended() {
            warn!(worker, "a worker has ended");
            return Ok(false);
        }
        if self.broken {
            return Ok(false);
        }
        let link = netlink.link_by_index(running.index).await?;
        let alive = link.is_some_and(|link| link.name == running.device);
        if !alive {
            warn!("{} was deleted", running.device);
        }
        Ok(alive)
    }

    pub(super) fn workers_alive(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.engine.ended().is_none())
    }

    pub(super) fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        self.running.as_ref().map_or(Poll::Pending, |running| running.engine.poll_ended(context).map(drop))
    }

    fn note_restart(&mut self) -> Result<(), BackendError> {
        self.restarts.retain(|at| at.elapsed() < Duration::from_secs(60));
        self.restarts.push(Instant::now());
        if self.restarts.len() > MOST_RESTARTS {
            return Err(BackendError::Unstable(self.restarts.len()));
        }
        Ok(())
    }

    /// Stops the engine; false if none was running.
    fn stop(&mut self) -> bool {
        self.broken = false;
        let Some(running) = self.running.take() else { return false };
        let (counters, result) = running.engine.stop();
        self.past += counters;
        if let Err(error) = result {
            warn!(%error, "a worker ended with an error");
        }
        true
    }

    /// Counters: `worker`, `peers`, `count` and `drop` lines, then `kernel` lines for packets that the kernel
    /// dropped before we saw them.
    pub(super) async fn report(&self, netlink: &Netlink) -> String {
        let mut sum = self.past;
        let mut text = String::new();
        let mut queue_full = 0;
        if let Some(running) = &self.running {
            sum += running.engine.snapshot();
            for (worker, carrier) in running.engine.carriers().iter().enumerate() {
                let _ = writeln!(text, "worker {worker} {carrier}");
            }
            queue_full = netlink.dropped_on_send(running.index).await.ok().flatten().unwrap_or(0);
        }
        let overflows = self.receivers.iter().map(|socket| u64::from(socket.overflows().unwrap_or(0)));
        let _ = writeln!(text, "peers {}", self.peers.len());
        let _ = writeln!(text, "count foreign_leases {}", self.foreign);
        let _ = writeln!(text, "count repairs {}", self.repairs.total());
        let _ = write!(text, "{sum}");
        let _ = writeln!(text, "kernel tun_queue_full {queue_full}");
        let _ = writeln!(text, "kernel socket_overflow {}", overflows.sum::<u64>());
        text
    }
}

fn set(subnet: Ipv4Net, address: SocketAddrV4) -> RouteCommand {
    RouteCommand::Set { subnet, peer: Peer { address } }
}

/// udp nodes publish no type; one that says so is welcome too.
fn is_ours(lease: &Lease) -> bool {
    lease.attrs.backend_type.as_deref().is_none_or(|kind| kind.is_empty() || kind.eq_ignore_ascii_case("udp"))
}
