//! Promise: what does not belong in the overlay is dropped, counted by reason, and never reaches the TUN; ICMP
//! answers are few.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::capture::Capture;
use lab::daemon::Drops;
use lab::ipv4::{hex, packet, seal, udp};
use lab::{Api, Daemon, Lab, Tool, ms, secs};
use std::time::Instant;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":8285}}"#;
const US: &str = "10.1.5.2";
const PEER: &str = "10.1.9.3";
const TARGET: &str = "10.77.0.1:8285";

/// Host 1 runs flanneld with 10.1.5.0/24; host 2 is a peer with 10.1.9.0/24 made of a plain socket; host 3 is a
/// stranger; a third peer, 10.1.7.0/24, never speaks.
struct Stage {
    daemon: Daemon,
    peer: Tool,
    stranger: Tool,
    written: Capture,
    counted: Drops,
    lab: Lab,
}

impl Stage {
    fn set(args: &[&str]) -> Option<Self> {
        let lab = Lab::start(3)?;
        lab.put_config(Api::V2, CONFIG);
        lab.put_lease(Api::V2, "10.1.5.0-24", "10.77.0.1");
        lab.put_lease(Api::V2, "10.1.7.0-24", "10.77.0.7");
        lab.put_lease(Api::V2, "10.1.9.0-24", "10.77.0.2");
        let mut daemon = lab.daemon(1, args);
        assert_eq!(daemon.subnet().subnet, "10.1.5.1/24");
        for subnet in ["10.1.7.0/24", "10.1.9.0/24"] {
            daemon.wait_text(&format!("Subnet added: {subnet}"), secs(3));
        }
        // No container answers, and nothing goes round through the overlay's own route.
        lab.ip(&format!("-n {} route add blackhole 10.1.5.0/24", lab.host(1)));
        let peer = lab.tool(&lab.host(2), "udp_socket 10.77.0.2:8285");
        let stranger = lab.tool(&lab.host(3), "udp_socket 10.77.0.3:8285");
        let written = Capture::start(&lab, &lab.host(1), "flannel0", "in", "not icmp");
        let counted = daemon.drops();
        let mut stage = Self { daemon, peer, stranger, written, counted, lab };
        stage.passes(&udp(PEER, US, 60, b"hello"));
        Some(stage)
    }

    /// Sends from the peer; the packet must come out of the TUN, one TTL less.
    fn passes(&mut self, good: &[u8]) {
        let before = self.written.packets().len();
        self.peer.write(&format!("{TARGET} {}", hex(good)));
        let packets = self.written.at_least(before + 1, secs(3));
        let mut wanted = good.to_vec();
        wanted[8] -= 1;
        seal(&mut wanted);
        assert_eq!(hex(&packets[before]), hex(&wanted));
    }

    /// Sends bad datagrams, three times each, from the peer or the stranger. The one reason must gain exactly that
    /// many, and nothing but a good packet sent afterwards must come out of the TUN.
    fn drops(&mut self, what: &str, reason: &str, stranger: bool, bad: &[u8]) {
        let before = self.written.packets().len();
        let sender = if stranger { &mut self.stranger } else { &mut self.peer };
        for _ in 0..3 {
            sender.write(&format!("{TARGET} {}", hex(bad)));
        }
        let (gained, now) = self.daemon.gained(&self.counted);
        self.counted = now;
        assert_eq!(gained.into_iter().collect::<Vec<_>>(), [(reason.to_owned(), 3)], "{what}");
        assert_eq!(self.written.packets().len(), before, "{what} reached the TUN: {:?}", self.written.hex());
    }
}

fn malformed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let good = udp(PEER, US, 60, b"twelve bytes");
    let edit = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        seal(&mut bad);
        bad
    };
    let mut checksum = good.clone();
    checksum[10] ^= 0x40;
    let mut huge = vec![0x45; 65507];
    huge[2..4].copy_from_slice(&100u16.to_be_bytes());
    let mut ipv6 = vec![0u8; 48];
    (ipv6[0], ipv6[5], ipv6[6], ipv6[7]) = (0x60, 8, 59, 64);
    vec![
        ("one byte", "malformed", vec![0x45]),
        ("19 bytes", "malformed", good[..19].to_vec()),
        ("a datagram longer than its packet", "malformed", [good.as_slice(), b"!"].concat()),
        ("a datagram shorter than its packet", "malformed", good[..good.len() - 1].to_vec()),
        ("a total length below the header's", "malformed", edit(3, 19)),
        ("IHL 4", "malformed", edit(0, 0x44)),
        ("IHL 0", "malformed", edit(0, 0x40)),
        ("IHL beyond the packet", "malformed", {
            let mut bad = packet(PEER, US, 60, 17, &[0; 4]);
            bad[0] = 0x4f;
            bad
        }),
        ("65 507 bytes", "malformed", huge),
        ("IPv6", "not_ipv4", ipv6),
        ("version 0", "not_ipv4", edit(0, 0x05)),
        ("a wrong header checksum", "header_checksum", checksum),
        ("TTL 1", "ttl", edit(8, 1)),
        ("TTL 0", "ttl", edit(8, 0)),
    ]
}

fn strict(args: &[&str]) {
    let Some(mut stage) = Stage::set(args) else { return };
    for (what, reason, bad) in malformed() {
        stage.drops(what, reason, false, &bad);
    }
    time_exceeded_goes_back(&mut stage);
    stage.drops("a stranger's packet", "unknown_peer", true, &udp(PEER, US, 60, b"spoof"));
    stage.drops("another peer's inner source", "inner_source", false, &udp("10.1.7.3", US, 60, b"spoof"));
    stage.drops("our own inner source", "inner_source", false, &udp("10.1.5.3", US, 60, b"spoof"));
    stage.drops("a foreign inner source", "inner_source", false, &udp("8.8.8.8", US, 60, b"spoof"));
    for outside in ["10.1.7.9", "10.77.0.1", "10.77.0.254", "8.8.8.8", "224.0.0.1"] {
        let bad = udp(PEER, outside, 60, b"astray");
        stage.drops(&format!("inner destination {outside}"), "inner_destination", false, &bad);
    }
    stage.passes(&udp(PEER, US, 60, b"still here"));
    stage.passes(&udp(PEER, US, 2, b"the last hop"));
    assert!(stage.daemon.running());
}

/// The sender of a packet whose TTL ends here is told so through the tunnel: `traceroute` shows the hop.
fn time_exceeded_goes_back(stage: &mut Stage) {
    stage.peer.drain();
    let dying = udp(PEER, US, 1, b"dying here");
    stage.drops("TTL 1", "ttl", false, &dying);
    let line = stage.peer.line(secs(2));
    let (from, answer) = line.split_once(' ').unwrap();
    let answer = lab::ipv4::unhex(answer);
    assert_eq!(from, TARGET);
    assert_eq!(
        (answer[12..20].to_vec(), &answer[20..22]),
        (vec![10, 1, 5, 0, 10, 1, 9, 3], &[11, 0][..]),
        "{line}"
    );
    assert_eq!(hex(&answer[28..]), hex(&dying[..28]));
}

#[test]
fn strict_with_io_uring() {
    strict(&["--engine=uring"]);
}

#[test]
fn strict_with_poll() {
    strict(&["--engine=poll"]);
}

#[test]
fn inner_lets_a_peer_behind_nat_in() {
    let Some(mut stage) = Stage::set(&["--peer-filter=inner"]) else { return };
    let good = udp(PEER, US, 60, b"through NAT");
    let before = stage.written.packets().len();
    stage.stranger.write(&format!("{TARGET} {}", hex(&good)));
    stage.written.at_least(before + 1, secs(3));
    stage.drops("a foreign inner source", "inner_source", true, &udp("8.8.8.8", US, 60, b"spoof"));
    stage.drops("a foreign destination", "inner_destination", true, &udp(PEER, "8.8.8.8", 60, b"astray"));
}

#[test]
fn off_lets_in_what_flannel_lets_in() {
    let Some(mut stage) = Stage::set(&["--peer-filter=off"]) else { return };
    for (source, destination) in [("8.8.8.8", US), (PEER, "10.77.0.1"), ("192.0.2.1", "192.0.2.2")] {
        let before = stage.written.packets().len();
        stage.stranger.write(&format!("{TARGET} {}", hex(&udp(source, destination, 60, b"anything"))));
        stage.written.at_least(before + 1, secs(3));
    }
    // A malformed packet is dropped with every filter.
    stage.drops("one byte", "malformed", true, &[0x45]);
}

/// Packets from the TUN without a route or with TTL 1 are counted and answered, but answers are rationed.
#[test]
fn icmp_answers_are_rationed() {
    let Some(stage) = Stage::set(&[]) else { return };
    let host = stage.lab.host(1);
    let answers = Capture::start(&stage.lab, &host, "flannel0", "in", "icmp");
    let mut raw = stage.lab.tool(&host, "raw_ip");
    for (what, reason, bad) in [
        ("no route", "no_route", udp("10.1.5.2", "10.1.200.3", 60, b"nobody")),
        ("TTL 1", "tun_ttl", udp("10.1.5.2", PEER, 1, b"dying")),
    ] {
        let (before, start) = (answers.packets().len(), Instant::now());
        let counted = stage.daemon.drops();
        for n in 0..2000 {
            raw.write(&hex(&bad));
            if n % 50 == 49 {
                std::thread::sleep(ms(5));
            }
        }
        std::thread::sleep(ms(100));
        let (gained, _) = stage.daemon.gained(&counted);
        let seconds = start.elapsed().as_secs() + 1;
        let count = gained.get(reason).copied().unwrap_or(0);
        // On a busy machine the device's queue of 500 may overflow before the daemon gets to read.
        assert!((1000..=2000).contains(&count), "{what}: {gained:?}");
        let answered = (answers.packets().len() - before) as u64;
        assert!((1..=200 + 200 * seconds).contains(&answered), "{what}: {answered} answers in {seconds} s");
        assert!(answered < count, "{what}: {answered} answers to {count} packets are no ration");
        // The bucket fills again.
        std::thread::sleep(ms(1100));
    }
    // Packets to a group and ICMP errors are counted and never answered.
    let before = answers.packets().len();
    let error = packet("10.1.5.2", "10.1.200.3", 60, 1, &[3, 0, 0, 0, 0, 0, 0, 0]);
    let counted = stage.daemon.drops();
    raw.write(&hex(&error));
    let (gained, _) = stage.daemon.gained(&counted);
    assert_eq!(gained.get("no_route"), Some(&1), "{gained:?}");
    assert_eq!(answers.packets().len(), before, "{:?}", answers.hex());
}
