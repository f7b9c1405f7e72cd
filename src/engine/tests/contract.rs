//! The packet vectors of flannel's contract, byte for byte.

use super::*;
use crate::packet::ipv4::{header_checksum_ok, set_header_checksum};

const READ: &str = "450000201c4640003f11fd800a0105020a0109039c400009000c000070696e67";
const WIRE: &str = "450000201c4640003e11fe800a0105020a0109039c400009000c000070696e67";
const WRITTEN: &str = "450000201c4640003d11ff800a0105020a0109039c400009000c000070696e67";
const ANSWER: &str = "4500003800000000080194c20a0105000a010502030060aa00000000\
                      450000201c4640003f11fd800a0105020a0109039c400009000c0000";

/// The bench of the host that has 10.1.9.0/24 and whose peer has 10.1.5.0/24.
fn far_end() -> Bench {
    let mut bench = Bench::new();
    bench.worker.udp_to_tun =
        crate::engine::udp_to_tun::UdpToTun::new(net("10.1.9.0/24"), PeerFilter::Strict);
    bench.commands.send(Command::Route(set("10.1.5.0/24", SEVEN))).unwrap();
    bench
}

fn plain(packet: &[u8]) -> Vec<u8> {
    [&[0; 10], packet].concat()
}

#[test]
fn from_the_tun_to_the_wire() {
    let mut bench = Bench::new();
    bench.reads(&hex(READ)).settle();
    let sent = Sent { bytes: hex(WIRE), to: NINE, segment_size: None };
    assert_eq!(bench.port().sent, [sent]);
    assert!(bench.port().written.is_empty());
    assert_eq!((bench.count(Count::TunPackets), bench.count(Count::TunBytes)), (1, 32));
    assert_eq!(bench.snapshot().dropped_total(), 0);
}

#[test]
fn from_the_wire_to_the_far_tun() {
    let mut bench = far_end();
    bench.step();
    bench.receives(SEVEN, &hex(WIRE)).settle();
    assert_eq!(bench.port().written, [plain(&hex(WRITTEN))]);
    assert!(bench.port().sent.is_empty());
    assert_eq!((bench.count(Count::UdpPackets), bench.count(Count::UdpBytes)), (1, 32));
    assert_eq!(bench.snapshot().dropped_total(), 0);
}

#[test]
fn without_a_route_the_answer_is_written_to_the_local_tun() {
    let mut bench = Bench::new();
    bench.commands.send(Command::Route(RouteCommand::Del { subnet: net("10.1.9.0/24") })).unwrap();
    bench.reads(&hex(READ)).settle();
    assert_eq!(bench.port().written, [plain(&hex(ANSWER))]);
    assert!(bench.port().sent.is_empty());
    assert_eq!((bench.dropped(DropReason::NoRoute), bench.count(Count::IcmpSent)), (1, 1));
}

/// The contract has six sums. The test chooses the identification so that the header has each of them.
#[test]
fn header_checksums_at_the_edges_of_one_step() {
    let edges = [
        (0xfe00, 0xff00),
        (0xfeff, 0x0000),
        (0xff00, 0x0001),
        (0xfffe, 0x00ff),
        (0xffff, 0x0100),
        (0x0000, 0x0100),
    ];
    for (before, after) in edges {
        let mut packet = hex(READ);
        packet[4..6].fill(0);
        set_header_checksum(&mut packet[..20]);
        let zero_id = u16::from_be_bytes([packet[10], packet[11]]);
        // One's complement: checksum(id) = checksum(0) - id.
        let mut id = u32::from(zero_id) + (0xffff - u32::from(before));
        id = (id & 0xffff) + (id >> 16);
        packet[4..6].copy_from_slice(&u16::try_from(id).unwrap().to_be_bytes());
        packet[10..12].copy_from_slice(&u16::to_be_bytes(before));
        assert!(header_checksum_ok(&packet[..20]), "{before:04x}");

        let mut bench = Bench::new();
        bench.reads(&packet).settle();
        let (_, sent) = bench.packets_sent().remove(0);
        assert_eq!(sent[10..12], u16::to_be_bytes(after), "{before:04x}");
        assert!(header_checksum_ok(&sent[..20]));

        let mut far = far_end();
        far.step();
        far.receives(SEVEN, &packet).settle();
        assert_eq!(far.port().written[0][20..22], u16::to_be_bytes(after), "{before:04x}");
    }
}

#[test]
fn a_super_packet_becomes_one_train_and_comes_back_as_one_frame() {
    for segment_size in [100, 536, 1400] {
        let spec = Spec { source: [10, 1, 5, 2], destination: [10, 1, 9, 3], ..Spec::tcp(ramp(20_000)) };
        let mut bench = Bench::new();
        bench.port().frames.push_back(super_frame(&spec, segment_size));
        bench.settle();
        // These are the packets that the kernel would have cut itself, one hop later.
        let mut hop = spec.clone();
        hop.ttl -= 1;
        let expected = cut(&super_frame(&hop, segment_size));
        let sent: Vec<_> = bench.packets_sent().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent, expected);
        let trains = expected.len().div_ceil(64);
        assert_eq!(bench.port().sent.len(), trains);

        let mut far = far_end();
        far.step();
        for train in &bench.port().sent.clone() {
            far.arrives(SEVEN, &train.bytes, train.segment_size);
        }
        far.settle();
        hop.ttl -= 1;
        let expected = cut(&super_frame(&hop, segment_size));
        let mut written = far.packets_written();
        // With DF set, the identification means nothing.
        let mut expected_unmarked = expected;
        for packet in written.iter_mut().chain(&mut expected_unmarked) {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        assert_eq!(written, expected_unmarked);
        assert!(far.port().written.len() <= 2, "{} frames", far.port().written.len());
    }
}
