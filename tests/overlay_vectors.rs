//! Promise: packets come out on the wire, on the remote TUN and as ICMP answers exactly as flannel's do, from both
//! carriers, with offloads on and off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::capture::Capture;
use lab::ipv4::{hex, udp, unhex};
use lab::{Api, Daemon, Lab, secs};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":8285}}"#;
const READ: &str = "450000201c4640003f11fd800a0105020a0109039c400009000c000070696e67";
const WIRE: &str = "450000201c4640003e11fe800a0105020a0109039c400009000c000070696e67";
const WRITTEN: &str = "450000201c4640003d11ff800a0105020a0109039c400009000c000070696e67";
const UNREACHABLE: &str = "4500003800000000080194c20a0105000a010502030060aa00000000\
                           450000201c4640003f11fd800a0105020a0109039c400009000c0000";

#[test]
fn vectors_with_io_uring_and_offloads() {
    vectors(&["--engine=uring", "--tun-offload=auto", "--udp-offload=auto"]);
}

#[test]
fn vectors_with_io_uring_without_offloads() {
    vectors(&["--engine=uring", "--tun-offload=off", "--udp-offload=off"]);
}

#[test]
fn vectors_with_poll_and_offloads() {
    vectors(&["--engine=poll", "--tun-offload=auto", "--udp-offload=auto"]);
}

#[test]
fn vectors_with_poll_without_offloads() {
    vectors(&["--engine=poll", "--tun-offload=off", "--udp-offload=off"]);
}

fn vectors(args: &[&str]) {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V2, CONFIG);
    // A reservation gives host 1 the subnet of the vectors.
    lab.put_lease(Api::V2, "10.1.5.0-24", "10.77.0.1");
    let mut daemon = lab.daemon(1, args);
    assert_eq!(daemon.subnet().subnet, "10.1.5.1/24");
    no_route_is_answered(&lab);
    a_peer_gets_exact_bytes(&lab, &daemon);
    the_remote_tun_gets_exact_bytes(&lab, args);
    assert!(daemon.running(), "{}", daemon.text());
}

fn no_route_is_answered(lab: &Lab) {
    let host = lab.host(1);
    let seen = Capture::start(lab, &host, "flannel0", "out", "udp");
    let answers = Capture::start(lab, &host, "flannel0", "in", "icmp");
    let mut raw = lab.tool(&host, "raw_ip");
    raw.write(READ);
    assert_eq!(hex(&seen.at_least(1, secs(3))[0]), READ, "the kernel did not send the vector");
    assert_eq!(hex(&answers.at_least(1, secs(3))[0]), UNREACHABLE);
    // A TTL that ends here is answered too: type 11, code 0, with the same layout.
    lab.put_lease(Api::V2, "10.1.9.0-24", "10.77.0.2");
    let dying = udp("10.1.5.2", "10.1.9.3", 1, b"ping");
    let answer = lab::eventually(secs(5), "a time-exceeded answer", || {
        raw.write(&hex(&dying));
        std::thread::sleep(lab::ms(50));
        answers.packets().into_iter().find(|p| p.len() >= 56 && p[20] == 11)
    });
    assert_eq!(hex(&answer[..20]), &UNREACHABLE[..40]);
    assert_eq!((answer[21], hex(&answer[28..])), (0, hex(&dying[..28])));
    assert_eq!(lab::ipv4::checksum(&answer[20..56]), 0);
}

fn a_peer_gets_exact_bytes(lab: &Lab, daemon: &Daemon) {
    let peer = lab.tool(&lab.host(2), "udp_socket 10.77.0.2:8285");
    daemon.wait_text("Subnet added: 10.1.9.0/24", secs(3));
    let mut raw = lab.tool(&lab.host(1), "raw_ip");
    raw.write(READ);
    assert_eq!(peer.line(secs(3)), format!("10.77.0.1:8285 {WIRE}"));
    // Header checksums at which one TTL step carries or wraps, as fields before and after.
    for (before, after) in
        [(0xfe00, 0xff00), (0xfeff, 0x0000), (0xff00, 0x0001), (0xfffe, 0x00ff), (0, 0x0100)]
    {
        let packet = with_checksum(before);
        raw.write(&hex(&packet));
        let line = peer.line(secs(3));
        let received = unhex(line.split_once(' ').unwrap().1);
        assert_eq!(u16::from_be_bytes([received[10], received[11]]), after, "{before:04x}: {line}");
        assert_eq!((received[8], lab::ipv4::checksum(&received[..20])), (62, 0), "{line}");
        assert_eq!((&received[..8], &received[12..]), (&packet[..8], &packet[12..]), "{line}");
    }
}

/// Makes a packet whose id gives its header checksum the wanted value.
fn with_checksum(wanted: u16) -> Vec<u8> {
    let mut packet = udp("10.1.5.2", "10.1.9.3", 63, b"edge");
    packet[4..6].fill(0);
    packet[10..12].fill(0);
    // checksum = !(sum + id), so id = !checksum − sum, in ones' complement.
    let sum = !lab::ipv4::checksum(&packet[..20]);
    let id = u32::from(!wanted) + u32::from(!sum);
    let id = u16::try_from((id & 0xffff) + (id >> 16)).unwrap();
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    lab::ipv4::seal(&mut packet);
    assert_eq!(u16::from_be_bytes([packet[10], packet[11]]), wanted);
    packet
}

fn the_remote_tun_gets_exact_bytes(lab: &Lab, args: &[&str]) {
    let mut remote = lab.daemon(2, args);
    assert_eq!(remote.subnet().subnet, "10.1.9.1/24");
    remote.wait_text("Subnet added: 10.1.5.0/24", secs(3));
    let wire = Capture::start(lab, &lab.host(2), "eth0", "in", "udp port 8285");
    let written = Capture::start(lab, &lab.host(2), "flannel0", "in", "udp");
    let mut raw = lab.tool(&lab.host(1), "raw_ip");
    raw.write(READ);
    assert_eq!(hex(&written.at_least(1, secs(3))[0]), WRITTEN);
    let outer = &wire.at_least(1, secs(3))[0];
    assert_eq!(hex(&outer[28..]), WIRE);
    assert_eq!(outer[12..20], [10, 77, 0, 1, 10, 77, 0, 2]);
    assert_eq!(outer[20..24], [0x20, 0x5d, 0x20, 0x5d], "ports");
}
