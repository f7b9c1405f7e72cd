//! What the operator may set about the packet path.

pub use crate::tun::TunOffload;
use std::fmt;
use std::time::Duration;

/// The settings of the engine. The command line fills them in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many workers there are, at most [`MAX_WORKERS`]. With `None` the `udp` backend chooses.
    pub workers: Option<usize>,
    /// Cores to which workers are pinned: worker `i` to `cores[i % cores.len()]`. Without cores there is no pinning.
    pub cores: Vec<usize>,
    /// How many reads a worker takes from one descriptor before it turns to the next (`--batch`).
    pub reads_per_turn: usize,
    /// How many receive buffers each worker has for each direction.
    pub buffers: usize,
    /// What carries packets between the workers and the kernel (`--engine`).
    pub carrier: Carrier,
    /// Offloads at the TUN device.
    pub tun_offload: TunOffload,
    /// Offloads at the UDP socket.
    pub udp_offload: UdpOffload,
    /// Which packets from the network are let in.
    pub peer_filter: PeerFilter,
    /// How long a worker that has nothing to do looks for more before it sleeps; at most [`LONGEST_SPIN`].
    pub spin: Duration,
    /// How long a worker lets small packets gather where they come fast and from one side, at most
    /// [`LONGEST_MODERATION`]. With zero it never does.
    pub moderation: Duration,
    /// The `SO_RCVBUF` to ask for, in bytes. The kernel may give less.
    pub receive_buffer: usize,
    /// The `SO_SNDBUF` to ask for, in bytes. The kernel may give less.
    pub send_buffer: usize,
    /// Whether every worker sends from the network's port, as flannel does. Otherwise only the first does so, and the
    /// others send from ports of their own, by which the receiver can spread flows over its cores.
    pub one_source_port: bool,
}

/// A TUN device has at most this many queues (`MAX_TAP_QUEUES`, Linux `drivers/net/tun.c`).
pub const MAX_WORKERS: usize = crate::tun::MAX_QUEUES;
/// The longest [`Settings::spin`]: a longer look would only burn the core.
pub const LONGEST_SPIN: Duration = Duration::from_millis(10);
/// The longest [`Settings::moderation`]: a longer pause would overflow the TUN's queue (500 packets) at a rate that one
/// core can carry.
pub const LONGEST_MODERATION: Duration = Duration::from_millis(1);
/// The range of [`Settings::reads_per_turn`].
pub const READS_PER_TURN_RANGE: std::ops::RangeInclusive<usize> = 1..=1024;
/// The range of [`Settings::buffers`].
pub const BUFFERS_RANGE: std::ops::RangeInclusive<usize> = 4..=256;

impl Settings {
    /// Whether all numbers are in their ranges. The command line lets no others in.
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

/// What carries packets between this process and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    /// The engine takes io_uring where the kernel allows it, and poll elsewhere.
    #[default]
    Auto,
    /// The engine takes io_uring. Where the kernel does not allow it, the start fails.
    Uring,
    /// The engine takes `poll(2)` and plain system calls.
    Poll,
}

/// Offloads at the UDP socket. The daemon probes each kind, since the kernel may refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UdpOffload {
    /// Sends use `UDP_SEGMENT` and receives use `UDP_GRO`.
    #[default]
    Auto,
    /// Only sends are offloaded, with `UDP_SEGMENT`.
    Send,
    /// Only receives are offloaded, with `UDP_GRO`.
    Receive,
    /// Neither sends nor receives are offloaded.
    Off,
}

/// Which packets from the network are let in. A looser filter suits peers behind NAT or routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerFilter {
    /// The outer source must be a peer, the inner source must lie in that peer's subnet, and the inner destination must
    /// lie in ours.
    #[default]
    Strict,
    /// The inner source must lie in some peer's subnet and the inner destination in ours. The outer source may be
    /// anything, since NAT changes it.
    Inner,
    /// Whoever the sender and whatever the addresses, as in flannel. Form, checksum and TTL are checked all the same.
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
