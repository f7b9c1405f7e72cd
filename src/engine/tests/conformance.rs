//! One test body for both carriers and every mix of offloads.

use super::rig::*;
use super::*;
use crate::engine::{Carrier, UdpOffload};
use crate::packet::ipv4::set_header_checksum;
use crate::tun::TunOffload;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

const TUN: [TunOffload; 3] = [TunOffload::Auto, TunOffload::Tso, TunOffload::Off];
const UDP: [UdpOffload; 4] = [UdpOffload::Auto, UdpOffload::Send, UdpOffload::Receive, UdpOffload::Off];

/// Runs `body` once for every mix of offloads, each with an engine of its own.
fn every_shape(test: &str, carrier: Carrier, body: fn(Shape)) {
    in_namespace(test, || {
        for tun in TUN {
            for udp in UDP {
                let shape = Shape { tun, udp, ..Shape::new(carrier) };
                println!("{shape:?}");
                body(shape);
            }
        }
    });
}

on_both_carriers! {
    every_shape:
    the_vectors_are_exact
    datagrams_of_every_size_pass_both_ways
    trains_pass_in_order_both_ways
    a_tcp_stream_arrives_whole
    echo_is_answered_and_the_unreachable_told
}

/// The contract's packet goes out, and comes in with its addresses swapped, which keeps the sums.
fn the_vectors_are_exact(shape: Shape) {
    let read = hex("450000201c4640003f11fd800a0105020a0109039c400009000c000070696e67");
    let wire = hex("450000201c4640003e11fe800a0105020a0109039c400009000c000070696e67");
    let written = hex("450000201c4640003d11ff800a0105020a0109039c400009000c000070696e67");
    let swapped = |packet: &[u8]| [&packet[..12], &packet[16..20], &packet[12..16], &packet[20..]].concat();
    let rig = Rig::start(shape);
    let out = raw(255);
    out.send_to(&read, &std::net::SocketAddr::from((FAR, 0)).into()).unwrap();
    assert_eq!(rig.peer_gets(), wire);
    let sniffer = raw(17);
    rig.peer_sends(&swapped(&wire));
    let mut seen = raw_receive(&sniffer).expect("a packet from the TUN");
    while seen[12..16] != FAR.octets() {
        // Raw sockets of this namespace see the outer datagrams on loopback too.
        seen = raw_receive(&sniffer).expect("a packet from the TUN");
    }
    assert_eq!(seen, swapped(&written));
    let snapshot = rig.stop();
    // The second packet from the TUN, if it came in time, is the host's "port unreachable".
    assert!((1..=2).contains(&snapshot.get(Count::TunPackets)), "{snapshot}");
    assert_eq!(snapshot.get(Count::UdpPackets), 1, "{snapshot}");
}

fn datagrams_of_every_size_pass_both_ways(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    let from = address_of(&host);
    for size in (0..1444).step_by(37).chain([1, 2, 1443, 1444]) {
        let payload = ramp(size);
        host.send_to(&payload, (FAR, 4000)).unwrap();
        let packet = rig.peer_gets();
        assert_eq!((packet.len(), packet[8], packet[9]), (28 + size, 63, 17));
        assert_eq!(packet[28..], payload);

        let ports = (4000, from.port());
        let spec = Spec { destination: HOST.octets(), ports, ..incoming(size) };
        rig.peer_sends(&spec.build());
        assert_eq!(receive(&host), Some(payload), "{size}");
    }
    // The kernel fragments this packet before the TUN gets it.
    let payload = ramp(3000);
    host.send_to(&payload, (FAR, 4000)).unwrap();
    let mut fragments: Vec<_> = (0..3).map(|_| rig.peer_gets()).collect();
    fragments.sort_by_key(|packet| u16::from_be_bytes([packet[6] & 0x1f, packet[7]]));
    let whole: Vec<u8> = fragments.iter().flat_map(|packet| &packet[20..]).copied().collect();
    assert_eq!(whole[8..], payload);
    let snapshot = rig.stop();
    let lost = snapshot.dropped_total() - snapshot.dropped(DropReason::TunNotIpv4);
    assert_eq!(lost, 0, "{snapshot}");
}

fn numbered(n: u32, size: usize) -> Vec<u8> {
    let mut payload = n.to_be_bytes().to_vec();
    payload.resize(size, n.to_be_bytes()[3]);
    payload
}

fn trains_pass_in_order_both_ways(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    for (size, count) in [(1200, 40), (100, 64), (1444, 45)] {
        for round in 0..5 {
            let payloads: Vec<_> = (0..count).map(|n| numbered(round * 1000 + n, size)).collect();
            let bytes = [&payloads.concat()[..], b"tail"].concat();
            send_segmented(&host, &bytes, SocketAddrV4::new(FAR, 4000), u16::try_from(size).unwrap());
            for payload in &payloads {
                assert_eq!(rig.peer_gets()[28..], payload[..]);
            }
            assert_eq!(rig.peer_gets()[28..], b"tail"[..]);

            incoming_train(&rig, &host, &payloads);
        }
    }
    let snapshot = rig.stop();
    let lost = snapshot.dropped_total() - snapshot.dropped(DropReason::TunNotIpv4);
    assert_eq!(lost, 0, "{snapshot}");
    if shape.udp == UdpOffload::Auto {
        assert!(snapshot.get(Count::UdpReceives) < snapshot.get(Count::UdpPackets) / 20, "{snapshot}");
    }
}

/// The peer sends the same payloads in segmented sends, each packet with an identification of its own.
fn incoming_train(rig: &Rig, host: &UdpSocket, payloads: &[Vec<u8>]) {
    let packet = |(id, payload): (u16, &Vec<u8>)| {
        let ports = (4000, address_of(host).port());
        Spec { destination: HOST.octets(), ports, id, payload: payload.clone(), ..incoming(0) }.build()
    };
    let packets: Vec<_> = (0..).zip(payloads).map(packet).collect();
    let segment_size = u16::try_from(packets[0].len()).unwrap();
    // The kernel takes at most 65 507 bytes at once.
    for train in packets.chunks(65_507 / packets[0].len()) {
        send_segmented(&rig.peer, &train.concat(), rig.address, segment_size);
    }
    for payload in payloads {
        assert_eq!(receive(host).as_ref(), Some(payload));
    }
}

/// Through the mirror the stream and its ACKs cross the engine twice, once in each direction.
fn a_tcp_stream_arrives_whole(shape: Shape) {
    const BYTES: usize = 4 << 20;
    let rig = Rig::start(shape);
    for joined in [true, false] {
        let _mirror = Mirror::start(&rig, joined);
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let data: Vec<u8> =
            (0..BYTES).map(|i| u8::try_from((i ^ (i >> 9) ^ (i >> 17)) & 0xff).unwrap()).collect();
        let sent = data.clone();
        let sender = std::thread::spawn(move || {
            let mut stream = connect(port);
            stream.write_all(&sent).unwrap();
        });
        let (mut stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), MIRRORED);
        stream.set_read_timeout(Some(SOON * 2)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == data, "{} of {BYTES} bytes", got.len());
        sender.join().unwrap();
    }
    let snapshot = rig.stop();
    if shape.tun != TunOffload::Off {
        assert!(
            snapshot.get(Count::TunReads) < snapshot.get(Count::TunPackets),
            "no super-packet: {snapshot}"
        );
    }
    if shape.tun != TunOffload::Off && shape.udp == UdpOffload::Auto {
        assert!(
            snapshot.get(Count::TunWrites) < snapshot.get(Count::UdpPackets) / 2,
            "not joined: {snapshot}"
        );
    }
}

/// Binds to our host's address, so that the mirror sends the answers back there.
fn connect(port: u16) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((HOST, 0)).into()).unwrap();
    socket.connect_timeout(&std::net::SocketAddr::from((MIRRORED, port)).into(), SOON).unwrap();
    socket.set_write_timeout(Some(SOON)).unwrap();
    socket.into()
}

fn echo_is_answered_and_the_unreachable_told(shape: Shape) {
    let rig = Rig::start(shape);
    let mut request = hex("4500001c00010000400100000a0109030a0105020800f7fd00010001");
    set_header_checksum(&mut request[..20]);
    rig.peer_sends(&request);
    let reply = rig.peer_gets();
    assert_eq!((reply[20], reply[8]), (0, 63), "echo reply, one hop on");
    assert_eq!((&reply[12..16], &reply[16..20]), (&HOST.octets()[..], &FAR.octets()[..]));

    // Only with this setting does the kernel take a packet that comes from an address of its own.
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{}/accept_local", rig.device), "1").unwrap();
    let errors = raw(1);
    let host = host();
    host.send_to(b"anybody?", (Ipv4Addr::new(10, 1, 200, 1), 9)).unwrap();
    let mut answer = raw_receive(&errors).expect("an ICMP error");
    while answer[20] != 3 {
        answer = raw_receive(&errors).expect("an ICMP error");
    }
    assert_eq!((answer[20], answer[21], answer[8]), (3, 0, 8));
    assert_eq!(answer[12..16], [10, 1, 5, 0]);
    host.set_ttl(1).unwrap();
    host.send_to(b"so far?", (FAR, 9)).unwrap();
    let answer = raw_receive(&errors).expect("an ICMP error");
    assert_eq!((answer[20], answer[21], answer[8]), (11, 0, 8));
    assert!(is_quiet(&rig.peer));
    let snapshot = rig.stop();
    assert_eq!(snapshot.get(Count::IcmpSent), 2, "{snapshot}");
}
