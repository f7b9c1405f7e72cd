//! Promise: packets flow on while etcd is away, at no cost; its return is noticed and leases are renewed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod certificates;
mod lab;

use certificates::{AUTHORITY, Folder, flag};
use lab::{Api, Lab, Proc, TUTORIAL, long, ms, secs};
use std::fs;
use std::time::{Duration, Instant};

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

/// The CPU time of all threads but the packet workers (`fl-w0`, …).
fn control_cpu(daemon: &Proc) -> Duration {
    daemon.cpu(|thread| !thread.starts_with("fl-w"))
}

fn outage(api: Api) {
    let Some(mut lab) = Lab::start(2) else { return };
    let away = secs(if long() { 30 } else { 10 });
    // Leases outlive the outage and are due for renewal soon after it.
    let ttl = format!("--lease-ttl={}s", away.as_secs() * 2);
    lab.put_config(api, TUTORIAL);
    let mut daemons = [lab.daemon(1, &[api.flag(), &ttl]), lab.daemon(2, &[api.flag(), &ttl])];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));

    let mut sink = lab.tool(&ends[1].ns, &format!("pulse_sink {}:5000", ends[1].addr));
    let mut sender = lab.tool(&ends[0].ns, &format!("pulse_send {}:5000 2000", ends[1].addr));
    let count = (away.as_secs() * 100).to_string();
    let pings =
        lab.spawn(&ends[1].ns, "ping", &["ping", "-q", "-i0.01", "-c", &count, &ends[0].addr.to_string()]);
    lab.stop_etcd();
    let start = Instant::now();
    let before = [control_cpu(&daemons[0]), control_cpu(&daemons[1])];
    std::thread::sleep(away);
    for (daemon, before) in daemons.iter().zip(before) {
        let share = (control_cpu(daemon) - before).as_secs_f64() / start.elapsed().as_secs_f64();
        eprintln!("control path during the outage: {:.2} % of a core", share * 100.0);
        assert!(share < 0.02, "{:.1} % of a core\n{}", share * 100.0, daemon.text());
    }
    pings.wait_text("packets transmitted", secs(20));
    assert!(pings.text().contains(" 0% packet loss"), "{}", pings.text());

    lab.start_etcd();
    let back = Instant::now();
    returns(&lab, api, &mut daemons, &subnets, away * 2);
    eprintln!("renewed {:?} after etcd's return", back.elapsed());
    sender.finish();
    let sent: u64 = sender.line(secs(5)).parse().unwrap();
    std::thread::sleep(ms(200));
    sink.finish();
    let tally = sink.line(secs(5));
    assert_eq!(lab::words(&tally)[..2], [&*sent.to_string(), &*sent.to_string()], "lost: {tally} of {sent}");
    assert_eq!(lab::words(&tally)[3], "0", "out of order: {tally}");
}

/// Checks that leases are renewed, that a new peer is heard of, and that the log has told it all in few lines.
fn returns(lab: &Lab, api: Api, daemons: &mut [lab::Daemon; 2], subnets: &[lab::Subnet; 2], ttl: Duration) {
    lab.put_lease(api, "10.98.0.0-20", "10.77.0.99");
    for (daemon, subnet) in daemons.iter_mut().zip(subnets) {
        daemon.wait_text("Subnet added: 10.98.0.0/20", secs(15));
        daemon.wait_text("Lease renewed, new expiration:", ttl);
        let left = lab.ttl(api, &subnet.key()).expect("the lease is gone or has become a reservation");
        assert!(left > 0 && left <= i64::try_from(ttl.as_secs()).unwrap() + 1, "TTL {left}");
        assert!(daemon.running(), "{}", daemon.text());
        let complaints = daemon.text().lines().filter(|l| l.contains("etcd")).count();
        assert!((1..20).contains(&complaints), "{complaints} lines about etcd:\n{}", daemon.text());
    }
    lab.delete_lease(api, "10.98.0.0-20");
}

#[test]
fn etcd_v3_away_and_back() {
    outage(Api::V3);
}

#[test]
fn etcd_v2_away_and_back() {
    outage(Api::V2);
}

/// Packets to etcd vanish for so long that connections die, and then pass again. So it is with a firewall that is loaded
/// anew, or a link that is down.
fn swallowed(api: Api) {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(api, TUTORIAL);
    let mut daemons = [lab.daemon(1, &[api.flag()]), lab.daemon(2, &[api.flag()])];
    daemons.iter_mut().for_each(|daemon| drop(daemon.subnet()));
    let filter = |what: &str| {
        lab.run(
            &lab.ns("sw"),
            &["iptables", "-w", what, "INPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"],
        );
    };
    filter("-I");
    // Keep-alive gives a connection up after 20 s, and others are tried and fail meanwhile.
    std::thread::sleep(secs(35));
    filter("-D");
    let back = Instant::now();
    lab.put_lease(api, "10.98.0.0-20", "10.77.0.99");
    for daemon in &mut daemons {
        daemon.wait_text("Subnet added: 10.98.0.0/20", secs(20));
    }
    eprintln!("a new peer is heard of {:?} after the packets pass again", back.elapsed());
}

#[test]
fn etcd_v3_swallowed_and_back() {
    swallowed(Api::V3);
}

#[test]
fn etcd_v2_swallowed_and_back() {
    swallowed(Api::V2);
}

/// To make TLS ready costs milliseconds, for the system's certificates tens of them. It is not done for each attempt at
/// each endpoint.
#[test]
fn endpoints_of_https_that_are_away_cost_little() {
    let Some(lab) = Lab::without_etcd(1) else { return };
    let folder = Folder::new();
    folder.own("ca", "ec:P-256", &[AUTHORITY]);
    let endpoints =
        "--etcd-endpoints=https://10.77.0.254:2379,https://10.77.0.254:4001,https://10.77.0.1:2379";
    for ca in ["-v=0".to_owned(), flag("etcd-cafile", &folder.path("ca.pem"))] {
        for api in ["--etcd-api=v2", "--etcd-api=v3", "--etcd-api=auto"] {
            let mut daemon = lab.daemon(1, &[api, endpoints, &ca]);
            daemon.wait_text("Couldn't fetch network config:", secs(7));
            std::thread::sleep(secs(2));
            let (before, start) = (daemon.cpu(|_| true), Instant::now());
            std::thread::sleep(secs(5));
            let share = (daemon.cpu(|_| true) - before).as_secs_f64() / start.elapsed().as_secs_f64();
            eprintln!("{api} {ca}: {:.2} % of a core", share * 100.0);
            assert!(share < 0.015, "waiting takes {:.1} % of a core", share * 100.0);
            daemon.terminate();
        }
    }
}

/// Without etcd, then without a config, the daemon waits and says why; it starts when both are there.
#[test]
fn etcd_absent_at_start() {
    for flag in ["--etcd-api=v2", "--etcd-api=v3", "--etcd-api=auto"] {
        let Some(mut lab) = Lab::without_etcd(1) else { return };
        let mut daemon = lab.daemon(1, &[flag]);
        daemon.wait_text("Couldn't fetch network config:", secs(7));
        std::thread::sleep(secs(1));
        let (before, start) = (daemon.cpu(|_| true), Instant::now());
        std::thread::sleep(secs(1));
        let share = (daemon.cpu(|_| true) - before).as_secs_f64() / start.elapsed().as_secs_f64();
        assert!(share < 0.05, "waiting takes {:.1} % of a core", share * 100.0);
        assert!(daemon.running() && !daemon.subnet_file.exists(), "{}", daemon.text());

        lab.start_etcd();
        let api = if flag == "--etcd-api=v2" { Api::V2 } else { Api::V3 };
        daemon.wait_text("no such key", secs(8));
        assert!(daemon.running(), "an etcd without a config is no reason to go:\n{}", daemon.text());
        lab.put_config(api, r#"{"Network":"10.0.0.0/8","SubnetLen":3}"#);
        // The log names the bad field.
        daemon.wait_text("SubnetLen", secs(8));
        assert!(daemon.running(), "a bad config is no reason to go:\n{}", daemon.text());
        lab.put_config(api, TUTORIAL);
        assert_eq!(daemon.subnet().network, "10.0.0.0/8");

        // A stop ends the daemon at once while it waits, too.
        let old = fs::read(&daemon.subnet_file).unwrap();
        daemon.terminate();
        lab.stop_etcd();
        let mut waiting = lab.daemon(1, &[flag]);
        waiting.wait_text("Couldn't fetch network config:", secs(7));
        let (status, took) = waiting.terminate();
        assert!(status.code() == Some(0) && took < secs(1), "{status} after {took:?}");
        assert_eq!(fs::read(&waiting.subnet_file).unwrap(), old, "the subnet file changed");
    }
}
