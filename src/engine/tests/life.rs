//! What happens to a running engine: routes change, it is stopped, its device goes down or away, or one side is so busy
//! that the other could starve.

use super::rig::*;
use super::*;
use crate::netlink::namespace::ip;
use crate::tun::TunOffload;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

on_both_carriers! {
    inside:
    a_route_change_takes_effect
    bursts_arrive_whole
    it_stops_at_once_under_load
    it_stops_at_once_when_idle
    it_does_not_spin_when_idle
    a_deleted_device_is_survived
    a_device_that_is_down_comes_back
    a_flood_at_the_tun_does_not_starve_the_socket
    a_flood_at_the_socket_does_not_starve_the_tun
    a_narrow_path_is_learnt
    two_workers_share_the_load
    twenty_engines_in_a_row_find_name_and_port_free
}

/// Sends datagrams as fast as it can until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(sockets: Vec<UdpSocket>, bytes: &[u8], to: SocketAddrV4) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = sockets.into_iter().map(|socket| {
            let (stop, bytes) = (stop.clone(), bytes.to_vec());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(&bytes, to);
                }
            })
        });
        Flood { threads: threads.collect(), stop }
    }

    /// Floods from hosts of ours to the far ones.
    fn outward() -> Flood {
        Flood::start(vec![host(), host()], &ramp(100), SocketAddrV4::new(FAR, 9))
    }

    /// Floods from the peer to a host of ours on which nobody listens.
    fn inward(rig: &Rig) -> Flood {
        let sockets = vec![rig.peer.try_clone().unwrap(), rig.peer.try_clone().unwrap()];
        // The kernel takes an ICMP echo reply that nobody asked for, and forgets it.
        let spec = Spec { destination: HOST.octets(), ..incoming(0) };
        let mut packet = spec.build();
        (packet[9], packet[20]) = (1, 0);
        crate::packet::ipv4::set_header_checksum(&mut packet[..20]);
        Flood::start(sockets, &packet, rig.address)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Processor time that the workers have used, in hundredths of a second.
fn worker_ticks() -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, rest) = stat.split_once(") ").unwrap();
        if name.contains("(fl-w") {
            let field = |n: usize| rest.split(' ').nth(n).unwrap().parse::<u64>().unwrap();
            // These are utime and stime (proc_pid_stat(5)), counted from the state.
            ticks += field(11) + field(12);
        }
    }
    ticks
}

/// Checks that workers use less than a fifth of a core for half a second.
fn assert_calm() {
    let before = worker_ticks();
    std::thread::sleep(Duration::from_millis(500));
    let used = worker_ticks() - before;
    assert!(used < 10, "{used} hundredths of a second in half a second");
}

/// A packet to the host that is not the reverse of a flow to port 4000. The TUN would move that flow to the queue that
/// the reverse was written to last.
fn to_host(host: &UdpSocket, payload: &[u8]) -> Vec<u8> {
    let ports = (5000, address_of(host).port());
    let spec = Spec { destination: HOST.octets(), ports, ..incoming(0) };
    Spec { payload: payload.to_vec(), ..spec }.build()
}

fn a_route_change_takes_effect(shape: Shape) {
    let rig = Rig::start(shape);
    let (host, other) = (host(), peer_at("127.0.0.7"));
    let route = |command| {
        let changes = rig.engine.snapshot().get(Count::RouteChanges);
        rig.engine.route(command).unwrap();
        rig.wait("the change", |now| now.get(Count::RouteChanges) > changes);
    };
    host.send_to(b"one", (FAR, 9)).unwrap();
    assert_eq!(rig.peer_gets()[28..], b"one"[..]);
    route(set("10.1.9.0/24", address_of(&other)));
    host.send_to(b"two", (FAR, 9)).unwrap();
    assert_eq!(receive(&other).unwrap()[28..], b"two"[..]);
    route(RouteCommand::Del { subnet: net("10.1.9.0/24") });
    host.send_to(b"three", (FAR, 9)).unwrap();
    rig.wait("the drop", |now| now.dropped(DropReason::NoRoute) > 0);
    assert!(is_quiet(&rig.peer) && is_quiet(&other));
    // Changes also come through while the engine is busy.
    let flood = Flood::outward();
    for _ in 0..20 {
        route(set("10.1.9.0/24", address_of(&other)));
        route(RouteCommand::Del { subnet: net("10.1.9.0/24") });
    }
    drop(flood);
    rig.stop();
}

fn bursts_arrive_whole(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    let mut sent = 0;
    for size in [1, 30, 300] {
        let payloads: Vec<_> = (0..size).map(|n: u32| n.to_be_bytes()).collect();
        for payload in &payloads {
            host.send_to(payload, (FAR, 4000)).unwrap();
            rig.peer_sends(&to_host(&host, payload));
        }
        for payload in &payloads {
            assert_eq!(rig.peer_gets()[28..], payload[..]);
            assert_eq!(receive(&host).unwrap(), payload[..]);
        }
        sent += payloads.len() as u64;
    }
    let snapshot = rig.stop();
    assert_eq!((snapshot.get(Count::TunPackets), snapshot.get(Count::UdpPackets)), (sent, sent));
}

fn it_stops_at_once_under_load(shape: Shape) {
    let rig = Rig::start(shape);
    let floods = [Flood::outward(), Flood::inward(&rig)];
    rig.wait("load", |now| now.get(Count::TunPackets) > 10_000 && now.get(Count::UdpPackets) > 10_000);
    rig.stop();
    drop(floods);
}

fn it_stops_at_once_when_idle(shape: Shape) {
    let rig = Rig::start(shape);
    std::thread::sleep(A_WHILE);
    let start = Instant::now();
    rig.stop();
    assert!(start.elapsed() < Duration::from_millis(500));
}

fn it_does_not_spin_when_idle(shape: Shape) {
    let rig = Rig::start(shape);
    assert_calm();
    let before = rig.engine.snapshot().get(Count::Turns);
    std::thread::sleep(A_WHILE);
    assert!(rig.engine.snapshot().get(Count::Turns) - before < 5, "it is to sleep");
    rig.stop();
}

fn a_deleted_device_is_survived(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    rig.peer_sends(&to_host(&host, b"before"));
    assert_eq!(receive(&host).unwrap(), b"before");
    ip(&format!("link del {}", rig.device));
    assert_calm();
    for n in 1..=3 {
        rig.peer_sends(&to_host(&host, b"after"));
        rig.wait("the drop", |now| now.dropped(DropReason::TunGone) == n);
    }
    assert_calm();
    assert!(is_quiet(&host));
    rig.engine.route(set("10.1.7.0/24", SEVEN)).unwrap();
    rig.wait("the route change", |now| now.get(Count::RouteChanges) == 1);
    rig.stop();
}

fn a_device_that_is_down_comes_back(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    for round in 0..3 {
        ip(&format!("link set {} down", rig.device));
        assert_calm();
        rig.peer_sends(&to_host(&host, b"down"));
        rig.wait("the drop", |now| now.dropped(DropReason::TunDown) == round + 1);
        ip(&format!("link set {} up", rig.device));
        ip(&format!("route add 10.1.0.0/16 dev {}", rig.device));
        rig.peer_sends(&to_host(&host, b"up"));
        assert_eq!(receive(&host).unwrap(), b"up");
        host.send_to(b"out", (FAR, 4000)).unwrap();
        assert_eq!(rig.peer_gets()[28..], b"out"[..]);
    }
    rig.stop();
}

fn a_flood_at_the_tun_does_not_starve_the_socket(shape: Shape) {
    let rig = Rig::start(shape);
    let host = host();
    let _flood = Flood::outward();
    rig.wait("load", |now| now.get(Count::TunPackets) > 5_000);
    for n in 0..50_u32 {
        rig.peer_sends(&to_host(&host, &n.to_be_bytes()));
        let sent = Instant::now();
        assert_eq!(receive(&host).expect("starved"), n.to_be_bytes());
        assert!(sent.elapsed() < Duration::from_millis(500), "it took {:?}", sent.elapsed());
    }
    rig.stop();
}

fn a_flood_at_the_socket_does_not_starve_the_tun(shape: Shape) {
    let rig = Rig::start(shape);
    let (host, other) = (host(), peer_at("127.0.0.7"));
    rig.engine.route(set("10.1.7.0/24", address_of(&other))).unwrap();
    let _flood = Flood::inward(&rig);
    rig.wait("load", |now| now.get(Count::UdpPackets) > 5_000);
    for n in 0..50_u32 {
        host.send_to(&n.to_be_bytes(), (Ipv4Addr::new(10, 1, 7, 1), 9)).unwrap();
        let sent = Instant::now();
        assert_eq!(receive(&other).expect("starved")[28..], n.to_be_bytes());
        assert!(sent.elapsed() < Duration::from_millis(500), "it took {:?}", sent.elapsed());
    }
    rig.stop();
}

/// The engine believes that the link has 9000 bytes, but the path has 1500. Nothing is lost.
fn a_narrow_path_is_learnt(shape: Shape) {
    let rig = Rig::with(shape, |setup| setup.max_packet = 8972);
    ip(&format!("link set {} mtu 8972", rig.device));
    let host = host();
    for round in 0..10 {
        let payloads: Vec<_> = (0..6_u8).map(|n| vec![round * 10 + n; 5000]).collect();
        send_segmented(&host, &payloads.concat(), SocketAddrV4::new(FAR, 4000), 5000);
        for payload in &payloads {
            assert_eq!(rig.peer_gets()[28..], payload[..]);
        }
    }
    let snapshot = rig.stop();
    let resent = snapshot.get(Count::Resent);
    assert!((1..=2).contains(&resent), "learnt from the first refusal: {snapshot}");
    assert_eq!(snapshot.dropped(DropReason::SendTooBig), 0);
}

/// With two queues, and two sockets on one port, each flow stays in order and no packet is lost.
fn two_workers_share_the_load(shape: Shape) {
    let rig = Rig::start(Shape { workers: 2, tun: TunOffload::Auto, ..shape });
    let hosts: Vec<_> = (0..8).map(|_| host()).collect();
    let peers: Vec<_> = (0..8).map(|_| peer_at("127.0.0.9")).collect();
    for n in 0..100_u32 {
        for (host, peer) in hosts.iter().zip(&peers) {
            host.send_to(&n.to_be_bytes(), (FAR, 4000)).unwrap();
            peer.send_to(&to_host(host, &n.to_be_bytes()), rig.address).unwrap();
        }
    }
    let mut next = std::collections::HashMap::new();
    for _ in 0..800 {
        let packet = rig.peer_gets();
        let expected = next.entry(packet[20..22].to_vec()).or_insert(0_u32);
        assert_eq!(packet[28..], expected.to_be_bytes());
        *expected += 1;
    }
    for host in &hosts {
        for n in 0..100_u32 {
            assert_eq!(receive(host).unwrap(), n.to_be_bytes());
        }
    }
    rig.engine.route(RouteCommand::Del { subnet: net("10.1.9.0/24") }).unwrap();
    rig.wait("both workers", |now| now.get(Count::RouteChanges) == 2);
    let snapshot = rig.stop();
    assert_eq!((snapshot.get(Count::TunPackets), snapshot.get(Count::UdpPackets)), (800, 800), "{snapshot}");
}

/// Device, name and port are free as soon as `stop` returns.
fn twenty_engines_in_a_row_find_name_and_port_free(shape: Shape) {
    for _ in 0..20 {
        let rig = Rig::start(shape);
        assert_eq!(rig.device, "flannel0");
        let host = host();
        rig.peer_sends(&to_host(&host, b"x"));
        assert_eq!(receive(&host).unwrap(), b"x");
        let address = rig.address;
        rig.stop();
        UdpSocket::bind(address).unwrap();
    }
}
