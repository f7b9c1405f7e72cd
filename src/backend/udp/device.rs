//! The TUN device of the `udp` backend, with the engine on it.

use super::config::Config;
use crate::backend::BackendError;
use crate::engine::{Engine, EngineError, Link, PeerFilter, Setup, Snapshot, UdpOffload};
use crate::netlink::Netlink;
use crate::route::RouteCommand;
use crate::tun::{self, Offloads, Queue};
use crate::udp::{Socket, max_segments};
use ipnet::Ipv4Net;
use std::task::{Context, Poll};
use tracing::{info, warn};

/// The name that flannel gives the device; the kernel puts the number in.
const NAME: &str = "flannel%d";

/// A device with the engine on it. It lives as long as this value or its engine.
#[derive(Debug)]
pub(super) struct Device {
    engine: Engine,
    /// A second descriptor of each queue. With them the device outlives an engine that gives way to another.
    queues: Vec<Queue>,
    offloads: Offloads,
    keeps_flows: bool,
    subnet: Ipv4Net,
    name: String,
    index: u32,
}

impl Device {
    /// Makes the device and starts the engine on it, with `routes` and one worker for each of `receivers`.
    pub(super) async fn start(
        config: &Config,
        receivers: &[Socket],
        routes: Vec<RouteCommand>,
        netlink: &Netlink,
        subnet: Ipv4Net,
    ) -> Result<Device, BackendError> {
        clear_way(config.network, netlink).await?;
        let device = tun::Device::create(NAME, receivers.len(), config.engine.tun_offload)?;
        let (name, offloads) = (device.name().to_owned(), device.offloads());
        let keeps_flows = device.keeps_flows();
        if !keeps_flows {
            warn!(
                "no steering program on {name} (it takes CAP_BPF): a flow may change its worker once, out of order, \
                 and all workers send from one port lest it change again"
            );
        }
        let gone = || BackendError::Vanished(name.clone());
        let index = netlink.link_by_name(&name).await?.ok_or_else(gone)?.index;
        netlink.disable_ipv6(&name);
        // Our ICMP errors need accept_local. Without the peer filter it would let strangers speak as this host itself.
        if config.engine.peer_filter != PeerFilter::Off {
            netlink.accept_local(&name);
        }
        let queues = device.into_queues();
        let links = links(config, receivers, &queues, keeps_flows)?;
        let engine = Engine::start(setup(config, offloads, links, routes, subnet))?;
        debug_assert_eq!(engine.carriers().len(), receivers.len(), "every worker receives on one socket");
        info!(
            "{name}: {} worker(s), TSO {}, USO {}, UDP_SEGMENT {}, UDP_GRO {}",
            engine.carriers().len(),
            offloads.tso,
            offloads.uso,
            segments(config).is_some(),
            receivers.iter().all(Socket::gro),
        );
        Ok(Device { engine, queues, offloads, keeps_flows, subnet, name, index })
    }

    /// Starts another engine on the same device, with other sockets. What arrives meanwhile waits in the kernel's
    /// queues. Returns what the old engine counted; if the new one does not start, the device is gone.
    pub(super) fn restart(
        self,
        config: &Config,
        receivers: &[Socket],
        routes: Vec<RouteCommand>,
    ) -> (Snapshot, Result<Device, BackendError>) {
        let Device { engine, queues, offloads, keeps_flows, subnet, name, index } = self;
        debug_assert_eq!(queues.len(), receivers.len(), "as many workers as before");
        let links = links(config, receivers, &queues, keeps_flows);
        let past = end(engine);
        let started = links.and_then(|links| {
            let engine = Engine::start(setup(config, offloads, links, routes, subnet))?;
            Ok(Device { engine, queues, offloads, keeps_flows, subnet, name, index })
        });
        (past, started)
    }

    /// The device's name, as the kernel completed it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The device's number (ifindex).
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The engine on the device.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Changes the filter of every worker. `accept_local` is on only while a filter is, also in between.
    pub(super) fn set_peer_filter(&self, filter: PeerFilter, netlink: &Netlink) -> Result<(), EngineError> {
        if filter == PeerFilter::Off {
            netlink.refuse_local(&self.name);
        }
        self.engine.set_peer_filter(filter)?;
        if filter != PeerFilter::Off {
            netlink.accept_local(&self.name);
        }
        Ok(())
    }

    /// Whether the device is still there. If it is not, the log says so.
    pub(super) async fn is_there(&self, netlink: &Netlink) -> Result<bool, BackendError> {
        let link = netlink.link_by_index(self.index).await?;
        let there = link.is_some_and(|link| link.name == self.name);
        if !there {
            warn!("{} was deleted", self.name);
        }
        Ok(there)
    }

    /// Ready when a worker has ended by itself.
    pub(super) fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        self.engine.poll_ended(context).map(drop)
    }

    /// Stops the engine, and with it the device; returns what the engine counted.
    pub(super) fn stop(self) -> Snapshot {
        end(self.engine)
    }
}

/// Stops an engine; returns what it counted.
fn end(engine: Engine) -> Snapshot {
    let (counters, result) = engine.stop();
    if let Err(error) = result {
        warn!(%error, "a worker ended with an error");
    }
    counters
}

/// The most segments of one send, if sends may be segmented.
fn segments(config: &Config) -> Option<u16> {
    let sending = matches!(config.engine.udp_offload, UdpOffload::Auto | UdpOffload::Send);
    sending.then(max_segments).flatten()
}

/// What an engine starts with.
fn setup(
    config: &Config,
    offloads: Offloads,
    links: Vec<Link>,
    routes: Vec<RouteCommand>,
    subnet: Ipv4Net,
) -> Setup {
    Setup {
        settings: config.engine.clone(),
        network: config.network,
        subnet,
        max_packet: config.mtu,
        offloads,
        segments: segments(config),
        links,
        routes,
    }
}

/// Takes the place of a TUN device that another flannel has left behind with the route of the overlay: the kernel would
/// send every packet there, and nobody would read it.
async fn clear_way(network: Ipv4Net, netlink: &Netlink) -> Result<(), BackendError> {
    for link in netlink.links_to(network).await? {
        // A route by a device of another name is an operator's, and a warning tells of it.
        if !link.name.starts_with(NAME.trim_end_matches("%d")) {
            continue;
        }
        if !netlink.remove_unheld_tun(link.index).await? {
            return Err(BackendError::Occupied { network, name: link.name });
        }
        info!("{} had the route to {network} and no reader: removed, to be made anew", link.name);
    }
    Ok(())
}

/// What each worker works on, which is a queue of the device, a socket to receive on and one to send on.
fn links(
    config: &Config,
    receivers: &[Socket],
    queues: &[Queue],
    keeps_flows: bool,
) -> Result<Vec<Link>, BackendError> {
    let spread = !config.engine.one_source_port && keeps_flows;
    debug_assert_eq!(queues.len(), receivers.len(), "every worker has a queue and a socket");
    let mut links = Vec::with_capacity(receivers.len());
    for (index, (queue, receiver)) in queues.iter().zip(receivers).enumerate() {
        let (receiver, sender) = config.pair(receiver, index > 0 && spread)?;
        let queue = queue.try_clone().map_err(BackendError::ShareQueue)?;
        links.push(Link { queue, receiver, sender });
    }
    Ok(links)
}
