//! Promise: a thousand vxlan peers are programmed within three seconds, cost nothing more once they are, and go
//! within a second.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, ms, secs};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

const PREFIX: &str = "/coreos.com/network/subnets";
/// etcd takes at most so many operations in one transaction.
const OPERATIONS: usize = 128;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

/// Registers peers `10.<second>.<third>.0/24` in a few transactions.
fn put_peers(lab: &Lab, subnets: &[(u8, u8)]) {
    for chunk in subnets.chunks(OPERATIONS) {
        // etcdctl's form: comparisons, a blank line, what to do if they hold, a blank line, what to do if not.
        let mut script = String::from("\n");
        for (second, third) in chunk {
            let value = format!(
                r#"{{\"PublicIP\":\"198.18.{second}.{third}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:{second:02x}:{third:02x}\"}}}}"#
            );
            writeln!(script, r#"put {PREFIX}/10.{second}.{third}.0-24 "{value}""#).unwrap();
        }
        script.push_str("\n\n");
        let file = lab.path("txn");
        std::fs::write(&file, script).unwrap();
        let line = format!("etcdctl --endpoints http://10.77.0.254:2379 txn <{}", file.display());
        let answer = lab.sh(&lab.ns("sw"), &line);
        assert!(answer.starts_with("SUCCESS"), "{answer}");
    }
}

/// How many routes, ARP and FDB entries there are.
fn entries(lab: &Lab) -> [usize; 3] {
    let script = "ip route show proto 78 | grep -c onlink; \
         ip -4 neigh show dev flannel.1 | grep -c PERMANENT; bridge fdb show dev flannel.1 | grep -c dst; true";
    let counts: Vec<_> = lab.sh(&lab.host(1), script).lines().map(|n| n.parse().unwrap()).collect();
    counts.try_into().unwrap()
}

fn until(lab: &Lab, n: usize, limit: Duration) -> Duration {
    let start = Instant::now();
    lab::eventually(limit, &format!("{n} peers; there are {:?}", entries(lab)), || {
        (entries(lab) == [n; 3]).then_some(())
    });
    start.elapsed()
}

fn rss_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How often the daemon has written to the tables, by its log.
fn writes(daemon: &Daemon) -> usize {
    daemon.text().lines().filter(|line| line.contains("upkeep: flannel.1:")).count()
}

#[test]
fn a_thousand_vxlan_peers() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    let small = rss_kib(&daemon);
    let peers =
        |seconds: std::ops::Range<u8>| seconds.flat_map(|second| (0..100).map(move |third| (second, third)));

    // They come to a running daemon, transaction by transaction.
    let start = Instant::now();
    put_peers(&lab, &peers(100..107).chain(peers(200..203)).collect::<Vec<_>>());
    let put = start.elapsed();
    let after = until(&lab, 1000, secs(10));
    eprintln!(
        "1000 peers: put in {put:?}, all programmed {after:?} after that; RSS {small} → {} KiB",
        rss_kib(&daemon)
    );
    assert!(after < secs(3), "{after:?}");
    assert!(rss_kib(&daemon) < 48 * 1024, "RSS {} KiB", rss_kib(&daemon));

    // A pass that finds everything in place writes nothing.
    std::thread::sleep(ms(300));
    let before = writes(&daemon);
    lab.sh(&lab.host(1), "ip addr add 10.77.0.99/24 dev eth0; ip addr del 10.77.0.99/24 dev eth0");
    std::thread::sleep(ms(300));
    let (again, mut cpu) = (writes(&daemon), daemon.cpu(|_| true));
    assert_eq!(again, before, "{}", daemon.text().lines().last().unwrap());
    std::thread::sleep(secs(1));
    cpu = daemon.cpu(|_| true) - cpu;
    assert!(cpu <= ms(30), "an idle daemon used {cpu:?} in a second");

    // One transaction removes 300 of them.
    lab.run(
        &lab.ns("sw"),
        &["etcdctl", "--endpoints", "http://10.77.0.254:2379", "del", "--prefix", &format!("{PREFIX}/10.20")],
    );
    let took = until(&lab, 700, secs(5));
    eprintln!("300 peers went in {took:?}");
    assert!(took < secs(1), "{took:?}");

    // The device is deleted with all that is on it.
    lab.ip(&format!("-n {} link del flannel.1", lab.host(1)));
    let took = until(&lab, 700, secs(5));
    eprintln!("a new device with 700 peers after {took:?}");
    assert!(took < secs(2), "{took:?}");

    // A start with everything in the store and nothing in the kernel, then one with everything in both.
    daemon.terminate();
    lab.ip(&format!("-n {} link del flannel.1", lab.host(1)));
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    let took = until(&lab, 700, secs(5));
    eprintln!("a start with 700 peers: {took:?}");
    assert!(took < secs(3), "{took:?}");
    daemon.terminate();
    let daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("Lease acquired", secs(5));
    std::thread::sleep(ms(500));
    assert_eq!(writes(&daemon), 0, "a restart that finds all in place writes nothing");
    assert_eq!(entries(&lab), [700; 3]);
}
