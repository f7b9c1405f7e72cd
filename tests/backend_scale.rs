//! Promise: with ten thousand peers the daemon answers while it programs them, and one more peer costs next to nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, ms, secs};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

const PEERS: u32 = 10_000;
/// What etcd takes in one transaction by default is 128.
const A_TRANSACTION: usize = 120;

/// The key and value of a peer on the link: subnet `10.129.0.0/24` + n, host `10.64.1.0` + n.
fn lease(n: u32) -> (String, String) {
    let subnet = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 129, 0, 0)) + (n << 8));
    let host = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 1, 0)) + n);
    let [a, b, c, d] = n.to_be_bytes();
    let mac = format!("0a:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    let value =
        format!(r#"{{"PublicIP":"{host}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#);
    (format!("subnets/{subnet}-24"), value)
}

/// The same as udp publishes it.
fn udp_lease(n: u32) -> (String, String) {
    let (key, value) = lease(n);
    let (value, _) = value.split_once(r#","BackendType""#).unwrap();
    (key, format!("{value}}}"))
}

/// Registers so many peers, many in each transaction.
fn register(lab: &Lab, peers: u32, lease: impl Fn(u32) -> (String, String)) {
    let all: Vec<_> = (0..peers).map(lease).collect();
    for (n, some) in all.chunks(A_TRANSACTION).enumerate() {
        let mut text = "\n".to_owned();
        for (key, value) in some {
            writeln!(text, "put /coreos.com/network/{key} {value}").unwrap();
        }
        text.push_str("\n\n");
        let file = lab.path(&format!("txn{n}"));
        std::fs::write(&file, text).unwrap();
        let script =
            format!("etcdctl --endpoints http://10.77.0.254:2379 txn <{} >/dev/null", file.display());
        lab.sh(&lab.ns("sw"), &script);
    }
}

#[test]
fn ten_thousand_peers_are_programmed_while_health_is_answered() {
    let Some(lab) = Lab::start(1) else { return };
    let host = lab.host(1);
    let network = r#""Network":"10.128.0.0/9","SubnetMin":"10.128.1.0","SubnetMax":"10.128.9.0""#;
    lab.put_config(Api::V3, &format!(r#"{{{network},"Backend":{{"Type":"vxlan","DirectRouting":true}}}}"#));
    lab.ip(&format!("-n {host} addr add 10.64.0.1/16 dev eth0"));
    register(&lab, PEERS, lease);
    serves_while_it_programs(&lab, "proto 78", lease);
}

/// The outer addresses of all peers lie in the network, so each of them needs a host route past the overlay.
#[test]
fn ten_thousand_outer_addresses_are_led_past_udp_while_health_is_answered() {
    let Some(lab) = Lab::start(1) else { return };
    let network = r#""Network":"10.0.0.0/8","SubnetMin":"10.128.1.0","SubnetMax":"10.128.9.0""#;
    lab.put_config(Api::V3, &format!(r#"{{{network},"Backend":{{"Type":"udp"}}}}"#));
    register(&lab, PEERS, udp_lease);
    serves_while_it_programs(&lab, "proto 79", udp_lease);
}

/// Starts the daemon, which makes a route for each peer, and checks that it answers meanwhile; then more peers come.
fn serves_while_it_programs(lab: &Lab, routes: &str, lease: impl Fn(u32) -> (String, String)) {
    let host = lab.host(1);
    let daemon = lab.daemon(1, &["--etcd-api=v3", "--healthz-port=8111"]);
    let probe = "while :; do curl -s -o /dev/null -m5 -w '%{http_code} %{time_total}\n' \
                 http://127.0.0.1:8111/healthz; sleep 0.01; done";
    daemon.wait_text("Serving /healthz", secs(5));
    let mut probing = lab.spawn(&host, "probe", &["sh", "-c", probe]);
    let count = format!("ip route show {routes} | wc -l");
    let routes = || lab.sh(&host, &count).trim().parse::<u32>().unwrap();
    lab::eventually(secs(60), "the routes of all peers", || {
        std::thread::sleep(ms(200));
        (routes() == PEERS).then_some(())
    });
    std::thread::sleep(ms(500));
    probing.kill();
    let text = probing.text();
    let mut worst = 0.0_f64;
    let mut answers = 0;
    for line in text.lines().filter(|line| line.contains(' ')) {
        let (code, took) = line.split_once(' ').unwrap();
        assert_eq!(code, "200", "answer {answers}: {line}");
        worst = worst.max(took.parse().unwrap());
        answers += 1;
    }
    eprintln!("{answers} answers, the slowest after {worst} s");
    // `perf/scale.sh` measures a release build. This one is slow, and reads the list of all leases in one go.
    assert!(answers > 20 && worst < 1.5, "{answers} answers, the slowest after {worst} s");

    // One more peer costs neither a list of the tables nor a comparison.
    let before = daemon.cpu(|_| true);
    let joins: u32 = 10;
    for n in PEERS..PEERS + joins {
        let (key, value) = lease(n);
        lab.put(Api::V3, &key, &value);
        std::thread::sleep(ms(100));
    }
    lab::eventually(secs(3), "the new peers' routes", || (routes() == PEERS + joins).then_some(()));
    let each = (daemon.cpu(|_| true) - before) / joins;
    eprintln!("{each:?} of a core for each join");
    // The look of every half minute may fall into this time.
    assert!(each < Duration::from_millis(80), "{each:?} of a core for each join");
}

/// Nodes of another backend are one line at the start, however many there are, and so is one that comes later.
#[test]
fn many_nodes_of_another_backend_are_one_line() {
    let Some(lab) = Lab::start(1) else { return };
    let network = r#""Network":"10.128.0.0/9","SubnetMin":"10.128.1.0","SubnetMax":"10.128.9.0""#;
    lab.put_config(Api::V3, &format!(r#"{{{network},"Backend":{{"Type":"udp"}}}}"#));
    register(&lab, 2000, lease);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    let said =
        "since they run another backend than udp: 10.129.0.0/24 at 10.64.1.0 (\"vxlan\"), 10.129.1.0/24";
    daemon.wait_text(said, secs(5));
    daemon.wait_text(" and 1997 more; they come in as soon as both ends run the same", secs(1));
    std::thread::sleep(ms(500));
    let lines = || daemon.text().matches("another backend").count();
    assert_eq!(lines(), 1, "{}", daemon.text());
    let (key, value) = lease(2000);
    lab.put(Api::V3, &key, &value);
    daemon.wait_text(
        "another backend than udp: 10.136.208.0/24 at 10.64.8.208 (\"vxlan\"), 10.129.0.0/24",
        secs(5),
    );
    assert_eq!(lines(), 2, "{}", daemon.text());
    assert!(daemon.text().lines().count() < 60, "{}", daemon.text());
}
