//! The ring on real descriptors: UDP sockets on loopback, and a pair of datagram sockets in place of the TUN.

pub(crate) mod forbid;

use super::*;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

const SIZES: Sizes =
    Sizes { frames: 4, datagrams: 4, sends: 8, writes: 8, vectors: 64, spin: Duration::ZERO };

/// The turn sleeps at once, without a pause.
const SLEEP: Option<Duration> = Some(Duration::ZERO);

struct Bench {
    ring: Ring,
    wake: Wake,
    to_ring: OwnedFd,
    near: UdpSocket,
    far: UdpSocket,
}

fn bench(sizes: Sizes) -> Bench {
    let (read, write) = packet_pair();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let wake = Wake::new().unwrap();
    let descriptors =
        Descriptors { tun: read.as_fd(), receive: near.as_fd(), send: near.as_fd(), wake: wake.as_fd() };
    let ring = Ring::new(descriptors, sizes).unwrap();
    Bench { ring, wake, to_ring: write, near, far }
}

/// A pair of descriptors that keeps message boundaries as a TUN does, and works both ways.
fn packet_pair() -> (OwnedFd, OwnedFd) {
    let (near, far) = UnixDatagram::pair().unwrap();
    (near.into(), far.into())
}

fn payload<'a>(ring: &'a Ring, d: &Datagram) -> &'a [u8] {
    ring.payload(d.buffer, d.start, d.len)
}

fn local(socket: &UdpSocket) -> SocketAddrV4 {
    match socket.local_addr().unwrap() {
        std::net::SocketAddr::V4(address) => address,
        std::net::SocketAddr::V6(_) => unreachable!(),
    }
}

#[test]
fn frames_and_datagrams_arrive_in_order_and_more_often_than_there_are_buffers() {
    let mut b = bench(SIZES);
    let mut frames = 0_u8;
    let mut datagrams = 0_u8;
    for round in 0..10_u8 {
        for i in 0..4 {
            rustix::io::write(&b.to_ring, &[round * 4 + i; 100]).unwrap();
            b.far.send_to(&[round * 4 + i; 50], b.near.local_addr().unwrap()).unwrap();
        }
        while frames < (round + 1) * 4 || datagrams < (round + 1) * 4 {
            b.ring.turn(SLEEP, |_| {}).unwrap();
            while let Some(frame) = b.ring.frame() {
                assert_eq!(frame, [frames; 100]);
                frames += 1;
                b.ring.advance();
            }
            while let Some(datagram) = b.ring.datagram() {
                assert_eq!(payload(&b.ring, &datagram), [datagrams; 50]);
                assert_eq!(datagram.from, local(&b.far));
                assert!(!datagram.truncated);
                datagrams += 1;
            }
        }
    }
}

#[test]
fn sends_and_writes_reach_their_descriptors_and_pieces_come_from_received_buffers() {
    let mut b = bench(SIZES);
    b.far.send_to(b"0123456789", b.near.local_addr().unwrap()).unwrap();
    b.ring.turn(SLEEP, |_| {}).unwrap();
    let datagram = b.ring.datagram().unwrap();
    let to = local(&b.far);
    b.wake.wake();
    b.ring
        .turn(SLEEP, |stage| {
            assert!(stage.send(b"one", to, &[]));
            assert!(stage.send(b"two", to, &[]));
            let piece = (datagram.buffer, datagram.start + 2, 3);
            assert!(stage.write(b"head", [piece, piece].into_iter()));
            assert!(!stage.write(b"head", [(datagram.buffer, 0, 1 << 20)].into_iter()), "outside the buffer");
            assert!(!stage.write(b"head", [(datagram.buffer ^ 1, 0, 1)].into_iter()), "not lent");
        })
        .unwrap();
    assert_eq!(b.ring.failures(), []);
    let mut bytes = [0; 64];
    let len = b.far.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"one");
    let len = b.far.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"two");
    let len = rustix::io::read(&b.to_ring, &mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"head234234");
    assert_eq!(payload(&b.ring, &datagram), b"", "given back after the turn");
}

#[test]
fn a_full_stage_refuses_and_a_failed_send_is_reported_by_number() {
    let mut b = bench(SIZES);
    let to = local(&b.far);
    let huge = vec![0; 65_508];
    b.ring
        .turn(SLEEP, |stage| {
            for i in 0..8 {
                assert!(stage.send(if i == 5 { &huge } else { b"x" }, to, &[]));
            }
            assert!(!stage.send(b"x", to, &[]));
        })
        .unwrap();
    assert_eq!(b.ring.failures(), [Failure { operation: Operation::Send(5), errno: libc::EMSGSIZE }]);
}

#[test]
fn a_wake_up_ends_the_wait_from_another_thread_every_time() {
    let mut b = bench(SIZES);
    for _ in 0..3 {
        let wake = b.wake.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            wake.wake();
        });
        while !b.ring.take_woken() {
            b.ring.turn(SLEEP, |_| {}).unwrap();
        }
        b.wake.drain();
        thread.join().unwrap();
    }
}

#[test]
fn buffers_that_run_out_are_counted_and_reading_goes_on() {
    let mut b = bench(SIZES);
    for i in 0..20_u8 {
        b.far.send_to(&[i], b.near.local_addr().unwrap()).unwrap();
    }
    let mut seen = 0;
    while seen < 20 {
        b.ring.turn(SLEEP, |_| {}).unwrap();
        while let Some(datagram) = b.ring.datagram() {
            assert_eq!(payload(&b.ring, &datagram), [seen]);
            seen += 1;
        }
    }
    assert!(b.ring.starved() > 0);
}

/// This holds both when the requests wait in the kernel and when they are armed but not yet submitted.
#[test]
fn a_dropped_ring_lets_go_of_port_and_descriptors_at_once() {
    for round in 0..40 {
        let Bench { mut ring, wake, to_ring, near, far } = bench(SIZES);
        let address = local(&near);
        wake.wake();
        for _ in 0..round % 4 {
            far.send_to(b"x", address).unwrap();
            ring.turn(SLEEP, |_| {}).unwrap();
            while ring.datagram().is_some() {}
        }
        drop((ring, near));
        UdpSocket::bind(address).unwrap();
        // Only the ring had the other end of the pair.
        let error = rustix::io::write(&to_ring, b"x").unwrap_err();
        assert_eq!(error, rustix::io::Errno::CONNREFUSED, "round {round}");
    }
}

/// A connected UDP socket stands in place of the TUN. Its peer is not there at first, and one read says so.
#[test]
fn a_read_that_fails_is_told_and_made_again() {
    let (tun, near) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let wake = Wake::new().unwrap();
    let absent = {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        tun.connect(local(&peer)).unwrap();
        local(&peer)
    };
    let descriptors =
        Descriptors { tun: tun.as_fd(), receive: near.as_fd(), send: near.as_fd(), wake: wake.as_fd() };
    let mut ring = Ring::new(descriptors, SIZES).unwrap();
    tun.send(b"anybody?").unwrap();
    while ring.take_receive_error() != Some(libc::ECONNREFUSED) {
        ring.turn(SLEEP, |_| {}).unwrap();
    }
    assert_eq!(ring.tun_error, None);
    UdpSocket::bind(absent).unwrap().send_to(b"here", tun.local_addr().unwrap()).unwrap();
    while ring.frame().is_none() {
        ring.turn(SLEEP, |_| {}).unwrap();
    }
    assert_eq!(ring.frame().unwrap(), b"here");
}

/// Each refusal of the kernel comes with what the operator can do.
#[test]
fn a_ring_that_cannot_be_made_names_the_remedy() {
    let refusal = |errno| {
        let text = forbid::without_io_uring(errno, || {
            let (near, wake) = (UdpSocket::bind("127.0.0.1:0").unwrap(), Wake::new().unwrap());
            let fd = near.as_fd();
            let descriptors = Descriptors { tun: fd, receive: fd, send: fd, wake: wake.as_fd() };
            Ring::new(descriptors, SIZES).err().map(|error| (format!("{error:?}"), error.to_string()))
        });
        text.expect("no ring")
    };
    let (kind, text) = refusal(libc::EPERM);
    assert_eq!(kind, "Forbidden");
    for remedy in ["kernel.io_uring_disabled", "seccomp", "--engine=poll"] {
        assert!(text.contains(remedy), "{text}");
    }
    let (kind, text) = refusal(libc::ENOSYS);
    assert!(kind == "Absent" && text.contains("--engine=poll"), "{text}");
    let (kind, text) = refusal(libc::ENOMEM);
    assert!(kind.starts_with("Memory") && text.contains("LimitMEMLOCK"), "{text}");
    let (kind, text) = refusal(libc::EINVAL);
    assert!(kind.starts_with("Lacks") && text.contains("6.1"), "{text}");
    let (kind, text) = refusal(libc::EMFILE);
    assert!(kind.starts_with("Other") && text.contains("Too many open files"), "{text}");
}

#[test]
fn tokens_survive_packing() {
    for token in [Token::Frame, Token::Datagram, Token::Wake, Token::Send(7), Token::Write(4095)] {
        assert_eq!(Token::unpack(token.pack()), Some(token));
    }
    assert_eq!(Token::unpack(9 << 32), None);
}
