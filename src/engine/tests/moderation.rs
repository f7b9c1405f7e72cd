//! A worker rests where small packets come fast and from one side, and nowhere else.

use super::lab::*;
use super::*;
use crate::engine::Carrier;
use crate::netlink::namespace;
use std::net::UdpSocket;
use std::thread::JoinHandle;
use std::time::Duration;

/// Runs `body` in a namespace of its own.
fn inside(test: &str, carrier: Carrier, body: fn(Shape)) {
    namespace::run(&format!("engine::tests::moderation::{test}"), || async { body(Shape::new(carrier)) });
}

macro_rules! on_both_carriers {
    ($($body:ident)*) => {
        mod uring {
            $(#[test]
            fn $body() {
                super::inside(concat!("uring::", stringify!($body)), super::Carrier::Uring, super::$body);
            })*
        }
        mod poll {
            $(#[test]
            fn $body() {
                super::inside(concat!("poll::", stringify!($body)), super::Carrier::Poll, super::$body);
            })*
        }
    };
}

on_both_carriers! {
    a_flood_gathers_and_stays_in_order
    zero_means_never
    requests_and_answers_do_not_wait
}

/// So many packets of four bytes, fewer a turn than the TUN queue holds, take long enough to be judged.
const FLOOD: u32 = 50_000;

/// Numbered packets from our host to the peer, as fast as it can.
fn flood(lab: &Lab) {
    let host = host();
    for n in 0..FLOOD {
        host.send_to(&n.to_be_bytes(), (FAR, 4000)).unwrap();
    }
    let quiet = |now: &Snapshot| now.get(Count::TunPackets) > 0 && now.get(Count::UdpSends) > 0;
    lab.wait("the flood", quiet);
}

/// Counts what arrives there, and finds that no number is out of its order.
fn witness(peer: &UdpSocket) -> JoinHandle<usize> {
    let peer = peer.try_clone().unwrap();
    std::thread::spawn(move || {
        let (mut seen, mut last) = (0, None);
        while let Some(packet) = receive(&peer) {
            let n = u32::from_be_bytes(packet[28..].try_into().unwrap());
            assert!(last < Some(n), "{n} after {last:?}");
            last = Some(n);
            seen += 1;
            if n == FLOOD - 1 {
                break;
            }
        }
        seen
    })
}

fn a_flood_gathers_and_stays_in_order(shape: Shape) {
    let lab = Lab::start(shape);
    let witness = witness(&lab.peer);
    flood(&lab);
    let seen = witness.join().unwrap();
    let snapshot = lab.stop();
    assert!(seen > 1000, "only {seen} packets came: {snapshot}");
    assert!(snapshot.get(Count::Rests) > 10, "{snapshot}");
    assert!(snapshot.get(Count::UdpSends) < snapshot.get(Count::TunPackets) / 4, "short trains: {snapshot}");
}

fn zero_means_never(shape: Shape) {
    let lab = Lab::with(shape, |setup| setup.settings.moderation = Duration::ZERO);
    flood(&lab);
    let snapshot = lab.stop();
    assert_eq!(snapshot.get(Count::Rests), 0, "{snapshot}");
}

fn requests_and_answers_do_not_wait(shape: Shape) {
    let lab = Lab::start(shape);
    let host = host();
    let ports = (4000, address_of(&host).port());
    let answer = Spec { destination: HOST.octets(), ports, ..incoming(4) }.build();
    for _ in 0..3000 {
        host.send_to(b"well?", (FAR, 4000)).unwrap();
        lab.peer_gets();
        lab.peer_sends(&answer);
        assert!(receive(&host).is_some());
    }
    let snapshot = lab.stop();
    assert_eq!(snapshot.get(Count::Rests), 0, "{snapshot}");
}
