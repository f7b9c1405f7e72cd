//! Promise: many nodes are a small load on etcd: it may restart without being listed, and renewals come one by one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, ms, secs};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const ETCD: &str = "http://10.77.0.254:2379";
const CONFIG: &str = r#"{"Network":"10.128.0.0/9","SubnetMin":"10.128.1.0","SubnetMax":"10.128.99.0","Backend":{"Type":"alloc"}}"#;
const PEERS: u32 = 2000;
/// A list has at least the key and the value of each peer.
const LIST_BYTES: f64 = 60.0 * PEERS as f64;

/// The leases of all peers, many in each transaction.
fn register(lab: &Lab) {
    let all: Vec<u32> = (0..PEERS).collect();
    for (n, some) in all.chunks(120).enumerate() {
        let mut text = "\n".to_owned();
        for peer in some {
            let subnet = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 129, 0, 0)) + (peer << 8));
            let host = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 1, 0)) + peer);
            let key = format!("/coreos.com/network/subnets/{subnet}-24");
            writeln!(text, r#"put {key} {{"PublicIP":"{host}"}}"#).unwrap();
        }
        text.push_str("\n\n");
        let file = lab.path(&format!("txn{n}"));
        std::fs::write(&file, text).unwrap();
        lab.sh(&lab.ns("sw"), &format!("etcdctl --endpoints {ETCD} txn <{} >/dev/null", file.display()));
    }
}

/// How many bytes etcd has sent to clients over gRPC since its start.
fn sent_bytes(lab: &Lab) -> f64 {
    let text = lab.run(&lab.ns("sw"), &["curl", "-sSm10", &format!("{ETCD}/metrics")]);
    let line = text.lines().find_map(|line| line.strip_prefix("etcd_network_client_grpc_sent_bytes_total "));
    line.map_or(0.0, |number| number.parse().unwrap())
}

/// The daemon number `n` of this host, with a name and an address of its own.
fn daemon(lab: &Lab, n: u8, args: &[&str]) -> Daemon {
    let file = lab.path(&format!("subnet-{n}.env"));
    let ip = format!("--public-ip=10.77.1.{n}");
    Daemon::start(lab, &lab.host(1), &file, &[&["--iface=eth0", &ip], args].concat(), &[])
}

/// etcd is restarted twice. Within ten seconds nobody lists, and whatever happens goes on to be seen.
#[test]
fn a_restart_of_etcd_costs_no_list() {
    let Some(mut lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    register(&lab);
    let before = sent_bytes(&lab);
    let mut daemons: Vec<Daemon> = (1..4).map(|n| daemon(&lab, n, &["--etcd-api=v3"])).collect();
    for daemon in &mut daemons {
        daemon.subnet();
    }
    // A watch that has brought nothing yet proves nothing.
    std::thread::sleep(secs(1));
    let listed = sent_bytes(&lab) - before;
    assert!(listed > 3.0 * LIST_BYTES, "{listed} bytes for three lists: else this test proves nothing");
    for round in 0..2_u8 {
        lab.stop_etcd();
        std::thread::sleep(ms(1500));
        lab.start_etcd();
        let peer = format!("10.77.2.{round}");
        lab.put_lease(Api::V3, &format!("10.200.{round}.0-24"), &peer);
        let restarted = Instant::now();
        for daemon in &daemons {
            daemon.wait_text(&format!("Subnet added: 10.200.{round}.0/24 via {peer}"), secs(9));
        }
        eprintln!("round {round}: all see the new peer after {:?}", restarted.elapsed());
        std::thread::sleep(secs(10).saturating_sub(restarted.elapsed()));
        let sent = sent_bytes(&lab);
        assert!(sent < LIST_BYTES, "{sent} bytes after the restart, a list has {LIST_BYTES} or more");
    }
    for daemon in &mut daemons {
        assert!(daemon.running() && daemon.count("store_proofs") >= 2);
    }
}

/// How long the log says that the daemon waits before it renews.
fn announced(daemon: &Daemon) -> Duration {
    let text = daemon.text();
    let line = text.lines().find(|line| line.contains("Waiting for ") && line.contains(" to renew lease"));
    let words = line.and_then(|line| line.split("Waiting for ").nth(1)).unwrap_or_default();
    let duration = words.split(' ').next().unwrap_or_default();
    let (mut seconds, mut number) = (0, 0);
    for c in duration.chars() {
        match c {
            'h' => seconds += std::mem::take(&mut number) * 3600,
            'm' => seconds += std::mem::take(&mut number) * 60,
            's' => seconds += std::mem::take(&mut number),
            digit => number = number * 10 + u64::from(digit.to_digit(10).unwrap()),
        }
    }
    secs(seconds)
}

/// Twenty daemons that start together say when they renew: over a quarter of the margin at least, never later than the
/// flag says. They keep their word.
#[test]
fn renewals_are_spread_and_never_late() {
    let Some(lab) = Lab::start(1) else { return };
    for (api, number) in [(Api::V3, 0), (Api::V2, 100)] {
        lab.put_config(api, CONFIG);
        // The margin is half of a TTL that is so short.
        let (ttl, margin) = (secs(16), secs(8));
        let start = Instant::now();
        let mut waiting: Vec<(Daemon, Instant)> = (1..=20)
            .map(|n| (daemon(&lab, number + n, &[api.flag(), "--lease-ttl=16s"]), Instant::now()))
            .collect();
        let (mut times, mut promises) = (Vec::new(), Vec::new());
        while !waiting.is_empty() {
            assert!(start.elapsed() < ttl + secs(10), "{} daemons have not renewed", waiting.len());
            let (done, rest) = waiting
                .into_iter()
                .partition(|(daemon, _)| daemon.text().contains("Lease renewed, new expiration"));
            waiting = rest;
            for (daemon, started) in Vec::from_iter::<Vec<(Daemon, Instant)>>(done) {
                let (said, took) = (announced(&daemon), started.elapsed());
                assert!(said <= ttl - margin && said >= ttl - margin - margin / 2 - secs(1), "{said:?}");
                assert!(took >= said && took < said + secs(6), "said {said:?}, took {took:?}");
                promises.push(said);
                times.push(took);
            }
            std::thread::sleep(ms(20));
        }
        let spread = |all: &[Duration]| *all.iter().max().unwrap() - *all.iter().min().unwrap();
        eprintln!("{api:?}: announced over {:?}, renewed over {:?}", spread(&promises), spread(&times));
        assert!(spread(&times) >= margin / 4, "{times:?}");
    }
    // The defaults: 24 hours, and 60 minutes before their end.
    let mut day = daemon(&lab, 90, &["--etcd-api=v3"]);
    day.subnet();
    let said = announced(&day);
    assert!(said <= secs(23 * 3600) && said >= secs(23 * 3600 - 1801), "{said:?}");
}
