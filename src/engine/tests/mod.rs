//! The pipeline is tested without a kernel, as a [`Bench`] over [`MemoryPort`]. Then the whole engine is tested on a
//! real TUN device and real sockets in namespaces of their own, as a [`rig::Rig`].

mod conformance;
mod conservation;
mod contract;
mod drops;
mod ending;
mod fallback;
mod icmp;
mod life;
mod moderation;
mod refusals;
mod rig;
mod routes;

use super::port::{Arrival, MemoryPort, Sent};
use super::settings::{PeerFilter, Settings};
use super::start::Pipeline;
use super::worker::{Command, Worker};
use super::{Count, Counters, DropReason, Snapshot};
use crate::offload::batch::Limits;
use crate::offload::tests::reference::{Spec, cut, frame as super_frame, ramp};
use crate::route::{Peer, RouteCommand, RouteTable};
use crate::tun::Offloads;
use crossbeam::channel::{Sender, bounded};
use ipnet::Ipv4Net;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// The peer of 10.1.9.0/24.
const NINE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 8285);
/// The peer of 10.1.7.0/24.
const SEVEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 8285);
/// A host that is no peer.
const STRANGER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 66), 8285);
const ALL: Offloads = Offloads { checksum: true, tso: true, uso: true };
const LIMITS: Limits = Limits { max_segments: 64, max_segment_size: 1472, enabled: true };
/// A bench that still has work after so many steps is stuck.
const PATIENCE: usize = 10_000;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn set(subnet: &str, address: SocketAddrV4) -> RouteCommand {
    RouteCommand::Set { subnet: net(subnet), peer: Peer { address } }
}

/// A worker on a port in memory. It has subnet 10.1.5.0/24 of 10.1.0.0/16, and two peers.
struct Bench {
    worker: Worker<MemoryPort>,
    commands: Sender<Command>,
    counters: Arc<Counters>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(&Settings::default(), ALL, LIMITS)
    }

    fn filtering(peer_filter: PeerFilter) -> Bench {
        Bench::with(&Settings { peer_filter, ..Settings::default() }, ALL, LIMITS)
    }

    fn with(settings: &Settings, offloads: Offloads, limits: Limits) -> Bench {
        let mut routes = RouteTable::new(net("10.1.0.0/16"));
        routes.apply(&set("10.1.9.0/24", NINE)).unwrap();
        routes.apply(&set("10.1.7.0/24", SEVEN)).unwrap();
        let (commands, receiver) = bounded(64);
        let counters = Arc::new(Counters::default());
        let pipeline = Pipeline {
            commands: receiver,
            counters: Arc::clone(&counters),
            routes,
            subnet: net("10.1.5.0/24"),
            limits,
            offloads,
        };
        Bench { worker: pipeline.worker(MemoryPort::default(), settings), commands, counters }
    }

    fn port(&mut self) -> &mut MemoryPort {
        &mut self.worker.port
    }

    /// The kernel hands out a whole packet with nothing left to do.
    fn reads(&mut self, packet: &[u8]) -> &mut Bench {
        let mut frame = vec![0; 10];
        frame.extend(packet);
        self.port().frames.push_back(frame);
        self
    }

    fn receives(&mut self, from: SocketAddrV4, payload: &[u8]) -> &mut Bench {
        self.arrives(from, payload, None)
    }

    fn arrives(&mut self, from: SocketAddrV4, payload: &[u8], stride: Option<u16>) -> &mut Bench {
        let arrival = Arrival { payload: payload.to_vec(), from, stride, truncated: false };
        self.port().arrivals.push_back(arrival);
        self
    }

    /// Runs one round of the worker's loop.
    fn step(&mut self) {
        assert!(self.worker.obey());
        self.worker.gather();
        self.worker.turn(Duration::ZERO).unwrap();
    }

    /// Runs rounds until all input is gone.
    fn settle(&mut self) -> &mut Bench {
        for _ in 0..PATIENCE {
            self.step();
            if self.port().frames.is_empty() && self.port().arrivals.is_empty() {
                return self;
            }
        }
        panic!("stuck with input left: {}", self.counters.snapshot());
    }

    fn snapshot(&self) -> Snapshot {
        self.counters.snapshot()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.snapshot().dropped(reason)
    }

    fn count(&self, count: Count) -> u64 {
        self.snapshot().get(count)
    }

    /// What went to peers, packet by packet and in order. Resent packets are not among them.
    fn packets_sent(&self) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let each = |sent: &Sent| {
            let size = sent.segment_size.map_or(sent.bytes.len(), usize::from).max(1);
            let cut = sent.bytes.chunks(size).map(|packet| (sent.to, packet.to_vec()));
            cut.collect::<Vec<_>>()
        };
        self.worker.port.sent.iter().flat_map(each).collect()
    }

    /// What the kernel behind the TUN gets, packet by packet and in order.
    fn packets_written(&self) -> Vec<Vec<u8>> {
        self.worker.port.written.iter().flat_map(|frame| cut(frame)).collect()
    }
}

/// A datagram from our subnet to peer Nine's.
fn outgoing(payload: usize) -> Spec {
    Spec { source: [10, 1, 5, 2], destination: [10, 1, 9, 3], ..Spec::udp(ramp(payload)) }
}

/// A datagram from peer Nine's subnet to ours.
fn incoming(payload: usize) -> Spec {
    Spec { source: [10, 1, 9, 3], destination: [10, 1, 5, 2], ..Spec::udp(ramp(payload)) }
}
