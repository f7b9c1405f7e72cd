//! Promise: a member that has lost its quorum is left for another one, by both APIs, and at the start too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, Proc, eventually, secs};
use std::time::Instant;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

/// Three members, one on each host. Each also serves its own host's loopback address.
fn members(lab: &Lab) -> Vec<Proc> {
    let cluster: Vec<_> = (1..=3).map(|i| format!("m{i}=http://10.77.0.{i}:2380")).collect();
    let member = |i: usize| {
        let (data, host) = (lab.path(&format!("member-{i}")), format!("http://10.77.0.{i}"));
        let line = format!(
            "etcd --enable-v2=true --name m{i} --data-dir {} --listen-client-urls {host}:2379,http://127.0.0.1:2379 \
             --advertise-client-urls {host}:2379 --listen-peer-urls {host}:2380 \
             --initial-advertise-peer-urls {host}:2380 --initial-cluster {} \
             --heartbeat-interval=50 --election-timeout=500",
            data.display(),
            cluster.join(",")
        );
        lab.spawn(&lab.host(i), &format!("etcd-{i}"), &lab::words(&line))
    };
    let members = (1..=3).map(member).collect();
    eventually(secs(20), "three members", || {
        let health = ["curl", "-fsSm2", "http://127.0.0.1:2379/health"];
        (1..=3).all(|i| lab.try_run(&lab.host(i), &health).status.success()).then_some(())
    });
    members
}

/// Writes a key by the member of host 2.
fn put(lab: &Lab, api: Api, key: &str, value: &str) {
    let key = format!("/coreos.com/network/{key}");
    match api {
        Api::V2 => {
            let (url, body) = (format!("http://127.0.0.1:2379/v2/keys{key}"), format!("value={value}"));
            lab.run(&lab.host(2), &["curl", "-fsSm10", "-XPUT", "--data-urlencode", &body, &url]);
        }
        Api::V3 => drop(lab.run(&lab.host(2), &["etcdctl", "put", &key, "--", value])),
    }
}

/// Cuts member 1 off from the others, or lets it back. Clients still reach it.
fn cut(lab: &Lab, action: &str) {
    for (chain, port) in
        [("INPUT", "--dport"), ("INPUT", "--sport"), ("OUTPUT", "--dport"), ("OUTPUT", "--sport")]
    {
        let rule = ["iptables", action, chain, "-p", "tcp", port, "2380", "-j", "DROP"];
        lab.run(&lab.host(1), &rule);
    }
}

fn a_member_without_quorum_is_left(api: Api) {
    let Some(lab) = Lab::without_etcd(3) else { return };
    let _members = members(&lab);
    put(&lab, api, "config", r#"{"Network":"10.11.0.0/16","Backend":{"Type":"udp"}}"#);
    let endpoints = "-etcd-endpoints=http://127.0.0.1:2379,http://10.77.0.2:2379,http://10.77.0.3:2379";
    let args = [api.flag(), endpoints, "-etcd-timeout=1s"];
    let mut daemon = lab.daemon(1, &args);
    daemon.subnet();
    let peer = |third: u8| {
        put(
            &lab,
            api,
            &format!("subnets/10.11.{third}.0-24"),
            &format!(r#"{{"PublicIP":"10.77.0.{third}"}}"#),
        );
    };
    let hears = |daemon: &Proc, third: u8, limit| {
        let since = Instant::now();
        daemon.wait_text(&format!("Subnet added: 10.11.{third}.0/24"), secs(limit));
        since.elapsed()
    };
    peer(151);
    hears(&daemon, 151, 3);
    cut(&lab, "-A");
    // The others may have lost their leader.
    eventually(secs(10), "a quorum of two", || {
        let line = ["curl", "-fsSm2", "http://127.0.0.1:2379/v2/keys/?quorum=true"];
        lab.try_run(&lab.host(2), &line).status.success().then_some(())
    });
    peer(152);
    // Six deadlines of silence, one for the read at the sick member, and time to connect to another one.
    let took = hears(&daemon, 152, 12);
    eprintln!("{api:?}: heard of the peer after {took:?}");
    assert!(daemon.running(), "{}", daemon.text());
    peer(153);
    hears(&daemon, 153, 3);
    daemon.terminate();
    std::fs::remove_file(&daemon.subnet_file).unwrap();

    // At the start the sick member costs little, though it is the first in the list.
    let since = Instant::now();
    let mut again = lab.daemon(1, &args);
    again.subnet();
    eprintln!("{api:?}: started after {:?}", since.elapsed());
    assert!(since.elapsed() < secs(3), "{}", again.text());
    peer(154);
    hears(&again, 154, 3);
}

#[test]
fn a_v2_member_without_quorum_is_left() {
    a_member_without_quorum_is_left(Api::V2);
}

#[test]
fn a_v3_member_without_quorum_is_left() {
    a_member_without_quorum_is_left(Api::V3);
}
