//! Promise: a peer that joins is reachable, and one whose lease is deleted is not, within a second of the event,
//! under full load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, Proc, TUTORIAL, ms, secs};
use std::time::Instant;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

fn peers_come_and_go(api: Api, engine: &str) {
    let Some(lab) = Lab::start(3) else { return };
    lab.put_config(api, TUTORIAL);
    let args = [api.flag(), engine];
    let mut daemons = [lab.daemon(1, &args), lab.daemon(2, &args)];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    let (_server, mut load) = full_load(&lab, &ends);

    // A peer made of a plain socket and a lease: its packets tell when it was reachable and when no longer.
    let lease = ["10.98.0.0-20", "10.77.0.3"];
    let pinging = lab.spawn(&ends[0].ns, "pinging", &["ping", "-i0.02", "10.98.0.2"]);
    let peer = lab.tool(&lab.host(3), "udp_socket 10.77.0.3:7890");
    assert_eq!(peer.maybe_line(ms(500)), None, "packets for a peer that is none yet");
    for round in 0..3 {
        let joined = Instant::now();
        lab.put_lease(api, lease[0], lease[1]);
        let (first, _) = peer.maybe_line(secs(5)).expect("the new peer gets nothing");
        let after = first - joined;
        let deleted = Instant::now();
        lab.delete_lease(api, lease[0]);
        let mut last = deleted;
        while let Some((at, _)) = peer.maybe_line(ms(1500)) {
            last = at;
            assert!(deleted.elapsed() < secs(5), "the deleted peer still gets packets");
        }
        eprintln!("round {round}: reachable after {after:?}, unreachable after {:?}", last - deleted);
        assert!(after < secs(1) && last - deleted < secs(1), "{after:?}, {:?}", last - deleted);
    }
    drop(peer);
    drop(pinging);

    // A real daemon joins; both directions work, so both ends know each other.
    let mut third = lab.daemon(3, &args);
    let subnet = third.subnet();
    let took = lab.reaches(&ends[0].ns, subnet.base(), secs(5));
    eprintln!("a daemon that joins answers after {took:?}");
    assert!(took < secs(1), "{took:?}");
    assert!(load.running(), "the load has ended: {}", load.text());

    // Traffic starves the signal no more than it starves the routes.
    let (status, took) = daemons[0].terminate();
    eprintln!("SIGTERM under load: {status} after {took:?}");
    assert!(status.code() == Some(0) && took < secs(1), "{status} after {took:?}");
}

/// iperf3 in both directions at once, as fast as it goes, for longer than the test.
fn full_load(lab: &Lab, ends: &[lab::Container; 2]) -> (Proc, Proc) {
    let server = lab.spawn(&ends[1].ns, "iperf3-server", &["iperf3", "-s", "--forceflush"]);
    server.wait_text("Server listening", secs(5));
    let line = format!("iperf3 -c {} -t 60 --bidir -P2 -i1 --forceflush", ends[1].addr);
    let client = lab.spawn(&ends[0].ns, "iperf3-client", &lab::words(&line));
    client.wait_text("[SUM]", secs(10));
    (server, client)
}

#[test]
fn over_v3_with_io_uring() {
    peers_come_and_go(Api::V3, "--engine=uring");
}

#[test]
fn over_v2_with_poll() {
    peers_come_and_go(Api::V2, "--engine=poll");
}
