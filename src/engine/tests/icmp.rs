//! Who gets an ICMP answer, who gets none, and how many there are.

use super::*;
use crate::packet::checksum::Sum;
use crate::packet::ipv4::{header_checksum_ok, set_header_checksum};

/// An ICMP message of `kind` between two hosts.
fn icmp(source: [u8; 4], destination: [u8; 4], kind: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 1, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend([kind, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
    set_header_checksum(&mut packet[..20]);
    let sum = Sum::of(&packet[20..]).finish().to_be_bytes();
    packet[22..24].copy_from_slice(&sum);
    packet
}

/// Checks the answer's form, and that it quotes `offender`.
fn assert_answers(answer: &[u8], (kind, code): (u8, u8), from: [u8; 4], offender: &[u8]) {
    assert!(header_checksum_ok(&answer[..20]));
    assert_eq!(Sum::of(&answer[20..]).fold(), 0xffff);
    assert_eq!((answer[8], answer[9]), (8, 1), "TTL and protocol");
    assert_eq!(answer[12..16], from);
    assert_eq!(answer[16..20], offender[12..16], "to the offender's source");
    assert_eq!((answer[20], answer[21]), (kind, code));
    assert_eq!(answer[28..], offender[..28], "header and eight bytes");
}

#[test]
fn a_packet_for_our_own_subnet_is_unreachable() {
    let packet = Spec { destination: [10, 1, 5, 77], ..outgoing(40) }.build();
    let mut bench = Bench::new();
    bench.reads(&packet).settle();
    let written = bench.packets_written();
    assert_eq!(written.len(), 1);
    assert_answers(&written[0], (3, 0), [10, 1, 5, 0], &packet);
    assert_eq!(bench.dropped(DropReason::NoRoute), 1);
}

#[test]
fn an_echo_request_to_an_unassigned_subnet_is_answered() {
    let packet = icmp([10, 1, 5, 2], [10, 1, 200, 1], 8);
    let mut bench = Bench::new();
    bench.reads(&packet).settle();
    let written = bench.packets_written();
    assert_eq!(written.len(), 1);
    assert_answers(&written[0], (3, 0), [10, 1, 5, 0], &packet);
}

#[test]
fn an_icmp_error_is_never_answered() {
    for kind in [3, 4, 5, 11, 12] {
        let mut bench = Bench::new();
        bench.reads(&icmp([10, 1, 5, 2], [10, 1, 200, 1], kind));
        let mut expired = icmp([10, 1, 5, 2], [10, 1, 9, 1], kind);
        expired[8] = 1;
        set_header_checksum(&mut expired[..20]);
        bench.reads(&expired);
        let mut incoming = icmp([10, 1, 9, 1], [10, 1, 5, 2], kind);
        incoming[8] = 1;
        set_header_checksum(&mut incoming[..20]);
        bench.receives(NINE, &incoming).settle();
        assert!(bench.port().written.is_empty() && bench.port().sent.is_empty(), "type {kind}");
        assert_eq!((bench.count(Count::IcmpSent), bench.snapshot().dropped_total()), (0, 3));
    }
}

#[test]
fn time_exceeded_is_told_at_the_tun_to_the_local_sender() {
    for ttl in [0, 1] {
        let packet = Spec { ttl, ..outgoing(40) }.build();
        let mut bench = Bench::new();
        bench.reads(&packet).settle();
        let written = bench.packets_written();
        assert_eq!(written.len(), 1);
        assert_answers(&written[0], (11, 0), [10, 1, 5, 0], &packet);
        assert!(bench.port().sent.is_empty());
        assert_eq!((bench.dropped(DropReason::TunTtl), bench.count(Count::IcmpSent)), (1, 1));
    }
}

#[test]
fn time_exceeded_is_told_at_the_socket_through_the_overlay() {
    for ttl in [0, 1] {
        let packet = Spec { ttl, ..incoming(40) }.build();
        let mut bench = Bench::new();
        bench.receives(NINE, &packet).settle();
        let sent = bench.packets_sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].0, NINE);
        assert_answers(&sent[0].1, (11, 0), [10, 1, 5, 0], &packet);
        assert!(bench.port().written.is_empty());
        assert_eq!((bench.dropped(DropReason::Ttl), bench.count(Count::IcmpSent)), (1, 1));
    }
}

#[test]
fn an_expired_packet_from_nowhere_is_dropped_without_an_answer() {
    let packet = Spec { ttl: 1, source: [172, 16, 0, 1], ..incoming(40) }.build();
    let mut bench = Bench::filtering(PeerFilter::Off);
    bench.receives(STRANGER, &packet).settle();
    assert!(bench.port().written.is_empty() && bench.port().sent.is_empty());
    assert_eq!((bench.dropped(DropReason::Ttl), bench.count(Count::IcmpSent)), (1, 0));
}

#[test]
fn a_burst_of_offenders_is_answered_a_hundred_times_and_counted_in_full() {
    let unroutable = Spec { destination: [10, 1, 200, 3], ..outgoing(10) }.build();
    let expired = Spec { ttl: 1, ..incoming(10) }.build();
    let mut bench = Bench::new();
    for _ in 0..400 {
        bench.reads(&unroutable).receives(NINE, &expired);
    }
    bench.settle();
    let (sent, limited) = (bench.count(Count::IcmpSent), bench.count(Count::IcmpLimited));
    assert_eq!(sent + limited, 800);
    // Each direction has a bucket of 100, which gains one in 10 ms. The machine may be slow, so more may be sent.
    assert!((200..300).contains(&sent), "{sent}");
    assert_eq!((bench.packets_written().len() + bench.packets_sent().len()) as u64, sent);
    assert_eq!((bench.dropped(DropReason::NoRoute), bench.dropped(DropReason::Ttl)), (400, 400));
}

#[test]
fn what_has_no_eight_bytes_to_quote_is_quoted_as_far_as_it_goes() {
    let mut packet = outgoing(0).build();
    packet.truncate(21);
    packet[3] = 21;
    packet[16..20].copy_from_slice(&[10, 1, 200, 3]);
    set_header_checksum(&mut packet[..20]);
    let mut bench = Bench::new();
    bench.reads(&packet).settle();
    let written = bench.packets_written();
    assert_eq!(written[0].len(), 20 + 8 + 21);
    assert_eq!(written[0][28..], packet);
}
