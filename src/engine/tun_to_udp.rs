//! Frames from the TUN become trains for peers: header check → route → TTL → segment → train.
//!
//! This file is the mirror image of [`super::udp_to_tun`].

use super::counters::{Count, Counters, DropReason};
use super::icmp_limit::IcmpLimit;
use super::port::Outgoing;
use super::refusals::Refusals;
use crate::offload::segment::{Plan, plan};
use crate::packet::icmp::{self, Kind};
use crate::packet::ipv4::{Ipv4, Malformed, decrement_ttl};
use crate::packet::vnet::{GSO_TCPV4, GSO_UDP_L4, VNET_LEN, VnetHeader};
use crate::route::RouteTable;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is handled, and the next one can come.
    Whole,
    /// The trains are full. The same frame comes again after the turn.
    InPart,
}

/// What is left of a frame whose packets did not all find room.
#[derive(Debug)]
struct Remainder {
    plan: Plan,
    to: SocketAddrV4,
    /// The first packet that has no place yet.
    next: usize,
}

/// The direction from the TUN to the peers.
#[derive(Debug)]
pub(super) struct TunToUdp {
    /// Our own address on the TUN, from which our ICMP errors come.
    address: Ipv4Addr,
    limit: IcmpLimit,
    remainder: Option<Remainder>,
}

impl TunToUdp {
    pub(super) fn new(address: Ipv4Addr) -> TunToUdp {
        TunToUdp { address, limit: IcmpLimit::new(), remainder: None }
    }

    /// Takes the current frame, or what is left of it.
    pub(super) fn take(
        &mut self,
        frame: &mut [u8],
        routes: &RouteTable,
        refusals: &Refusals,
        out: &mut Outgoing,
        counters: &Counters,
    ) -> Taken {
        let remainder = match self.remainder.take() {
            Some(remainder) => remainder,
            None => {
                counters.add(Count::TunReads, 1);
                match self.begin(frame, routes, out, counters) {
                    Ok(remainder) => remainder,
                    Err(reason) => {
                        counters.dropped(reason, packets_in(frame));
                        return Taken::Whole;
                    }
                }
            }
        };
        self.place(&frame[VNET_LEN..], remainder, refusals, out, counters)
    }

    /// Checks a new frame and plans its packets.
    fn begin(
        &mut self,
        frame: &mut [u8],
        routes: &RouteTable,
        out: &mut Outgoing,
        counters: &Counters,
    ) -> Result<Remainder, DropReason> {
        let vnet = VnetHeader::decode(frame).ok_or(DropReason::TunFrame)?;
        let packet = frame.get_mut(VNET_LEN..).ok_or(DropReason::TunFrame)?;
        let ip = Ipv4::parse(packet).map_err(|error| match error {
            Malformed::NotIpv4 => DropReason::TunNotIpv4,
            _ => DropReason::TunMalformed,
        })?;
        if ip.to_many() {
            return Err(DropReason::TunMulticast);
        }
        // The look-up comes before the TTL, as in flannel: a packet without a route is unreachable, whatever its TTL.
        let Some(peer) = routes.lookup(ip.destination) else {
            self.answer(Kind::NetUnreachable, packet, out, counters);
            return Err(DropReason::NoRoute);
        };
        if decrement_ttl(packet).is_err() {
            self.answer(Kind::TimeExceeded, packet, out, counters);
            return Err(DropReason::TunTtl);
        }
        let plan = plan(&vnet, packet).map_err(|_| DropReason::TunFrame)?;
        Ok(Remainder { plan, to: routes.address(peer), next: 0 })
    }

    /// Places as many packets as the trains have room for.
    fn place(
        &mut self,
        packet: &[u8],
        mut remainder: Remainder,
        refusals: &Refusals,
        out: &mut Outgoing,
        counters: &Counters,
    ) -> Taken {
        let (first, count) = (remainder.next, remainder.plan.count());
        let mut bytes = 0;
        while remainder.next < count {
            let len = remainder.plan.packet_len(remainder.next);
            let room = if refusals.fits(remainder.to, len) {
                out.trains.place(remainder.to, len)
            } else {
                out.trains.place_alone(remainder.to, len)
            };
            let Some(room) = room else { break };
            remainder.plan.write(packet, remainder.next, room);
            remainder.next += 1;
            bytes += len;
        }
        counters.add(Count::TunPackets, remainder.next - first);
        counters.add(Count::TunBytes, bytes);
        if remainder.next == count {
            return Taken::Whole;
        }
        self.remainder = Some(remainder);
        Taken::InPart
    }

    /// Answers the local sender with an ICMP error, which is written back to the TUN.
    fn answer(&mut self, kind: Kind, packet: &[u8], out: &mut Outgoing, counters: &Counters) {
        let mut reply = [0; icmp::MAX_REPLY];
        let Some(len) = icmp::error_reply(kind, packet, self.address, &mut reply) else { return };
        let sent = self.limit.allow(Instant::now()) && out.coalescer.push_owned(&reply[..len]);
        counters.add(if sent { Count::IcmpSent } else { Count::IcmpLimited }, 1);
    }
}

/// How many packets a frame stands for, as far as its vnet header can be believed.
fn packets_in(frame: &[u8]) -> usize {
    match VnetHeader::decode(frame) {
        Some(vnet) if matches!(vnet.gso_kind(), GSO_TCPV4 | GSO_UDP_L4) && vnet.gso_size > 0 => {
            let headers = usize::from(vnet.csum_start) + 8;
            frame.len().saturating_sub(VNET_LEN + headers).div_ceil(usize::from(vnet.gso_size)).max(1)
        }
        _ => 1,
    }
}
