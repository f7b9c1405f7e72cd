//! Against the kernel, on loopback.

use super::probe::MAX_SEGMENTS_SAFE;
use super::*;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn socket(gro: bool) -> (Socket, SocketAddrV4) {
    let options =
        SocketOptions { gro, receive_buffer: 4 << 20, send_buffer: 4 << 20, ..SocketOptions::default() };
    let socket = Socket::bind(LOOPBACK, options).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Bytes that differ from place to place and from `seed` to `seed`.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + usize::from(seed) * 7) % 256).unwrap()).collect()
}

/// Waits for the socket to be readable, at most a second.
fn wait(socket: &Socket) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, exclusively borrowed for the call.
    unsafe { libc::poll(&raw mut poll, 1, 1000) == 1 }
}

/// Receives until `total` bytes have come, and gives the datagrams by stride.
fn datagrams(socket: &Socket, total: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let (mut all, mut seen) = (Vec::new(), 0);
    while seen < total && wait(socket) {
        let received = socket.receive(&mut buffer).unwrap();
        assert!(!received.truncated);
        seen += received.len;
        let stride = received.stride.map_or(received.len, usize::from).max(1);
        all.extend(buffer[..received.len].chunks(stride).map(<[u8]>::to_vec));
    }
    all
}

#[test]
fn segmented_send_arrives_joined_with_its_stride() {
    let (sender, from) = socket(false);
    let (receiver, to) = socket(true);
    assert!(receiver.gro() && !sender.gro());
    assert!(max_segments().is_some());
    let bytes = pattern(1, 10 * 1472 + 100);
    assert_eq!(sender.send(&bytes, to, Some(1472)).unwrap(), bytes.len());
    assert!(wait(&receiver));
    let mut buffer = vec![0; 65_536];
    let received = receiver.receive(&mut buffer).unwrap();
    assert_eq!(received, Received { len: bytes.len(), from, stride: Some(1472), truncated: false });
    assert_eq!(buffer[..received.len], bytes);
    assert_eq!(receiver.receive(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn segmented_send_arrives_in_pieces_without_gro() {
    let (sender, _) = socket(false);
    let (receiver, to) = socket(false);
    let bytes = pattern(2, 5 * 1000 + 1);
    sender.send(&bytes, to, Some(1000)).unwrap();
    let expected: Vec<_> = bytes.chunks(1000).map(<[u8]>::to_vec).collect();
    assert_eq!(datagrams(&receiver, bytes.len()), expected);
}

#[test]
fn a_plain_datagram_has_no_stride() {
    let (sender, from) = socket(false);
    let (receiver, to) = socket(true);
    for len in [1, 28, 1472, 3000, 65_507] {
        let bytes = pattern(3, len);
        sender.send(&bytes, to, None).unwrap();
        assert!(wait(&receiver));
        let mut buffer = vec![0; 65_536];
        let received = receiver.receive(&mut buffer).unwrap();
        assert_eq!(received, Received { len, from, stride: None, truncated: false });
        assert_eq!(buffer[..len], bytes);
    }
}

#[test]
fn the_safe_number_of_segments_passes_and_too_many_are_refused() {
    let (sender, _) = socket(false);
    let (receiver, to) = socket(true);
    let bytes = pattern(4, usize::from(MAX_SEGMENTS_SAFE) * 500);
    sender.send(&bytes, to, Some(500)).unwrap();
    let expected: Vec<_> = bytes.chunks(500).map(<[u8]>::to_vec).collect();
    assert_eq!(datagrams(&receiver, bytes.len()), expected);

    let most = max_segments().unwrap();
    assert!(most == 63 || most == 127, "{most}");
    sender.send(&pattern(4, usize::from(most) * 10), to, Some(10)).unwrap();
    let error = sender.send(&pattern(4, 129), to, Some(1)).unwrap_err();
    assert!(is_segmentation_refused(&error), "{error}");
    // The refusal is for that send alone: the socket has no memory of it.
    sender.send(&bytes, to, Some(500)).unwrap();
}

#[test]
fn a_network_with_loopback_down_and_then_of_mtu_1500() {
    let test = || {
        // SAFETY: unshare with this flag moves only the calling thread, into a fresh network namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        assert_eq!(max_segments(), Some(MAX_SEGMENTS_SAFE));

        let up = ["link", "set", "dev", "lo", "mtu", "1500", "up"];
        assert!(Command::new("ip").args(up).status().unwrap().success());
        let (sender, _) = socket(false);
        let (receiver, to) = socket(true);
        let bytes = pattern(9, 4000);
        let error = sender.send(&bytes, to, Some(1473)).unwrap_err();
        assert!(is_segmentation_refused(&error), "{error}");
        sender.send(&bytes, to, Some(1472)).unwrap();
        assert_eq!(datagrams(&receiver, 4000).len(), 3);
        // Without segmentation a longer datagram is fragmented, not refused: flannel's behaviour.
        sender.send(&bytes, to, None).unwrap();
        assert_eq!(datagrams(&receiver, 4000), [bytes]);
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_refusal_is_told_from_a_full_buffer() {
    let refused = [libc::EIO, libc::EINVAL, libc::EMSGSIZE];
    let other = [libc::EAGAIN, libc::ENOBUFS, libc::ENETUNREACH, libc::EPERM];
    let of = std::io::Error::from_raw_os_error;
    assert!(refused.into_iter().all(|errno| is_segmentation_refused(&of(errno))));
    assert!(!other.into_iter().any(|errno| is_segmentation_refused(&of(errno))));
}

#[test]
fn a_short_buffer_is_told() {
    let (sender, from) = socket(false);
    let (receiver, to) = socket(true);
    let mut buffer = [0; 1000];
    sender.send(&pattern(5, 1001), to, None).unwrap();
    assert!(wait(&receiver));
    let received = receiver.receive(&mut buffer).unwrap();
    assert_eq!(received, Received { len: 1000, from, stride: None, truncated: true });
    sender.send(&pattern(5, 3000), to, Some(600)).unwrap();
    assert!(wait(&receiver));
    let received = receiver.receive(&mut buffer).unwrap();
    assert_eq!(received, Received { len: 1000, from, stride: Some(600), truncated: true });
    assert_eq!(buffer[..], pattern(5, 1000));
}

#[test]
fn a_closed_port_makes_no_error() {
    let (sender, _) = socket(false);
    let (receiver, open) = socket(false);
    let closed = {
        let (_gone, address) = socket(false);
        address
    };
    for round in 0..20 {
        sender.send(&pattern(6, 100), closed, None).unwrap();
        sender.send(&pattern(6, 100), closed, Some(50)).unwrap();
        sender.send(&pattern(round, 100), open, None).unwrap();
    }
    let got = datagrams(&receiver, 2000);
    assert_eq!(got, (0..20).map(|round| pattern(round, 100)).collect::<Vec<_>>());
    assert_eq!(sender.receive(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn many_are_sent_and_received_in_order() {
    let (sender, from) = socket(false);
    let (first, to_first) = socket(true);
    let (second, to_second) = socket(true);
    let messages: Vec<Vec<u8>> = (0..20).map(|n| pattern(n, 100 + usize::from(n) * 60)).collect();
    let outgoing: Vec<Outgoing<'_>> = messages
        .iter()
        .enumerate()
        .map(|(n, bytes)| match n % 3 {
            0 => (bytes.as_slice(), to_first, None),
            1 => (bytes.as_slice(), to_second, None),
            _ => (bytes.as_slice(), to_first, Some(77)),
        })
        .collect();

    // There are fewer slots than messages: each call takes what it can, and the next goes on.
    let mut many = SendMany::new(8);
    let mut sent = 0;
    while sent < outgoing.len() {
        let taken = sender.send_many(&mut many, &outgoing[sent..]).unwrap();
        assert!((1..=8).contains(&taken));
        sent += taken;
    }
    assert_eq!(sender.send_many(&mut many, &[]).unwrap(), 0);

    for (receiver, to) in [(&first, to_first), (&second, to_second)] {
        let expected: Vec<&Outgoing<'_>> = outgoing.iter().filter(|(_, address, _)| *address == to).collect();
        let mut arrays = ReceiveMany::new(32);
        let mut pool = vec![0; 32 * 4096];
        assert!(wait(receiver));
        let count = receiver.receive_many(&mut arrays, pool.chunks_exact_mut(4096)).unwrap();
        assert_eq!(count, expected.len());
        assert_eq!(arrays.received().len(), count);
        for ((received, buffer), &&(bytes, _, stride)) in
            arrays.received().iter().zip(pool.chunks_exact(4096)).zip(&expected)
        {
            assert_eq!(*received, Received { len: bytes.len(), from, stride, truncated: false });
            assert_eq!(buffer[..received.len], *bytes);
        }
        let error = receiver.receive_many(&mut arrays, pool.chunks_exact_mut(4096)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(arrays.received().is_empty());
    }
}

#[test]
fn many_stop_at_a_refusal_and_tell_it_next() {
    let (sender, _) = socket(false);
    let (receiver, to) = socket(false);
    let (good, bad) = (pattern(7, 200), pattern(7, 129));
    let outgoing = [(&good[..], to, None), (&bad[..], to, Some(1)), (&good[..], to, Some(100))];
    let mut many = SendMany::new(4);
    assert_eq!(sender.send_many(&mut many, outgoing).unwrap(), 1);
    assert!(is_segmentation_refused(&sender.send_many(&mut many, &outgoing[1..]).unwrap_err()));
    assert_eq!(sender.send_many(&mut many, &outgoing[2..]).unwrap(), 1);
    assert_eq!(datagrams(&receiver, 400), [&good[..], &good[..100], &good[100..]]);
}

#[test]
fn a_buffer_set_smaller_than_the_arrays_is_all_that_is_used() {
    let (sender, _) = socket(false);
    let (receiver, to) = socket(false);
    for n in 0..5 {
        sender.send(&pattern(n, 50), to, None).unwrap();
    }
    assert!(wait(&receiver));
    let mut arrays = ReceiveMany::new(16);
    let mut pool = [0; 2 * 64];
    assert_eq!(receiver.receive_many(&mut arrays, pool.chunks_exact_mut(64)).unwrap(), 2);
    assert_eq!(pool[..50], pattern(0, 50));
    assert_eq!(pool[64..114], pattern(1, 50));
    assert_eq!(receiver.receive_many(&mut arrays, std::iter::empty()).unwrap(), 0);
    assert!(arrays.received().is_empty());
    assert_eq!(datagrams(&receiver, 150).len(), 3);
}

#[test]
fn buffers_are_as_asked_for() {
    let (socket, _) = socket(false);
    assert!(socket.receive_buffer().unwrap() >= 4 << 20);
    assert!(socket.send_buffer().unwrap() >= 4 << 20);
    let plain = Socket::bind(LOOPBACK, SocketOptions::default()).unwrap();
    assert!(plain.receive_buffer().unwrap() < 4 << 20);
}

#[test]
fn a_port_in_use_names_it_and_the_likely_culprit() {
    let (_holder, address) = socket(false);
    let error = Socket::bind(address, SocketOptions::default()).unwrap_err();
    assert!(matches!(error, UdpError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains(&address.port().to_string()) && text.contains("another flanneld"), "{text}");
    let options = SocketOptions { reuse_port: true, ..SocketOptions::default() };
    assert!(matches!(Socket::bind(address, options), Err(UdpError::InUse { .. })));
}

#[test]
fn a_shared_port_is_shared() {
    let options = SocketOptions { reuse_port: true, ..SocketOptions::default() };
    let first = Socket::bind(LOOPBACK, options).unwrap();
    let address = first.local_addr().unwrap();
    let second = Socket::bind(address, options).unwrap();
    assert_eq!(second.local_addr().unwrap(), address);
}

#[test]
fn a_foreign_address_is_told_clearly() {
    let foreign = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 77), 8285);
    let error = Socket::bind(foreign, SocketOptions::default()).unwrap_err();
    assert!(matches!(error, UdpError::NotAvailable { .. }));
    assert!(error.to_string().contains("203.0.113.77"), "{error}");
}

#[test]
fn a_clone_is_the_same_socket() {
    let (sender, _) = socket(false);
    let (receiver, to) = socket(true);
    let clone = receiver.try_clone().unwrap();
    assert_eq!((clone.local_addr().unwrap(), clone.gro()), (to, true));
    drop(receiver);
    sender.send(b"still here", to, None).unwrap();
    assert_eq!(datagrams(&clone, 10), [b"still here"]);
}

#[test]
fn a_full_receive_buffer_is_counted_by_the_kernel() {
    let options = SocketOptions { receive_buffer: 4096, ..SocketOptions::default() };
    let receiver = Socket::bind(LOOPBACK, options).unwrap();
    let to = receiver.local_addr().unwrap();
    assert_eq!(receiver.overflows().unwrap(), 0);
    let (sender, _) = socket(false);
    for _ in 0..100 {
        sender.send(&[0; 1000], to, None).unwrap();
    }
    let received = u32::try_from(datagrams(&receiver, 100_000).len()).unwrap();
    assert!(received < 100);
    assert_eq!(receiver.overflows().unwrap(), 100 - received);
}
