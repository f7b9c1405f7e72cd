//! Plans against a naive cutter.

#![allow(clippy::cast_possible_truncation, reason = "lengths of test packets fit their fields")]

use super::*;
use crate::offload::tests::reference::{Spec, cut, frame, ramp};
use proptest::prelude::*;

fn packets(frame: &[u8]) -> Result<Vec<Vec<u8>>, SegmentError> {
    let header = VnetHeader::decode(frame).unwrap();
    let packet = &frame[10..];
    let plan = plan(&header, packet)?;
    let write = |i| {
        let mut out = vec![0xaa; plan.packet_len(i)];
        plan.write(packet, i, &mut out);
        out
    };
    Ok((0..plan.count()).map(write).collect())
}

#[test]
fn a_finished_packet_is_copied() {
    // Wrong checksums are copied too: they are the sender's own affair.
    let mut packet = Spec::udp(ramp(30)).build();
    packet[26] ^= 0xff;
    packet[10] ^= 0x0f;
    let mut frame = vec![0; 10];
    frame.extend(&packet);
    assert_eq!(packets(&frame), Ok(vec![packet.clone()]));
    frame[0] = 2;
    assert_eq!(packets(&frame), Ok(vec![packet]));
}

#[test]
fn flags_stay_where_they_belong() {
    let spec = Spec { flags: 0xff, ..Spec::tcp(ramp(3000)) };
    let mut frame = frame(&spec, 1000);
    frame[1] |= 0x80;
    let flags: Vec<u8> = packets(&frame).unwrap().iter().map(|packet| packet[33]).collect();
    assert_eq!(flags, [0xf6, 0x76, 0x7f]);
}

#[test]
fn any_number_of_segments_and_wrapping_numbers() {
    let spec = Spec { id: 0xfff0, sequence: 0xffff_f000, ..Spec::tcp(ramp(65_483)) };
    let frame = frame(&spec, 1);
    let cut_by_us = packets(&frame).unwrap();
    assert_eq!(cut_by_us.len(), 65_483);
    assert_eq!(cut_by_us, cut(&frame));
}

#[test]
fn a_udp_sum_of_zero_is_sent_as_its_twin() {
    // The payload is chosen so that the sum is 0: it is the complement of everything else.
    for segment_size in [0, 2] {
        let mut spec = Spec::udp(vec![0, 0]);
        let sum = spec.build();
        spec.payload = sum[26..28].to_vec();
        let built = spec.build();
        assert_eq!(built[26..28], [0xff, 0xff]);
        assert_eq!(packets(&frame(&spec, segment_size)), Ok(vec![built]));
    }
}

#[test]
fn errors_are_named() {
    let tcp = frame(&Spec::tcp(ramp(3000)), 1000);
    let change = |at: usize, value: &[u8]| {
        let mut frame = tcp.clone();
        frame[at..at + value.len()].copy_from_slice(value);
        packets(&frame).map(|packets| packets.len())
    };
    assert_eq!(change(0, &[]), Ok(3));
    assert_eq!(change(1, &[4]), Err(SegmentError::UnknownGsoType(4)));
    assert_eq!(change(1, &[0x83]), Err(SegmentError::UnknownGsoType(3)));
    assert_eq!(change(1, &[5]), Err(SegmentError::WrongProtocol));
    assert_eq!(change(4, &[0, 0]), Err(SegmentError::ZeroSegmentSize));
    assert_eq!(change(6, &24u16.to_ne_bytes()), Err(SegmentError::ChecksumPosition));
    assert_eq!(change(8, &6u16.to_ne_bytes()), Err(SegmentError::ChecksumPosition));
    assert_eq!(change(10, &[0x60]), Err(SegmentError::Malformed(Malformed::NotIpv4)));
    assert_eq!(change(16, &[0x20]), Err(SegmentError::WrongProtocol));
    assert_eq!(change(42, &[0x40]), Err(SegmentError::TransportHeader));
    // A sum position beyond the packet, on a single packet.
    let mut single = frame(&Spec::udp(ramp(2)), 0);
    single[8..10].copy_from_slice(&9u16.to_ne_bytes());
    assert_eq!(packets(&single), Err(SegmentError::ChecksumPosition));
    single[8..10].copy_from_slice(&6u16.to_ne_bytes());
    single[6..8].copy_from_slice(&19u16.to_ne_bytes());
    assert_eq!(packets(&single), Err(SegmentError::ChecksumPosition));
}

#[test]
fn packets_beyond_the_last_have_no_length() {
    let frame = frame(&Spec::tcp(ramp(3000)), 1000);
    let plan = plan(&VnetHeader::decode(&frame).unwrap(), &frame[10..]).unwrap();
    assert_eq!((plan.packet_len(2), plan.packet_len(3)), (1052, 0));
}

prop_compose! {
    fn any_spec()(
        tcp in any::<bool>(), tos in any::<u8>(), id in any::<u16>(), df in any::<bool>(),
        ip_options in (0usize..=10).prop_map(|n| vec![1u8; n * 4]),
        tcp_options in (0usize..=10).prop_map(|n| vec![1u8; n * 4]),
        sequence in any::<u32>(), flags in any::<u8>(), payload in 0usize..6000, first in any::<u8>(),
    ) -> Spec {
        let mut payload = ramp(payload);
        if let Some(byte) = payload.first_mut() {
            *byte = first;
        }
        let base = if tcp { Spec::tcp(payload) } else { Spec::udp(payload) };
        let fragment = if df { 0x4000 } else { 0 };
        Spec { tos, id, fragment, ip_options, tcp_options, sequence, flags, ..base }
    }
}

proptest! {
    #[test]
    fn cuts_as_the_reference(spec in any_spec(), segment_size in prop_oneof![1u16..64, 500u16..1500, Just(65_535u16)]) {
        prop_assume!(!spec.payload.is_empty());
        let frame = frame(&spec, segment_size);
        prop_assert_eq!(packets(&frame).unwrap(), cut(&frame));
    }

    #[test]
    fn finishes_single_packets(spec in any_spec()) {
        prop_assert_eq!(packets(&frame(&spec, 0)).unwrap(), vec![spec.build()]);
    }

    #[test]
    fn no_bytes_panic(
        vnet in any::<[u8; 10]>(), gso in prop_oneof![Just(0u8), Just(1), Just(5), any::<u8>()], near in any::<bool>(),
        mut packet in proptest::collection::vec(any::<u8>(), 0..200), proto in prop_oneof![Just(6u8), Just(17)],
    ) {
        let mut frame = vnet.to_vec();
        frame[1] = gso;
        if near && packet.len() >= 20 {
            let len = packet.len() as u16;
            packet[0] = 0x40 | packet[0] & 0x07;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6..8].fill(0);
            packet[9] = proto;
            frame[5] = 0;
            frame[6..10].copy_from_slice(&[packet[0] % 16 * 4, 0, if proto == 6 { 16 } else { 6 }, 0]);
        }
        frame.extend(packet);
        if let Ok(packets) = packets(&frame) {
            prop_assert!(!packets.is_empty());
        }
    }
}
