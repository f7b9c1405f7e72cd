//! ICMP errors (RFC 792) that the daemon writes back to its own TUN.
//!
//! The layout is flannel's: TOS 0, id 0, no DF, TTL 8, and a quote of the offender's IP header with the 8 bytes
//! behind it. Two differences are deliberate. The quote holds only bytes that the offender has (flannel reads past
//! its end), and an ICMP packet that is not itself an error, an echo request above all, is answered (RFC 1122
//! section 3.2.2; flannel answers no ICMP at all, so a ping to an unassigned subnet only times out there).

use super::checksum::Sum;
use super::field::{len16, put_u16};
use super::ipv4::{Ipv4, MAX_HEADER, MIN_HEADER, PROTOCOL_ICMP, set_header_checksum};
use std::net::Ipv4Addr;

/// Bytes of an ICMP error's own header.
const ICMP_HEADER: usize = 8;
/// Bytes that are quoted after the offender's IP header.
const QUOTE: usize = 8;
/// TTL of an answer, as flannel sets it.
const TTL: u8 = 8;

/// Bytes of the longest answer.
pub const MAX_REPLY: usize = MIN_HEADER + ICMP_HEADER + MAX_HEADER + QUOTE;

const _: () = assert!(MAX_REPLY <= 576, "RFC 1812 section 4.3.2.3: no ICMP error is longer");

/// What is wrong with the offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No peer owns the destination: type 3, code 0.
    NetUnreachable,
    /// The TTL ran out: type 11, code 0.
    TimeExceeded,
    /// The packet has DF set and is larger than the path: type 3, code 4, with the next hop's MTU in bytes.
    FragmentationNeeded {
        /// The largest packet that would have passed, in bytes.
        mtu: u16,
    },
}

/// Builds the answer to `offender` (an IPv4 packet as read from the TUN) from address `from` into `out` and returns
/// its length, at most [`MAX_REPLY`]. The caller limits the rate.
///
/// Where RFC 1122 wants silence it returns `None` and leaves anything in `out`: the offender is malformed, an ICMP
/// error, a later fragment, sent to a group, or sent from an address that names no single host. It also returns `None`
/// if `out` is too short.
#[must_use]
pub fn error_reply(kind: Kind, offender: &[u8], from: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    let ip = Ipv4::parse_prefix(offender).ok()?;
    if !may_answer(&ip, offender) {
        return None;
    }
    let quote = offender.get(..ip.total_len.min(ip.header_len + QUOTE))?;
    let len = MIN_HEADER + ICMP_HEADER + quote.len();
    let reply = out.get_mut(..len)?;

    let (header, message) = reply.split_at_mut(MIN_HEADER);
    header.fill(0);
    header[0] = 0x45;
    put_u16(header, 2, len16(len));
    header[8] = TTL;
    header[9] = PROTOCOL_ICMP;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&ip.source.octets());
    set_header_checksum(header);

    let (icmp_type, code, mtu) = match kind {
        Kind::NetUnreachable => (3, 0, 0),
        Kind::TimeExceeded => (11, 0, 0),
        Kind::FragmentationNeeded { mtu } => (3, 4, mtu),
    };
    message[..ICMP_HEADER].fill(0);
    message[0] = icmp_type;
    message[1] = code;
    put_u16(message, 6, mtu);
    message[ICMP_HEADER..].copy_from_slice(quote);
    let checksum = Sum::of(message).finish();
    put_u16(message, 2, checksum);
    debug_assert!(len <= MAX_REPLY, "callers offer no more room");
    debug_assert!(Ipv4::parse(reply).is_ok(), "an answer is a packet itself");
    Some(len)
}

fn may_answer(ip: &Ipv4, packet: &[u8]) -> bool {
    let source_is_a_host = !(ip.source.is_unspecified()
        || ip.source.is_multicast()
        || ip.source.is_broadcast()
        || ip.source.is_loopback());
    let to_one_host = !ip.to_many();
    let is_first_fragment = ip.fragment_offset == 0;
    source_is_a_host && to_one_host && is_first_fragment && !is_icmp_error(ip, packet)
}

/// True for unreachable, source quench, redirect, time exceeded and parameter problem, and for ICMP that is too short
/// to tell what it is.
fn is_icmp_error(ip: &Ipv4, packet: &[u8]) -> bool {
    if ip.protocol != PROTOCOL_ICMP {
        return false;
    }
    match packet.get(ip.header_len..ip.total_len).and_then(|message| message.first()) {
        Some(icmp_type) => matches!(icmp_type, 3 | 4 | 5 | 11 | 12),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ipv4::header_checksum_ok;
    use proptest::prelude::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 0);

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn vector() -> Vec<u8> {
        hex("450000201c4640003f11fd800a0105020a0109039c400009000c000070696e67")
    }

    fn reply(kind: Kind, offender: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xaa; MAX_REPLY];
        error_reply(kind, offender, FROM, &mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn the_vector_of_the_contract() {
        let expected = hex("4500003800000000080194c20a0105000a010502030060aa00000000\
                            450000201c4640003f11fd800a0105020a0109039c400009000c0000");
        assert_eq!(reply(Kind::NetUnreachable, &vector()), Some(expected));
    }

    #[test]
    fn kinds() {
        let exceeded = reply(Kind::TimeExceeded, &vector()).unwrap();
        assert_eq!(exceeded[20..22], [11, 0]);
        let needed = reply(Kind::FragmentationNeeded { mtu: 1472 }, &vector()).unwrap();
        assert_eq!(needed[20..22], [3, 4]);
        assert_eq!(needed[24..28], [0, 0, 0x05, 0xc0]);
        for packet in [exceeded, needed] {
            assert!(header_checksum_ok(&packet[..20]));
            assert_eq!(Sum::of(&packet[20..]).fold(), 0xffff);
        }
    }

    #[test]
    fn quotes_only_what_exists() {
        let mut short = vector();
        short.truncate(23);
        short[3] = 23;
        let answer = reply(Kind::NetUnreachable, &short).unwrap();
        assert_eq!(answer.len(), 20 + 8 + 23);
        assert_eq!(answer[28..], short[..]);
        // Bytes beyond the total length belong to nobody.
        let mut padded = short.clone();
        padded.extend([0x55; 20]);
        assert_eq!(reply(Kind::NetUnreachable, &padded), Some(answer));
    }

    #[test]
    fn a_header_of_60_bytes_is_answered() {
        let mut long = vec![0u8; 80];
        long[..20].copy_from_slice(&vector()[..20]);
        long[0] = 0x4f;
        long[3] = 80;
        assert_eq!(reply(Kind::NetUnreachable, &long).map(|answer| answer.len()), Some(MAX_REPLY));
    }

    #[test]
    fn silence_where_rfc_1122_wants_it() {
        let with = |at: usize, bytes: &[u8]| {
            let mut packet = vector();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            reply(Kind::NetUnreachable, &packet).is_some()
        };
        assert!(with(8, &[0]));
        for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert!(!with(12, &source), "{source:?}");
        }
        assert!(!with(16, &[239, 1, 1, 1]));
        assert!(!with(16, &[255, 255, 255, 255]));
        assert!(!with(7, &[1]), "a later fragment");
        assert!(with(6, &[0x20]), "a first fragment");
        assert!(!with(0, &[0x44]));
        for icmp_type in 0..=255u8 {
            let mut packet = vector();
            packet[9] = PROTOCOL_ICMP;
            packet[20] = icmp_type;
            let error = [3, 4, 5, 11, 12].contains(&icmp_type);
            assert_eq!(reply(Kind::NetUnreachable, &packet).is_none(), error, "type {icmp_type}");
        }
        let mut empty = vector();
        empty.truncate(20);
        empty[3] = 20;
        empty[9] = PROTOCOL_ICMP;
        assert_eq!(reply(Kind::NetUnreachable, &empty), None);
        assert_eq!(error_reply(Kind::NetUnreachable, &vector(), FROM, &mut [0; 55]), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_valid(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), ihl in 0u8..16) {
            if bytes.len() >= 4 {
                let len = len16(bytes.len());
                bytes[0] = 0x40 | ihl;
                put_u16(&mut bytes, 2, len);
            }
            if let Some(answer) = reply(Kind::TimeExceeded, &bytes) {
                let ip = Ipv4::parse(&answer).unwrap();
                prop_assert!(header_checksum_ok(&answer[..20]));
                prop_assert_eq!(Sum::of(&answer[20..]).fold(), 0xffff);
                prop_assert_eq!((ip.ttl, ip.source), (8, FROM));
                prop_assert!(bytes.starts_with(&answer[28..]));
            }
        }
    }
}
