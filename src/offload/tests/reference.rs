//! The naive twin that the tests compare with: builds packets field by field, sums word by word, and cuts a frame as
//! the kernel would, after checking what the kernel checks on a write to the TUN.

#![allow(clippy::cast_possible_truncation, reason = "lengths of test packets fit their fields")]

use std::ops::Range;

/// A TCP or UDP packet, described.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) tcp: bool,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) ip_options: Vec<u8>,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DF: u16 = 0x4000;

impl Spec {
    pub(crate) fn tcp(payload: Vec<u8>) -> Spec {
        Spec {
            tcp: true,
            source: [10, 1, 5, 2],
            destination: [10, 1, 9, 3],
            ports: (40_000, 5201),
            tos: 0,
            id: 7,
            fragment: DF,
            ttl: 62,
            ip_options: Vec::new(),
            sequence: 1000,
            acknowledgement: 77,
            flags: 0x10,
            window: 501,
            tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload,
        }
    }

    pub(crate) fn udp(payload: Vec<u8>) -> Spec {
        Spec { tcp: false, fragment: 0, ..Spec::tcp(payload) }
    }

    /// The packet with correct checksums.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut packet = vec![0x40 | (5 + self.ip_options.len() / 4) as u8, self.tos, 0, 0];
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, if self.tcp { 6 } else { 17 }, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(&self.ip_options);
        packet.extend(self.ports.0.to_be_bytes());
        packet.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.acknowledgement.to_be_bytes());
            packet.extend([((5 + self.tcp_options.len() / 4) << 4) as u8, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(&self.tcp_options);
        } else {
            packet.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            packet.extend([0; 2]);
        }
        packet.extend(&self.payload);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        finish(&mut packet);
        packet
    }
}

/// The sum of RFC 1071, taken word by word.
pub(crate) fn naive_sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for word in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

pub(crate) fn header_len(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

fn checksum_at(packet: &[u8]) -> usize {
    header_len(packet) + if packet[9] == 6 { 16 } else { 6 }
}

/// The sum of the pseudo-header with the packet's own length.
pub(crate) fn naive_pseudo(packet: &[u8]) -> u16 {
    let len = (packet.len() - header_len(packet)) as u16;
    naive_sum(&[&packet[12..20], &[0, packet[9]], &len.to_be_bytes()])
}

pub(crate) fn finish_ip(packet: &mut [u8]) {
    let header = header_len(packet);
    packet[10..12].fill(0);
    let sum = !naive_sum(&[&packet[..header]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Sets both checksums of a packet.
pub(crate) fn finish(packet: &mut [u8]) {
    finish_ip(packet);
    let (header, at) = (header_len(packet), checksum_at(packet));
    packet[at..at + 2].fill(0);
    let pseudo = naive_pseudo(packet).to_be_bytes();
    let mut sum = !naive_sum(&[&pseudo, &packet[header..]]);
    if packet[9] == 17 && sum == 0 {
        sum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Turns a finished packet into what the kernel hands out: the checksum field holds the pseudo-header's sum.
pub(crate) fn unfinish(packet: &mut [u8]) {
    let at = checksum_at(packet);
    let pseudo = naive_pseudo(packet).to_be_bytes();
    packet[at..at + 2].copy_from_slice(&pseudo);
}

/// The vnet header of a super-packet, or with `segment_size` 0 of a single unfinished packet. Its `hdr_len` is wrong on
/// purpose, since nobody may trust it.
pub(crate) fn vnet(packet: &[u8], segment_size: u16) -> Vec<u8> {
    let gso_type = match (segment_size, packet[9]) {
        (0, _) => 0,
        (_, 6) => 1,
        _ => 5,
    };
    let start = header_len(packet);
    let mut bytes = vec![1, gso_type];
    for field in [0xffff, segment_size, start as u16, (checksum_at(packet) - start) as u16] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes
}

fn field(vnet: &[u8], range: Range<usize>) -> usize {
    usize::from(u16::from_ne_bytes(vnet[range].try_into().unwrap()))
}

/// Cuts a frame (vnet header and packet) as the kernel does, and gives the packets as a receiver sees them.
pub(crate) fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, packet) = frame.split_at(10);
    if vnet[0] == 0 {
        assert_eq!(vnet, [0; 10]);
        return vec![packet.to_vec()];
    }
    assert_eq!(vnet[0], 1);
    let (gso_type, segment_size) = (vnet[1] & 0x7f, field(vnet, 4..6));
    let ip_header = header_len(packet);
    assert_eq!(field(vnet, 6..8), ip_header, "csum_start");
    assert_eq!(ip_header + field(vnet, 8..10), checksum_at(packet), "csum_offset");
    assert_eq!(usize::from(packet[2]) << 8 | usize::from(packet[3]), packet.len(), "total length");
    let at = checksum_at(packet);
    assert_eq!(packet[at..at + 2], naive_pseudo(packet).to_be_bytes(), "pseudo-header");
    if gso_type == 0 {
        assert_eq!(segment_size, 0);
        let mut packet = packet.to_vec();
        let ip_sum = [packet[10], packet[11]];
        finish(&mut packet);
        packet[10..12].copy_from_slice(&ip_sum);
        return vec![packet];
    }
    assert_eq!(gso_type, if packet[9] == 6 { 1 } else { 5 }, "type and protocol");
    assert!(segment_size > 0);
    let tcp = packet[9] == 6;
    let header = ip_header + if tcp { usize::from(packet[ip_header + 12] >> 4) * 4 } else { 8 };
    let count = packet[header..].chunks(segment_size).count();
    let cut = packet[header..].chunks(segment_size).enumerate();
    cut.map(|(i, payload)| cut_one(packet, header, i, i + 1 == count, segment_size, payload)).collect()
}

fn cut_one(packet: &[u8], header: usize, i: usize, last: bool, size: usize, payload: &[u8]) -> Vec<u8> {
    let ip_header = header_len(packet);
    let mut segment = packet[..header].to_vec();
    segment.extend(payload);
    let len = segment.len();
    segment[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(i as u16);
    segment[4..6].copy_from_slice(&id.to_be_bytes());
    if packet[9] == 6 {
        let sequence = u32::from_be_bytes(packet[ip_header + 4..][..4].try_into().unwrap());
        let sequence = sequence.wrapping_add((i * size) as u32);
        segment[ip_header + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
        if i > 0 {
            segment[ip_header + 13] &= !0x80;
        }
        if !last {
            segment[ip_header + 13] &= !0x09;
        }
    } else {
        segment[ip_header + 4..][..2].copy_from_slice(&((len - ip_header) as u16).to_be_bytes());
    }
    finish(&mut segment);
    segment
}

/// A frame as the kernel hands it out of the TUN: its checksum is still to be completed.
pub(crate) fn frame(spec: &Spec, segment_size: u16) -> Vec<u8> {
    let mut packet = spec.build();
    let mut frame = vnet(&packet, segment_size);
    unfinish(&mut packet);
    frame.extend(packet);
    frame
}

/// A payload whose bytes tell where they were.
pub(crate) fn ramp(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}
