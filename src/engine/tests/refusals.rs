//! Segmented sends that the kernel refuses, and super-packets larger than a turn.

use super::*;
use crate::offload::batch::TRAIN_BYTES;

fn big(destination: [u8; 4], payload: usize, segment_size: u16) -> (Vec<u8>, Vec<Vec<u8>>) {
    let spec = Spec { source: [10, 1, 5, 2], destination, ..Spec::tcp(ramp(payload)) };
    let hop = Spec { ttl: spec.ttl - 1, ..spec.clone() };
    (super_frame(&spec, segment_size), cut(&super_frame(&hop, segment_size)))
}

fn alone(bench: &Bench) -> usize {
    bench.worker.port.sent.iter().filter(|sent| sent.segment_size.is_none()).count()
}

#[test]
fn a_kernel_that_cannot_segment_gets_the_packets_one_by_one_from_then_on() {
    for errno in [libc::EIO, libc::EINVAL] {
        let (frame, packets) = big([10, 1, 9, 3], 9_500, 1000);
        let mut bench = Bench::new();
        bench.port().send_faults.push_back(errno);
        bench.port().frames.push_back(frame.clone());
        bench.settle();
        assert!(bench.port().sent.is_empty());
        let expected: Vec<_> = packets.iter().map(|packet| (packet.clone(), NINE)).collect();
        assert_eq!(bench.port().resent, expected);
        assert_eq!((bench.count(Count::Resent), bench.snapshot().dropped_total()), (1, 0));

        bench.port().frames.push_back(frame);
        bench.settle();
        let sent: Vec<_> = bench.packets_sent().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent, packets);
        assert_eq!(alone(&bench), packets.len(), "no train is tried again");
        assert_eq!((bench.count(Count::Resent), bench.snapshot().dropped_total()), (1, 0));
    }
}

#[test]
fn a_narrow_path_is_remembered_for_its_peer_and_size_alone() {
    a_narrow_path_is_remembered(libc::EMSGSIZE);
}

/// Older kernels say EINVAL where newer ones say EMSGSIZE.
#[test]
fn a_narrow_path_of_an_older_kernel_is_remembered_alike() {
    a_narrow_path_is_remembered(libc::EINVAL);
}

fn a_narrow_path_is_remembered(errno: i32) {
    let (frame, packets) = big([10, 1, 9, 3], 9_500, 1400);
    let mut bench = Bench::new();
    bench.port().send_faults.push_back(errno);
    bench.port().frames.push_back(frame.clone());
    bench.settle();
    assert_eq!(bench.port().resent.len(), packets.len());
    assert_eq!(bench.snapshot().dropped_total(), 0);

    // The same peer and size go one by one now, and the kernel is not asked.
    bench.port().frames.push_back(frame);
    bench.settle();
    let sent: Vec<_> = bench.packets_sent().into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(sent, packets);
    // The last packet is short enough to share a train, but there is none that it could share.
    assert_eq!(alone(&bench), packets.len());

    // Smaller packets to the same peer make a train.
    bench.port().sent.clear();
    bench.port().frames.push_back(big([10, 1, 9, 3], 9_500, 1000).0);
    bench.settle();
    assert_eq!((bench.port().sent.len(), alone(&bench)), (1, 0));

    // Packets of the same size to another peer make a train.
    bench.port().sent.clear();
    bench.port().frames.push_back(big([10, 1, 7, 3], 9_500, 1400).0);
    bench.settle();
    assert_eq!((bench.port().sent.len(), alone(&bench)), (1, 0));
    assert_eq!(bench.count(Count::Resent), 1);

    // The path turns out to be narrower still.
    bench.port().sent.clear();
    bench.port().send_faults.push_back(libc::EMSGSIZE);
    bench.port().frames.push_back(big([10, 1, 9, 3], 9_500, 1000).0);
    bench.port().frames.push_back(big([10, 1, 9, 3], 9_500, 800).0);
    bench.settle();
    bench.port().sent.clear();
    bench.port().frames.push_back(big([10, 1, 9, 3], 9_500, 1000).0);
    bench.settle();
    assert_eq!((bench.port().sent.len(), alone(&bench)), (10, 10));
    assert_eq!((bench.count(Count::Resent), bench.snapshot().dropped_total()), (2, 0));
}

#[test]
fn a_packet_that_fails_again_is_counted_by_its_own_reason() {
    let mut bench = Bench::new();
    bench.port().send_faults.push_back(libc::EIO);
    bench.port().resend_faults.extend([0, libc::ENOBUFS, libc::EMSGSIZE, libc::EPERM]);
    bench.port().frames.push_back(big([10, 1, 9, 3], 5_500, 1000).0);
    bench.settle();
    assert_eq!(bench.port().resent.len(), 3);
    let reasons = [DropReason::SendBuffer, DropReason::SendTooBig, DropReason::SendFailed];
    assert_eq!(reasons.map(|reason| bench.dropped(reason)), [1, 1, 1]);
    assert_eq!((bench.count(Count::Resent), bench.snapshot().dropped_total()), (1, 3));
}

/// A full buffer is no refusal: the train is lost as a whole, and segmentation stays on.
#[test]
fn a_train_that_finds_no_buffer_is_not_sent_again() {
    let (frame, packets) = big([10, 1, 9, 3], 9_500, 1000);
    for errno in [libc::EAGAIN, libc::ENOBUFS, libc::ENETUNREACH, libc::EPERM] {
        let mut bench = Bench::new();
        bench.port().send_faults.push_back(errno);
        bench.port().frames.extend([frame.clone(), frame.clone()]);
        bench.settle();
        // Both super-packets start on the same train where they can. The train that failed is lost.
        let sent = bench.packets_sent().len() as u64;
        assert_eq!(sent + bench.snapshot().dropped_total(), 2 * packets.len() as u64);
        assert!(bench.port().resent.is_empty() && alone(&bench) == 0);
        assert_eq!(bench.count(Count::Resent), 0);
    }
}

/// The frame needs more trains than there are. It waits, and goes on where it was.
#[test]
fn a_super_packet_larger_than_a_turn_resumes() {
    let off = Limits { enabled: false, ..LIMITS };
    for (limits, payload, segment_size) in [(LIMITS, 9_000, 1), (off, 60_000, 500), (off, 33_000, 1000)] {
        let mut bench = Bench::with(&Settings::default(), ALL, limits);
        let (frame, mut expected) = big([10, 1, 9, 3], payload, segment_size);
        bench.port().frames.push_back(frame);
        let (frame, packets) = big([10, 1, 9, 3], 3000, 1000);
        bench.port().frames.push_back(frame);
        expected.extend(packets);
        bench.step();
        assert!(bench.packets_sent().len() < expected.len(), "the case is too small");
        // Traffic of the other direction goes on meanwhile.
        bench.receives(NINE, &incoming(30).build());
        bench.step();
        assert_eq!(bench.packets_written().len(), 1);
        bench.settle();
        let sent: Vec<_> = bench.packets_sent().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent.len(), expected.len());
        assert!(sent == expected, "lost, doubled or out of order");
        assert_eq!(bench.count(Count::TunReads), 2);
        assert_eq!(bench.count(Count::TunPackets), expected.len() as u64);
    }
}

/// There are more peers than trains.
#[test]
fn forty_peers_in_turn_all_get_their_packets() {
    let mut bench = Bench::new();
    for n in 0..40 {
        let address = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, n), 8285);
        bench.commands.send(Command::Route(set(&format!("10.1.{}.0/24", 100 + n), address))).unwrap();
    }
    bench.step();
    for round in 0..5 {
        for n in 0..40 {
            let spec = Spec { destination: [10, 1, 100 + n, 1], id: round, ..outgoing(100) };
            bench.reads(&spec.build());
        }
    }
    bench.settle();
    let sent = bench.packets_sent();
    for n in 0..40 {
        let own = sent.iter().filter(|(to, _)| to.ip().octets()[3] == n && to.ip().octets()[0] == 198);
        let ids: Vec<_> = own.map(|(_, packet)| packet[5]).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4], "peer {n}");
    }
    assert_eq!(bench.snapshot().dropped_total(), 0);
}

#[test]
fn a_packet_too_large_for_a_train_travels_alone_and_one_too_large_for_udp_is_counted() {
    let mut bench = Bench::new();
    for payload in [1500, 3000, TRAIN_BYTES - 28] {
        bench.reads(&outgoing(payload).build());
    }
    bench.settle();
    assert_eq!((bench.port().sent.len(), alone(&bench)), (3, 3));
    // To more than 65 507 bytes the kernel says EMSGSIZE.
    bench.port().send_faults.push_back(libc::EMSGSIZE);
    bench.reads(&outgoing(65_535 - 28).build()).settle();
    assert_eq!((bench.dropped(DropReason::SendTooBig), bench.port().resent.len()), (1, 0));
}
