//! The IPv4 header (RFC 791).

use super::checksum::Sum;
use super::field::{get_u16, put_u16};
use std::net::Ipv4Addr;

/// Bytes of a header without options.
pub const MIN_HEADER: usize = 20;
/// Bytes of the longest header, whose IHL field is 15.
pub const MAX_HEADER: usize = 60;
/// Bytes of the longest packet.
pub const MAX_PACKET: usize = 65_535;

const _: () = assert!(MAX_HEADER == 0x0f * 4, "the header length is four bits that count words");
const _: () = assert!(MAX_PACKET == u16::MAX as usize, "the total length is a 16-bit field");

/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// A checked IPv4 header: `MIN_HEADER ≤ header_len ≤ total_len ≤` length of the slice that was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Header length in bytes, options included: 20 to 60, a multiple of 4.
    pub header_len: usize,
    /// Length of header and payload in bytes.
    pub total_len: usize,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Identification, as a host number.
    pub id: u16,
    /// True if the DF bit is set: no router may fragment the packet.
    pub dont_fragment: bool,
    /// True if the MF bit is set: more fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment in bytes (the field counts units of 8).
    pub fragment_offset: u16,
    /// Time to live: how many hops are left.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Address of the sender.
    pub source: Ipv4Addr,
    /// Address of the receiver.
    pub destination: Ipv4Addr,
}

/// Why some bytes are not an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The slice holds fewer than 20 bytes, or fewer than the total length promises.
    #[error("truncated IPv4 packet")]
    Truncated,
    /// The version field is not 4.
    #[error("not IPv4")]
    NotIpv4,
    /// The header length is below 20 bytes, or above the total length.
    #[error("IPv4 header length out of range")]
    HeaderLength,
    /// The slice holds more bytes than the total length says.
    #[error("IPv4 total length differs from the bytes received")]
    TotalLength,
}

/// The TTL was 0 or 1: the packet may travel no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TTL expired")]
pub struct TtlExpired;

impl Ipv4 {
    /// Parses a slice that must hold exactly one packet. It leaves the header checksum to [`header_checksum_ok`].
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Ipv4, Malformed> {
        let header = Ipv4::parse_prefix(packet)?;
        if header.total_len != packet.len() {
            return Err(Malformed::TotalLength);
        }
        Ok(header)
    }

    /// Parses as [`Ipv4::parse`] does, but other bytes may follow the packet.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong; it is never `TotalLength`.
    #[inline]
    pub fn parse_prefix(bytes: &[u8]) -> Result<Ipv4, Malformed> {
        let Some(fixed) = bytes.first_chunk::<MIN_HEADER>() else {
            return Err(Malformed::Truncated);
        };
        if fixed[0] >> 4 != 4 {
            return Err(Malformed::NotIpv4);
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let total_len = usize::from(get_u16(fixed, 2));
        if header_len < MIN_HEADER || header_len > total_len {
            return Err(Malformed::HeaderLength);
        }
        if total_len > bytes.len() {
            return Err(Malformed::Truncated);
        }
        let fragment = get_u16(fixed, 6);
        Ok(Ipv4 {
            header_len,
            total_len,
            tos: fixed[1],
            id: get_u16(fixed, 4),
            dont_fragment: fragment & DONT_FRAGMENT != 0,
            more_fragments: fragment & MORE_FRAGMENTS != 0,
            fragment_offset: (fragment & OFFSET_MASK) << 3,
            ttl: fixed[8],
            protocol: fixed[9],
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
        })
    }

    /// True if the packet is a fragment, the first or a later one.
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// True if the destination is a multicast group (224/4) or the limited broadcast address. A subnet's directed
    /// broadcast address cannot be told from the packet alone.
    #[inline]
    #[must_use]
    pub fn to_many(&self) -> bool {
        self.destination.is_multicast() || self.destination.is_broadcast()
    }

    /// Bytes after the header.
    #[cfg(test)]
    fn payload_len(&self) -> usize {
        self.total_len - self.header_len
    }
}

/// Takes one hop from the TTL and patches the header checksum in the same way as the kernel's
/// `ip_decrease_ttl` (RFC 1624): a wrong checksum stays as wrong as it was.
///
/// # Errors
/// A TTL of 0 or 1 (or fewer than 12 bytes, which no parsed packet has) leaves the bytes unchanged.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) -> Result<(), TtlExpired> {
    let Some(fixed) = packet.first_chunk_mut::<12>() else {
        return Err(TtlExpired);
    };
    if fixed[8] <= 1 {
        return Err(TtlExpired);
    }
    fixed[8] -= 1;
    let sum = u32::from(get_u16(fixed, 10)) + 0x0100;
    let carried = sum + u32::from(sum >= 0xffff);
    put_u16(fixed, 10, (carried & 0xffff) as u16);
    Ok(())
}

/// True if the checksum of `header` (exactly the header's bytes, options included) is right.
#[inline]
#[must_use]
pub fn header_checksum_ok(header: &[u8]) -> bool {
    Sum::of(header).fold() == 0xffff
}

/// Computes the checksum of `header` (exactly the header's bytes, options included) and stores it.
///
/// # Panics
/// If `header` is shorter than 12 bytes.
#[inline]
pub fn set_header_checksum(header: &mut [u8]) {
    put_u16(header, 10, 0);
    let checksum = Sum::of(header).finish();
    put_u16(header, 10, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// flannel's packet vector: 10.1.5.2 → 10.1.9.3, UDP, as read from the TUN.
    const FROM_TUN: [u8; 32] = [
        0x45, 0x00, 0x00, 0x20, 0x1c, 0x46, 0x40, 0x00, 0x3f, 0x11, 0xfd, 0x80, 0x0a, 0x01, 0x05, 0x02, 0x0a,
        0x01, 0x09, 0x03, 0x9c, 0x40, 0x00, 0x09, 0x00, 0x0c, 0x00, 0x00, 0x70, 0x69, 0x6e, 0x67,
    ];

    #[test]
    fn parses_the_vector() {
        let ip = Ipv4::parse(&FROM_TUN).unwrap();
        assert_eq!((ip.header_len, ip.total_len, ip.payload_len()), (20, 32, 12));
        assert_eq!((ip.id, ip.ttl, ip.protocol), (0x1c46, 63, PROTOCOL_UDP));
        assert!(ip.dont_fragment && !ip.is_fragment() && !ip.to_many());
        assert_eq!(ip.source, Ipv4Addr::new(10, 1, 5, 2));
        assert_eq!(ip.destination, Ipv4Addr::new(10, 1, 9, 3));
        assert!(header_checksum_ok(&FROM_TUN[..20]));
    }

    #[test]
    fn two_hops_give_the_vectors() {
        let mut packet = FROM_TUN;
        decrement_ttl(&mut packet).unwrap();
        assert_eq!(packet[8..12], [0x3e, 0x11, 0xfe, 0x80]);
        decrement_ttl(&mut packet).unwrap();
        assert_eq!(packet[8..12], [0x3d, 0x11, 0xff, 0x80]);
        assert_eq!(packet[12..], FROM_TUN[12..]);
    }

    #[test]
    fn checksum_edges_of_one_hop() {
        for (before, after) in [
            (0xfe00, 0xff00),
            (0xfeff, 0x0000),
            (0xff00, 0x0001),
            (0xfffe, 0x00ff),
            (0xffff, 0x0100),
            (0x0000, 0x0100),
        ] {
            let mut packet = FROM_TUN;
            put_u16(&mut packet, 10, before);
            decrement_ttl(&mut packet).unwrap();
            assert_eq!(get_u16(&packet, 10), after, "{before:04x}");
        }
    }

    #[test]
    fn expired_packets_stay_as_they_are() {
        for ttl in [0, 1] {
            let mut packet = FROM_TUN;
            packet[8] = ttl;
            let before = packet;
            assert_eq!(decrement_ttl(&mut packet), Err(TtlExpired));
            assert_eq!(packet, before);
        }
        assert_eq!(decrement_ttl(&mut [0xff; 11]), Err(TtlExpired));
    }

    #[test]
    fn malformed_packets_are_named() {
        let with = |at: usize, value: u8| {
            let mut packet = FROM_TUN;
            packet[at] = value;
            Ipv4::parse(&packet)
        };
        assert_eq!(Ipv4::parse(&[]), Err(Malformed::Truncated));
        assert_eq!(Ipv4::parse(&FROM_TUN[..19]), Err(Malformed::Truncated));
        assert_eq!(with(0, 0x65), Err(Malformed::NotIpv4));
        assert_eq!(with(0, 0x44), Err(Malformed::HeaderLength));
        assert_eq!(with(0, 0x4f), Err(Malformed::HeaderLength));
        assert_eq!(with(3, 19), Err(Malformed::HeaderLength));
        assert_eq!(with(3, 33), Err(Malformed::Truncated));
        assert_eq!(with(3, 31), Err(Malformed::TotalLength));
        let mut shorter = FROM_TUN;
        shorter[3] = 31;
        assert_eq!(Ipv4::parse_prefix(&shorter).map(|ip| ip.total_len), Ok(31));
        assert_eq!(with(6, 0x20).map(|ip| (ip.is_fragment(), ip.fragment_offset)), Ok((true, 0)));
        assert_eq!(with(7, 0x02).map(|ip| (ip.is_fragment(), ip.fragment_offset)), Ok((true, 16)));
    }

    proptest! {
        #[test]
        fn one_hop_equals_a_full_recompute(header in any::<[u8; 20]>(), ttl in 2u8..) {
            let mut packet = header;
            packet[0] = 0x45;
            packet[8] = ttl;
            set_header_checksum(&mut packet);
            let mut recomputed = packet;
            decrement_ttl(&mut packet).unwrap();
            recomputed[8] -= 1;
            set_header_checksum(&mut recomputed);
            prop_assert!(header_checksum_ok(&packet));
            prop_assert_eq!(packet, recomputed);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), first in any::<u8>()) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first & 0x4f | 0x40;
            }
            if let Ok(ip) = Ipv4::parse_prefix(&bytes) {
                prop_assert!(ip.header_len >= 20 && ip.header_len <= ip.total_len && ip.total_len <= bytes.len());
            }
            let _ = Ipv4::parse(&bytes);
            let _ = decrement_ttl(&mut bytes);
        }
    }
}
