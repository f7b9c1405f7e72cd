//! Frames, cut again, against the packets that went in.

#![allow(clippy::cast_possible_truncation, reason = "lengths of test packets fit their fields")]

use super::*;
use crate::offload::segment;
use crate::offload::tests::reference::{DF, Spec, cut, finish_ip, naive_sum, unfinish, vnet};
use crate::packet::vnet::VnetHeader;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SETTINGS: Settings =
    Settings { tcp: true, udp: true, frames: 256, pieces: 512, header_bytes: 256 * HEAD_ROOM };

/// A coalescer and the receive buffers that it refers to.
struct Rig {
    coalescer: Coalescer,
    buffers: Vec<Vec<u8>>,
}

impl Rig {
    fn new(settings: Settings) -> Rig {
        Rig { coalescer: Coalescer::new(settings), buffers: vec![Vec::new(); 3] }
    }

    /// Puts the packet into one of the buffers and pushes it from there.
    fn push(&mut self, packet: &[u8]) -> Pushed {
        let number = packet.len() % self.buffers.len();
        let buffer = &mut self.buffers[number];
        let start = buffer.len();
        buffer.extend(packet);
        let ip = Ipv4::parse(packet).unwrap();
        self.coalescer.push(number as u16, start, packet, &ip)
    }

    /// The frames as the TUN gets them, each with its number of packets.
    fn frames(&mut self) -> Vec<(Vec<u8>, u32)> {
        let buffers = &self.buffers;
        let whole = |frame: Frame<'_>| {
            assert!(frame.pieces.len() <= MAX_PIECES);
            let mut bytes = frame.head.to_vec();
            for piece in frame.pieces {
                bytes.extend(
                    &buffers[usize::from(piece.buffer)][piece.start as usize..][..piece.len as usize],
                );
            }
            (bytes, frame.packets)
        };
        self.coalescer.frames().map(whole).collect()
    }

    fn flush(&mut self) -> Vec<(Vec<u8>, u32)> {
        let frames = self.frames();
        assert_eq!(frames, self.frames(), "asking twice changes nothing");
        self.coalescer.clear();
        self.buffers.iter_mut().for_each(Vec::clear);
        frames
    }
}

fn pushed(packets: &[Vec<u8>]) -> (Vec<Pushed>, Vec<(Vec<u8>, u32)>) {
    let mut rig = Rig::new(SETTINGS);
    let pushed = packets.iter().map(|packet| rig.push(packet)).collect();
    (pushed, rig.flush())
}

fn one_hop(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    decrement_ttl(&mut packet).unwrap();
    packet
}

/// `count` full segments of one TCP flow and their sequel's description.
fn tcp_run(spec: &Spec, count: usize) -> (Vec<Vec<u8>>, Spec) {
    let mut spec = spec.clone();
    let mut packets = Vec::new();
    for _ in 0..count {
        packets.push(spec.build());
        spec.sequence = spec.sequence.wrapping_add(spec.payload.len() as u32);
        spec.id = spec.id.wrapping_add(1);
    }
    (packets, spec)
}

#[test]
fn a_tcp_run_becomes_one_super_packet() {
    let spec = Spec { sequence: 0xffff_fe00, ..Spec::tcp(vec![5; 1400]) };
    let (mut packets, last) = tcp_run(&spec, 43);
    packets.push(Spec { flags: 0x18, payload: vec![6; 300], ..last }.build());
    let (pushed, frames) = pushed(&packets);
    assert_eq!(pushed[0], Pushed::Opened);
    assert!(pushed[1..].iter().all(|pushed| *pushed == Pushed::Merged));

    let mut whole = spec.clone();
    whole.ttl -= 1;
    whole.flags = 0x18;
    whole.payload = [vec![5; 43 * 1400], vec![6; 300]].concat();
    let mut packet = whole.build();
    let mut expected = vnet(&packet, 1400);
    expected[2..4].copy_from_slice(&52u16.to_ne_bytes());
    unfinish(&mut packet);
    expected.extend(packet);
    assert_eq!(frames, [(expected, 44)]);
}

#[test]
fn a_udp_run_stops_at_64_datagrams() {
    let packets: Vec<_> = (0..70).map(|id| Spec { id, ..Spec::udp(vec![id as u8; 200]) }.build()).collect();
    let (_, frames) = pushed(&packets);
    assert_eq!(frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>(), [64, 6]);
    let cut: Vec<_> = frames.iter().flat_map(|(frame, _)| cut(frame)).collect();
    assert_eq!(cut, packets.iter().map(|packet| one_hop(packet)).collect::<Vec<_>>());
}

#[test]
fn no_frame_outgrows_an_ip_packet() {
    let (packets, _) = tcp_run(&Spec::tcp(vec![5; 1400]), 60);
    let (_, frames) = pushed(&packets);
    assert_eq!(frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>(), [46, 14]);
    let (packets, _) = tcp_run(&Spec::tcp(vec![5; 10]), 200);
    let (_, frames) = pushed(&packets);
    let counts: Vec<_> = frames.iter().map(|(_, packets)| *packets).collect();
    // The first packet of a frame lies in the head.
    assert_eq!(counts, [131, 69]);
}

/// The vector of the contract: no UDP checksum, so it passes as it is but for the TTL.
#[test]
fn the_vector_of_the_contract() {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    };
    let wire = hex("450000201c4640003e11fe800a0105020a0109039c400009000c000070696e67");
    let tun = hex("450000201c4640003d11ff800a0105020a0109039c400009000c000070696e67");
    let (pushed, frames) = pushed(&[wire]);
    assert_eq!(pushed, [Pushed::Alone]);
    assert_eq!(frames, [([vec![0; 10], tun].concat(), 1)]);
}

/// A packet stays apart if it differs from its predecessor in a field that the super-packet shares.
#[test]
fn odd_packets_do_not_join() {
    let first = Spec::tcp(vec![5; 500]);
    let (_, next) = tcp_run(&first, 1);
    let joins = |first: &Spec, next: &Spec| {
        let (pushed, frames) = pushed(&[first.build(), next.build()]);
        let cut: Vec<_> = frames.iter().flat_map(|(frame, _)| cut(frame)).collect();
        assert_eq!(cut.len(), 2);
        pushed[1] == Pushed::Merged
    };
    assert!(joins(&first, &next));
    assert!(joins(&first, &Spec { id: 999, ..next.clone() }), "DF: any identification");
    assert!(joins(&first, &Spec { flags: 0x18, ..next.clone() }), "PSH ends the frame");
    assert!(joins(&first, &Spec { payload: vec![6; 499], ..next.clone() }));
    assert!(!joins(&first, &Spec { payload: vec![6; 501], ..next.clone() }));
    assert!(!joins(&first, &Spec { payload: vec![], ..next.clone() }));
    assert!(!joins(&first, &Spec { sequence: next.sequence + 1, ..next.clone() }));
    assert!(!joins(&first, &Spec { acknowledgement: 78, ..next.clone() }));
    assert!(!joins(&first, &Spec { window: 502, ..next.clone() }));
    assert!(!joins(&first, &Spec { tos: 1, ..next.clone() }));
    assert!(!joins(&first, &Spec { ttl: 61, ..next.clone() }));
    assert!(!joins(&first, &Spec { fragment: 0, ..next.clone() }));
    assert!(!joins(&first, &Spec { tcp_options: vec![1; 12], ..next.clone() }));
    assert!(!joins(&first, &Spec { tcp_options: vec![], ..next.clone() }));
    assert!(!joins(&first, &Spec { ip_options: vec![1; 4], ..next.clone() }));
    assert!(!joins(&first, &Spec { source: [10, 1, 5, 3], ..next.clone() }));
    assert!(!joins(&first, &Spec { ports: (40_001, 5201), ..next.clone() }));
    for flags in [0x00, 0x11, 0x12, 0x14, 0x30, 0x50, 0x90] {
        assert!(!joins(&first, &Spec { flags, ..next.clone() }), "flags {flags:02x}");
    }
    assert!(!joins(&Spec { flags: 0x18, ..first.clone() }, &next), "after PSH");
    let counted = Spec { fragment: 0, ..first };
    assert!(joins(&counted, &Spec { fragment: 0, ..next.clone() }));
    assert!(!joins(&counted, &Spec { fragment: 0, id: next.id + 1, ..next }));
}

#[test]
fn corrupt_packets_pass_as_they_are() {
    let (good, next) = tcp_run(&Spec::tcp(vec![5; 500]), 1);
    for at in [4, 24, 40, 100, 551] {
        let mut corrupt = next.build();
        corrupt[at] ^= 0x10;
        let (pushed, frames) = pushed(&[good[0].clone(), corrupt.clone()]);
        assert_eq!(pushed[1], Pushed::Alone, "byte {at}");
        assert_eq!(frames[1], ([vec![0; 10], one_hop(&corrupt)].concat(), 1));
    }
}

#[test]
fn anything_else_of_a_flow_closes_its_frame() {
    let (run, next) = tcp_run(&Spec::tcp(vec![5; 500]), 2);
    let ack = Spec { payload: vec![], ..next.clone() }.build();
    let fragment = Spec { fragment: 0x2000, ..next.clone() }.build();
    let later = Spec { fragment: 0x00b9, ports: (1, 2), ..next.clone() }.build();
    for odd in [ack, fragment, later] {
        let (_, frames) = pushed(&[run[0].clone(), odd, run[1].clone()]);
        assert_eq!(frames.len(), 3);
    }
    let other_flow = Spec { ports: (1, 2), payload: vec![], ..next }.build();
    let (_, frames) = pushed(&[run[0].clone(), other_flow, run[1].clone()]);
    assert_eq!(frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn switches_off() {
    for (tcp, spec) in [(true, Spec::tcp(vec![5; 500])), (false, Spec::udp(vec![5; 500]))] {
        let (packets, _) = tcp_run(&spec, 2);
        let mut rig = Rig::new(Settings { tcp: !tcp, udp: tcp, ..SETTINGS });
        let plain: Vec<_> =
            packets.iter().map(|packet| ([vec![0; 10], one_hop(packet)].concat(), 1)).collect();
        assert!(packets.iter().all(|packet| rig.push(packet) == Pushed::Alone));
        assert_eq!(rig.flush(), plain);
    }
}

#[test]
fn a_single_verified_packet_needs_no_second_sum() {
    for spec in [Spec::tcp(vec![5; 500]), Spec::udp(vec![5; 500]), Spec::udp(vec![5; 9])] {
        let (_, frames) = pushed(&[spec.build()]);
        let (frame, packets) = &frames[0];
        assert_eq!((frame[0], frame[1], *packets), (1, 0, 1));
        assert_eq!(cut(frame), [one_hop(&spec.build())]);
    }
}

#[test]
fn own_packets_keep_their_place_and_their_ttl() {
    let (run, _) = tcp_run(&Spec::tcp(vec![5; 500]), 2);
    let own = Spec { ttl: 1, ..Spec::udp(vec![7; 500]) }.build();
    let mut rig = Rig::new(SETTINGS);
    let _ = rig.push(&run[0]);
    assert!(rig.coalescer.push_owned(&own));
    let _ = rig.push(&run[1]);
    let frames = rig.flush();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].0, [vec![0; 10], own].concat());
}

#[test]
fn room_is_accounted() {
    let (run, _) = tcp_run(&Spec::tcp(vec![5; 500]), 4);
    let expired = Spec { ttl: 1, ..Spec::tcp(vec![5; 500]) }.build();
    let small = [
        Settings { frames: 1, ..SETTINGS },
        Settings { pieces: 1, ..SETTINGS },
        Settings { header_bytes: HEAD_ROOM, ..SETTINGS },
    ];
    for settings in small {
        let mut rig = Rig::new(settings);
        assert!(rig.coalescer.is_empty() && rig.coalescer.has_room_for(1) && !rig.coalescer.has_room_for(2));
        assert_eq!(rig.push(&expired), Pushed::Expired);
        assert!(rig.coalescer.is_empty());
        assert_eq!(rig.push(&run[0]), Pushed::Opened);
        assert_eq!(rig.push(&run[1]), Pushed::NoRoom);
        assert_eq!(rig.flush().len(), 1);
        assert_eq!(rig.push(&run[1]), Pushed::Opened);
    }
    let mut rig = Rig::new(Settings { header_bytes: 100, ..SETTINGS });
    assert!(rig.coalescer.push_owned(&[0; 90]));
    assert!(!rig.coalescer.push_owned(&[0; 1]));
    let mut rig = Rig::new(Settings { frames: 0, ..SETTINGS });
    assert!(!rig.coalescer.push_owned(&[0; 1]));
}

/// Each flow is found again, although many others are touched in between.
#[test]
fn thousands_of_flows() {
    let settings = Settings { frames: 4096, pieces: 16_384, header_bytes: 4096 * HEAD_ROOM, ..SETTINGS };
    let mut rig = Rig::new(settings);
    for round in 0..2 {
        for id in 0..3 {
            for flow in 0..2000u16 {
                let spec = Spec { id, ports: (flow, flow % 7), ..Spec::udp(vec![round; 100]) };
                let expected = if id == 0 { Pushed::Opened } else { Pushed::Merged };
                assert_eq!(rig.push(&spec.build()), expected);
            }
        }
        assert!(rig.flush().iter().all(|(_, packets)| *packets == 3));
    }
}

/// Cuts a super-packet and merges it again: it is the same then, but for one hop.
fn there_and_back(spec: &Spec, segment_size: u16) -> (Vec<u8>, Vec<(Vec<u8>, u32)>) {
    let mut packet = spec.build();
    let mut frame = vnet(&packet, segment_size);
    unfinish(&mut packet);
    let plan = segment::plan(&VnetHeader::decode(&frame).unwrap(), &packet).unwrap();
    let mut rig = Rig::new(SETTINGS);
    for i in 0..plan.count() {
        let mut out = vec![0; plan.packet_len(i)];
        plan.write(&packet, i, &mut out);
        let _ = rig.push(&out);
    }
    packet[8] -= 1;
    finish_ip(&mut packet);
    let header_len = packet.len() - spec.payload.len();
    frame[2..4].copy_from_slice(&(header_len as u16).to_ne_bytes());
    if plan.count() == 1 {
        frame[1] = 0;
        frame[4..6].fill(0);
    }
    frame.extend(packet);
    (frame, rig.flush())
}

proptest! {
    #[test]
    fn segmenting_and_coalescing_is_the_identity(
        tcp in any::<bool>(), payload in 1usize..20_000, segment_size in 400u16..1500, df in any::<bool>(),
        id in any::<u16>(), sequence in any::<u32>(), flags in prop_oneof![Just(0x10u8), Just(0x18), Just(0x50)],
        options in 0usize..=10, tos in any::<u8>(), ttl in 2u8..,
    ) {
        let payload: Vec<u8> = (0..payload).map(|i| (i % 253) as u8).collect();
        let base = if tcp { Spec::tcp(payload) } else { Spec::udp(payload) };
        let fragment = if df { DF } else { 0 };
        let spec = Spec { tos, ttl, id, fragment, sequence, flags, tcp_options: vec![1; options * 4], ..base };
        let (frame, frames) = there_and_back(&spec, segment_size);
        let count = spec.payload.len().div_ceil(usize::from(segment_size));
        prop_assert_eq!(frames, [(frame, count as u32)]);
    }
}

/// One packet of a random stream.
#[derive(Clone, Debug)]
struct Step {
    flow: u8,
    payload: usize,
    odd: u8,
    flags: u8,
}

fn any_step() -> impl Strategy<Value = Step> {
    let payload = prop_oneof![6 => Just(600usize), 2 => Just(40), 1 => Just(0), 1 => 1usize..700];
    let flags = prop_oneof![8 => Just(0x10u8), 2 => Just(0x18), 1 => any::<u8>()];
    // Most steps have nothing odd.
    (0u8..6, payload, prop_oneof![6 => Just(255u8), 1 => 0u8..12], flags)
        .prop_map(|(flow, payload, odd, flags)| Step { flow, payload, odd, flags })
}

/// Builds the stream's packets: each flow goes on where it was, but for what is odd about a step.
fn stream(steps: &[Step]) -> Vec<Vec<u8>> {
    let mut state: BTreeMap<u8, Spec> = BTreeMap::new();
    let mut packets = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let spec = state.entry(step.flow).or_insert_with(|| {
            let base = if step.flow % 2 == 0 { Spec::tcp(vec![]) } else { Spec::udp(vec![]) };
            let fragment = if step.flow < 3 { DF } else { 0 };
            Spec { ports: (u16::from(step.flow), 9), fragment, ..base }
        });
        spec.id = spec.id.wrapping_add(1);
        spec.flags = step.flags;
        spec.payload = vec![i as u8; step.payload];
        let mut odd = spec.clone();
        match step.odd {
            0 => spec.acknowledgement += 1,
            1 => spec.window += 1,
            2 => odd.tos = 2,
            3 => odd.ttl = 9,
            4 => odd.id = odd.id.wrapping_add(3),
            5 => odd.sequence = odd.sequence.wrapping_sub(1),
            6 => odd.fragment = 0x2000,
            7 => odd.fragment = 0x0010,
            8 => odd.ip_options = vec![1; 4],
            _ => {}
        }
        let mut packet = odd.build();
        match step.odd {
            9 => packet[27] ^= 1,
            10 => *packet.last_mut().unwrap() ^= 1,
            11 if !spec.tcp => packet[26..28].fill(0),
            _ => {}
        }
        spec.sequence = spec.sequence.wrapping_add(step.payload as u32);
        packets.push(packet);
    }
    packets
}

/// Strips a packet of what may differ at a receiver: with DF set, that is the identification and with it the header
/// checksum, of which only stays whether it was right.
fn seen(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[6] & 0x40 != 0 {
        let right = naive_sum(&[&packet[..usize::from(packet[0] & 15) * 4]]) == 0xffff;
        packet[4..6].fill(0);
        packet[10..12].copy_from_slice(&[0, u8::from(right)]);
    }
    packet
}

type FlowKey = (u8, Option<u16>);

/// Gives protocol and source port; `None` stands for a later fragment.
fn key(packet: &[u8]) -> FlowKey {
    let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let port = usize::from(packet[0] & 15) * 4;
    (packet[9], (!later).then(|| u16::from_be_bytes([packet[port], packet[port + 1]])))
}

/// The packets of one flow, with the later fragments that may belong to it.
fn of_flow(packets: &[Vec<u8>], flow: FlowKey) -> Vec<Vec<u8>> {
    let belongs = |packet: &&Vec<u8>| key(packet) == flow || key(packet) == (flow.0, None);
    packets.iter().filter(belongs).cloned().collect()
}

proptest! {
    /// Whatever is merged, the kernel's cuts give back each flow's packets in order and unchanged, also corrupt ones.
    #[test]
    fn mixed_flows_survive(
        steps in proptest::collection::vec(any_step(), 1..120), tcp in any::<bool>(), udp in any::<bool>(),
        frames in 3usize..60,
    ) {
        let input = stream(&steps);
        let mut rig = Rig::new(Settings { tcp, udp, frames, ..SETTINGS });
        let mut output = Vec::new();
        for packet in &input {
            if rig.push(packet) == Pushed::NoRoom {
                output.extend(rig.flush());
                prop_assert_ne!(rig.push(packet), Pushed::NoRoom);
            }
        }
        output.extend(rig.flush());
        let mut cut_again = Vec::new();
        for (frame, packets) in output {
            let cut = cut(&frame);
            prop_assert_eq!(cut.len(), packets as usize);
            cut_again.extend(cut.into_iter().map(seen));
        }
        let expected: Vec<_> = input.iter().map(|packet| seen(one_hop(packet))).collect();
        prop_assert_eq!(expected.len(), cut_again.len());
        let flows: BTreeSet<_> = expected.iter().map(|packet| key(packet)).collect();
        for flow in flows {
            prop_assert_eq!(of_flow(&expected, flow), of_flow(&cut_again, flow));
        }
    }

    #[test]
    fn no_bytes_panic(
        packets in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 20..160), prop_oneof![Just(6u8), Just(17), any::<u8>()]), 1..8),
    ) {
        let mut rig = Rig::new(Settings { frames: 5, ..SETTINGS });
        for (mut packet, protocol) in packets {
            let len = packet.len() as u16;
            packet[0] = 0x45 | packet[0] & 0x01;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[6] &= 0x41;
            packet[9] = protocol;
            if packet.len() >= 24 || packet[0] == 0x45 {
                let _ = rig.push(&packet);
            }
        }
        let _ = rig.flush();
    }
}
