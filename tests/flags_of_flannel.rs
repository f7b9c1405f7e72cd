//! Promise: values that flannel takes do not end this daemon, however little sense they make.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, eventually, flanneld, ms, secs};
use std::fs;

const ALLOC: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;

/// As in Go, a name means the first IPv4 address that it has.
#[test]
fn health_is_served_on_a_name() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, ALLOC);
    let hosts = lab.path("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\nfd00::7 node-7.example\n10.77.0.1 node-7.example\n").unwrap();
    let start = |name: &str| {
        // A mount namespace of its own gives the daemon, and nobody else, these names.
        let script = format!(
            "mount --bind {} /etc/hosts && exec {} --etcd-endpoints=http://10.77.0.254:2379 --iface=eth0 \
             --etcd-api=v3 --subnet-file={} --healthz-port=8471 --healthz-ip={name}",
            hosts.display(),
            flanneld(),
            lab.path("subnet.env").display()
        );
        lab.spawn(&lab.host(1), name, &["unshare", "-m", "sh", "-c", &script])
    };
    let mut daemon = start("node-7.example");
    daemon.wait_text("Serving /healthz, /readyz and /metrics on http://10.77.0.1:8471", secs(10));
    let url = "http://10.77.0.1:8471/healthz";
    assert_eq!(lab.run(&lab.ns("sw"), &["curl", "-fsSm5", url]), "flanneld is running");
    daemon.terminate();
    // A name that means nothing ends the start with a word, and the unit tries again.
    let mut lost = start("no-such-node.invalid");
    lost.wait_text("cannot serve health on no-such-node.invalid:8471", secs(30));
    assert_eq!(lost.wait(secs(5)).and_then(|status| status.code()), Some(1));
}

/// flannel would look at its rules without any pause.
#[test]
fn a_resync_period_of_0_is_short_and_costs_little() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, ALLOC);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "-iptables-resync=0", "-ip-blackhole-route"]);
    let subnet = daemon.subnet();
    let host = lab.host(1);
    let route = format!("blackhole {}/{}", subnet.base(), subnet.prefix_len());
    let there =
        || lab.ip(&format!("-n {host} route show type blackhole")).contains(&route[10..]).then_some(());
    eventually(secs(3), "the blackhole route", there);
    lab.ip(&format!("-n {host} route del {route}"));
    eventually(secs(3), "the blackhole route again", there);
    let before = daemon.cpu(|_| true);
    std::thread::sleep(secs(2));
    let spent = daemon.cpu(|_| true) - before;
    assert!(spent < ms(400), "{spent:?} of CPU in 2 s");
}

/// flannel starts, listens on any port and reaches nobody. So do we, with a word about it.
#[test]
fn port_0_of_udp_starts_and_says_what_it_is_worth() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":0}}"#);
    lab.put_lease(Api::V3, "10.5.9.0-24", "10.77.0.254");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", "--workers=2"]);
    assert_eq!(daemon.subnet().mtu, 1472);
    assert!(daemon.text().contains("Backend.Port 0: as in flannel"), "{}", daemon.text());
    let listens = lab.run(&lab.host(1), &["ss", "-Hlun"]);
    let ours: Vec<_> = listens.lines().filter(|line| line.contains("10.77.0.1:")).collect();
    assert!(!ours.is_empty() && !ours.iter().any(|line| line.contains(":8285")), "{listens}");
    // A packet for the peer is lost, counted, and harms nothing.
    let before = daemon.drops();
    assert!(!lab.pings(&lab.host(1), "10.5.9.2".parse().unwrap()));
    let (gained, _) = daemon.gained(&before);
    assert!(gained.keys().any(|reason| reason.starts_with("send_")), "{gained:?}");
    assert!(daemon.running(), "{}", daemon.text());
}
