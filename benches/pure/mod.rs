//! The pure functions of the packet path as operations that can be repeated. `micro` times them and `count` counts
//! their instructions.

use flanneld::offload::batch::{Limits, Trains};
use flanneld::offload::coalesce::{Coalescer, HEAD_ROOM, Settings};
use flanneld::offload::segment::plan;
use flanneld::packet::checksum::{Sum, pseudo_header};
use flanneld::packet::ipv4::{Ipv4, decrement_ttl, set_header_checksum};
use flanneld::packet::vnet::{GSO_TCPV4, NEEDS_CSUM, VnetHeader};
use flanneld::route::{Peer, RouteCommand, RouteTable};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};

/// An operation that can be repeated.
pub(crate) struct Op {
    /// Packets, look-ups or blocks that one run handles.
    pub(crate) packets: usize,
    /// Bytes that one run touches, or 0 where that means nothing.
    pub(crate) bytes: usize,
    /// Runs the operation once.
    pub(crate) run: Box<dyn FnMut()>,
}

/// The sizes at which checksums are measured.
pub(crate) const SIZES: [usize; 3] = [64, 1500, 65_536];
/// The numbers of routes at which look-ups are measured.
pub(crate) const PEERS: [u32; 4] = [2, 1_000, 10_000, 100_000];

/// The payload of one segment: an MTU of 1472 less 20 bytes of IPv4 and 32 of TCP with timestamps.
const SEGMENT: usize = 1420;
/// The number of segments that TCP makes of 64 KiB.
const SEGMENTS: usize = 45;
const HEADER: usize = 52;

/// A function that makes an operation.
pub(crate) type Make = Box<dyn Fn() -> Op>;

/// All operations by name, not yet made: making one costs more than running it.
pub(crate) fn all() -> Vec<(String, Make)> {
    let mut ops: Vec<(String, Make)> = Vec::new();
    let mut add = |name: String, make: Make| ops.push((name, make));
    for size in SIZES {
        add(format!("checksum/{size}"), Box::new(move || checksum(size)));
    }
    add("ttl".to_owned(), Box::new(ttl));
    for peers in PEERS {
        add(format!("lookup/{peers}"), Box::new(move || lookup(peers)));
    }
    add("segment".to_owned(), Box::new(segment));
    for peers in [1, 8] {
        add(format!("batch/{peers}"), Box::new(move || trains(peers)));
    }
    add("coalesce".to_owned(), Box::new(coalesce));
    ops
}

fn checksum(size: usize) -> Op {
    let bytes = vec![0xa5; size];
    let run = move || {
        black_box(Sum::of(black_box(&bytes)).finish());
    };
    Op { packets: 1, bytes: size, run: Box::new(run) }
}

fn ttl() -> Op {
    let (_, packet) = super_packet();
    let header: [u8; 20] = packet[..20].try_into().unwrap();
    let run = move || {
        let mut copy = black_box(header);
        decrement_ttl(&mut copy).unwrap();
        black_box(copy);
    };
    Op { packets: 1, bytes: 0, run: Box::new(run) }
}

/// A table of `peers` equal subnets of 10.0.0.0/8, each with a peer of its own, and their prefix length.
fn table(peers: u32) -> (RouteTable, u8) {
    let prefix = if peers > 60_000 { 26 } else { 24 };
    let mut table = RouteTable::new("10.0.0.0/8".parse().unwrap());
    for i in 0..peers {
        let subnet = Ipv4Addr::from_bits((10 << 24) + (i << (32 - prefix)));
        let address = SocketAddrV4::new(Ipv4Addr::from_bits((172 << 24) + i), 7890);
        let subnet = ipnet::Ipv4Net::new(subnet, prefix).unwrap();
        table.apply(&RouteCommand::Set { subnet, peer: Peer { address } }).unwrap();
    }
    (table, prefix)
}

fn lookup(peers: u32) -> Op {
    let (table, prefix) = table(peers);
    let mut state = 1u32;
    let addresses: Vec<Ipv4Addr> = (0..4096)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Ipv4Addr::from_bits((10 << 24) + (((state >> 8) % peers) << (32 - prefix)) + 2)
        })
        .collect();
    let packets = addresses.len();
    let run = move || {
        for address in &addresses {
            let peer = table.lookup(black_box(*address)).unwrap();
            black_box(table.address(peer));
        }
    };
    Op { packets, bytes: 0, run: Box::new(run) }
}

/// A TCP super-packet as the TUN device gives it.
pub(crate) fn super_packet() -> (VnetHeader, Vec<u8>) {
    let total = HEADER + SEGMENTS * SEGMENT;
    let mut packet: Vec<u8> = vec![0x45, 0];
    packet.extend(u16::try_from(total).unwrap().to_be_bytes());
    packet.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 1, 1, 2, 10, 2, 2, 2]);
    set_header_checksum(&mut packet);
    packet.extend([0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 0x10, 0]);
    let sum = pseudo_header(Ipv4Addr::new(10, 1, 1, 2), Ipv4Addr::new(10, 2, 2, 2), 6, (total - 20) as u32);
    packet.extend(sum.fold().to_be_bytes());
    packet.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.extend((HEADER..total).map(|i| (i * 31) as u8));
    let vnet = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: HEADER as u16,
        gso_size: SEGMENT as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, packet)
}

fn segment() -> Op {
    let (vnet, packet) = super_packet();
    let (bytes, mut out) = (packet.len(), vec![0; 1472]);
    let run = move || {
        let plan = plan(&vnet, black_box(&packet)).unwrap();
        for i in 0..plan.count() {
            let len = plan.packet_len(i);
            plan.write(&packet, i, &mut out[..len]);
            black_box(&out);
        }
    };
    Op { packets: SEGMENTS, bytes, run: Box::new(run) }
}

fn trains(peers: u16) -> Op {
    let limits = Limits { max_segments: 64, max_segment_size: 1472, enabled: true };
    let mut trains = Trains::new(32, limits);
    let keys: Vec<_> = (0..peers).map(|i| SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 7890 + i)).collect();
    let run = move || {
        for i in 0..SEGMENTS {
            black_box(trains.place(black_box(keys[i % keys.len()]), 1472).unwrap());
        }
        trains.clear();
    };
    Op { packets: SEGMENTS, bytes: 0, run: Box::new(run) }
}

/// The packets of a super-packet, as they lie in a receive buffer.
fn received() -> Vec<u8> {
    let (vnet, packet) = super_packet();
    let plan = plan(&vnet, &packet).unwrap();
    let mut bytes = Vec::new();
    for i in 0..plan.count() {
        let start = bytes.len();
        bytes.resize(start + plan.packet_len(i), 0);
        plan.write(&packet, i, &mut bytes[start..]);
    }
    bytes
}

fn coalesce() -> Op {
    let bytes = received();
    let settings =
        Settings { tcp: true, udp: true, frames: 512, pieces: 2048, header_bytes: 512 * HEAD_ROOM };
    let mut coalescer = Coalescer::new(settings);
    let len = bytes.len();
    let run = move || {
        for (i, packet) in bytes.chunks(SEGMENT + HEADER).enumerate() {
            let ip = Ipv4::parse(black_box(packet)).unwrap();
            let _ = black_box(coalescer.push(0, i * (SEGMENT + HEADER), packet, &ip));
        }
        let frames = coalescer.frames().map(|frame| black_box(frame).packets).sum::<u32>();
        assert_eq!((frames, coalescer.len()), (SEGMENTS as u32, 1));
        coalescer.clear();
    };
    Op { packets: SEGMENTS, bytes: len, run: Box::new(run) }
}
