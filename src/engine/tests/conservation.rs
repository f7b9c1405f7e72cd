//! Whatever mix of frames, datagrams and faults goes in: it comes out or is counted as dropped, and each flow stays in
//! order. Whatever the bytes are, the worker does not panic.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;

/// One thing that happens at the port. The mixer numbers a flow's packets in their payload.
#[derive(Debug, Clone)]
enum Event {
    /// A datagram of a local flow.
    Small { flow: u8, payload: usize },
    /// A super-packet of a local flow.
    Super { flow: u8, tcp: bool, packets: u16, segment_size: u16 },
    /// A frame that the worker drops.
    Bad,
    /// A receive with `packets` datagrams of a peer's flow. The one numbered `bad`, if there are so many, is spoilt.
    Receive { flow: u8, packets: usize, size: usize, bad: usize },
    /// The next send that has no fault yet fails.
    SendFault(i32),
    /// The next write that has no fault yet fails.
    WriteFault(i32),
    /// The worker does a turn.
    Turn,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4u8, 8..1400usize).prop_map(|(flow, payload)| Event::Small { flow, payload }),
        3 => (0..4u8, any::<bool>(), 1..60u16, 8..1400u16).prop_map(|(flow, tcp, packets, segment_size)| {
            Event::Super { flow, tcp, packets, segment_size }
        }),
        1 => Just(Event::Bad),
        5 => (0..4u8, 1..64usize, 8..1000usize, 0..90usize)
            .prop_map(|(flow, packets, size, bad)| Event::Receive { flow, packets, size, bad }),
        1 => prop_oneof![Just(libc::EAGAIN), Just(libc::ENETUNREACH), Just(libc::EPERM)]
            .prop_map(Event::SendFault),
        1 => prop_oneof![Just(libc::EIO), Just(libc::EBADFD), Just(libc::EINVAL)].prop_map(Event::WriteFault),
        3 => Just(Event::Turn),
    ]
}

/// A refusal that makes the worker send again. All packets leave, but not in order across that turn.
fn refusal() -> impl Strategy<Value = Event> {
    prop_oneof![Just(libc::EIO), Just(libc::EINVAL), Just(libc::EMSGSIZE)].prop_map(Event::SendFault)
}

/// The bench, and counts of what was put in.
struct Mixer {
    bench: Bench,
    next: HashMap<(bool, u8), u32>,
    packets_out: u64,
    frames_bad: u64,
    packets_in: u64,
    packets_bad: u64,
}

/// The number that a packet carries: the first four bytes of its payload.
fn number(packet: &[u8]) -> u32 {
    let transport = if packet[9] == 6 { 20 + 4 * usize::from(packet[32] >> 4) } else { 28 };
    u32::from_be_bytes(packet[transport..transport + 4].try_into().unwrap())
}

/// The flow that a packet belongs to: its source port, 1000 + the flow's number.
fn flow(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[20], packet[21]])
}

impl Mixer {
    fn new() -> Mixer {
        let bench = Bench::new();
        Mixer { bench, next: HashMap::new(), packets_out: 0, frames_bad: 0, packets_in: 0, packets_bad: 0 }
    }

    fn payload(&mut self, inward: bool, flow: u8, segments: usize, size: usize) -> Vec<u8> {
        let next = self.next.entry((inward, flow)).or_default();
        let mut bytes = Vec::with_capacity(segments * size);
        for _ in 0..segments {
            let start = bytes.len();
            bytes.extend(next.to_be_bytes());
            bytes.resize(start + size, flow);
            *next += 1;
        }
        bytes
    }

    fn spec(inward: bool, flow: u8, tcp: bool, payload: Vec<u8>) -> Spec {
        let peer = [10, 1, if flow.is_multiple_of(2) { 9 } else { 7 }, 1];
        let (source, destination) = if inward { (peer, [10, 1, 5, 2]) } else { ([10, 1, 5, 2], peer) };
        let sequence = u32::from_be_bytes(payload[..4].try_into().unwrap());
        let spec = if tcp { Spec::tcp(payload) } else { Spec::udp(payload) };
        Spec { source, destination, ports: (1000 + u16::from(flow), 9), sequence, ..spec }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Small { flow, payload } => {
                let payload = self.payload(false, flow, 1, payload);
                self.bench.reads(&Self::spec(false, flow, false, payload).build());
                self.packets_out += 1;
            }
            Event::Super { flow, tcp, packets, segment_size } => {
                let most = 60_000 / segment_size;
                let payload = self.payload(false, flow, packets.min(most).into(), segment_size.into());
                let frame = super_frame(&Self::spec(false, flow, tcp, payload), segment_size);
                self.bench.port().frames.push_back(frame);
                self.packets_out += u64::from(packets.min(most));
            }
            Event::Bad => {
                self.bench.reads(&[0x60; 40]);
                self.frames_bad += 1;
            }
            Event::Receive { flow, packets, size, bad } => self.receive(flow, packets, size, bad),
            Event::SendFault(errno) => self.bench.port().send_faults.push_back(errno),
            Event::WriteFault(errno) => self.bench.port().write_faults.push_back(errno),
            Event::Turn => self.bench.step(),
        }
    }

    fn receive(&mut self, flow: u8, packets: usize, size: usize, bad: usize) {
        let mut payload = Vec::new();
        for i in 0..packets {
            let numbered = self.payload(true, flow, 1, size);
            let mut packet = Self::spec(true, flow, false, numbered).build();
            if i == bad {
                packet[10] ^= 0x55;
                self.packets_bad += 1;
            }
            payload.extend(packet);
        }
        self.packets_in += packets as u64;
        let from = if flow.is_multiple_of(2) { NINE } else { SEVEN };
        self.bench.arrives(from, &payload, Some(u16::try_from(28 + size).unwrap()));
    }

    /// The packets that left towards the peers, resent or not, and those that left towards the TUN.
    fn out(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let resent = self.bench.worker.port.resent.iter().map(|(packet, _)| packet.clone());
        let sent = self.bench.packets_sent().into_iter().map(|(_, packet)| packet);
        (sent.chain(resent).collect(), self.bench.packets_written())
    }

    fn check_sums(&self) {
        let (sent, written) = self.out();
        let snapshot = self.bench.snapshot();
        let lost = |reasons: &[DropReason]| reasons.iter().map(|r| snapshot.dropped(*r)).sum::<u64>();
        let unsent = lost(&[
            DropReason::SendBuffer,
            DropReason::SendUnreachable,
            DropReason::SendFailed,
            DropReason::SendTooBig,
        ]);
        let unwritten = lost(&[DropReason::TunDown, DropReason::TunGone, DropReason::TunWrite]);
        assert_eq!(sent.len() as u64 + unsent, self.packets_out, "{snapshot}");
        assert_eq!(written.len() as u64 + unwritten + self.packets_bad, self.packets_in, "{snapshot}");
        assert_eq!(snapshot.dropped(DropReason::TunNotIpv4), self.frames_bad);
        assert_eq!(snapshot.dropped(DropReason::HeaderChecksum), self.packets_bad);
        let total = unsent + unwritten + self.frames_bad + self.packets_bad;
        assert_eq!(snapshot.dropped_total(), total, "{snapshot}");
        assert_eq!(snapshot.get(Count::TunPackets), self.packets_out);
        assert_eq!(snapshot.get(Count::UdpPackets), self.packets_in - self.packets_bad);
    }

    fn check_order(packets: &[Vec<u8>]) {
        let mut last = HashMap::new();
        for packet in packets {
            // The TCP packets and the UDP packets of one port are two flows.
            let before = last.insert((flow(packet), packet[9]), number(packet));
            assert!(before.is_none_or(|before| before < number(packet)), "flow {} overtaken", flow(packet));
        }
    }

    fn check_no_doubles(packets: &[Vec<u8>]) {
        let mut all: Vec<_> = packets.iter().map(|packet| (flow(packet), number(packet))).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a packet went twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn packets_in_are_packets_out_and_drops(events in vec(event(), 0..80)) {
        let mut mixer = Mixer::new();
        events.into_iter().for_each(|event| mixer.happens(event));
        mixer.bench.settle();
        mixer.check_sums();
        let (sent, written) = mixer.out();
        Mixer::check_order(&sent);
        Mixer::check_order(&written);
    }

    #[test]
    fn refusals_lose_and_double_nothing(
        events in vec(prop_oneof![6 => event(), 1 => refusal()], 0..80)
    ) {
        let mut mixer = Mixer::new();
        events.into_iter().for_each(|event| mixer.happens(event));
        mixer.bench.settle();
        mixer.check_sums();
        let (sent, written) = mixer.out();
        Mixer::check_no_doubles(&sent);
        Mixer::check_order(&written);
    }

    /// Takes bytes that nobody vouches for. Half of them look like IPv4.
    #[test]
    fn any_bytes_are_survived(
        inputs in vec((any::<bool>(), any::<[u8; 10]>(), bytes(), any::<Option<u16>>(), any::<bool>()), 1..30)
    ) {
        for filter in [PeerFilter::Strict, PeerFilter::Off] {
            let mut bench = Bench::filtering(filter);
            for (from_tun, vnet, bytes, stride, truncated) in inputs.clone() {
                if from_tun {
                    bench.port().frames.push_back([&vnet[..], &bytes].concat());
                } else {
                    let arrival = Arrival { payload: bytes, from: NINE, stride, truncated };
                    bench.port().arrivals.push_back(arrival);
                }
            }
            bench.settle();
            let frames = inputs.iter().filter(|(from_tun, ..)| *from_tun).count() as u64;
            prop_assert_eq!(bench.count(Count::TunReads), frames);
            prop_assert_eq!(bench.count(Count::UdpReceives), inputs.len() as u64 - frames);
        }
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let addressed =
        (vec(any::<u8>(), 20..400), any::<bool>(), any::<bool>()).prop_map(|(mut bytes, out, fix)| {
            bytes[0] = 0x45 | (bytes[0] & 0x0a);
            let length = u16::try_from(bytes.len()).unwrap();
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[9] = [1, 6, 17, 47][usize::from(bytes[9] % 4)];
            let (source, destination) =
                if out { ([10, 1, 5, 2], [10, 1, 9, 3]) } else { ([10, 1, 9, 3], [10, 1, 5, 2]) };
            bytes[12..16].copy_from_slice(&source);
            bytes[16..20].copy_from_slice(&destination);
            let header = usize::from(bytes[0] & 15) * 4;
            if fix && header >= 20 && header <= bytes.len() {
                crate::packet::ipv4::set_header_checksum(&mut bytes[..header]);
            }
            bytes
        });
    prop_oneof![vec(any::<u8>(), 0..200), addressed]
}
