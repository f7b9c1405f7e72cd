//! A worker pauses where small packets come fast and from one side, and nowhere else.

use super::rig::*;
use super::*;
use std::net::UdpSocket;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

on_both_carriers! {
    inside:
    a_flood_gathers_and_stays_in_order
    zero_means_never
    requests_and_answers_do_not_wait
}

/// The packets of one flood, enough for many judgements.
const FLOOD: u32 = 50_000;
/// A test gives up after so many floods. A worker that is short of processor time falls behind, never runs dry, and
/// has no reason to pause.
const FLOODS: u32 = 10;
/// The number of the very last packet.
const END: u32 = u32::MAX;

/// Sends numbered packets from our host to the peer, fast but not faster than a worker reads.
fn flood(host: &UdpSocket, first: u32) {
    for n in first..first + FLOOD {
        host.send_to(&n.to_be_bytes(), (FAR, 4000)).unwrap();
        let sent = Instant::now();
        while sent.elapsed() < Duration::from_micros(4) {
            std::hint::spin_loop();
        }
    }
}

/// Counts what arrives at the peer until the end, and checks that the numbers come in order.
fn witness(peer: &UdpSocket) -> JoinHandle<usize> {
    let peer = peer.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut seen, mut last) = (0, None);
        while let Some(packet) = receive(&peer) {
            let n = u32::from_be_bytes(packet[28..].try_into().unwrap());
            assert!(last < Some(n), "{n} after {last:?}");
            if n == END {
                break;
            }
            last = Some(n);
            seen += 1;
        }
        seen
    })
}

fn a_flood_gathers_and_stays_in_order(shape: Shape) {
    let rig = Rig::start(shape);
    let (witness, host) = (witness(&rig.peer), host());
    for round in 0..FLOODS {
        flood(&host, round * FLOOD);
        if rig.engine.snapshot().get(Count::Pauses) > 100 {
            break;
        }
    }
    while !witness.is_finished() {
        host.send_to(&END.to_be_bytes(), (FAR, 4000)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let seen = witness.join().unwrap();
    let snapshot = rig.stop();
    assert!(seen > 1000, "only {seen} packets came: {snapshot}");
    assert!(snapshot.get(Count::Pauses) > 100, "{snapshot}");
    assert!(snapshot.get(Count::UdpSends) < snapshot.get(Count::TunPackets) / 2, "short trains: {snapshot}");
}

fn zero_means_never(shape: Shape) {
    let rig = Rig::with(shape, |setup| setup.settings.moderation = Duration::ZERO);
    flood(&host(), 0);
    rig.wait("the flood", |now| now.get(Count::TunPackets) > 1000);
    let snapshot = rig.stop();
    assert_eq!(snapshot.get(Count::Pauses), 0, "{snapshot}");
}

fn requests_and_answers_do_not_wait(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    let ports = (4000, address_of(&host).port());
    let answer = Spec { destination: HOST.octets(), ports, ..incoming(4) }.build();
    for _ in 0..3000 {
        host.send_to(b"well?", (FAR, 4000)).unwrap();
        rig.peer_gets();
        rig.peer_sends(&answer);
        assert!(receive(&host).is_some());
    }
    let snapshot = rig.stop();
    assert_eq!(snapshot.get(Count::Pauses), 0, "{snapshot}");
}
