//! A whole engine on a real TUN device and real sockets, all in the current network namespace. Our subnet is
//! 10.1.5.0/24: the device has 10.1.5.0, and a host in it is 10.1.5.2, which is an address of loopback. Sockets of the
//! test on 127.0.0.0/8 play the peers.

use super::*;
use crate::engine::{Carrier, Engine, EngineError, Link, Setup, UdpOffload};
use crate::netlink::namespace::{self, ip};
use crate::packet::checksum::Sum;
use crate::packet::ipv4::{Ipv4, header_checksum_ok};
use crate::tun::{Device, TunOffload};
use crate::udp::control::SegmentControl;
use crate::udp::{Socket, SocketOptions, max_segments};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, MsgHdr, Protocol, SockAddr, SockRef, Type};
use std::io::IoSlice;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A host in our subnet.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 2);
/// A host behind [`Rig::peer`].
pub(super) const FAR: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 3);
/// A host behind the [`Mirror`].
pub(super) const MIRRORED: Ipv4Addr = Ipv4Addr::new(10, 1, 8, 3);
/// How long anything may take to arrive.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// How long a test waits for what must not arrive.
pub(super) const A_WHILE: Duration = Duration::from_millis(100);

/// Makes a test of each body for each carrier. `$run` takes the test's full path, the carrier and the body.
macro_rules! on_both_carriers {
    ($run:ident: $($body:ident)*) => {
        mod uring {
            $(#[test]
            fn $body() {
                super::$run(
                    concat!(module_path!(), "::", stringify!($body)),
                    crate::engine::Carrier::Uring,
                    super::$body,
                );
            })*
        }
        mod poll {
            $(#[test]
            fn $body() {
                super::$run(
                    concat!(module_path!(), "::", stringify!($body)),
                    crate::engine::Carrier::Poll,
                    super::$body,
                );
            })*
        }
    };
}
pub(super) use on_both_carriers;

/// Runs `body` in a namespace of its own. `test` is the caller's path, with the crate's name in front.
pub(super) fn inside(test: &str, carrier: Carrier, body: fn(Shape)) {
    in_namespace(test, || body(Shape::new(carrier)));
}

/// Runs any body in a namespace of its own.
pub(super) fn in_namespace(test: &str, body: impl FnOnce()) {
    let (_, path) = test.split_once("::").unwrap();
    namespace::run(path, || async { body() });
}

/// What the tests vary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) carrier: Carrier,
    pub(super) tun: TunOffload,
    pub(super) udp: UdpOffload,
    pub(super) workers: usize,
}

impl Shape {
    pub(super) fn new(carrier: Carrier) -> Shape {
        Shape { carrier, tun: TunOffload::Auto, udp: UdpOffload::Auto, workers: 1 }
    }
}

pub(super) struct Rig {
    pub(super) engine: Engine,
    /// The TUN device's name.
    pub(super) device: String,
    /// Where the engine listens.
    pub(super) address: SocketAddrV4,
    /// The peer of 10.1.9.0/24.
    pub(super) peer: UdpSocket,
}

impl Rig {
    pub(super) fn start(shape: Shape) -> Rig {
        let rig = Rig::with(shape, |_| ());
        assert_eq!(rig.engine.carriers(), vec![shape.carrier; shape.workers]);
        rig
    }

    pub(super) fn with(shape: Shape, adjust: impl FnOnce(&mut Setup)) -> Rig {
        Rig::attempt(shape, adjust).unwrap()
    }

    pub(super) fn attempt(shape: Shape, adjust: impl FnOnce(&mut Setup)) -> Result<Rig, EngineError> {
        let device = Device::create("flannel%d", shape.workers, shape.tun).unwrap();
        let name = device.name().to_owned();
        // As on a wire of 1500 bytes, the kernel fragments a longer datagram and refuses a longer segment.
        ip("link set lo mtu 1500 up");
        ip("addr replace 10.1.5.2/32 dev lo");
        ip(&format!("addr add 10.1.5.0/32 dev {name}"));
        ip(&format!("link set {name} mtu 1472 txqueuelen 20000 up"));
        ip(&format!("route add 10.1.0.0/16 dev {name}"));
        let gro = matches!(shape.udp, UdpOffload::Auto | UdpOffload::Receive);
        let segmentation = matches!(shape.udp, UdpOffload::Auto | UdpOffload::Send);
        let options = SocketOptions {
            reuse_port: shape.workers > 1,
            receive_buffer: 8 << 20,
            send_buffer: 8 << 20,
            gro,
        };
        let first = Socket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let address = first.local_addr().unwrap();
        let mut receivers = vec![first];
        receivers.resize_with(shape.workers, || Socket::bind(address, options).unwrap());
        let peer = peer_at("127.0.0.9");
        let offloads = device.offloads();
        let links = device.into_queues().into_iter().zip(receivers).map(|(queue, receiver)| {
            let sender = receiver.try_clone().unwrap();
            Link { queue, receiver, sender }
        });
        let mut setup = Setup {
            settings: Settings { carrier: shape.carrier, ..Settings::default() },
            network: net("10.1.0.0/16"),
            subnet: net("10.1.5.0/24"),
            max_packet: 1472,
            offloads,
            segments: segmentation.then(max_segments).flatten(),
            links: links.collect(),
            routes: vec![set("10.1.9.0/24", address_of(&peer))],
        };
        adjust(&mut setup);
        let engine = Engine::start(setup)?;
        Ok(Rig { engine, device: name, address, peer })
    }

    /// The peer sends a packet to the engine as it is.
    pub(super) fn peer_sends(&self, packet: &[u8]) {
        self.peer.send_to(packet, self.address).unwrap();
    }

    /// The next IPv4 packet that reaches the peer, with its checksums checked.
    pub(super) fn peer_gets(&self) -> Vec<u8> {
        let packet = receive(&self.peer).expect("a packet for the peer");
        assert_sound(&packet);
        packet
    }

    /// Stops the engine, which must take less than a second. No worker may have ended before.
    pub(super) fn stop(self) -> Snapshot {
        assert_eq!(self.engine.ended(), None);
        let start = Instant::now();
        let (snapshot, ended) = self.engine.stop();
        ended.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "stopping took {:?}", start.elapsed());
        snapshot
    }

    /// Waits until `done` says of the counters that `what` has come.
    pub(super) fn wait(&self, what: &str, done: impl Fn(&Snapshot) -> bool) {
        let end = Instant::now() + SOON;
        while !done(&self.engine.snapshot()) {
            assert!(Instant::now() < end, "{what} never came: {}", self.engine.snapshot());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A socket of a peer or of a host. It waits [`SOON`] for a datagram.
pub(super) fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    SockRef::from(&socket).set_recv_buffer_size(8 << 20).unwrap();
    socket
}

pub(super) fn peer_at(address: &str) -> UdpSocket {
    socket(&format!("{address}:0"))
}

/// An ordinary socket in our subnet.
pub(super) fn host() -> UdpSocket {
    socket("10.1.5.2:0")
}

pub(super) fn address_of(socket: &UdpSocket) -> SocketAddrV4 {
    match socket.local_addr().unwrap() {
        std::net::SocketAddr::V4(address) => address,
        std::net::SocketAddr::V6(_) => unreachable!(),
    }
}

pub(super) fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).ok()?;
    buffer.truncate(len);
    Some(buffer)
}

/// True if nothing arrives for [`A_WHILE`].
pub(super) fn is_quiet(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(A_WHILE)).unwrap();
    let quiet = receive(socket).is_none();
    socket.set_read_timeout(Some(SOON)).unwrap();
    quiet
}

/// Sends once, with `UDP_SEGMENT`.
pub(super) fn send_segmented(socket: &UdpSocket, bytes: &[u8], to: SocketAddrV4, segment_size: u16) {
    let (to, parts, control) = (SockAddr::from(to), [IoSlice::new(bytes)], SegmentControl::new(segment_size));
    let message = MsgHdr::new().with_addr(&to).with_buffers(&parts).with_control(control.as_bytes());
    assert_eq!(SockRef::from(socket).sendmsg(&message, 0).unwrap(), bytes.len());
}

/// A socket that gives whole IPv4 packets of `protocol`, or with 255 takes them.
pub(super) fn raw(protocol: u8) -> socket2::Socket {
    let protocol = Protocol::from(i32::from(protocol));
    let socket = socket2::Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

pub(super) fn raw_receive(socket: &socket2::Socket) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut buffer = vec![0; 65_536];
    let mut reader: &socket2::Socket = socket;
    let len = reader.read(&mut buffer).ok()?;
    buffer.truncate(len);
    Some(buffer)
}

/// Checks that this is exactly one packet and that its header and transport checksums are right.
pub(super) fn assert_sound(packet: &[u8]) {
    let ip = Ipv4::parse(packet).unwrap();
    assert!(header_checksum_ok(&packet[..ip.header_len]), "header checksum: {packet:02x?}");
    if ip.is_fragment() {
        return;
    }
    match ip.protocol {
        1 => assert_eq!(Sum::of(&packet[ip.header_len..]).fold(), 0xffff, "ICMP checksum"),
        17 if packet[ip.header_len + 6..][..2] == [0, 0] => {}
        _ => {
            let mut again = packet.to_vec();
            crate::offload::tests::reference::finish(&mut again);
            assert!(again == packet, "transport checksum of {} bytes", packet.len());
        }
    }
}

/// Plays a host at 10.1.8.3 that sends every packet back with its addresses swapped, so that whoever connects to
/// 10.1.8.3 finds his own listener. The swap keeps checksums right.
pub(super) struct Mirror {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Starts it with `UDP_GRO` and `UDP_SEGMENT` if `joined`, and packet by packet otherwise.
    pub(super) fn start(rig: &Rig, joined: bool) -> Mirror {
        let options =
            SocketOptions { receive_buffer: 8 << 20, send_buffer: 8 << 20, gro: joined, reuse_port: false };
        let socket = Socket::bind("127.0.0.8:0".parse().unwrap(), options).unwrap();
        rig.engine.route(set("10.1.8.0/24", socket.local_addr().unwrap())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(&socket, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
                while let Ok(received) = socket.receive(&mut buffer) {
                    reflect(&socket, &mut buffer[..received.len], received.from, received.stride);
                }
            }
        });
        Mirror { stop, thread: Some(thread) }
    }
}

fn reflect(socket: &Socket, bytes: &mut [u8], to: SocketAddrV4, stride: Option<u16>) {
    for packet in bytes.chunks_mut(stride.map_or(usize::MAX, usize::from)) {
        let (front, back) = packet[12..20].split_at_mut(4);
        front.swap_with_slice(back);
    }
    // A full buffer here is a loss on the wire.
    let _ = socket.send(bytes, to, stride);
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
