//! Counters: what comes up from a worker while it runs. Each has one writer, its worker, which adds with relaxed
//! atomics; drops and counts start on cache lines of their own, so that workers do not slow each other down.

use crate::report::{Sample, metric};
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped. Every way to lose a packet has a reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// From the TUN: the frame's vnet header and its packet do not fit together.
    TunFrame,
    /// From the TUN: the packet is not IPv4 (the kernel sends IPv6 router solicitations into any TUN).
    TunNotIpv4,
    /// From the TUN: the IPv4 header is wrong about its lengths.
    TunMalformed,
    /// From the TUN: the destination is a multicast or broadcast address.
    TunMulticast,
    /// From the TUN: no peer has that address (our own subnet is no peer's); the sender gets an ICMP answer.
    NoRoute,
    /// From the TUN: the TTL is 0 or 1; the sender gets an ICMP answer.
    TunTtl,
    /// To a peer: the socket's send buffer is full, or the kernel is out of memory.
    SendBuffer,
    /// To a peer: the host has no route to its address, or the link is down.
    SendUnreachable,
    /// To a peer: the packet is larger than the path allows.
    SendTooBig,
    /// To a peer: the send failed with any other error.
    SendFailed,
    /// From the network: the datagram is longer than its buffer.
    Truncated,
    /// From the network: the datagram is not an IPv4 packet.
    NotIpv4,
    /// From the network: the datagram is not exactly one IPv4 packet.
    Malformed,
    /// From the network: the IPv4 header checksum is wrong.
    HeaderChecksum,
    /// From the network: the sender's address is no peer's.
    UnknownPeer,
    /// From the network: the inner source is not in the sending peer's subnet, or with the filter `inner` in no peer's.
    InnerSource,
    /// From the network: the inner destination is not in our subnet.
    InnerDestination,
    /// From the network: the TTL is 0 or 1; the sender gets an ICMP answer.
    Ttl,
    /// To the TUN: the device is down.
    TunDown,
    /// To the TUN: the device was deleted.
    TunGone,
    /// To the TUN: the kernel refused the write for another reason, or the turn had no room for the packet after all.
    TunWrite,
}

impl DropReason {
    /// All reasons, in the order in which they are declared.
    pub const ALL: [DropReason; 21] = [
        DropReason::TunFrame,
        DropReason::TunNotIpv4,
        DropReason::TunMalformed,
        DropReason::TunMulticast,
        DropReason::NoRoute,
        DropReason::TunTtl,
        DropReason::SendBuffer,
        DropReason::SendUnreachable,
        DropReason::SendTooBig,
        DropReason::SendFailed,
        DropReason::Truncated,
        DropReason::NotIpv4,
        DropReason::Malformed,
        DropReason::HeaderChecksum,
        DropReason::UnknownPeer,
        DropReason::InnerSource,
        DropReason::InnerDestination,
        DropReason::Ttl,
        DropReason::TunDown,
        DropReason::TunGone,
        DropReason::TunWrite,
    ];

    /// The name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DropReason::TunFrame => "tun_frame",
            DropReason::TunNotIpv4 => "tun_not_ipv4",
            DropReason::TunMalformed => "tun_malformed",
            DropReason::TunMulticast => "tun_multicast",
            DropReason::NoRoute => "no_route",
            DropReason::TunTtl => "tun_ttl",
            DropReason::SendBuffer => "send_buffer",
            DropReason::SendUnreachable => "send_unreachable",
            DropReason::SendTooBig => "send_too_big",
            DropReason::SendFailed => "send_failed",
            DropReason::Truncated => "truncated",
            DropReason::NotIpv4 => "not_ipv4",
            DropReason::Malformed => "malformed",
            DropReason::HeaderChecksum => "header_checksum",
            DropReason::UnknownPeer => "unknown_peer",
            DropReason::InnerSource => "inner_source",
            DropReason::InnerDestination => "inner_destination",
            DropReason::Ttl => "ttl",
            DropReason::TunDown => "tun_down",
            DropReason::TunGone => "tun_gone",
            DropReason::TunWrite => "tun_write",
        }
    }
}

/// What is counted besides drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Frames read from the TUN; one may hold many packets.
    TunReads,
    /// Packets taken from the TUN for a peer. If their send fails, they count as dropped too.
    TunPackets,
    /// Bytes of [`Count::TunPackets`], IPv4 headers included.
    TunBytes,
    /// Sends on the socket; one may hold many packets.
    UdpSends,
    /// Receives from the socket; one may hold many packets.
    UdpReceives,
    /// Packets from peers that passed all checks. If their write fails, they count as dropped too.
    UdpPackets,
    /// Bytes of [`Count::UdpPackets`], IPv4 headers included.
    UdpBytes,
    /// Frames written to the TUN; one may hold many packets.
    TunWrites,
    /// ICMP errors that were sent.
    IcmpSent,
    /// ICMP errors that were not sent: the rate limit was reached, or the turn had no room.
    IcmpLimited,
    /// Segmented sends that the kernel refused; the worker resent them packet by packet.
    Resent,
    /// Times that segmentation was switched off for ten minutes because the kernel refused it.
    SegmentationOff,
    /// Turns of the worker; each has one wait at most.
    Turns,
    /// Turns whose wait, if there was one, began with a pause of moderation (`--moderation`). In the lines on SIGUSR1 their
    /// name is `rests`.
    Pauses,
    /// Times that the kernel had a packet and no buffer to put it in. The packet waits in the kernel's queue.
    Starved,
    /// Errors of reading from the TUN and of receiving. The deletion of the device is not among them.
    ReceiveErrors,
    /// Route changes that were applied.
    RouteChanges,
    /// Route changes that were refused.
    RouteErrors,
}

impl Count {
    /// All counts, in the order in which they are declared.
    pub const ALL: [Count; 18] = [
        Count::TunReads,
        Count::TunPackets,
        Count::TunBytes,
        Count::UdpSends,
        Count::UdpReceives,
        Count::UdpPackets,
        Count::UdpBytes,
        Count::TunWrites,
        Count::IcmpSent,
        Count::IcmpLimited,
        Count::Resent,
        Count::SegmentationOff,
        Count::Turns,
        Count::Pauses,
        Count::Starved,
        Count::ReceiveErrors,
        Count::RouteChanges,
        Count::RouteErrors,
    ];

    /// The name in the lines on SIGUSR1; the metric has a name of its own ([`metric`]).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Count::TunReads => "tun_reads",
            Count::TunPackets => "tun_packets",
            Count::TunBytes => "tun_bytes",
            Count::UdpSends => "udp_sends",
            Count::UdpReceives => "udp_receives",
            Count::UdpPackets => "udp_packets",
            Count::UdpBytes => "udp_bytes",
            Count::TunWrites => "tun_writes",
            Count::IcmpSent => "icmp_sent",
            Count::IcmpLimited => "icmp_limited",
            Count::Resent => "resent",
            Count::SegmentationOff => "segmentation_off",
            Count::Turns => "turns",
            Count::Pauses => "rests",
            Count::Starved => "starved",
            Count::ReceiveErrors => "receive_errors",
            Count::RouteChanges => "route_changes",
            Count::RouteErrors => "route_errors",
        }
    }
}

const DROPS: usize = DropReason::ALL.len();
const COUNTS: usize = Count::ALL.len();

// A counter's place in its table is the number of its variant.
const _: () = {
    let mut i = 0;
    while i < DROPS {
        assert!(DropReason::ALL[i] as usize == i);
        i += 1;
    }
};
const _: () = {
    let mut i = 0;
    while i < COUNTS {
        assert!(Count::ALL[i] as usize == i);
        i += 1;
    }
};

/// One worker's counters. Only that worker writes them, so it adds by a load and a store.
#[derive(Debug)]
pub struct Counters {
    drops: CachePadded<[AtomicU64; DROPS]>,
    counts: CachePadded<[AtomicU64; COUNTS]>,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            drops: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
            counts: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

impl Counters {
    /// Counts `packets` dropped for `reason`.
    #[inline]
    pub fn dropped(&self, reason: DropReason, packets: usize) {
        add(&self.drops[reason as usize], packets);
    }

    /// Adds `n` to `count`.
    #[inline]
    pub fn add(&self, count: Count, n: usize) {
        add(&self.counts[count as usize], n);
    }

    /// The values of all counters now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            drops: std::array::from_fn(|i| read(&self.drops[i])),
            counts: std::array::from_fn(|i| read(&self.counts[i])),
        }
    }
}

#[inline]
fn add(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n as u64), Ordering::Relaxed);
}

/// The values of counters at one moment, of one worker or summed over several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    drops: [u64; DROPS],
    counts: [u64; COUNTS],
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { drops: [0; DROPS], counts: [0; COUNTS] }
    }
}

impl Snapshot {
    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// The value of `count`.
    #[must_use]
    pub fn get(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }
}

impl std::ops::AddAssign for Snapshot {
    fn add_assign(&mut self, other: Snapshot) {
        for (mine, theirs) in self.drops.iter_mut().zip(other.drops) {
            *mine += theirs;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
    }
}

impl Snapshot {
    /// Every counter as a value of the report; zeros are included.
    pub fn samples(&self) -> impl Iterator<Item = Sample> + '_ {
        let counts = Count::ALL.into_iter().map(|count| count.sample(self.get(count)));
        counts.chain(DropReason::ALL.into_iter().map(|reason| reason.sample(self.dropped(reason))))
    }
}

impl fmt::Display for Snapshot {
    /// Writes a line per counter: first `count <name> <n>`, then `drop <reason> <n>`. Zeros are included, so that a
    /// reader sees which counters exist.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.samples().try_for_each(|sample| writeln!(f, "{sample}"))
    }
}

impl Count {
    /// A value of this count. A count without a metric does not compile.
    fn sample(self, value: u64) -> Sample {
        let name = self.name();
        let of = |metric| Sample::new(metric, name, value);
        let to_udp = |metric| Sample::labelled(metric, name, ("dir", "tun_to_udp"), value);
        let to_tun = |metric| Sample::labelled(metric, name, ("dir", "udp_to_tun"), value);
        match self {
            Count::TunReads => of(&metric::TUN_READS),
            Count::TunPackets => to_udp(&metric::RX_PACKETS),
            Count::TunBytes => to_udp(&metric::RX_BYTES),
            Count::UdpSends => of(&metric::UDP_SENDS),
            Count::UdpReceives => of(&metric::UDP_RECEIVES),
            Count::UdpPackets => to_tun(&metric::RX_PACKETS),
            Count::UdpBytes => to_tun(&metric::RX_BYTES),
            Count::TunWrites => of(&metric::TUN_WRITES),
            Count::IcmpSent => of(&metric::ICMP_SENT),
            Count::IcmpLimited => of(&metric::ICMP_LIMITED),
            Count::Resent => of(&metric::RESENT),
            Count::SegmentationOff => of(&metric::SEGMENTATION_OFF),
            Count::Turns => of(&metric::TURNS),
            Count::Pauses => of(&metric::PAUSES),
            Count::Starved => of(&metric::STARVED),
            Count::ReceiveErrors => of(&metric::RECEIVE_ERRORS),
            Count::RouteChanges => of(&metric::ROUTE_CHANGES),
            Count::RouteErrors => of(&metric::ROUTE_ERRORS),
        }
    }
}

impl DropReason {
    fn sample(self, value: u64) -> Sample {
        Sample::labelled(&metric::DROPPED_PACKETS, self.name(), ("reason", self.name()), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_the_order_of_the_enums() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
        for (i, count) in Count::ALL.into_iter().enumerate() {
            assert_eq!(count as usize, i);
        }
    }

    #[test]
    fn snapshots_add_up_and_print_a_line_each() {
        let (one, two) = (Counters::default(), Counters::default());
        one.dropped(DropReason::Ttl, 2);
        two.dropped(DropReason::Ttl, 3);
        two.add(Count::Turns, 1);
        let mut sum = one.snapshot();
        sum += two.snapshot();
        assert_eq!((sum.dropped(DropReason::Ttl), sum.dropped_total(), sum.get(Count::Turns)), (5, 5, 1));
        let text = sum.to_string();
        assert!(text.lines().any(|line| line == "drop ttl 5"));
        assert_eq!(text.lines().count(), DROPS + COUNTS);
    }
}
