//! Counters: what comes up from a worker while it runs. Each has one writer, its worker, which adds with relaxed
//! atomics; drops and counts start on cache lines of their own, so that workers do not slow each other down.

use crate::report::{Sample, metric};
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes an enum of counters, the list of all of them and their names from one table, so that none can be missing from
/// another.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $(#[$of_name:meta])* { $($(#[$of:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        ///
        /// The variants are the rows of one table, which gives each its name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $variant,)*
        }

        impl $name {
            /// All of them, in the order in which they are declared.
            pub const ALL: [$name; [$($name::$variant),*].len()] = [$($name::$variant),*];

            $(#[$of_name])*
            ///
            /// It never changes, since scripts read it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

table! {
    /// Why a packet was dropped. Every way to lose a packet has a reason of its own.
    DropReason,
    /// The name in the lines on SIGUSR1 and in the metric's label.
    {
        /// From the TUN: the frame's vnet header and its packet do not fit together.
        TunFrame = "tun_frame",
        /// From the TUN: the packet is not IPv4 (the kernel sends IPv6 router solicitations into any TUN).
        TunNotIpv4 = "tun_not_ipv4",
        /// From the TUN: the IPv4 header is wrong about its lengths.
        TunMalformed = "tun_malformed",
        /// From the TUN: the destination is a multicast or broadcast address.
        TunMulticast = "tun_multicast",
        /// From the TUN: no peer has that address (our own subnet is no peer's); the sender gets an ICMP answer.
        NoRoute = "no_route",
        /// From the TUN: the TTL is 0 or 1; the sender gets an ICMP answer.
        TunTtl = "tun_ttl",
        /// To a peer: the socket's send buffer is full, or the kernel is out of memory.
        SendBuffer = "send_buffer",
        /// To a peer: the host has no route to its address, or the link is down.
        SendUnreachable = "send_unreachable",
        /// To a peer: the packet is larger than the path allows.
        SendTooBig = "send_too_big",
        /// To a peer: the send failed with any other error.
        SendFailed = "send_failed",
        /// From the network: the datagram is longer than its buffer.
        Truncated = "truncated",
        /// From the network: the datagram is not an IPv4 packet.
        NotIpv4 = "not_ipv4",
        /// From the network: the datagram is not exactly one IPv4 packet.
        Malformed = "malformed",
        /// From the network: the IPv4 header checksum is wrong.
        HeaderChecksum = "header_checksum",
        /// From the network: the sender's address is no peer's.
        UnknownPeer = "unknown_peer",
        /// From the network: the inner source is not in the sending peer's subnet, or with the filter `inner` in no peer's.
        InnerSource = "inner_source",
        /// From the network: the inner destination is not in our subnet.
        InnerDestination = "inner_destination",
        /// From the network: the TTL is 0 or 1; the sender gets an ICMP answer.
        Ttl = "ttl",
        /// To the TUN: the device is down.
        TunDown = "tun_down",
        /// To the TUN: the device was deleted.
        TunGone = "tun_gone",
        /// To the TUN: the kernel refused the write for another reason, or the turn had no room for the packet after all.
        TunWrite = "tun_write",
    }
}

table! {
    /// What is counted besides drops.
    Count,
    /// The name in the lines on SIGUSR1; the metric has a name of its own ([`metric`]).
    {
        /// Frames read from the TUN; one may hold many packets.
        TunReads = "tun_reads",
        /// Packets taken from the TUN for a peer. If their send fails, they count as dropped too.
        TunPackets = "tun_packets",
        /// Bytes of [`Count::TunPackets`], IPv4 headers included.
        TunBytes = "tun_bytes",
        /// Sends on the socket; one may hold many packets.
        UdpSends = "udp_sends",
        /// Receives from the socket; one may hold many packets.
        UdpReceives = "udp_receives",
        /// Packets from peers that passed all checks. If their write fails, they count as dropped too.
        UdpPackets = "udp_packets",
        /// Bytes of [`Count::UdpPackets`], IPv4 headers included.
        UdpBytes = "udp_bytes",
        /// Frames written to the TUN; one may hold many packets.
        TunWrites = "tun_writes",
        /// ICMP errors that were sent.
        IcmpSent = "icmp_sent",
        /// ICMP errors that were not sent: the rate limit was reached, or the turn had no room.
        IcmpLimited = "icmp_limited",
        /// Segmented sends that the kernel refused; the worker resent them packet by packet.
        Resent = "resent",
        /// Times that segmentation was switched off for ten minutes because the kernel refused it.
        SegmentationOff = "segmentation_off",
        /// Turns of the worker; each has one wait at most.
        Turns = "turns",
        /// Turns whose wait, if there was one, began with a pause of moderation (`--moderation`). In the lines on SIGUSR1 their
        /// name is `rests`.
        Pauses = "rests",
        /// Times that the kernel had a packet and no buffer to put it in. The packet waits in the kernel's queue.
        Starved = "starved",
        /// Errors of reading from the TUN and of receiving. The deletion of the device is not among them.
        ReceiveErrors = "receive_errors",
        /// Route changes that were applied.
        RouteChanges = "route_changes",
        /// Route changes that were refused.
        RouteErrors = "route_errors",
    }
}

const DROPS: usize = DropReason::ALL.len();
const COUNTS: usize = Count::ALL.len();

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
