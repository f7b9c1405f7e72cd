//! TCP (RFC 9293) and UDP (RFC 768) headers, and the checksum that covers them.

use super::checksum::{Sum, pseudo_header};
use super::field::{get_u16, get_u32};
use super::ipv4::Ipv4;

/// Bytes of a TCP header without options.
const TCP_MIN_HEADER: usize = 20;
/// Bytes of the longest TCP header.
pub const TCP_MAX_HEADER: usize = 60;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;

const _: () = assert!(TCP_MAX_HEADER == 0x0f * 4, "the data offset is four bits that count words");
const _: () = assert!(TCP_CHECKSUM + 2 <= TCP_MIN_HEADER && UDP_CHECKSUM + 2 <= UDP_HEADER);

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: the receiver shall hand on what it has.
pub const PSH: u8 = 0x08;
/// TCP flag: the acknowledgement field counts.
pub const ACK: u8 = 0x10;
/// TCP flag: ECN echo.
pub const ECE: u8 = 0x40;
/// TCP flag: congestion window reduced.
pub const CWR: u8 = 0x80;

/// A checked TCP header: its options lie within the slice that was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Sequence number of the first payload byte.
    pub sequence: u32,
    /// The sequence number that the sender expects next.
    pub acknowledgement: u32,
    /// Header length in bytes, options included: 20 to 60 (the data offset field times 4).
    pub header_len: usize,
    /// The eight flags from CWR (high) to FIN (low).
    pub flags: u8,
    /// The window as the header gives it, not scaled.
    pub window: u16,
    /// Checksum field as a host number.
    pub checksum: u16,
}

impl Tcp {
    /// Parses a header at the start of `segment` (the bytes after the IP header). `None` if there are fewer
    /// than 20 bytes, or the data offset is below 5 or points beyond the slice.
    #[inline]
    #[must_use]
    pub fn parse(segment: &[u8]) -> Option<Tcp> {
        let fixed = segment.first_chunk::<TCP_MIN_HEADER>()?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < TCP_MIN_HEADER || header_len > segment.len() {
            return None;
        }
        Some(Tcp {
            source_port: get_u16(fixed, 0),
            destination_port: get_u16(fixed, 2),
            sequence: get_u32(fixed, 4),
            acknowledgement: get_u32(fixed, 8),
            header_len,
            flags: fixed[13],
            window: get_u16(fixed, 14),
            checksum: get_u16(fixed, TCP_CHECKSUM),
        })
    }
}

/// A UDP header. Its length field is not checked against anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Length of header and payload in bytes, as the header tells it.
    pub length: usize,
    /// Checksum field as a host number; 0 means that the sender computed none.
    pub checksum: u16,
}

impl Udp {
    /// Parses a header at the start of `datagram` (the bytes after the IP header). `None` if there are
    /// fewer than 8 bytes.
    #[inline]
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Udp> {
        let fixed = datagram.first_chunk::<UDP_HEADER>()?;
        Some(Udp {
            source_port: get_u16(fixed, 0),
            destination_port: get_u16(fixed, 2),
            length: usize::from(get_u16(fixed, 4)),
            checksum: get_u16(fixed, UDP_CHECKSUM),
        })
    }
}

/// The sum of the pseudo-header and of `segment` (transport header and payload).
#[inline]
pub(crate) fn transport_sum(ip: &Ipv4, segment: &[u8]) -> Sum {
    let len = u32::from(super::field::len16(segment.len()));
    pseudo_header(ip.source, ip.destination, ip.protocol, len).add(Sum::of(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::field::{len16, put_u16};
    use crate::packet::ipv4::{PROTOCOL_TCP, PROTOCOL_UDP};
    use proptest::prelude::*;

    /// What a look at a transport checksum tells.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Verdict {
        /// The checksum is right.
        Valid,
        /// The checksum is wrong, or a header is cut short or lies about its length.
        Invalid,
        /// The packet is UDP without a checksum (field 0).
        Absent,
        /// The packet is a fragment, or neither TCP nor UDP: there is nothing to check.
        NotApplicable,
    }

    /// Checks the TCP or UDP checksum of `packet`, of which `ip` is the parsed header.
    fn verify(ip: &Ipv4, packet: &[u8]) -> Verdict {
        let Some(segment) = packet.get(ip.header_len..ip.total_len) else {
            return Verdict::Invalid;
        };
        match ip.protocol {
            _ if ip.is_fragment() => return Verdict::NotApplicable,
            PROTOCOL_TCP if Tcp::parse(segment).is_some() => {}
            PROTOCOL_UDP => match Udp::parse(segment) {
                Some(udp) if udp.length != segment.len() => return Verdict::Invalid,
                Some(udp) if udp.checksum == 0 => return Verdict::Absent,
                Some(_) => {}
                None => return Verdict::Invalid,
            },
            PROTOCOL_TCP => return Verdict::Invalid,
            _ => return Verdict::NotApplicable,
        }
        if transport_sum(ip, segment).fold() == 0xffff { Verdict::Valid } else { Verdict::Invalid }
    }

    /// True if `packet` carries a TCP or UDP checksum and it is right.
    fn checksum_ok(ip: &Ipv4, packet: &[u8]) -> bool {
        verify(ip, packet) == Verdict::Valid
    }

    fn udp_packet(payload: &[u8], checksum: Option<u16>) -> Vec<u8> {
        let mut packet = vec![0u8; 28 + payload.len()];
        let total = u16::try_from(packet.len()).unwrap();
        packet[0] = 0x45;
        put_u16(&mut packet, 2, total);
        packet[8] = 64;
        packet[9] = PROTOCOL_UDP;
        packet[12..20].copy_from_slice(&[10, 1, 5, 2, 10, 1, 9, 3]);
        put_u16(&mut packet, 20, 40_000);
        put_u16(&mut packet, 22, 9);
        put_u16(&mut packet, 24, total - 20);
        packet[28..].copy_from_slice(payload);
        let ip = Ipv4::parse(&packet).unwrap();
        let sum = transport_sum(&ip, &packet[20..]).finish();
        put_u16(&mut packet, 26, checksum.unwrap_or(if sum == 0 { 0xffff } else { sum }));
        packet
    }

    #[test]
    fn udp_verdicts() {
        let verdict = |packet: &[u8]| verify(&Ipv4::parse(packet).unwrap(), packet);
        let good = udp_packet(b"ping", None);
        assert_eq!(verdict(&good), Verdict::Valid);
        assert!(checksum_ok(&Ipv4::parse(&good).unwrap(), &good));
        assert_eq!(verdict(&udp_packet(b"ping", Some(0))), Verdict::Absent);
        let mut bad = good.clone();
        bad[30] ^= 1;
        assert_eq!(verdict(&bad), Verdict::Invalid);
        let mut lies = good.clone();
        lies[25] -= 1;
        assert_eq!(verdict(&lies), Verdict::Invalid);
        let mut fragment = good.clone();
        fragment[6] = 0x20;
        assert_eq!(verdict(&fragment), Verdict::NotApplicable);
        let mut icmp = good;
        icmp[9] = 1;
        assert_eq!(verdict(&icmp), Verdict::NotApplicable);
    }

    #[test]
    fn headers_are_checked() {
        let mut segment = [0u8; 24];
        segment[12] = 0x60;
        segment[13] = ACK | PSH;
        assert_eq!(Tcp::parse(&segment).map(|tcp| (tcp.header_len, tcp.flags)), Some((24, 0x18)));
        segment[12] = 0x70;
        assert_eq!(Tcp::parse(&segment), None);
        segment[12] = 0x40;
        assert_eq!(Tcp::parse(&segment), None);
        assert_eq!(Tcp::parse(&segment[..19]), None);
        assert_eq!(Udp::parse(&[0; 7]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), udp in any::<bool>()) {
            let _ = (Tcp::parse(&bytes), Udp::parse(&bytes));
            if bytes.len() >= 20 {
                let len = len16(bytes.len());
                bytes[0] = 0x45;
                bytes[6] = 0;
                bytes[7] = 0;
                bytes[9] = if udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
                put_u16(&mut bytes, 2, len);
                let ip = Ipv4::parse(&bytes).unwrap();
                let _ = verify(&ip, &bytes);
                let _ = verify(&ip, &bytes[..10]);
            }
        }
    }
}
