//! One frame in the making, and the rules by which a packet joins it.

use super::flow::Flow;
use super::{INLINE, MAX_PIECES, Piece};
use crate::packet::checksum::pseudo_header;
use crate::packet::field::{get_u16, get_u32, len16, put_u16};
use crate::packet::ipv4::{
    Ipv4, MAX_PACKET, MIN_HEADER, PROTOCOL_TCP, PROTOCOL_UDP, header_checksum_ok, set_header_checksum,
};
use crate::packet::transport::{self, ACK, ECE, PSH, TCP_CHECKSUM, Tcp, UDP_CHECKSUM, UDP_HEADER, Udp};
use crate::packet::vnet::{GSO_NONE, GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, VNET_LEN, VnetHeader};

/// Most datagrams in a UDP super-packet: the old `UDP_MAX_SEGMENTS`. A frame above the limit is refused.
const MAX_DATAGRAMS: u32 = 64;

const _: () =
    assert!(MAX_DATAGRAMS as usize <= MAX_PIECES, "a full UDP super-packet has a piece for each datagram");

/// How a packet, and the frame that it opens, is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The packet passes as it is, and its checksums need not be right.
    Plain,
    /// The packet is TCP data with correct checksums.
    Tcp,
    /// The packet is a UDP datagram with correct checksums.
    Udp,
}

/// What the rules need to know of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) kind: Kind,
    /// None if it has no ports, or if nothing of its protocol is merged.
    pub(super) flow: Option<Flow>,
    /// True for a fragment other than the first: it belongs to some flow between its hosts.
    pub(super) later_fragment: bool,
    /// Bytes of IP and transport header; for a plain packet, of the IP header alone.
    pub(super) header_len: usize,
    /// True if nothing may be appended after it.
    closes: bool,
}

impl Arrival {
    /// Reads `packet` and, if it is of a kind that merges, verifies its checksums.
    #[inline]
    pub(super) fn classify(packet: &[u8], ip: &Ipv4, tcp: bool, udp: bool) -> Arrival {
        let plain = Arrival {
            kind: Kind::Plain,
            flow: None,
            later_fragment: ip.fragment_offset != 0,
            header_len: ip.header_len,
            closes: true,
        };
        let merges = (tcp && ip.protocol == PROTOCOL_TCP) || (udp && ip.protocol == PROTOCOL_UDP);
        let segment = &packet[ip.header_len..];
        if !merges || plain.later_fragment || segment.len() < 4 {
            return plain;
        }
        let plain = Arrival { flow: Some(Flow::new(ip, get_u32(segment, 0))), ..plain };
        if ip.header_len != MIN_HEADER || ip.more_fragments {
            return plain;
        }
        let candidate = if ip.protocol == PROTOCOL_TCP { tcp_data(segment) } else { udp_data(segment) };
        let Some((kind, header_len, closes)) = candidate else {
            return plain;
        };
        let verified = header_checksum_ok(&packet[..MIN_HEADER])
            && transport::transport_sum(ip, segment).fold() == 0xffff;
        if !verified {
            return plain;
        }
        Arrival { kind, header_len: MIN_HEADER + header_len, closes, ..plain }
    }
}

/// Takes TCP data without anything special, and gives kind, header length and whether it ends a frame.
#[inline]
fn tcp_data(segment: &[u8]) -> Option<(Kind, usize, bool)> {
    let tcp = Tcp::parse(segment)?;
    let no_reserved_bits = segment[12] & 0x0f == 0;
    let only_usual_flags = tcp.flags & ACK != 0 && tcp.flags & !(ACK | PSH | ECE) == 0;
    let ordinary = no_reserved_bits && only_usual_flags;
    (ordinary && segment.len() > tcp.header_len).then_some((Kind::Tcp, tcp.header_len, tcp.flags & PSH != 0))
}

/// Takes a UDP datagram with payload and checksum, as [`tcp_data`] does for TCP.
#[inline]
fn udp_data(segment: &[u8]) -> Option<(Kind, usize, bool)> {
    let udp = Udp::parse(segment)?;
    let has_checksum = udp.checksum != 0;
    let has_payload = udp.length == segment.len() && segment.len() > UDP_HEADER;
    (has_checksum && has_payload).then_some((Kind::Udp, UDP_HEADER, false))
}

/// A frame in the making: numbers only, its bytes lie in the coalescer and in the receive buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) flow: Flow,
    kind: Kind,
    /// True while more may join; it is then the newest frame of its flow.
    pub(super) open: bool,
    /// Where the head lies: vnet header, then the first packet's header, then perhaps its payload.
    pub(super) head_start: usize,
    pub(super) head_len: usize,
    /// Bytes of IP and transport header.
    header_len: usize,
    /// Payload bytes of the first packet; a longer one does not join.
    first_payload: usize,
    /// Payload bytes of all packets.
    payload_len: usize,
    next_sequence: u32,
    pub(super) packets: u32,
    pub(super) pieces: usize,
    pub(super) first_piece: usize,
}

impl Item {
    /// The frame that `arrival`, whose bytes are `packet`, opens.
    #[inline]
    pub(super) fn new(arrival: &Arrival, packet: &[u8], head_start: usize, head_len: usize) -> Item {
        let payload_len = packet.len() - arrival.header_len;
        let next_sequence = match arrival.kind {
            Kind::Tcp => get_u32(packet, MIN_HEADER + 4).wrapping_add(low32(payload_len)),
            _ => 0,
        };
        Item {
            flow: arrival.flow.unwrap_or(Flow::NONE),
            kind: arrival.kind,
            open: !arrival.closes,
            head_start,
            head_len,
            header_len: arrival.header_len,
            first_payload: payload_len,
            payload_len,
            next_sequence,
            packets: 1,
            pieces: 0,
            first_piece: 0,
        }
    }

    /// A frame that nothing joins and nothing edits.
    pub(super) fn plain(head_start: usize, head_len: usize) -> Item {
        Item {
            flow: Flow::NONE,
            kind: Kind::Plain,
            open: false,
            head_start,
            head_len,
            header_len: 0,
            first_payload: 0,
            payload_len: head_len - VNET_LEN,
            next_sequence: 0,
            packets: 1,
            pieces: 0,
            first_piece: 0,
        }
    }

    /// True if the kernel takes the frame, and each packet brought the one piece that it may bring: the first one
    /// brings none if it lies in the head whole.
    pub(super) fn is_within_limits(&self) -> bool {
        let later_packets = self.packets as usize - 1;
        let one_piece_each = self.pieces == later_packets || self.pieces == later_packets + 1;
        let length_fits = self.header_len + self.payload_len <= MAX_PACKET;
        let mergeable = self.packets == 1 || self.kind != Kind::Plain;
        let datagrams_fit = self.kind != Kind::Udp || self.packets <= MAX_DATAGRAMS;
        one_piece_each && self.pieces <= MAX_PIECES && length_fits && mergeable && datagrams_fit
    }

    /// True if head and `pieces` together are the frame's headers and all its payload.
    pub(super) fn has_all_bytes(&self, pieces: &[Piece]) -> bool {
        let in_pieces: usize = pieces.iter().map(|piece| piece.len as usize).sum();
        self.head_len + in_pieces == VNET_LEN + self.header_len + self.payload_len
    }

    /// True if `packet`, of the same flow, may be appended. `heads` holds this frame's head, whose TTL is one lower
    /// than that of the packet it came from.
    #[inline]
    pub(super) fn accepts(&self, arrival: &Arrival, packet: &[u8], heads: &[u8]) -> bool {
        let payload_len = packet.len() - arrival.header_len;
        let same_shape = self.kind == arrival.kind && self.header_len == arrival.header_len;
        let is_no_longer = payload_len <= self.first_payload;
        let total_len = self.header_len + self.payload_len + payload_len;
        let fits = is_no_longer && self.pieces < MAX_PIECES && total_len <= MAX_PACKET;
        if !(self.open && same_shape && fits) {
            return false;
        }
        let first = &heads[self.head_start + VNET_LEN..][..self.header_len];
        self.same_ip(first, packet)
            && match self.kind {
                Kind::Tcp => self.same_tcp(&first[MIN_HEADER..], &packet[MIN_HEADER..arrival.header_len]),
                Kind::Udp => self.packets < MAX_DATAGRAMS,
                Kind::Plain => false,
            }
    }

    /// True if TOS, fragment word and TTL are the same and the identification counts up, unless DF takes its meaning
    /// away (RFC 6864). The parts are closures, so that each is looked at only after those before it: this runs for
    /// every packet.
    #[inline]
    fn same_ip(&self, first: &[u8], packet: &[u8]) -> bool {
        let dont_fragment = first[6] & 0x40 != 0;
        let expected_id = get_u16(first, 4).wrapping_add((self.packets & 0xffff) as u16);
        let same_tos = first[1] == packet[1];
        let same_fragment_word = || first[6..8] == packet[6..8];
        let same_ttl = || first[8] == packet[8].wrapping_sub(1);
        let id_counts_up = || dont_fragment || get_u16(packet, 4) == expected_id;
        same_tos && same_fragment_word() && same_ttl() && id_counts_up()
    }

    /// True if `next` follows without a gap and, but for PSH, says the same in all fields beside the checksum.
    #[inline]
    fn same_tcp(&self, first: &[u8], next: &[u8]) -> bool {
        let contiguous = get_u32(next, 4) == self.next_sequence;
        let same_acknowledgement_and_offset = || first[8..13] == next[8..13];
        let same_flags = || (first[13] ^ next[13]) & !PSH == 0;
        let same_window = || first[14..16] == next[14..16];
        let same_urgent_pointer_and_options = || first[18..] == next[18..];
        contiguous
            && same_acknowledgement_and_offset()
            && same_flags()
            && same_window()
            && same_urgent_pointer_and_options()
    }

    /// Appends a packet that [`Item::accepts`] took; its payload becomes the frame's next piece.
    #[inline]
    pub(super) fn append(&mut self, arrival: &Arrival, packet: &[u8], heads: &mut [u8]) {
        let payload_len = packet.len() - arrival.header_len;
        self.payload_len += payload_len;
        self.packets += 1;
        self.next_sequence = self.next_sequence.wrapping_add(low32(payload_len));
        self.open = !arrival.closes && payload_len == self.first_payload;
        if arrival.closes {
            // Only PSH closes a packet that merges; the kernel puts it on the last segment again.
            heads[self.head_start + VNET_LEN + MIN_HEADER + 13] |= PSH;
        }
    }

    /// Sets lengths, checksums and the vnet header. Doing it again changes nothing.
    pub(super) fn finish(&self, heads: &mut [u8]) {
        let head = &mut heads[self.head_start..self.head_start + self.head_len];
        let (protocol, checksum, gso_type) = match self.kind {
            Kind::Plain => {
                head[..VNET_LEN].copy_from_slice(&VnetHeader::PLAIN.encode());
                return;
            }
            Kind::Tcp => (PROTOCOL_TCP, TCP_CHECKSUM, GSO_TCPV4),
            Kind::Udp => (PROTOCOL_UDP, UDP_CHECKSUM, GSO_UDP_L4),
        };
        let merged = self.packets > 1;
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: if merged { gso_type } else { GSO_NONE },
            hdr_len: len16(self.header_len),
            gso_size: if merged { len16(self.first_payload) } else { 0 },
            csum_start: len16(MIN_HEADER),
            csum_offset: len16(checksum),
        };
        head[..VNET_LEN].copy_from_slice(&vnet.encode());
        let (ip, segment) = head[VNET_LEN..].split_at_mut(MIN_HEADER);
        let segment_len = len16(self.header_len - MIN_HEADER + self.payload_len);
        if merged {
            put_u16(ip, 2, len16(self.header_len + self.payload_len));
            set_header_checksum(ip);
            if self.kind == Kind::Udp {
                put_u16(segment, 4, segment_len);
            }
        }
        let (source, destination) = (get_u32(ip, 12).into(), get_u32(ip, 16).into());
        let pseudo = pseudo_header(source, destination, protocol, u32::from(segment_len));
        put_u16(segment, checksum, pseudo.fold());
    }
}

/// How many bytes of `packet` go to its frame's head: all of a small one, otherwise its headers.
#[inline]
pub(super) fn bytes_to_copy(arrival: &Arrival, packet: &[u8]) -> usize {
    if packet.len() <= INLINE { packet.len() } else { arrival.header_len }
}

/// A length or index, all of which are far below 2³² here.
#[inline]
pub(super) fn low32(len: usize) -> u32 {
    debug_assert!(u32::try_from(len).is_ok(), "{len} does not fit 32 bits");
    (len as u64 & 0xffff_ffff) as u32
}
