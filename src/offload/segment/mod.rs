//! One frame read from the TUN → the packets that travel.
//!
//! The kernel hands out TCP and UDP super-packets with unfinished checksums (`NEEDS_CSUM`). [`plan`] checks the frame
//! and sums once what all segments share; [`Plan::write`] copies a segment's header and payload and finishes its
//! fields. The rules are those of the kernel's `tcp_gso_segment` and `__udp_gso_segment`:
//!
//! - IPv4 total length and checksum are new, the identification counts up from the super-packet's.
//! - TCP: the sequence number advances; CWR stays on the first segment only, FIN and PSH on the last only; all other
//!   flags, the window and the options are repeated.
//! - UDP: length and checksum per segment; a computed 0 is sent as `0xffff` (RFC 768).
//!
//! `hdr_len` of the vnet header is never used: on forwarded packets the kernel stores the length of its linear part
//! there, which may include payload. The payload starts behind the header that the packet itself describes.

#[cfg(test)]
mod tests;

use crate::packet::checksum::{Sum, copy_and_sum, pseudo_header};
use crate::packet::field::{len16, put_u16, put_u32};
use crate::packet::ipv4::{Ipv4, MAX_HEADER, MAX_PACKET, Malformed, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::packet::transport::{
    CWR, FIN, PSH, TCP_CHECKSUM, TCP_MAX_HEADER, Tcp, UDP_CHECKSUM, UDP_HEADER, Udp,
};
use crate::packet::vnet::{GSO_NONE, GSO_TCPV4, GSO_UDP_L4, VnetHeader};

/// Why a frame cannot be cut into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The frame does not hold exactly one IPv4 packet.
    #[error("frame holds no IPv4 packet: {0}")]
    Malformed(#[from] Malformed),
    /// A segmentation type that was never negotiated (the type without its ECN bit).
    #[error("unknown segmentation type {0}")]
    UnknownGsoType(u8),
    /// A super-packet to be cut into segments without payload.
    #[error("segment size 0")]
    ZeroSegmentSize,
    /// The segmentation type and the IP protocol differ, or the super-packet is an IP fragment.
    #[error("segmentation type does not fit the packet")]
    WrongProtocol,
    /// The TCP or UDP header is cut short, or its data offset is below 5.
    #[error("transport header out of bounds")]
    TransportHeader,
    /// `csum_start` or `csum_offset` points outside of the packet, or not at the transport checksum.
    #[error("checksum position out of bounds")]
    ChecksumPosition,
}

/// How to write the packets of one frame. A plan holds no reference to it: `write` is given the same bytes again.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    shape: Shape,
    /// Bytes of IP and transport header, repeated in each segment; 0 for a packet that is not cut.
    header_len: usize,
    /// Payload bytes of each segment but the last.
    segment_size: usize,
    /// Bytes behind the header, all segments together.
    payload_len: usize,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// The packet is finished already and is copied as it is.
    Whole,
    /// The packet is one, and lacks its checksum.
    Unfinished { start: usize, at: usize, zero_is_absent: bool },
    /// The packet is a TCP super-packet.
    Tcp { base: Base, sequence: u32, flags: u8 },
    /// The packet is a UDP super-packet.
    Udp { base: Base },
}

/// What all segments of a super-packet have in common.
#[derive(Clone, Copy, Debug)]
struct Base {
    ip_header_len: usize,
    id: u16,
    /// The sum of the IP header without total length, identification and checksum.
    ip: Sum,
    /// The sum of the pseudo-header without length, and of the transport header without the fields that differ from
    /// segment to segment.
    transport: Sum,
}

/// Plans the frame `vnet` + `packet` (the bytes after the vnet header, IPv4, its TTL already decremented).
///
/// # Errors
/// [`SegmentError`] says what is wrong. Any number of segments is accepted; a super-packet that fits one segment
/// is one packet.
pub fn plan(vnet: &VnetHeader, packet: &[u8]) -> Result<Plan, SegmentError> {
    let ip = Ipv4::parse(packet)?;
    let plan = match vnet.gso_kind() {
        GSO_NONE => plan_single(vnet, &ip, packet),
        GSO_TCPV4 => plan_tcp(vnet, &ip, packet),
        GSO_UDP_L4 => plan_udp(vnet, &ip, packet),
        other => Err(SegmentError::UnknownGsoType(other)),
    }?;
    debug_assert!(plan.covers(packet.len()), "bytes would be lost or read beyond the packet: {plan:?}");
    Ok(plan)
}

fn plan_single(vnet: &VnetHeader, ip: &Ipv4, packet: &[u8]) -> Result<Plan, SegmentError> {
    let shape = if vnet.needs_csum() {
        let start = usize::from(vnet.csum_start);
        let at = start + usize::from(vnet.csum_offset);
        if start < ip.header_len || at + 2 > packet.len() {
            return Err(SegmentError::ChecksumPosition);
        }
        Shape::Unfinished { start, at, zero_is_absent: ip.protocol == PROTOCOL_UDP }
    } else {
        Shape::Whole
    };
    Ok(Plan { shape, header_len: 0, segment_size: packet.len(), payload_len: packet.len(), count: 1 })
}

fn plan_tcp(vnet: &VnetHeader, ip: &Ipv4, packet: &[u8]) -> Result<Plan, SegmentError> {
    check_super(vnet, ip, PROTOCOL_TCP, TCP_CHECKSUM)?;
    let segment = &packet[ip.header_len..];
    let tcp = Tcp::parse(segment).ok_or(SegmentError::TransportHeader)?;
    let mut header = [0u8; TCP_MAX_HEADER];
    let header = &mut header[..tcp.header_len];
    header.copy_from_slice(&segment[..tcp.header_len]);
    put_u32(header, 4, 0);
    header[13] = 0;
    put_u16(header, TCP_CHECKSUM, 0);
    let shape = Shape::Tcp { base: base(ip, packet, header), sequence: tcp.sequence, flags: tcp.flags };
    Ok(cut(shape, ip.header_len + tcp.header_len, vnet, packet))
}

fn plan_udp(vnet: &VnetHeader, ip: &Ipv4, packet: &[u8]) -> Result<Plan, SegmentError> {
    check_super(vnet, ip, PROTOCOL_UDP, UDP_CHECKSUM)?;
    let segment = &packet[ip.header_len..];
    Udp::parse(segment).ok_or(SegmentError::TransportHeader)?;
    // Only the ports are summed here: length and checksum differ from segment to segment.
    let shape = Shape::Udp { base: base(ip, packet, &segment[..4]) };
    Ok(cut(shape, ip.header_len + UDP_HEADER, vnet, packet))
}

fn check_super(vnet: &VnetHeader, ip: &Ipv4, protocol: u8, checksum: usize) -> Result<(), SegmentError> {
    if vnet.gso_size == 0 {
        return Err(SegmentError::ZeroSegmentSize);
    }
    if ip.protocol != protocol || ip.is_fragment() {
        return Err(SegmentError::WrongProtocol);
    }
    let here = usize::from(vnet.csum_start) == ip.header_len && usize::from(vnet.csum_offset) == checksum;
    if vnet.needs_csum() && !here {
        return Err(SegmentError::ChecksumPosition);
    }
    Ok(())
}

fn base(ip: &Ipv4, packet: &[u8], transport_header: &[u8]) -> Base {
    let mut header = [0u8; MAX_HEADER];
    let header = &mut header[..ip.header_len];
    header.copy_from_slice(&packet[..ip.header_len]);
    put_u16(header, 2, 0);
    put_u16(header, 4, 0);
    put_u16(header, 10, 0);
    let pseudo = pseudo_header(ip.source, ip.destination, ip.protocol, 0);
    Base {
        ip_header_len: ip.header_len,
        id: ip.id,
        ip: Sum::of(header),
        transport: pseudo.add(Sum::of(transport_header)),
    }
}

fn cut(shape: Shape, header_len: usize, vnet: &VnetHeader, packet: &[u8]) -> Plan {
    let segment_size = usize::from(vnet.gso_size);
    let payload_len = packet.len() - header_len;
    let count = payload_len.div_ceil(segment_size).max(1);
    debug_assert!(header_len.is_multiple_of(2), "the sums of header and payload join at an even offset");
    Plan { shape, header_len, segment_size, payload_len, count }
}

impl Plan {
    /// How many packets there are; at least 1.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of packet `i` in bytes; 0 for `i ≥ count`.
    #[inline]
    #[must_use]
    pub fn packet_len(&self, i: usize) -> usize {
        if i >= self.count {
            return 0;
        }
        self.header_len + self.segment_size.min(self.payload_len - i * self.segment_size)
    }

    /// True if the packets carry all `planned` bytes, payload in each unless there is none, none of them too long.
    fn covers(&self, planned: usize) -> bool {
        let before_last = (self.count - 1) * self.segment_size;
        let last = self.payload_len.saturating_sub(before_last);
        let last_is_filled = (1..=self.segment_size).contains(&last) || (self.count == 1 && last == 0);
        last_is_filled && self.header_len + self.payload_len == planned && planned <= MAX_PACKET
    }

    /// Writes packet `i` with finished checksums to `out`. `packet` is the slice that was planned.
    ///
    /// # Panics
    /// If `i ≥ count`, if `out.len() != packet_len(i)`, or if `packet` is shorter than the planned one
    /// (in a debug build: of another length).
    pub fn write(&self, packet: &[u8], i: usize, out: &mut [u8]) {
        debug_assert_eq!(packet.len(), self.header_len + self.payload_len, "another packet was planned");
        match &self.shape {
            Shape::Whole => out.copy_from_slice(&packet[..self.payload_len]),
            Shape::Unfinished { start, at, zero_is_absent } => {
                let (before, summed) = out.split_at_mut(*start);
                before.copy_from_slice(&packet[..*start]);
                let checksum = copy_and_sum(summed, &packet[*start..self.payload_len]).finish();
                put_u16(out, *at, if *zero_is_absent { never_zero(checksum) } else { checksum });
            }
            Shape::Tcp { base, sequence, flags } => {
                let payload = self.copy_segment(packet, i, out);
                let transport = self.finish_ip(base, i, out);
                let offset = (i * self.segment_size) as u64 & 0xffff_ffff;
                let sequence = sequence.wrapping_add(offset as u32);
                let flags = self.flags_of(*flags, i);
                let len = len16(transport.len());
                let sum =
                    base.transport.add_u16(len).add_u32(sequence).add_u16(u16::from(flags)).add(payload);
                put_u32(transport, 4, sequence);
                transport[13] = flags;
                put_u16(transport, TCP_CHECKSUM, sum.finish());
            }
            Shape::Udp { base } => {
                let payload = self.copy_segment(packet, i, out);
                let transport = self.finish_ip(base, i, out);
                let len = len16(transport.len());
                // The length counts twice: in the pseudo-header and in the header.
                let sum = base.transport.add_u16(len).add_u16(len).add(payload);
                put_u16(transport, 4, len);
                put_u16(transport, UDP_CHECKSUM, never_zero(sum.finish()));
            }
        }
    }

    /// Copies the header and payload `i`, and gives the payload's sum.
    fn copy_segment(&self, packet: &[u8], i: usize, out: &mut [u8]) -> Sum {
        assert!(i < self.count, "segment {i} of {}", self.count);
        let (header, payload) = out.split_at_mut(self.header_len);
        header.copy_from_slice(&packet[..self.header_len]);
        let start = self.header_len + i * self.segment_size;
        let end = (start + self.segment_size).min(self.header_len + self.payload_len);
        copy_and_sum(payload, &packet[start..end])
    }

    /// Writes the IP fields of segment `i`, and gives the bytes behind the IP header.
    fn finish_ip<'a>(&self, base: &Base, i: usize, out: &'a mut [u8]) -> &'a mut [u8] {
        let total_len = len16(out.len());
        let id = base.id.wrapping_add((i as u64 & 0xffff) as u16);
        put_u16(out, 2, total_len);
        put_u16(out, 4, id);
        put_u16(out, 10, base.ip.add_u16(total_len).add_u16(id).finish());
        &mut out[base.ip_header_len..]
    }

    fn flags_of(&self, flags: u8, i: usize) -> u8 {
        let not_first = if i > 0 { CWR } else { 0 };
        let not_last = if i + 1 < self.count { FIN | PSH } else { 0 };
        flags & !(not_first | not_last)
    }
}

/// A UDP checksum field of 0 means "none", so a sum of 0 is sent as `0xffff`, which is 0 in one's complement too.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}
