//! Promise: nothing is corrupted and nothing is reordered within a flow, whatever carries it at either end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Container, Lab, TUTORIAL, Tool, long, secs};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const URING: &str = "--engine=uring";
const TWO: &str = "--workers=2";
const POLL: &str = "--engine=poll";
const ON: [&str; 2] = ["--tun-offload=auto", "--udp-offload=auto"];
const OFF: [&str; 2] = ["--tun-offload=off", "--udp-offload=off"];
const TUN_ONLY: [&str; 2] = ["--tun-offload=auto", "--udp-offload=off"];
const UDP_ONLY: [&str; 2] = ["--tun-offload=off", "--udp-offload=auto"];
const TSO_SEND: [&str; 2] = ["--tun-offload=tso", "--udp-offload=send"];
const TSO_RECEIVE: [&str; 2] = ["--tun-offload=tso", "--udp-offload=receive"];

/// How much a TCP stream carries: 64 MiB, or as many as `FLANNELD_TEST_MIB` says.
fn bytes() -> usize {
    std::env::var("FLANNELD_TEST_MIB").map_or(64, |mib| mib.parse().unwrap()) << 20
}

/// One end of the overlay: its engine and its offloads at the TUN and at the UDP socket.
type End = (&'static str, [&'static str; 2]);

/// Every engine meets every engine, every offload setting every other; the long form takes all pairs.
fn pairs() -> Vec<(End, End)> {
    if long() {
        let ends: Vec<End> = [URING, POLL]
            .into_iter()
            .flat_map(|e| [ON, OFF, TUN_ONLY, UDP_ONLY, TSO_SEND].map(|o| (e, o)))
            .collect();
        return ends.iter().flat_map(|a| ends.iter().map(move |b| (*a, *b))).collect();
    }
    vec![
        ((URING, ON), (URING, ON)),
        ((POLL, ON), (POLL, ON)),
        ((URING, OFF), (POLL, ON)),
        ((POLL, OFF), (URING, ON)),
        ((URING, OFF), (URING, OFF)),
        ((POLL, OFF), (POLL, OFF)),
        ((URING, TUN_ONLY), (POLL, UDP_ONLY)),
        ((POLL, TSO_SEND), (URING, TSO_RECEIVE)),
    ]
}

#[test]
fn every_byte_arrives_whatever_the_ends() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    for (n, (a, b)) in pairs().into_iter().enumerate() {
        carries(&lab, 1000 * n as u64, &[a.0, a.1[0], a.1[1]], &[b.0, b.1[0], b.1[1]]);
    }
}

/// A veth passes trains of datagrams whole. Without its offloads it cuts them up as a network card does, and the
/// receiver's GRO puts together what it finds.
#[test]
fn every_byte_arrives_over_a_link_like_a_network_card() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    for (ns, device) in [("h1", "eth0"), ("h2", "eth0"), ("sw", "p1"), ("sw", "p2")] {
        let off =
            "tso off tx-udp-segmentation off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
        let line = format!("ethtool -K {device} {off} gro on");
        lab.run(&lab.ns(ns), &lab::words(&line));
    }
    carries(&lab, 1, &[URING], &[POLL]);
    carries(&lab, 2, &[POLL], &[URING]);
}

#[test]
fn every_byte_arrives_with_two_workers() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    for engine in [URING, POLL] {
        with_daemons(&lab, &[engine, TWO], &[engine, TWO], |from, to| tcp(&lab, from, to, 3, bytes()));
    }
}

/// The TUN's own rule would move a flow to another queue in mid-flow (`tun_flow_update`); ours does not.
#[test]
fn flows_stay_in_order_with_two_workers() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    for engine in [URING, POLL] {
        // Fragments have no ports, so that every device with several queues may separate them from their flow.
        with_daemons(&lab, &[engine, TWO], &[engine, TWO], |from, to| udp(&lab, from, to, 3, false));
    }
}

/// Runs both kinds of traffic in both directions.
fn carries(lab: &Lab, seed: u64, a: &[&str], b: &[&str]) {
    with_daemons(lab, a, b, |from, to| {
        tcp(lab, from, to, seed, bytes());
        udp(lab, from, to, seed, true);
    });
}

/// Runs a daemon on each host with these arguments, and the traffic in both directions.
fn with_daemons(lab: &Lab, a: &[&str], b: &[&str], traffic: impl Fn(&Container, &Container)) {
    eprintln!("{a:?} and {b:?}");
    let mut daemons = [lab.daemon(1, a), lab.daemon(2, b)];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    traffic(&ends[0], &ends[1]);
    traffic(&ends[1], &ends[0]);
    for daemon in &mut daemons {
        assert!(daemon.running(), "flanneld is gone:\n{}", daemon.text());
        assert_eq!(daemon.terminate().0.code(), Some(0), "{}", daemon.text());
    }
}

/// Sends over TCP; the sink compares every byte, and the hashes of both ends agree.
fn tcp(lab: &Lab, from: &Container, to: &Container, seed: u64, bytes: usize) {
    let sink = lab.tool(&to.ns, &format!("tcp_sink {}:5000 {seed} {bytes}", to.addr));
    let sender = lab.tool(&from.ns, &format!("tcp_send {}:5000 {seed} {bytes}", to.addr));
    let received = sink.line(secs(60 + (bytes as u64 >> 22)));
    assert_eq!(sender.line(secs(5)), received);
}

/// Sends two UDP flows of every size; the sink knows what must come, and in which order.
fn udp(lab: &Lab, from: &Container, to: &Container, seed: u64, fragments: bool) {
    let rounds = if long() { 4 } else { 1 };
    let line = format!("{}:6000 {seed} 2 {rounds} {}", to.addr, u8::from(fragments));
    let sink = lab.tool(&to.ns, &format!("udp_sink {line}"));
    let sender = lab.tool(&from.ns, &format!("udp_send {line}"));
    let mut outcomes = [flows(&sender), flows(&sink)];
    outcomes.iter_mut().for_each(|lines| lines.sort());
    assert_eq!(outcomes[0], outcomes[1], "sent and received differ");
}

fn flows(tool: &Tool) -> Vec<String> {
    (0..2).map(|_| tool.line(secs(60))).collect()
}

/// The instruments themselves, without an overlay: sound streams pass, a stream of another seed does not.
#[test]
fn the_instruments_notice_damage() {
    let Some(lab) = Lab::without_etcd(2) else { return };
    let end = |i: usize| Container { ns: lab.host(i), addr: format!("10.77.0.{i}").parse().unwrap() };
    let (a, b) = (end(1), end(2));
    tcp(&lab, &a, &b, 1, 1 << 20);
    udp(&lab, &a, &b, 2, true);

    let sink = lab.tool(&b.ns, "tcp_sink 10.77.0.2:5001 1 1000000");
    let _sender = lab.tool(&a.ns, "tcp_send 10.77.0.2:5001 2 1000000");
    assert_eq!(sink.maybe_line(secs(5)), None, "a wrong TCP stream passed");

    let sink = lab.tool(&b.ns, "udp_sink 10.77.0.2:7000 1 1 1 1");
    let _sender = lab.tool(&a.ns, "udp_send 10.77.0.2:7000 2 1 1 1");
    assert_eq!(sink.maybe_line(secs(5)), None, "a wrong UDP stream passed");
}
