//! Criterion times the parts of the packet path: `cargo bench --bench micro [-- PATTERN]`.
//!
//! The pure operations need nothing. The ring needs io_uring, and the TUN pairs need root. To keep them off the host's
//! network, give them a namespace of their own: `unshare -n cargo bench --bench micro`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod pure;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flanneld::packet::vnet::{VNET_LEN, VnetHeader};
use flanneld::ring::{Descriptors, Ring, Sizes, Wake};
use flanneld::tun::{Device, Queue, READ_SIZE, TunOffload};
use std::hint::black_box;
use std::io::IoSlice;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

fn pure_operations(c: &mut Criterion) {
    let mut group = c.benchmark_group("pure");
    for (name, make) in pure::all() {
        let mut op = make();
        group.throughput(match op.bytes {
            0 => Throughput::Elements(op.packets as u64),
            bytes => Throughput::Bytes(bytes as u64),
        });
        group.bench_function(name, |b| b.iter(|| (op.run)()));
    }
}

/// Sums as RFC 1071 describes it, word by word.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Checksums that are not ours; ours is `pure/checksum`.
fn other_checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in pure::SIZES {
        let bytes = vec![0xa5; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("crate/{size}"), |b| {
            b.iter(|| black_box(internet_checksum::checksum(black_box(&bytes))));
        });
        group.bench_function(format!("naive/{size}"), |b| b.iter(|| black_box(naive(black_box(&bytes)))));
    }
}

/// Turns of the ring on real descriptors: a wake-up, a datagram that goes out and comes back in, or a frame.
fn ring_turns(c: &mut Criterion) {
    // In a fresh network namespace it is down.
    ip("link set lo up");
    let (tun, far) = UnixDatagram::pair().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(to) = socket.local_addr().unwrap() else { return };
    let wake = Wake::new().unwrap();
    let descriptors =
        Descriptors { tun: tun.as_fd(), receive: socket.as_fd(), send: socket.as_fd(), wake: wake.as_fd() };
    let sizes =
        Sizes { frames: 16, datagrams: 16, sends: 32, writes: 512, vectors: 2560, spin: Duration::ZERO };
    let mut ring = match Ring::new(descriptors, sizes) {
        Ok(ring) => ring,
        Err(error) => return println!("skipped: {error}"),
    };
    let mut group = c.benchmark_group("ring");
    group.bench_function("wake", |b| {
        b.iter(|| {
            wake.wake();
            ring.turn(Some(Duration::ZERO), |_| {}).unwrap();
            wake.drain();
            ring.take_woken()
        });
    });
    for size in [64, 1472] {
        let payload = vec![0x55; size];
        group.bench_function(format!("udp/{size}"), |b| b.iter(|| udp_round(&mut ring, &payload, to)));
    }
    group.bench_function("frame/1472", |b| {
        let payload = vec![0x55; 1472];
        b.iter(|| {
            far.send(&payload).unwrap();
            while ring.frame().is_none() {
                ring.turn(Some(Duration::ZERO), |_| {}).unwrap();
            }
            ring.advance();
        });
    });
}

fn udp_round(ring: &mut Ring, payload: &[u8], to: SocketAddrV4) {
    ring.turn(Some(Duration::ZERO), |stage| {
        assert!(stage.send(payload, to, &[]));
    })
    .unwrap();
    assert_eq!(ring.failures(), []);
    loop {
        if let Some(datagram) = ring.datagram() {
            assert_eq!(datagram.len, payload.len());
            return;
        }
        ring.turn(Some(Duration::ZERO), |_| {}).unwrap();
    }
}

/// Runs `ip` with these words; false if that failed.
fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
}

fn random_name(letter: char) -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("fl{letter}{:06x}", random & 0xff_ffff)
}

/// Two devices, with a route from the first into the second. The kernel forwards what is written to the first, and the
/// second gives it back. So a pair is two calls to the devices, and the kernel's forwarding between them.
fn tun_pairs(c: &mut Criterion) {
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let Ok(was) = std::fs::read_to_string(forward) else { return };
    if std::fs::write(forward, "1").is_err() {
        return println!("skipped: TUN pairs need root");
    }
    let mut group = c.benchmark_group("tun");
    group.throughput(Throughput::Bytes(64_000)).measurement_time(Duration::from_secs(3));
    tun_tap_pair(&mut group);
    vnet_pair(&mut group, "vnet/single packets", false);
    vnet_pair(&mut group, "vnet/super-packets", true);
    let _ = std::fs::write(forward, was);
}

/// Routes packets for 198.18.2.0/24 that arrive on `first` into `second`.
fn configure(first: &str, second: &str) {
    for name in [first, second] {
        assert!(ip(&format!("link set {name} up mtu 1500 txqueuelen 1000")));
    }
    assert!(ip(&format!("addr add 198.18.1.1/24 dev {first}")));
    assert!(ip(&format!("route add 198.18.2.0/24 dev {second}")));
}

fn tun_tap_pair(group: &mut BenchmarkGroup<'_, WallTime>) {
    let open =
        |letter| tun_tap::Iface::without_packet_info(&random_name(letter), tun_tap::Mode::Tun).unwrap();
    let (first, second) = (open('a'), open('b'));
    configure(first.name(), second.name());
    let packets = packets(false);
    let mut buffer = vec![0; 1500];
    group.bench_function("tun-tap", |b| {
        b.iter(|| {
            for packet in &packets {
                first.send(&packet[VNET_LEN..]).unwrap();
                second.recv(&mut buffer).unwrap();
            }
        });
    });
}

fn vnet_pair(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, whole: bool) {
    let open = |letter| Device::create(&random_name(letter), 1, TunOffload::Auto).unwrap();
    let (first, second) = (open('a'), open('b'));
    configure(first.name(), second.name());
    let (first, second) = (first.into_queues().remove(0), second.into_queues().remove(0));
    let packets = packets(whole);
    let mut buffer = vec![0; READ_SIZE];
    group.bench_function(name, |b| {
        b.iter(|| {
            for packet in &packets {
                first.write_vectored(&[IoSlice::new(packet)]).unwrap();
                read(&second, &mut buffer);
            }
        });
    });
}

/// Reads the forwarded packet. The kernel forwards within the write, so it is mostly there at once.
fn read(queue: &Queue, buffer: &mut [u8]) {
    while queue.read(buffer).is_err() {
        std::thread::yield_now();
    }
}

/// 64 KB of TCP as frames for a TUN, vnet header first: one super-packet, or its segments.
fn packets(whole: bool) -> Vec<Vec<u8>> {
    let (vnet, mut packet) = pure::super_packet();
    // These addresses, which `configure` routes, replace those of the operation.
    packet[12..20].copy_from_slice(&[198, 18, 1, 2, 198, 18, 2, 2]);
    flanneld::packet::ipv4::set_header_checksum(&mut packet[..20]);
    if whole {
        return vec![[vnet.encode().as_slice(), &packet].concat()];
    }
    let plan = flanneld::offload::segment::plan(&vnet, &packet).unwrap();
    let cut = |i| {
        let mut frame = VnetHeader::PLAIN.encode().to_vec();
        frame.resize(VNET_LEN + plan.packet_len(i), 0);
        plan.write(&packet, i, &mut frame[VNET_LEN..]);
        frame
    };
    (0..plan.count()).map(cut).collect()
}

criterion_group! {
    name = micro;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = pure_operations, other_checksums, ring_turns, tun_pairs
}
criterion_main!(micro);
