//! Every reason to drop a packet is reached by packets that deserve it, and each is counted once.

use super::*;
use crate::packet::ipv4::set_header_checksum;

/// A packet or a fault at the port that must be counted under one reason.
struct Case {
    what: &'static str,
    arrange: fn(&mut Bench) -> &mut Bench,
    reason: DropReason,
}

const fn case(what: &'static str, reason: DropReason, arrange: fn(&mut Bench) -> &mut Bench) -> Case {
    Case { what, arrange, reason }
}

/// The packet with some bytes overwritten and its header checksum set right again.
fn forged(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    set_header_checksum(&mut packet[..20]);
    packet
}

fn ipv6() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    packet.resize(48, 1);
    packet
}

fn send_fails(bench: &mut Bench, errno: i32) -> &mut Bench {
    bench.port().send_faults.push_back(errno);
    bench.reads(&outgoing(30).build())
}

fn write_fails(bench: &mut Bench, errno: i32) -> &mut Bench {
    bench.port().write_faults.push_back(errno);
    bench.receives(NINE, &incoming(30).build())
}

fn frame(bench: &mut Bench, bytes: Vec<u8>) -> &mut Bench {
    bench.port().frames.push_back(bytes);
    bench
}

fn cut_short(bench: &mut Bench) -> &mut Bench {
    let payload = incoming(30).build();
    bench.port().arrivals.push_back(Arrival { payload, from: NINE, stride: None, truncated: true });
    bench
}

const TUN_CASES: &[Case] = &[
    case("0 bytes", DropReason::TunFrame, |b| frame(b, vec![])),
    case("1 byte", DropReason::TunFrame, |b| frame(b, vec![0])),
    case("half a vnet header", DropReason::TunFrame, |b| frame(b, vec![0; 9])),
    case("an unknown segmentation type", DropReason::TunFrame, |b| {
        let mut bytes = super_frame(&outgoing(100), 50);
        bytes[1] = 3;
        frame(b, bytes)
    }),
    case("segment size 0", DropReason::TunFrame, |b| {
        let mut bytes = super_frame(&outgoing(100), 50);
        bytes[4..6].fill(0);
        frame(b, bytes)
    }),
    case("a checksum beyond the packet", DropReason::TunFrame, |b| {
        let mut bytes = super_frame(&outgoing(100), 0);
        bytes[6..8].copy_from_slice(&u16::to_ne_bytes(5000));
        frame(b, bytes)
    }),
    case("no packet behind the vnet header", DropReason::TunMalformed, |b| frame(b, vec![0; 10])),
    case("1 byte of packet", DropReason::TunMalformed, |b| frame(b, vec![0x45; 11])),
    case("IPv6", DropReason::TunNotIpv4, |b| b.reads(&ipv6())),
    case("IHL 4", DropReason::TunMalformed, |b| b.reads(&forged(outgoing(30).build(), 0, &[0x44]))),
    case("a total length too long", DropReason::TunMalformed, |b| {
        b.reads(&forged(outgoing(30).build(), 2, &[0, 59]))
    }),
    case("a total length too short", DropReason::TunMalformed, |b| {
        b.reads(&forged(outgoing(30).build(), 2, &[0, 57]))
    }),
    case("a total length below the header", DropReason::TunMalformed, |b| {
        b.reads(&forged(outgoing(30).build(), 2, &[0, 19]))
    }),
    case("multicast", DropReason::TunMulticast, |b| {
        b.reads(&Spec { destination: [224, 0, 0, 22], ..outgoing(30) }.build())
    }),
    case("broadcast", DropReason::TunMulticast, |b| {
        b.reads(&Spec { destination: [255; 4], ..outgoing(30) }.build())
    }),
    case("an unassigned subnet", DropReason::NoRoute, |b| {
        b.reads(&Spec { destination: [10, 1, 200, 1], ..outgoing(30) }.build())
    }),
    case("outside of the network", DropReason::NoRoute, |b| {
        b.reads(&Spec { destination: [8, 8, 8, 8], ..outgoing(30) }.build())
    }),
    case("TTL 0", DropReason::TunTtl, |b| b.reads(&Spec { ttl: 0, ..outgoing(30) }.build())),
    case("TTL 1", DropReason::TunTtl, |b| b.reads(&Spec { ttl: 1, ..outgoing(30) }.build())),
];

const PORT_CASES: &[Case] = &[
    case("EAGAIN", DropReason::SendBuffer, |b| send_fails(b, libc::EAGAIN)),
    case("ENOBUFS", DropReason::SendBuffer, |b| send_fails(b, libc::ENOBUFS)),
    case("ENOMEM", DropReason::SendBuffer, |b| send_fails(b, libc::ENOMEM)),
    case("ENETUNREACH", DropReason::SendUnreachable, |b| send_fails(b, libc::ENETUNREACH)),
    case("EHOSTUNREACH", DropReason::SendUnreachable, |b| send_fails(b, libc::EHOSTUNREACH)),
    case("ENETDOWN", DropReason::SendUnreachable, |b| send_fails(b, libc::ENETDOWN)),
    case("EMSGSIZE for one packet", DropReason::SendTooBig, |b| send_fails(b, libc::EMSGSIZE)),
    case("EPERM", DropReason::SendFailed, |b| send_fails(b, libc::EPERM)),
    case("EINVAL for one packet", DropReason::SendFailed, |b| send_fails(b, libc::EINVAL)),
    case("EIO", DropReason::TunDown, |b| write_fails(b, libc::EIO)),
    case("EBADFD", DropReason::TunGone, |b| write_fails(b, libc::EBADFD)),
    case("EINVAL at the TUN", DropReason::TunWrite, |b| write_fails(b, libc::EINVAL)),
];

const UDP_CASES: &[Case] = &[
    case("truncated", DropReason::Truncated, cut_short),
    case("0 bytes", DropReason::Malformed, |b| b.receives(NINE, &[])),
    case("1 byte", DropReason::Malformed, |b| b.receives(NINE, &[0x45])),
    case("19 bytes", DropReason::Malformed, |b| b.receives(NINE, &incoming(0).build()[..19])),
    case("IPv6", DropReason::NotIpv4, |b| b.receives(NINE, &ipv6())),
    case("65 507 bytes of nothing", DropReason::NotIpv4, |b| b.receives(NINE, &vec![0; 65_507])),
    case("IHL 4", DropReason::Malformed, |b| b.receives(NINE, &forged(incoming(30).build(), 0, &[0x44]))),
    case("IHL 15 in 58 bytes", DropReason::Malformed, |b| {
        b.receives(NINE, &forged(incoming(30).build(), 0, &[0x4f]))
    }),
    case("a total length too long", DropReason::Malformed, |b| {
        b.receives(NINE, &forged(incoming(30).build(), 2, &[0xff, 0xff]))
    }),
    case("a total length too short", DropReason::Malformed, |b| {
        b.receives(NINE, &forged(incoming(30).build(), 2, &[0, 57]))
    }),
    case("a wrong header checksum", DropReason::HeaderChecksum, |b| {
        let mut packet = incoming(30).build();
        packet[10] ^= 1;
        b.receives(NINE, &packet)
    }),
    case("an outer source that is no peer", DropReason::UnknownPeer, |b| {
        b.receives(STRANGER, &incoming(30).build())
    }),
    case("another peer's inner source", DropReason::InnerSource, |b| {
        b.receives(SEVEN, &incoming(30).build())
    }),
    case("an inner source of ours", DropReason::InnerSource, |b| {
        b.receives(NINE, &Spec { source: [10, 1, 5, 9], ..incoming(30) }.build())
    }),
    case("an inner source outside of the network", DropReason::InnerSource, |b| {
        b.receives(NINE, &Spec { source: [8, 8, 8, 8], ..incoming(30) }.build())
    }),
    case("a destination at another host", DropReason::InnerDestination, |b| {
        b.receives(NINE, &Spec { destination: [10, 1, 7, 1], ..incoming(30) }.build())
    }),
    case("multicast", DropReason::InnerDestination, |b| {
        b.receives(NINE, &Spec { destination: [224, 0, 0, 22], ..incoming(30) }.build())
    }),
    case("TTL 0", DropReason::Ttl, |b| b.receives(NINE, &Spec { ttl: 0, ..incoming(30) }.build())),
    case("TTL 1", DropReason::Ttl, |b| b.receives(NINE, &Spec { ttl: 1, ..incoming(30) }.build())),
];

fn cases() -> impl Iterator<Item = &'static Case> {
    [TUN_CASES, PORT_CASES, UDP_CASES].into_iter().flatten()
}

#[test]
fn each_is_counted_under_its_reason_once_and_goes_nowhere() {
    for Case { what, arrange, reason } in cases() {
        let mut bench = Bench::new();
        arrange(&mut bench);
        bench.settle();
        let snapshot = bench.snapshot();
        assert_eq!(snapshot.dropped(*reason), 1, "{what}: {}\n{snapshot}", reason.name());
        assert_eq!(snapshot.dropped_total(), 1, "{what}: {snapshot}");
        let through = bench.packets_sent().len() + bench.packets_written().len();
        assert_eq!(through as u64, snapshot.get(Count::IcmpSent), "{what}: only answers may leave");
    }
}

#[test]
fn every_reason_has_a_case() {
    for reason in DropReason::ALL {
        assert!(cases().any(|case| case.reason == reason), "{} has no case", reason.name());
    }
}

/// A bad packet takes no other along: the good ones around it pass in order.
#[test]
fn neighbours_of_a_dropped_packet_pass() {
    for Case { what, arrange, .. } in [TUN_CASES, UDP_CASES].into_iter().flatten() {
        let mut bench = Bench::new();
        bench.reads(&outgoing(7).build()).receives(NINE, &incoming(7).build());
        arrange(&mut bench);
        bench.reads(&outgoing(9).build()).receives(NINE, &incoming(9).build());
        bench.settle();
        let udp = |packets: Vec<Vec<u8>>| {
            let data = packets.into_iter().filter(|packet| packet[9] == 17);
            data.map(|packet| packet.len()).collect::<Vec<_>>()
        };
        let sent = bench.packets_sent().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(udp(sent), [35, 37], "{what}");
        assert_eq!(udp(bench.packets_written()), [35, 37], "{what}");
    }
}

#[test]
fn a_joined_receive_is_judged_packet_by_packet() {
    let good = incoming(30).build();
    let mut bad = good.clone();
    bad[10] ^= 1;
    let foreign = Spec { destination: [10, 1, 7, 1], ..incoming(30) }.build();
    let tail = incoming(5).build();
    let payload = [&good[..], &bad, &good, &foreign, &tail].concat();
    let mut bench = Bench::new();
    bench.arrives(NINE, &payload, Some(58)).settle();
    let lengths: Vec<_> = bench.packets_written().iter().map(Vec::len).collect();
    assert_eq!(lengths, [58, 58, 33]);
    assert_eq!(
        (bench.dropped(DropReason::HeaderChecksum), bench.dropped(DropReason::InnerDestination)),
        (1, 1)
    );
    assert_eq!((bench.count(Count::UdpReceives), bench.count(Count::UdpPackets)), (1, 3));

    // Nobody knows how many packets a truncated receive lost, beyond what the stride tells.
    let mut bench = Bench::new();
    let arrival = Arrival { payload, from: NINE, stride: Some(58), truncated: true };
    bench.port().arrivals.push_back(arrival);
    bench.settle();
    assert_eq!((bench.dropped(DropReason::Truncated), bench.packets_written().len()), (5, 0));
}

/// A write that fails loses all the packets in it.
#[test]
fn a_failed_super_packet_counts_all_its_packets() {
    let packet = Spec { source: [10, 1, 9, 3], destination: [10, 1, 5, 2], ..Spec::tcp(ramp(10_000)) };
    let train = cut(&super_frame(&packet, 1000)).concat();
    let mut bench = Bench::new();
    bench.port().write_faults.push_back(libc::EIO);
    bench.arrives(NINE, &train, Some(1052)).settle();
    assert_eq!((bench.dropped(DropReason::TunDown), bench.snapshot().dropped_total()), (10, 10));

    let mut bench = Bench::new();
    bench.port().send_faults.push_back(libc::ENOBUFS);
    let spec = Spec { source: [10, 1, 5, 2], destination: [10, 1, 9, 3], ..packet };
    bench.port().frames.push_back(super_frame(&spec, 1000));
    bench.settle();
    assert_eq!((bench.dropped(DropReason::SendBuffer), bench.snapshot().dropped_total()), (10, 10));
}

/// Each filter looks at its own choice of outer source, inner source and inner destination.
#[test]
fn filters_let_in_what_they_say() {
    let right = || (NINE, incoming(30));
    let other_port = || (SocketAddrV4::new(*NINE.ip(), 40_000), incoming(30));
    let natted = || (STRANGER, incoming(30));
    let crossed = || (SEVEN, incoming(30));
    let unknown_inside = || (NINE, Spec { source: [10, 1, 200, 1], ..incoming(30) });
    let routed = || (NINE, Spec { destination: [10, 1, 7, 1], ..incoming(30) });
    let anything = || (STRANGER, Spec { source: [8; 4], destination: [9; 4], ..incoming(30) });
    let arrivals: [fn() -> (SocketAddrV4, Spec); 7] =
        [right, other_port, natted, crossed, unknown_inside, routed, anything];
    let admitted = [
        (PeerFilter::Strict, [true, true, false, false, false, false, false]),
        (PeerFilter::Inner, [true, true, true, true, false, false, false]),
        (PeerFilter::Off, [true; 7]),
    ];
    for (filter, expected) in admitted {
        let passes = |arrival: &fn() -> (SocketAddrV4, Spec)| {
            let mut bench = Bench::filtering(filter);
            let (from, spec) = arrival();
            bench.receives(from, &spec.build()).settle();
            assert_eq!(bench.snapshot().dropped_total() + bench.packets_written().len() as u64, 1);
            bench.packets_written().len() == 1
        };
        assert_eq!(arrivals.each_ref().map(passes), expected, "{filter}");
    }
}
