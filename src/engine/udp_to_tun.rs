//! Datagrams from peers become frames for the TUN: split by stride → header check → source check →
//! coalesce, which takes one off the TTL.
//!
//! This file is the mirror image of [`super::tun_to_udp`].

use super::counters::{Count, Counters, DropReason};
use super::icmp_limit::IcmpLimit;
use super::port::{Outgoing, Received};
use super::settings::PeerFilter;
use crate::offload::batch::split;
use crate::offload::coalesce::Pushed;
use crate::packet::icmp::{self, Kind};
use crate::packet::ipv4::{Ipv4, Malformed, header_checksum_ok};
use crate::route::RouteTable;
use ipnet::Ipv4Net;
use std::net::SocketAddrV4;
use std::time::Instant;

/// The direction from the peers to the TUN.
#[derive(Debug)]
pub(super) struct UdpToTun {
    subnet: Ipv4Net,
    /// SIGHUP may change it.
    pub(super) filter: PeerFilter,
    limit: IcmpLimit,
}

impl UdpToTun {
    pub(super) fn new(subnet: Ipv4Net, filter: PeerFilter) -> UdpToTun {
        UdpToTun { subnet, filter, limit: IcmpLimit::new() }
    }

    /// Takes a receive: one packet, or several that the kernel joined.
    pub(super) fn take(
        &mut self,
        received: &Received,
        payload: &[u8],
        routes: &RouteTable,
        out: &mut Outgoing,
        counters: &Counters,
    ) {
        counters.add(Count::UdpReceives, 1);
        let parts = split(payload.len(), received.stride);
        if received.truncated {
            counters.dropped(DropReason::Truncated, parts.count());
            return;
        }
        let (mut packets, mut bytes) = (0, 0);
        for part in parts {
            let start = received.start + part.start;
            match self.packet(received, start, &payload[part.clone()], routes, out, counters) {
                Ok(()) => {
                    packets += 1;
                    bytes += part.len();
                }
                Err(reason) => counters.dropped(reason, 1),
            }
        }
        counters.add(Count::UdpPackets, packets);
        counters.add(Count::UdpBytes, bytes);
    }

    /// Checks one packet of a receive and hands it to the coalescer.
    fn packet(
        &mut self,
        received: &Received,
        start: usize,
        packet: &[u8],
        routes: &RouteTable,
        out: &mut Outgoing,
        counters: &Counters,
    ) -> Result<(), DropReason> {
        let ip = Ipv4::parse(packet).map_err(|error| match error {
            Malformed::NotIpv4 => DropReason::NotIpv4,
            _ => DropReason::Malformed,
        })?;
        if !header_checksum_ok(&packet[..ip.header_len]) {
            return Err(DropReason::HeaderChecksum);
        }
        self.admit(&ip, received.from, routes)?;
        match out.coalescer.push(received.buffer, start, packet, &ip) {
            Pushed::Merged | Pushed::Opened | Pushed::Alone => Ok(()),
            Pushed::Expired => {
                self.answer(packet, &ip, routes, out, counters);
                Err(DropReason::Ttl)
            }
            // The worker takes a receive only when there is room for all its packets.
            Pushed::NoRoom => Err(DropReason::TunWrite),
        }
    }

    /// Decides who may send what. This is WireGuard's rule of allowed addresses, with the leases as the list.
    fn admit(&self, ip: &Ipv4, from: SocketAddrV4, routes: &RouteTable) -> Result<(), DropReason> {
        if self.filter == PeerFilter::Off {
            return Ok(());
        }
        let owner = routes.lookup(ip.source);
        if self.filter == PeerFilter::Strict {
            // Ports are not compared: a peer may send from one for each of its workers.
            if owner.is_none_or(|owner| routes.address(owner).ip() != from.ip()) {
                let known = routes.is_peer(*from.ip());
                return Err(if known { DropReason::InnerSource } else { DropReason::UnknownPeer });
            }
        } else if owner.is_none() {
            return Err(DropReason::InnerSource);
        }
        if self.subnet.contains(&ip.destination) { Ok(()) } else { Err(DropReason::InnerDestination) }
    }

    /// Tells the sender through the overlay that its packet's time was exceeded.
    fn answer(
        &mut self,
        packet: &[u8],
        ip: &Ipv4,
        routes: &RouteTable,
        out: &mut Outgoing,
        counters: &Counters,
    ) {
        let Some(owner) = routes.lookup(ip.source) else { return };
        let mut reply = [0; icmp::MAX_REPLY];
        let from = self.subnet.network();
        let Some(len) = icmp::error_reply(Kind::TimeExceeded, packet, from, &mut reply) else { return };
        let mut sent = self.limit.allow(Instant::now());
        if sent {
            match out.trains.place(routes.address(owner), len) {
                Some(room) => room.copy_from_slice(&reply[..len]),
                None => sent = false,
            }
        }
        counters.add(if sent { Count::IcmpSent } else { Count::IcmpLimited }, 1);
    }
}
