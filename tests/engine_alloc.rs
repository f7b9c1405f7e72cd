//! A worker allocates nothing once it runs. A counting allocator watches while real traffic crosses a TUN device and
//! sockets in a network namespace of its own, on both carriers.
#![allow(unsafe_code, reason = "a global allocator is one")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use flanneld::engine::{Carrier, Count, Engine, Link, Settings, Setup};
use flanneld::route::{Peer, RouteCommand};
use flanneld::tun::{Device, TunOffload};
use flanneld::udp::{Socket, SocketOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Allocations (and growths) on threads that the engine named, and the size of the last one.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LAST_SIZE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes on to the system's allocator unchanged. Counting touches atomics and the stack only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

fn count(size: usize) {
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, the length of `name`, which is exclusively ours.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"fl-w") {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LAST_SIZE.store(size, Ordering::Relaxed);
    }
}

const INSIDE: &str = "FLANNELD_TEST_INSIDE_NAMESPACE";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 2);
/// A host behind the mirror.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 1, 8, 3);
const TURNS: u64 = 1000;

fn ip(words: &str) {
    assert!(Command::new("ip").args(words.split_whitespace()).status().unwrap().success(), "ip {words}");
}

/// Runs this binary again under `unshare --net` for one test.
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut again = Command::new("unshare");
    again.arg("--net").arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]);
    let output = again.env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in the namespace: {text}");
}

fn socket(address: &str) -> Socket {
    let options =
        SocketOptions { receive_buffer: 8 << 20, send_buffer: 8 << 20, gro: true, reuse_port: false };
    Socket::bind(address.parse().unwrap(), options).unwrap()
}

fn start(carrier: Carrier, mirror: SocketAddrV4) -> (Engine, SocketAddrV4) {
    let device = Device::create("flannel%d", 1, TunOffload::Auto).unwrap();
    let name = device.name().to_owned();
    ip("addr add 10.1.5.2/32 dev lo");
    ip(&format!("addr add 10.1.5.0/32 dev {name}"));
    ip(&format!("link set {name} mtu 1472 up"));
    ip(&format!("route add 10.1.0.0/16 dev {name}"));
    let receiver = socket("127.0.0.1:0");
    let address = receiver.local_addr().unwrap();
    let sender = receiver.try_clone().unwrap();
    let offloads = device.offloads();
    let queue = device.into_queues().remove(0);
    let subnet = "10.1.8.0/24".parse().unwrap();
    let engine = Engine::start(Setup {
        settings: Settings { carrier, ..Settings::default() },
        network: "10.1.0.0/16".parse().unwrap(),
        subnet: "10.1.5.0/24".parse().unwrap(),
        max_packet: 1472,
        offloads,
        segments: Some(63),
        links: vec![Link { queue, receiver, sender }],
        routes: vec![RouteCommand::Set { subnet, peer: Peer { address: mirror } }],
    });
    (engine.unwrap(), address)
}

/// Sends every packet back with its inner addresses swapped, until told to stop. So a host of ours that connects to the
/// far one finds its own listener.
fn mirror(socket: &Socket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok(received) = socket.receive(&mut buffer) else {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        };
        let bytes = &mut buffer[..received.len];
        for packet in bytes.chunks_mut(received.stride.map_or(usize::MAX, usize::from)) {
            let (source, destination) = packet[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
        }
        // A full buffer here is a loss on the wire.
        let _ = socket.send(bytes, received.from, received.stride);
    }
}

/// A TCP stream that crosses the mirror in chunks.
struct Stream {
    out: TcpStream,
    back: TcpStream,
    chunk: Vec<u8>,
}

impl Stream {
    fn open() -> Stream {
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let far = SocketAddr::from((FAR, listener.local_addr().unwrap().port()));
        let out = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        out.bind(&SocketAddr::from((HOST, 0)).into()).unwrap();
        out.connect_timeout(&far.into(), Duration::from_secs(5)).unwrap();
        let (back, _) = listener.accept().unwrap();
        back.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Stream { out: out.into(), back, chunk: vec![7; 100_000] }
    }

    fn carry_a_chunk(&mut self) {
        self.out.write_all(&self.chunk).unwrap();
        self.back.read_exact(&mut self.chunk).unwrap();
    }
}

/// Sends one round of all that a worker meets: a stream, small packets, packets without a route, packets with TTL 1,
/// and packets from a stranger.
fn round(stream: &mut Stream, hosts: &[UdpSocket; 2], stranger: &UdpSocket, engine: SocketAddrV4) {
    let [host, short_lived] = hosts;
    stream.carry_a_chunk();
    for n in 0..20 {
        host.send_to(&[n; 64], (FAR, 4000)).unwrap();
    }
    host.send_to(b"no route", (Ipv4Addr::new(10, 1, 200, 1), 9)).unwrap();
    short_lived.send_to(b"expired", (FAR, 9)).unwrap();
    stranger.send_to(&[0x45; 40], engine).unwrap();
    stranger.send_to(&[1], engine).unwrap();
}

fn a_running_worker_allocates_nothing(carrier: Carrier) {
    ip("link set lo mtu 1500 up");
    let mirror_socket = socket("127.0.0.8:0");
    let (engine, address) = start(carrier, mirror_socket.local_addr().unwrap());
    assert_eq!(engine.carriers(), [carrier]);
    let started = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(started > 0, "the counter does not see the worker allocate its buffers");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let mirroring = std::thread::spawn(move || mirror(&mirror_socket, &stopped));

    let mut stream = Stream::open();
    let hosts = [UdpSocket::bind((HOST, 0)).unwrap(), UdpSocket::bind((HOST, 0)).unwrap()];
    hosts[1].set_ttl(1).unwrap();
    let stranger = UdpSocket::bind("127.0.0.66:0").unwrap();
    for _ in 0..20 {
        round(&mut stream, &hosts, &stranger, address);
    }
    let (before, warm) = (engine.snapshot(), ALLOCATIONS.load(Ordering::Relaxed));
    let end = Instant::now() + Duration::from_secs(30);
    while engine.snapshot().get(Count::Turns) < before.get(Count::Turns) + TURNS {
        assert!(Instant::now() < end, "too slow: {}", engine.snapshot());
        round(&mut stream, &hosts, &stranger, address);
    }
    let (after, allocations) = (engine.snapshot(), ALLOCATIONS.load(Ordering::Relaxed) - warm);
    let last = LAST_SIZE.load(Ordering::Relaxed);
    assert_eq!(allocations, 0, "the last one of {last} bytes, during\n{after}");

    let during = |count| after.get(count) - before.get(count);
    assert!(during(Count::TunPackets) > during(Count::TunReads), "no super-packet was among them: {after}");
    assert!(during(Count::UdpPackets) > during(Count::UdpReceives), "no joined receive: {after}");
    assert!(during(Count::UdpPackets) > during(Count::TunWrites), "no merged write: {after}");
    assert!(during(Count::IcmpSent) + during(Count::IcmpLimited) > 0, "no ICMP: {after}");
    assert!(after.dropped_total() > before.dropped_total(), "no drop: {after}");
    stop.store(true, Ordering::Relaxed);
    mirroring.join().unwrap();
    engine.stop().1.unwrap();
}

#[test]
fn on_io_uring() {
    in_namespace("on_io_uring", || a_running_worker_allocates_nothing(Carrier::Uring));
}

#[test]
fn on_poll() {
    in_namespace("on_poll", || a_running_worker_allocates_nothing(Carrier::Poll));
}
