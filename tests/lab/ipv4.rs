//! Hand-made IPv4 packets, independent of the code under test.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The reverse of [`hex`].
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The Internet checksum of a header whose checksum field is zero (RFC 1071).
pub fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Sets the header checksum of a packet whose IHL is believable.
pub fn seal(packet: &mut [u8]) {
    let len = (usize::from(packet[0] & 0xf) * 4).clamp(20, packet.len());
    packet[10..12].fill(0);
    let sum = checksum(&packet[..len]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
}

/// A packet of any protocol, DF set, id 0x1c46.
pub fn packet(src: &str, dst: &str, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let addr = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut p = vec![0x45, 0, total[0], total[1], 0x1c, 0x46, 0x40, 0, ttl, protocol, 0, 0];
    p.extend(addr(src));
    p.extend(addr(dst));
    p.extend(payload);
    seal(&mut p);
    p
}

/// A UDP packet from port 40000 to port 9 without a UDP checksum.
pub fn udp(src: &str, dst: &str, ttl: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap().to_be_bytes();
    let header = [0x9c, 0x40, 0, 9, length[0], length[1], 0, 0];
    packet(src, dst, ttl, 17, &[&header, data].concat())
}
