//! What the operator may set about the packet path.

pub use crate::tun::TunOffload;
use std::fmt;
use std::time::Duration;

/// Settings of the engine; the command line fills them in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many workers; `None` lets the engine choose. At most [`MAX_WORKERS`].
    pub workers: Option<usize>,
    /// Cores to pin workers to, worker `i` to `cores[i % cores.len()]`; empty: no pinning.
    pub cores: Vec<usize>,
    /// How many reads a worker takes from one descriptor before it turns to the next.
    pub reads_per_turn: usize,
    /// Receive buffers per direction and worker.
    pub buffers: usize,
    /// How system calls are made.
    pub carrier: Carrier,
    /// Offloads at the TUN device.
    pub tun_offload: TunOffload,
    /// Offloads at the UDP socket.
    pub udp_offload: UdpOffload,
    /// Which packets from the network are let in.
    pub peer_filter: PeerFilter,
    /// How long a worker that has nothing to do looks for more before it sleeps; at most [`LONGEST_SPIN`].
    pub spin: Duration,
    /// How long a worker lets small packets gather where they come fast and from one side; zero: never. At most
    /// [`LONGEST_MODERATION`].
    pub moderation: Duration,
    /// `SO_RCVBUF` wished for, in bytes; the kernel may give less.
    pub receive_buffer: usize,
    /// `SO_SNDBUF` wished for, in bytes; the kernel may give less.
    pub send_buffer: usize,
    /// Every worker sends from the network's port, as flannel does. Otherwise only the first does, and the
    /// others send from ports of their own, by which the receiver can spread flows over its cores.
    pub one_source_port: bool,
}

/// A TUN device has at most this many queues (`MAX_TAP_QUEUES`, Linux `drivers/net/tun.c`).
pub const MAX_WORKERS: usize = crate::tun::MAX_QUEUES;
/// A longer look would only burn the core.
pub const LONGEST_SPIN: Duration = Duration::from_millis(10);
/// A longer pause would overflow the TUN's queue (500 packets) at a rate that one core can carry.
pub const LONGEST_MODERATION: Duration = Duration::from_millis(1);
/// Range of [`Settings::reads_per_turn`].
pub const READS_PER_TURN_RANGE: std::ops::RangeInclusive<usize> = 1..=1024;
/// Range of [`Settings::buffers`].
pub const BUFFERS_RANGE: std::ops::RangeInclusive<usize> = 4..=256;

impl Settings {
    /// Whether the numbers are such as the engine can work with; the command line lets no others in.
    pub(super) fn are_in_range(&self) -> bool {
        let counts =
            READS_PER_TURN_RANGE.contains(&self.reads_per_turn) && BUFFERS_RANGE.contains(&self.buffers);
        let times = self.spin <= LONGEST_SPIN && self.moderation <= LONGEST_MODERATION;
        counts && times
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: None,
            cores: Vec::new(),
            reads_per_turn: 64,
            buffers: 16,
            spin: Duration::ZERO,
            moderation: Duration::from_micros(50),
            carrier: Carrier::default(),
            tun_offload: TunOffload::default(),
            udp_offload: UdpOffload::default(),
            peer_filter: PeerFilter::default(),
            receive_buffer: 8 << 20,
            send_buffer: 8 << 20,
            one_source_port: false,
        }
    }
}

/// How packets cross between this process and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    /// io_uring where the kernel allows it, else poll.
    #[default]
    Auto,
    /// io_uring; an error at start where it is not to be had.
    Uring,
    /// `poll(2)` and plain reads and writes.
    Poll,
}

/// Offloads at the UDP socket; each kind is probed and can be refused by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UdpOffload {
    /// `UDP_SEGMENT` when sending and `UDP_GRO` when receiving.
    #[default]
    Auto,
    /// `UDP_SEGMENT` only.
    Send,
    /// `UDP_GRO` only.
    Receive,
    /// Neither.
    Off,
}

/// Which packets from the network are let in. A looser filter suits peers behind NAT or routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerFilter {
    /// The outer source is a peer, the inner source lies in that peer's subnet, the inner
    /// destination in ours.
    #[default]
    Strict,
    /// The inner source lies in some peer's subnet and the inner destination in ours; the outer
    /// source may be anything (a peer behind NAT).
    Inner,
    /// Everything, as flannel does.
    Off,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        })
    }
}

impl fmt::Display for UdpOffload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Off => "off",
        })
    }
}

impl fmt::Display for PeerFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Inner => "inner",
            Self::Off => "off",
        })
    }
}
