//! Null tests: each carries packets over one leg of their way and does nothing to them. Their cost is a floor for the
//! daemon's, and `perf/null.sh` adds them up. `blast` and `sink` are also the traffic of `perf/many.sh`.
//!
//! The call is `legs LEG key=value…`. Every leg prints `key value` lines:
//!
//! | leg | what it does | keys |
//! |---|---|---|
//! | `copy` | copies and sums 64 KiB in 1400-byte steps, as segmenting does | `seconds` |
//! | `sum` | sums 64 KiB in 1400-byte steps, as coalescing does | `seconds` |
//! | `tun-read` | makes the TUN device `dev`, reads and discards | `dev seconds` |
//! | `tun-write` | makes the TUN device `dev`, writes UDP super-packets | `dev seconds from to segments size` |
//! | `blast` | sends datagrams, or trains of them, to `count` addresses `stride` apart | `to seconds count stride size segments pps` |
//! | `sink` | receives and discards until a second without traffic | `port` |
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use flanneld::packet::checksum::{Sum, copy_and_sum, pseudo_header};
use flanneld::packet::ipv4::set_header_checksum;
use flanneld::packet::vnet::{GSO_UDP_L4, NEEDS_CSUM, VNET_LEN, VnetHeader};
use flanneld::tun::{Device, Queue, READ_SIZE, TunOffload};
use flanneld::udp::{Socket, SocketOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::hint::black_box;
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// The payload of a datagram in a full packet, which is nearly that of a TCP segment.
const STEP: usize = 1400;
/// The payload sizes of IMIX: 7 small, 4 middle, 1 large.
const IMIX: [usize; 12] = [64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 576, 64];

fn main() {
    let mut args = std::env::args().skip(1);
    let leg = args.next().unwrap_or_default();
    let keys = Keys(args.filter_map(own).collect());
    match leg.as_str() {
        "copy" => copy(&keys),
        "sum" => sum(&keys),
        "tun-read" => tun_read(&keys),
        "tun-write" => tun_write(&keys),
        "blast" => blast(&keys),
        "sink" => sink(&keys),
        // `cargo bench` and `cargo test` start every bench without a leg's name. Then there is nothing to do.
        _ => println!("usage: legs copy|sum|tun-read|tun-write|blast|sink key=value…"),
    }
}

/// Splits `key=value`. Anything else is not for us.
fn own(arg: String) -> Option<(String, String)> {
    arg.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// The keys of the command line and their values.
struct Keys(HashMap<String, String>);

impl Keys {
    fn get<T: FromStr>(&self, key: &str, default: T) -> T {
        let Some(text) = self.0.get(key) else { return default };
        text.parse().unwrap_or_else(|_| panic!("{key}={text} makes no sense"))
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.get("seconds", 1.0))
    }
}

/// What one thread has done since the tally was made.
struct Tally {
    start: Instant,
    cpu: Duration,
    bytes: usize,
    packets: usize,
    calls: usize,
}

impl Tally {
    fn new() -> Tally {
        Tally { start: Instant::now(), cpu: thread_cpu(), bytes: 0, packets: 0, calls: 0 }
    }

    fn add(&mut self, bytes: usize, packets: usize) {
        self.bytes += bytes;
        self.packets += packets;
        self.calls += 1;
    }

    fn print(&self, seconds: f64) {
        let cpu = (thread_cpu() - self.cpu).as_secs_f64();
        let gb = self.bytes as f64 / 1e9;
        println!(
            "bytes {}\npackets {}\ncalls {}\nseconds {seconds:.4}",
            self.bytes, self.packets, self.calls
        );
        println!("gb_per_s {:.4}\npps {:.0}", gb / seconds, self.packets as f64 / seconds);
        println!("cpu_s_per_gb {:.5}\ncpu_us_per_packet {:.4}", cpu / gb, cpu * 1e6 / self.packets as f64);
    }

    fn finish(&self) {
        self.print(self.start.elapsed().as_secs_f64());
    }
}

/// The time that the calling thread has spent on a processor.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Waits until the descriptor can be read; false if it cannot within `limit`.
fn readable(fd: &impl AsFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

fn copy(keys: &Keys) {
    let (from, mut to) = (vec![1; 65_535], vec![0; 65_535]);
    let mut tally = Tally::new();
    while tally.start.elapsed() < keys.seconds() {
        for (to, from) in to.chunks_mut(STEP).zip(from.chunks(STEP)) {
            black_box(copy_and_sum(to, black_box(from)));
            tally.add(from.len(), 1);
        }
    }
    tally.finish();
}

fn sum(keys: &Keys) {
    let from = vec![1; 65_535];
    let mut tally = Tally::new();
    while tally.start.elapsed() < keys.seconds() {
        for from in from.chunks(STEP) {
            black_box(Sum::of(black_box(from)));
            tally.add(from.len(), 1);
        }
    }
    tally.finish();
}

fn device(keys: &Keys) -> Queue {
    let device = Device::create(&keys.get("dev", "legs0".to_owned()), 1, TunOffload::Auto).unwrap();
    device.into_queues().pop().unwrap()
}

/// Reads frames until `seconds` after the first one.
fn tun_read(keys: &Keys) {
    let queue = device(keys);
    let mut buffer = vec![0; READ_SIZE];
    assert!(readable(&queue, Duration::from_secs(30)), "nothing came into the TUN device");
    let mut tally = Tally::new();
    while tally.start.elapsed() < keys.seconds() {
        match queue.read(&mut buffer) {
            Ok(len) => {
                let vnet = VnetHeader::decode(&buffer).unwrap();
                let packets = if vnet.gso_size == 0 { 1 } else { len.div_ceil(vnet.gso_size.into()) };
                tally.add(len - VNET_LEN, packets);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                readable(&queue, Duration::from_millis(100));
            }
            Err(error) => panic!("{error}"),
        }
    }
    tally.finish();
}

/// Writes frames as fast as it can as soon as the device is up.
fn tun_write(keys: &Keys) {
    let queue = device(keys);
    let frame = super_packet(keys);
    let segments: usize = keys.get("segments", 45);
    let ready = Instant::now();
    while let Err(error) = queue.write_vectored(&[IoSlice::new(&frame)]) {
        assert!(ready.elapsed() < Duration::from_secs(30), "the TUN device stays down: {error}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut tally = Tally::new();
    while tally.start.elapsed() < keys.seconds() {
        queue.write_vectored(&[IoSlice::new(&frame[..50]), IoSlice::new(&frame[50..])]).unwrap();
        tally.add(frame.len() - VNET_LEN, segments);
    }
    tally.finish();
}

/// A frame as the daemon writes it: vnet header, IPv4, UDP with the pseudo-header's sum, and payload.
fn super_packet(keys: &Keys) -> Vec<u8> {
    let (from, to): (Ipv4Addr, SocketAddrV4) = (
        keys.get("from", Ipv4Addr::new(198, 18, 0, 1)),
        keys.get("to", SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 9000)),
    );
    let (segments, size): (u16, u16) = (keys.get("segments", 45), keys.get("size", 1400));
    let udp_len = 8 + segments * size;
    let vnet = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 28,
        gso_size: size,
        csum_start: 20,
        csum_offset: 6,
    };
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.ip().octets());
    set_header_checksum(&mut ip);
    let mut frame = vnet.encode().to_vec();
    frame.extend(ip);
    for field in [9000, to.port(), udp_len, pseudo_header(from, *to.ip(), 17, u32::from(udp_len)).fold()] {
        frame.extend(field.to_be_bytes());
    }
    frame.resize(VNET_LEN + 28 + usize::from(segments) * usize::from(size), 0x55);
    frame
}

/// What `blast` sends: one size in trains, or single datagrams of IMIX's sizes.
fn sizes(keys: &Keys) -> Vec<usize> {
    match keys.get("size", "1400".to_owned()).as_str() {
        "imix" => IMIX.to_vec(),
        size => vec![size.parse().expect("size is a number or imix")],
    }
}

fn blast(keys: &Keys) {
    let to: SocketAddrV4 = keys.get("to", SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9000));
    let (count, stride): (u32, u32) = (keys.get("count", 1), keys.get("stride", 1));
    let (segments, pps): (usize, f64) = (keys.get("segments", 1), keys.get("pps", 0.0));
    let (sizes, payload) = (sizes(keys), vec![0x55; 65_507]);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let options = SocketOptions { send_buffer: 4 << 20, ..SocketOptions::default() };
    let socket = Socket::bind(any, options).unwrap();
    let mut tally = Tally::new();
    for turn in 0u32.. {
        let elapsed = tally.start.elapsed();
        if elapsed >= keys.seconds() {
            break;
        }
        if pps > 0.0 && tally.packets as f64 > pps * elapsed.as_secs_f64() {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let ip = Ipv4Addr::from_bits(to.ip().to_bits().wrapping_add(turn % count * stride));
        let size = sizes[turn as usize % sizes.len()];
        let train = (segments > 1).then(|| u16::try_from(size).unwrap());
        match socket.send(&payload[..size * segments], SocketAddrV4::new(ip, to.port()), train) {
            Ok(_) => tally.add(size * segments, segments),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{ip}: {error}"),
        }
    }
    tally.finish();
}

fn sink(keys: &Keys) {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, keys.get("port", 9000));
    let options = SocketOptions { receive_buffer: 16 << 20, gro: true, ..SocketOptions::default() };
    let socket = Socket::bind(any, options).unwrap();
    let mut buffer = vec![0; 65_536];
    assert!(readable(&socket, Duration::from_secs(30)), "nothing came");
    let mut tally = Tally::new();
    let last = loop {
        match socket.receive(&mut buffer) {
            Ok(got) => {
                let packets = got.stride.map_or(1, |stride| got.len.div_ceil(stride.into()));
                tally.add(got.len, packets);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let idle = Instant::now();
                if !readable(&socket, Duration::from_secs(1)) {
                    break idle;
                }
            }
            Err(error) => panic!("{error}"),
        }
    };
    tally.print((last - tally.start).as_secs_f64());
}
