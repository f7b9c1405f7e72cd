//! Small network programs that run inside a namespace. The test executable starts itself there at its
//! `tool_entry` test, with the tool's command line in an environment variable; so no second binary is needed.
//!
//! Tools talk in lines that begin with `=> `. The first is `ready`. Most end when their input closes.

use super::stream::{Hash, Plan, Stream};
use super::{ipv4, ms, secs, words};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt::Display;
use std::io::{Read, Write, stdin, stdout};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// This variable holds the tool's command line.
pub const VARIABLE: &str = "FLANNELD_LAB_TOOL";
const CHUNK: usize = 64 * 1024;
/// Datagrams of a flow that may be under way: as many as any socket buffer holds, so that a slow machine loses none.
const WINDOW: usize = 64;

/// Runs the tool that the variable names; `tool_entry` calls it. Without the variable there is nothing to do.
pub fn entry() {
    let Ok(line) = std::env::var(VARIABLE) else { return };
    let argv = words(&line);
    let number = |n: usize| argv[n].parse::<usize>().unwrap();
    match argv[0] {
        "tcp_sink" => tcp_sink(argv[1], number(2) as u64, number(3)),
        "tcp_send" => tcp_send(argv[1], number(2) as u64, number(3)),
        "udp_sink" => udp_flows(argv[1], &argv[2..], bound, udp_sink),
        "udp_send" => udp_flows(argv[1], &argv[2..], connected, udp_send),
        "udp_socket" => udp_socket(argv[1]),
        "raw_ip" => raw_ip(),
        "front" => super::front::run(&argv[1..]),
        "pulse_sink" => pulse_sink(argv[1]),
        "pulse_send" => pulse_send(argv[1], Duration::from_micros(number(2) as u64)),
        other => panic!("no tool named {other}"),
    }
}

pub fn say(line: impl Display) {
    let mut out = stdout().lock();
    writeln!(out, "=> {line}").unwrap();
    out.flush().unwrap();
}

/// True once the input has closed.
fn input_closed() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    std::thread::spawn(move || {
        let _ = stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Release);
    });
    closed
}

/// Accepts one connection and compares every byte with the seed's stream.
fn tcp_sink(bind: &str, seed: u64, bytes: usize) {
    let listener = TcpListener::bind(bind).unwrap();
    say("ready");
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(secs(30))).unwrap();
    let (mut stream, mut hash) = (Stream::new(seed), Hash::default());
    let (mut got, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    for offset in (0..bytes).step_by(CHUNK) {
        let len = CHUNK.min(bytes - offset);
        peer.read_exact(&mut got[..len]).unwrap();
        stream.fill(&mut wanted[..len]);
        let wrong = got[..len].iter().zip(&wanted[..len]).position(|(a, b)| a != b);
        assert!(got[..len] == wanted[..len], "byte {:?} differs", wrong.map(|n| offset + n));
        hash.add(&got[..len]);
    }
    assert_eq!(peer.read(&mut got).unwrap(), 0, "more bytes than were sent");
    say(format_args!("{bytes} {:016x}", hash.0));
}

/// Connects and sends the seed's stream.
fn tcp_send(to: &str, seed: u64, bytes: usize) {
    say("ready");
    let to: SocketAddr = to.parse().unwrap();
    let mut peer =
        (0..10).find_map(|_| TcpStream::connect_timeout(&to, secs(2)).ok()).expect("no connection");
    peer.set_write_timeout(Some(secs(30))).unwrap();
    let (mut stream, mut hash, mut chunk) = (Stream::new(seed), Hash::default(), vec![0; CHUNK]);
    for offset in (0..bytes).step_by(CHUNK) {
        let len = CHUNK.min(bytes - offset);
        stream.fill(&mut chunk[..len]);
        hash.add(&chunk[..len]);
        peer.write_all(&chunk[..len]).unwrap();
    }
    peer.shutdown(Shutdown::Write).unwrap();
    // The other end closes when it has read and compared everything.
    assert_eq!(peer.read(&mut chunk).unwrap(), 0);
    say(format_args!("{bytes} {:016x}", hash.0));
}

/// Starts one thread for each flow, on consecutive ports of the sink.
fn udp_flows(
    sink: &str,
    argv: &[&str],
    open: fn(SocketAddr) -> UdpSocket,
    run: fn(&UdpSocket, usize, &Plan),
) {
    let sink: SocketAddr = sink.parse().unwrap();
    let seed: u64 = argv[0].parse().unwrap();
    let [flows, rounds, fragments] = [1, 2, 3].map(|n| argv[n].parse::<u16>().unwrap());
    let at = |flow| SocketAddr::new(sink.ip(), sink.port() + flow);
    let sockets: Vec<_> = (0..flows).map(|flow| open(at(flow))).collect();
    say("ready");
    let start = |(flow, socket)| {
        let plan = Plan::new(seed + flow as u64, usize::from(rounds), fragments == 1);
        std::thread::spawn(move || run(&socket, flow, &plan))
    };
    let threads: Vec<_> = sockets.into_iter().enumerate().map(start).collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

fn bound(at: SocketAddr) -> UdpSocket {
    UdpSocket::bind(at).unwrap()
}

fn connected(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// Receives a flow's datagrams: each must be a later one of the plan than the one before. Tells the sender how far
/// it has come.
fn udp_sink(socket: &UdpSocket, flow: usize, plan: &Plan) {
    socket.set_read_timeout(Some(secs(20))).unwrap();
    let (mut buffer, mut next, mut received, mut hash) = (vec![0; 65536], 0, 0, Hash::default());
    while next < plan.len() {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { break };
        socket.set_read_timeout(Some(secs(3))).unwrap();
        let same = |n: &usize| plan.size(*n) == len && plan.payload(*n) == buffer[..len];
        let Some(found) = (next..plan.len()).find(same) else {
            panic!("flow {flow}: {len} bytes that do not follow datagram {next} of {}", plan.len());
        };
        hash.add(&buffer[..len]);
        (next, received) = (found + 1, received + 1);
        if received % (WINDOW / 4) == 0 {
            socket.send_to(&next.to_be_bytes(), from).unwrap();
        }
    }
    say(format_args!("flow {flow} {received} of {} {:016x}", plan.len(), hash.0));
}

/// Sends a flow's datagrams, a window at a time.
fn udp_send(socket: &UdpSocket, flow: usize, plan: &Plan) {
    socket.set_read_timeout(Some(secs(1))).unwrap();
    let (mut hash, mut confirmed, mut word) = (Hash::default(), 0, [0; 8]);
    for n in 0..plan.len() {
        while n >= confirmed + WINDOW {
            // Without news for a second, something is lost: go on, and the counts will tell.
            match socket.recv(&mut word) {
                Ok(8) => confirmed = confirmed.max(usize::from_be_bytes(word)),
                _ => confirmed = n,
            }
        }
        let payload = plan.payload(n);
        socket.send(&payload).unwrap();
        hash.add(&payload);
    }
    say(format_args!("flow {flow} {} of {} {:016x}", plan.len(), plan.len(), hash.0));
}

/// A UDP socket by hand: a line `ADDRESS HEX` is sent, whatever comes is said as `ADDRESS HEX`.
fn udp_socket(bind: &str) {
    let socket = UdpSocket::bind(bind).unwrap();
    let receiver = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        // An error here is an ICMP answer to something sent earlier; the next datagram may be fine.
        loop {
            if let Ok((len, from)) = receiver.recv_from(&mut buffer) {
                say(format_args!("{from} {}", ipv4::hex(&buffer[..len])));
            }
        }
    });
    say("ready");
    for line in stdin().lines().map_while(Result::ok) {
        let (to, hex) = line.split_once(' ').unwrap();
        let _ = socket.send_to(&ipv4::unhex(hex), to);
    }
}

/// Sends whole IPv4 packets (one line of hexadecimal each) through a raw socket; the kernel routes them.
fn raw_ip() {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    socket.set_header_included_v4(true).unwrap();
    say("ready");
    for line in stdin().lines().map_while(Result::ok) {
        let packet = ipv4::unhex(&line);
        let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        socket.send_to(&packet, &SocketAddrV4::new(to, 0).into()).unwrap();
    }
}

/// Counts numbered datagrams until its input closes: `RECEIVED LAST LONGEST-GAP-MS DISORDERED`.
fn pulse_sink(bind: &str) {
    let socket = UdpSocket::bind(bind).unwrap();
    socket.set_read_timeout(Some(ms(100))).unwrap();
    say("ready");
    let closed = input_closed();
    let (mut received, mut last, mut gap, mut disordered) = (0u64, 0u64, Duration::ZERO, 0u64);
    let (mut buffer, mut at) = ([0; 8], None::<Instant>);
    while !closed.load(Ordering::Acquire) {
        let Ok(8) = socket.recv(&mut buffer) else { continue };
        let number = u64::from_be_bytes(buffer);
        disordered += u64::from(number <= last);
        (received, last) = (received + 1, last.max(number));
        gap = gap.max(at.map_or(Duration::ZERO, |t| t.elapsed()));
        at = Some(Instant::now());
    }
    say(format_args!("{received} {last} {} {disordered}", gap.as_millis()));
}

/// Sends numbered datagrams, from 1, until its input closes; then says how many.
fn pulse_send(to: &str, interval: Duration) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    say("ready");
    let closed = input_closed();
    let mut number = 0u64;
    while !closed.load(Ordering::Acquire) {
        number += 1;
        socket.send_to(&number.to_be_bytes(), to).unwrap();
        std::thread::sleep(interval);
    }
    say(number);
}
