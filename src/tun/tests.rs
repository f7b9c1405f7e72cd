//! Against the kernel: needs root and `/dev/net/tun`. Each test's device has a random name and goes with it.

use super::*;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// The header of a packet that is neither segmented nor to be checksummed.
const PLAIN: [u8; 10] = [0; 10];

fn pattern() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("flt{:05x}%d", random & 0xf_ffff)
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).status().unwrap().success()
}

/// What the kernel counts on the device, where "received" means from us.
fn counter(name: &str, which: &str) -> u64 {
    let path = format!("/sys/class/net/{name}/statistics/{which}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

/// Whether the device goes within five seconds: a process that another test forks holds our files until its exec.
fn goes(name: &str) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while exists(name) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    !exists(name)
}

/// A UDP packet between two addresses that are not ours, so that the stack drops it.
fn packet(payload: usize) -> Vec<u8> {
    let total = u16::try_from(28 + payload).unwrap();
    let mut bytes = vec![0; 28 + payload];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    (bytes[8], bytes[9]) = (64, 17);
    bytes[12..16].copy_from_slice(&Ipv4Addr::new(198, 18, 0, 1).octets());
    bytes[16..20].copy_from_slice(&Ipv4Addr::new(198, 18, 0, 2).octets());
    bytes[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    bytes
}

#[test]
fn a_device_is_named_by_its_pattern_and_goes_with_its_queues() {
    let pattern = pattern();
    let device = Device::create(&pattern, 1, TunOffload::Auto).unwrap();
    let name = device.name().to_owned();
    assert_eq!(name, pattern.replace("%d", "0"));
    let second = Device::create(&pattern, 1, TunOffload::Auto).unwrap();
    assert_eq!(second.name(), pattern.replace("%d", "1"));
    let queues = device.into_queues();
    assert!(exists(&name));
    drop(queues);
    assert!(goes(&name) && exists(second.name()));
}

#[test]
fn offloads_are_as_wanted() {
    let create = |want| Device::create(&pattern(), 1, want).unwrap();
    let auto = create(TunOffload::Auto);
    assert!(auto.offloads().checksum && auto.offloads().tso);
    assert_eq!(create(TunOffload::Tso).offloads(), Offloads { checksum: true, tso: true, uso: false });
    assert_eq!(create(TunOffload::Off).offloads(), Offloads::default());
}

#[test]
fn queues_are_of_one_device() {
    let device = Device::create(&pattern(), 4, TunOffload::Auto).unwrap();
    assert_eq!(device.queues().len(), 4);
    let listed = std::fs::read_dir(format!("/sys/class/net/{}/queues", device.name())).unwrap();
    let receiving = listed.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("rx-"));
    assert_eq!(receiving.count(), 4);
    let (name, mut queues) = (device.name().to_owned(), device.into_queues());
    let last = queues.pop();
    drop(queues);
    assert!(exists(&name));
    drop(last);
    assert!(goes(&name));
}

#[test]
fn a_device_takes_as_many_queues_as_we_say() {
    let device = Device::create(&pattern(), MAX_QUEUES, TunOffload::Off).unwrap();
    assert_eq!(device.into_queues().len(), MAX_QUEUES);
}

#[test]
fn packets_pass_only_while_the_device_is_up() {
    let device = Device::create(&pattern(), 1, TunOffload::Auto).unwrap();
    let queue = &device.queues()[0];
    let packet = packet(100);
    let parts = [IoSlice::new(&PLAIN), IoSlice::new(&packet[..20]), IoSlice::new(&packet[20..])];
    let error = queue.write_vectored(&parts).unwrap_err();
    assert!(is_down(&error) && !is_gone(&error), "{error}");

    assert!(ip(&["link", "set", device.name(), "up"]));
    assert_eq!(queue.write_vectored(&parts).unwrap(), 10 + packet.len());
    assert_eq!(counter(device.name(), "rx_packets"), 1);
    assert_eq!(counter(device.name(), "rx_bytes"), packet.len() as u64);
    // The header's size is 10: with any other the version nibble would be read from elsewhere.
    let error = queue.write_vectored(&[IoSlice::new(&[0; 12]), IoSlice::new(&packet)]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_super_packet_is_written_whole() {
    let device = Device::create(&pattern(), 1, TunOffload::Auto).unwrap();
    if !device.offloads().uso {
        return;
    }
    assert!(ip(&["link", "set", device.name(), "up"]));
    // NEEDS_CSUM, UDP_L4, header 28, segments of 1000, checksum at 20 + 6: no byte of it checked by us.
    let header =
        [[1, 5].as_slice(), &28u16.to_ne_bytes(), &1000u16.to_ne_bytes(), &20u16.to_ne_bytes()].concat();
    let packet = packet(10_000);
    let parts = [IoSlice::new(&header), IoSlice::new(&[6, 0]), IoSlice::new(&packet)];
    assert_eq!(device.queues()[0].write_vectored(&parts).unwrap(), 10 + packet.len());
    assert_eq!(counter(device.name(), "rx_packets"), 1);
}

/// A socket whose packets leave by the device alone: without a route the kernel takes them for on-link.
fn socket_through(name: &str) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.bind_device(Some(name.as_bytes())).unwrap();
    socket
}

/// Reads until an IPv4 packet comes (a fresh interface also sends IPv6 of the kernel's own making).
fn read_ipv4(queue: &Queue) -> Vec<u8> {
    let mut buffer = vec![0; READ_SIZE];
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match queue.read(&mut buffer) {
            Ok(length) if buffer[10] >> 4 == 4 => return buffer[..length].to_vec(),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_the_kernel_sends_to_the_device_is_read_with_its_header() {
    let to = SocketAddrV4::new(Ipv4Addr::new(198, 18, 7, 7), 9).into();
    for (want, needs_checksum) in [(TunOffload::Off, 0), (TunOffload::Tso, 1), (TunOffload::Auto, 1)] {
        let device = Device::create(&pattern(), 1, want).unwrap();
        let queue = &device.queues()[0];
        assert_eq!(queue.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(ip(&["link", "set", device.name(), "up"]));
        socket_through(device.name()).send_to(&[0xa5; 100], &to).unwrap();
        let read = read_ipv4(queue);
        assert_eq!(read.len(), 10 + 20 + 8 + 100);
        assert_eq!((read[0], read[1]), (needs_checksum, 0), "flags and type with {want:?}");
        assert_eq!(read[26..30], [198, 18, 7, 7]);
        assert_eq!(read[38..], [0xa5; 100]);
    }
}

#[test]
fn a_super_packet_is_read_whole_or_cut_as_the_offloads_say() {
    let to = SocketAddrV4::new(Ipv4Addr::new(198, 18, 7, 7), 9).into();
    for want in [TunOffload::Off, TunOffload::Tso, TunOffload::Auto] {
        let device = Device::create(&pattern(), 1, want).unwrap();
        assert!(ip(&["link", "set", device.name(), "up"]));
        let socket = socket_through(device.name());
        let size: libc::c_int = 1000;
        // SAFETY: setsockopt reads the four bytes of `size`.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), 17, libc::UDP_SEGMENT, (&raw const size).cast(), 4)
        };
        assert_eq!(set, 0);
        socket.send_to(&[0x5a; 3500], &to).unwrap();
        let first = read_ipv4(&device.queues()[0]);
        if device.offloads().uso {
            assert_eq!(
                (first.len(), first[1], &first[4..6]),
                (10 + 28 + 3500, 5, &1000u16.to_ne_bytes()[..])
            );
        } else {
            assert_eq!((first.len(), first[1]), (10 + 28 + 1000, 0));
            let rest = [(); 3].map(|()| read_ipv4(&device.queues()[0]).len());
            assert_eq!(rest, [1038, 1038, 538]);
        }
    }
}

#[test]
fn a_deleted_device_is_gone() {
    let device = Device::create(&pattern(), 2, TunOffload::Auto).unwrap();
    assert!(ip(&["link", "del", device.name()]));
    for queue in device.queues() {
        let error = queue.read(&mut [0; 100]).unwrap_err();
        assert!(is_gone(&error) && !is_down(&error), "{error}");
        let error = queue.write_vectored(&[IoSlice::new(&PLAIN), IoSlice::new(&packet(1))]).unwrap_err();
        assert!(is_gone(&error), "{error}");
    }
}

#[test]
fn an_interface_in_the_way_is_told() {
    let name = pattern().replace("%d", "0");
    for mode in [&["mode", "tun"][..], &["mode", "tun", "multi_queue"]] {
        assert!(ip(&[&["tuntap", "add", "dev", &name], mode].concat()));
        let error = Device::create(&name, 1, TunOffload::Auto).unwrap_err();
        assert!(ip(&[&["tuntap", "del", "dev", &name], mode].concat()));
        assert!(matches!(error, TunError::Exists { .. }), "{error}");
        assert!(error.to_string().contains(&format!("ip link del {name}")), "{error}");
    }
}

#[test]
fn nonsense_is_refused_before_the_kernel_sees_it() {
    for name in ["", "a/b", "a b", "a:b", "%d%d", "%s", ".", "..", "sixteen_bytes_no", "x\0y", "a\nb"] {
        let error = Device::create(name, 1, TunOffload::Off).unwrap_err();
        assert!(matches!(error, TunError::BadName { .. }), "{name:?}: {error}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        assert!(matches!(Device::create("flt%d", queues, TunOffload::Off), Err(TunError::BadQueues { .. })));
    }
}

#[test]
fn failures_name_their_remedy() {
    let of = std::io::Error::from_raw_os_error;
    let cases = [
        (TunError::open("flannel%d", of(libc::ENOENT)), "modprobe tun"),
        (TunError::open("flannel%d", of(libc::ENODEV)), "--device /dev/net/tun"),
        (TunError::open("flannel%d", of(libc::EPERM)), "/dev/net/tun"),
        (TunError::attach("flannel%d", of(libc::EPERM)), "CAP_NET_ADMIN"),
        (TunError::attach("flannel0", of(libc::EBUSY)), "ip link del flannel0"),
        (TunError::attach("flannel0", of(libc::EINVAL)), "single-queue"),
    ];
    for (error, remedy) in cases {
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

/// The queue that has a packet waiting, and the packet.
fn waiting(device: &Device) -> Option<(usize, Vec<u8>)> {
    let mut bytes = vec![0; READ_SIZE];
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        for (number, queue) in device.queues().iter().enumerate() {
            if let Ok(len) = queue.read(&mut bytes)
                && bytes[10] >> 4 == 4
            {
                return Some((number, bytes[10..len].to_vec()));
            }
        }
    }
    None
}

#[test]
fn a_flow_keeps_its_queue_whatever_queue_its_replies_use() {
    let body = || {
        // SAFETY: unshare with this flag moves only the calling thread, into a fresh network namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let device = Device::create(&pattern(), 4, TunOffload::Off).unwrap();
        assert!(device.keeps_flows(), "needs root");
        let name = device.name();
        assert!(ip(&["addr", "add", "198.18.0.9/24", "dev", name]) && ip(&["link", "set", name, "up"]));
        let mut used = [false; 4];
        for _ in 0..24 {
            let socket = std::net::UdpSocket::bind("198.18.0.9:0").unwrap();
            socket.send_to(b"ask", "198.18.0.1:53").unwrap();
            let (first, sent) = waiting(&device).unwrap();
            used[first] = true;
            // The answer: addresses and ports swapped, written through every other queue.
            let mut reply = sent.clone();
            reply[12..16].copy_from_slice(&sent[16..20]);
            reply[16..20].copy_from_slice(&sent[12..16]);
            reply[20..22].copy_from_slice(&sent[22..24]);
            reply[22..24].copy_from_slice(&sent[20..22]);
            for other in (0..4).filter(|other| *other != first) {
                device.queues()[other].write_vectored(&[IoSlice::new(&PLAIN), IoSlice::new(&reply)]).unwrap();
                socket.send_to(b"ask again", "198.18.0.1:53").unwrap();
                assert_eq!(waiting(&device).unwrap().0, first);
            }
        }
        assert!(used.iter().all(|used| *used), "flows spread over the queues: {used:?}");
    };
    std::thread::spawn(body).join().unwrap();
}
