//! Starts the workers: each gets its buffers, its port and its thread.

use super::budgets::{FRAMES, HEAD_BYTES, PIECES, TRAINS, ring_sizes};
use super::counters::Counters;
use super::moderation::Moderation;
use super::port::{Link, Outgoing, PollPort, PollSizes, Port, UringPort};
use super::refusals::Refusals;
use super::settings::{Carrier, MAX_WORKERS, Settings};
use super::tun_to_udp::TunToUdp;
use super::udp_to_tun::UdpToTun;
use super::worker::{Command, Worker};
use super::{Alive, Engine, EngineError, Handle};
use crate::offload::batch::{Limits, Trains};
use crate::offload::coalesce::{self, Coalescer};
use crate::ring::{Descriptors, Ring, RingError, Wake, probe};
use crate::route::{RouteCommand, RouteTable};
use crate::tun::Offloads;
use crossbeam::channel::{Receiver, Sender, bounded};
use ipnet::Ipv4Net;
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tracing::{info, warn};

/// How late a worker's timer may fire, in nanoseconds.
const TIMER_SLACK_NS: u64 = 1000;
/// How many commands may wait for a worker.
const COMMANDS: usize = 4096;

/// Finds out before anything is leased whether this host has io_uring, and says once what is lost without it. With
/// `--engine=auto` the settings say poll afterwards if it has none.
///
/// # Errors
/// io_uring is demanded (`--engine=uring`) and cannot be had; [`EngineError::Ring`] names the remedy.
pub fn settle_carrier(settings: &mut Settings) -> Result<(), EngineError> {
    if settings.carrier == Carrier::Poll {
        return Ok(());
    }
    let buffers = u16::try_from(settings.buffers).unwrap_or(u16::MAX);
    match probe(ring_sizes(buffers, settings.spin)) {
        Ok(()) => Ok(()),
        Err(error) if settings.carrier == Carrier::Uring => Err(error.into()),
        Err(error) => {
            info!(
                "no io_uring: using poll, with a system call for each read, send and write (bulk TCP and UDP still \
                 use segmentation offload); what would bring it: {}",
                error.cause()
            );
            settings.carrier = Carrier::Poll;
            Ok(())
        }
    }
}

/// All that the engine needs to start.
#[derive(Debug)]
pub struct Setup {
    /// What the operator has set.
    pub settings: Settings,
    /// The network of the whole overlay.
    pub network: Ipv4Net,
    /// The subnet of the overlay that is ours.
    pub subnet: Ipv4Net,
    /// The largest packet that fits the external link with its outer headers: the link's MTU − 28.
    pub max_packet: u16,
    /// The offloads that the TUN device took.
    pub offloads: Offloads,
    /// Most packets in one `UDP_SEGMENT` send; `None` if the kernel lacks it or the operator has switched it off.
    pub segments: Option<u16>,
    /// The descriptors of each worker; there are as many workers as links.
    pub links: Vec<Link>,
    /// The routes that are known already.
    pub routes: Vec<RouteCommand>,
}

pub(super) fn start(setup: Setup) -> Result<Engine, EngineError> {
    debug_assert!(setup.settings.are_in_range(), "{:?}", setup.settings);
    debug_assert!(setup.links.len() <= MAX_WORKERS);
    let mut engine = Engine { workers: Vec::new(), carriers: Vec::new(), waiting: Arc::default() };
    let mut routes = RouteTable::new(setup.network);
    for command in &setup.routes {
        if let Err(error) = routes.apply(command) {
            warn!(%error, "route refused");
        }
    }
    let limits = Limits {
        max_segments: setup.segments.unwrap_or(1),
        max_segment_size: setup.max_packet,
        enabled: setup.segments.is_some(),
    };
    for (index, link) in setup.links.into_iter().enumerate() {
        let failed = |error| EngineError::Start(index, error);
        let wake = Wake::new().map_err(failed)?;
        let (sender, commands) = bounded(COMMANDS);
        let counters = Arc::new(Counters::default());
        let pipeline = Pipeline {
            commands,
            counters: Arc::clone(&counters),
            routes: routes.clone(),
            subnet: setup.subnet,
            limits,
            offloads: setup.offloads,
        };
        let place = Place { index, link, wake: wake.clone(), settings: setup.settings.clone() };
        let (started, report) = bounded(1);
        let (sign, alive) = bounded(0);
        let sign = Alive { sender: Some(sign), waiting: Arc::clone(&engine.waiting) };
        let thread = thread::Builder::new()
            .name(format!("fl-w{index}"))
            .spawn(move || {
                let _sign = sign;
                place.work(pipeline, &started)
            })
            .map_err(failed)?;
        engine.workers.push(Handle { commands: sender, wake, counters, thread: Some(thread), alive });
        let carrier = report.recv().map_err(|_| EngineError::Worker(index))??;
        info!(worker = index, %carrier, "worker started");
        engine.carriers.push(carrier);
    }
    Ok(engine)
}

/// What a worker is made of, apart from what carries its packets.
pub(super) struct Pipeline {
    pub(super) commands: Receiver<Command>,
    pub(super) counters: Arc<Counters>,
    pub(super) routes: RouteTable,
    pub(super) subnet: Ipv4Net,
    pub(super) limits: Limits,
    pub(super) offloads: Offloads,
}

impl Pipeline {
    /// Allocates all that the worker will ever need.
    pub(super) fn worker<P: Port>(self, port: P, settings: &Settings) -> Worker<P> {
        let coalescer = Coalescer::new(coalesce::Settings {
            tcp: self.offloads.tso,
            udp: self.offloads.uso,
            frames: FRAMES,
            pieces: PIECES,
            header_bytes: HEAD_BYTES,
        });
        Worker {
            port,
            out: Outgoing { trains: Trains::new(TRAINS, self.limits), coalescer },
            tun_to_udp: TunToUdp::new(self.subnet.network()),
            udp_to_tun: UdpToTun::new(self.subnet, settings.peer_filter),
            routes: self.routes,
            commands: self.commands,
            counters: self.counters,
            reads_per_turn: settings.reads_per_turn,
            receive_errors: 0,
            refusals: Refusals::new(self.limits),
            moderation: Moderation::new(settings.moderation, Instant::now()),
        }
    }
}

type Started = Sender<Result<Carrier, RingError>>;

/// Where a worker works: its descriptors and what its thread is to be.
struct Place {
    index: usize,
    link: Link,
    wake: Wake,
    settings: Settings,
}

impl Place {
    /// The body of the worker's thread. It makes the ring itself, since only the thread that made a ring may use it.
    fn work(self, pipeline: Pipeline, started: &Started) -> io::Result<()> {
        self.pin();
        self.sharpen_timer();
        let ring = match self.settings.carrier {
            Carrier::Poll => None,
            wanted => match self.ring() {
                Ok(ring) => Some(ring),
                Err(reason) if wanted == Carrier::Auto => {
                    warn!(worker = self.index, %reason, "no io_uring: using poll");
                    None
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    return Ok(());
                }
            },
        };
        let carrier = if ring.is_some() { Carrier::Uring } else { Carrier::Poll };
        let _ = started.send(Ok(carrier));
        let sizes = PollSizes {
            buffers: self.buffers(),
            receives: self.settings.reads_per_turn,
            sends: TRAINS,
            writes: FRAMES,
            spin: self.settings.spin,
        };
        let Place { link, wake, settings, .. } = self;
        match ring {
            Some(ring) => pipeline.worker(UringPort::new(ring, link, wake), &settings).run(),
            None => pipeline.worker(PollPort::new(link, wake, sizes), &settings).run(),
        }
    }

    fn pin(&self) {
        let cores = &self.settings.cores;
        let Some(&core) = self.index.checked_rem(cores.len()).and_then(|i| cores.get(i)) else { return };
        let mut set = CpuSet::new();
        if core < CpuSet::MAX_CPU {
            set.set(core);
        }
        if let Err(error) = sched_setaffinity(None, &set) {
            warn!(worker = self.index, core, %error, "cannot pin the worker to its core (--cores)");
        }
    }

    /// Asks for sharp timers. The kernel lets a timer fire up to 50 µs late to save wake-ups (`PR_SET_TIMERSLACK`), and
    /// that is as long as a pause of moderation.
    fn sharpen_timer(&self) {
        let asked = NonZero::new(TIMER_SLACK_NS);
        if let Err(error) = set_current_timer_slack(asked) {
            warn!(worker = self.index, %error, "rests will be longer than --moderation says");
        }
    }

    fn buffers(&self) -> u16 {
        u16::try_from(self.settings.buffers).unwrap_or(u16::MAX)
    }

    fn ring(&self) -> Result<Ring, RingError> {
        let Link { queue, receiver, sender } = &self.link;
        let descriptors = Descriptors {
            tun: queue.as_fd(),
            receive: receiver.as_fd(),
            send: sender.as_fd(),
            wake: self.wake.as_fd(),
        };
        Ring::new(descriptors, ring_sizes(self.buffers(), self.settings.spin))
    }
}
