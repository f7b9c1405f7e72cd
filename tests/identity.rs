//! Promise: hosts are told apart by their NodeID: two with one address do not fight for a lease, and a host keeps its
//! subnet when its address changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::store::named;
use lab::{Api, Daemon, Lab, eventually, secs};
use std::time::Instant;

const CONFIG: &str = r#"{"Network":"10.10.0.0/16","Backend":{"Type":"alloc"}}"#;
/// An address that no host of the lab has: its owner is behind NAT, so that the link cannot tell who has it.
const NAT: &str = "--public-ip=192.0.2.50";

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

/// A daemon on host `i`. Its NodeID comes from the environment, which an older flanneld does not read.
fn host(lab: &Lab, i: usize, api: Api, node: &str, args: &[&str]) -> Daemon {
    let file = lab.path(&format!("h{i}/flannel/subnet.env"));
    let args = [&["--iface=eth0", api.flag()], args].concat();
    Daemon::start(lab, &lab.host(i), &file, &args, &[("FLANNELD_NODE_ID", node)])
}

fn ends_with(daemon: &mut Daemon, code: i32, limit: u64, phrases: &[&str]) {
    let status = daemon.wait(secs(limit)).unwrap_or_else(|| panic!("it should end:\n{}", daemon.text()));
    let text = daemon.text();
    assert_eq!(status.code(), Some(code), "{text}");
    for phrase in phrases {
        assert!(text.contains(phrase), "{phrase:?} in {text}");
    }
}

fn metric(lab: &Lab, i: usize, name: &str) -> String {
    let text = lab.run(&lab.host(i), &["curl", "-fsSm5", "http://127.0.0.1:8471/metrics"]);
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn a_second_host_with_our_public_ip_is_refused() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(2) else { return };
        lab.put_config(api, CONFIG);
        let mut first = host(&lab, 1, api, "first", &[NAT]);
        let subnet = first.subnet();
        let started = Instant::now();
        let mut second = host(&lab, 2, api, "second", &[NAT]);
        let phrases = [
            &*format!(
                "{}/24 is leased to our public IP 192.0.2.50 under another node id, first",
                subnet.base()
            ),
            "(ours is second)",
            "it writes its lease anew",
            "--force-takeover",
        ];
        ends_with(&mut second, 3, 10, &phrases);
        eprintln!("{api:?}: refused after {:?}", started.elapsed());
        assert!(!second.subnet_file.exists());
        // The first one is as it was, and has heard who asks.
        assert!(first.text().contains("node second asks whether we live"), "{}", first.text());
        assert!(!first.text().contains("Lease has been revoked"), "{}", first.text());
        let leases = lab.leases(api);
        let (_, node) = named(&leases[&subnet.key()]);
        assert_eq!((node.as_str(), leases.len()), ("first", 1), "{leases:?}");
        // By force the lease goes to the second one, and the first one is told by whom.
        let mut second = host(&lab, 2, api, "second", &[NAT, "--force-takeover"]);
        assert_eq!(second.subnet(), subnet);
        ends_with(&mut first, 1, 5, &["belongs to 192.0.2.50 (node second) now"]);
        assert_eq!(named(&lab.leases(api)[&subnet.key()]).1, "second");
    }
}

#[test]
fn an_answer_to_arp_is_a_sign_of_life() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, CONFIG);
    // The first one has died and its host has not.
    let mut first = host(&lab, 1, Api::V3, "first", &[]);
    let subnet = first.subnet();
    first.kill();
    let before = lab.leases(Api::V3);
    let mac = lab.sh(&lab.host(1), "cat /sys/class/net/eth0/address");
    let mut second = host(&lab, 2, Api::V3, "second", &["--public-ip=10.77.0.1"]);
    let answer = format!("{} answers ARP for that address", mac.trim());
    ends_with(&mut second, 3, 5, &["under another node id, first (ours is second)", &answer]);
    assert_eq!(lab.leases(Api::V3), before, "nothing was written");
    // It comes back, and nobody is in its way.
    let mut first = host(&lab, 1, Api::V3, "first", &[]);
    assert_eq!(first.subnet(), subnet);
}

#[test]
fn a_reinstalled_host_gets_its_lease_after_a_minute() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let mut before = host(&lab, 1, Api::V3, "before", &[]);
    let subnet = before.subnet();
    before.kill();
    std::fs::remove_file(&before.subnet_file).unwrap();
    let started = Instant::now();
    let mut after = host(&lab, 1, Api::V3, "after", &[]);
    after.wait_text("waiting up to 60 s for a sign of life", secs(5));
    after.wait_text("Took over the lease of", secs(70));
    let took = started.elapsed();
    assert!(took > secs(60), "{took:?}");
    assert_eq!(after.subnet(), subnet);
    let leases = lab.leases(Api::V3);
    let (value, node) = named(&leases[&subnet.key()]);
    assert_eq!((value.as_str(), node.as_str()), (r#"{"PublicIP":"10.77.0.1","PublicIPv6":null}"#, "after"));
    assert_eq!(leases.len(), 1, "{leases:?}");
}

#[test]
fn a_host_whose_address_changed_while_it_was_away_keeps_its_subnet() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, CONFIG);
        let state = format!("--state-dir={}", lab.path("state").display());
        let mut before = lab.daemon(1, &[api.flag(), &state, NAT]);
        let subnet = before.subnet();
        let (_, node) = named(&lab.leases(api)[&subnet.key()]);
        assert!(node.len() == 32 && node.bytes().all(|byte| byte.is_ascii_hexdigit()), "{node}");
        before.terminate();
        std::fs::remove_file(&before.subnet_file).unwrap();
        let mut after = lab.daemon(1, &[api.flag(), &state, "--public-ip=192.0.2.51"]);
        assert_eq!(after.subnet(), subnet);
        let leases = lab.leases(api);
        let (value, same) = named(&leases[&subnet.key()]);
        assert!(value.starts_with(r#"{"PublicIP":"192.0.2.51""#), "{value}");
        assert_eq!((same, leases.len()), (node, 1), "{leases:?}");
        // Without the directory there is the machine id, which is not shown, and a lease of the address is ours.
        after.terminate();
        let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        if text.trim().len() == 32 {
            let mut alone = lab.daemon(1, &[api.flag(), "--public-ip=192.0.2.60"]);
            let subnet = alone.subnet();
            let (_, node) = named(&lab.leases(api)[&subnet.key()]);
            assert!(node.starts_with("machine-") && !node.contains(text.trim()), "{node}");
        }
    }
}

#[test]
fn a_copy_of_a_hosts_state_directory_is_refused() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(2) else { return };
        lab.put_config(api, CONFIG);
        let state = |i: usize| format!("--state-dir={}", lab.path(&format!("state-{i}")).display());
        let mut first = lab.daemon(1, &[api.flag(), &state(1)]);
        let subnet = first.subnet();
        let (_, node) = named(&lab.leases(api)[&subnet.key()]);
        let copy = format!("cp -r {0}/state-1 {0}/state-2", lab.path("").display());
        lab.sh(&lab.host(1), &copy);
        let mut second = lab.daemon(2, &[api.flag(), &state(2)]);
        let sentence = format!(
            "{}/24 is leased to our node id {node} under another public IP, 10.77.0.1 (ours is 10.77.0.2)",
            subnet.base()
        );
        ends_with(&mut second, 3, 10, &[&sentence, "it writes its lease anew", "remove the file node-id"]);
        assert_eq!(lab.leases(api).len(), 1);
        // As the sentence says.
        std::fs::remove_file(lab.path("state-2/node-id")).unwrap();
        let mut second = lab.daemon(2, &[api.flag(), &state(2)]);
        assert_ne!(second.subnet(), subnet);
        assert!(first.running());
    }
}

#[test]
fn two_hosts_with_one_node_id_do_not_fight_for_long() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, CONFIG);
    let mut first = host(&lab, 1, Api::V3, "same", &["--healthz-port=8471"]);
    let subnet = first.subnet();
    let mut second = host(&lab, 2, Api::V3, "same", &["--force-takeover"]);
    assert_eq!(second.subnet(), subnet);
    // The first one takes it back once, since it may be its own write of an earlier address; then it knows better.
    first.wait_text("writes our lease", secs(3));
    assert_eq!(metric(&lab, 1, "flanneld_lease_overwrites_total"), "1");
    let phrases =
        ["as 10.77.0.2 (node same); taking it back", "two hosts have one node id", "remove the file node-id"];
    ends_with(&mut first, 1, 20, &phrases);
    let revoked = "Lease has been revoked";
    assert!(first.text().contains(&format!("{revoked}: {}/24 belongs to 10.77.0.2", subnet.base())));
    assert!(!second.text().contains(revoked) && second.running(), "{}", second.text());
    let value = &lab.leases(Api::V3)[&subnet.key()];
    assert!(value.starts_with(r#"{"PublicIP":"10.77.0.2""#), "{value}");
    // The unit starts it again.
    let mut first = host(&lab, 1, Api::V3, "same", &[]);
    ends_with(&mut first, 3, 10, &["is leased to our node id same under another public IP, 10.77.0.2"]);
}

#[test]
fn a_second_interface_on_the_same_link_is_no_other_host() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let (host_ns, sw) = (lab.host(1), lab.ns("sw"));
    lab.ip(&format!("-n {host_ns} link add eth1 type veth peer name second netns {sw}"));
    lab.ip(&format!("-n {sw} link set second master br0 up"));
    lab.ip(&format!("-n {host_ns} link set eth1 up"));
    // It answers for every address of its host, as Linux does by itself.
    let mut before = host(&lab, 1, Api::V3, "before", &[]);
    before.subnet();
    before.kill();
    let mut after = host(&lab, 1, Api::V3, "after", &[]);
    after.wait_text("waiting up to 60 s for a sign of life", secs(5));
    std::thread::sleep(secs(3));
    assert!(after.running(), "{}", after.text());
    assert!(!after.text().contains("answers ARP"), "{}", after.text());
    let asked = lab.leases(Api::V3).into_values().next().unwrap();
    assert!(asked.ends_with(r#""NodeID":"before","AskedBy":"after"}"#), "{asked}");
}

#[test]
fn the_node_id_stays_when_the_external_address_is_followed() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(2) else { return };
        lab.put_config(api, CONFIG);
        let mut daemon = host(&lab, 1, api, "ours", &["--healthz-port=8471"]);
        let subnet = daemon.subnet();
        // At the address to be, another host has left its lease.
        let theirs = |node: &str| format!(r#"{{"PublicIP":"10.77.0.101","NodeID":"{node}"}}"#);
        lab.put(api, "subnets/10.10.200.0-24", &theirs("theirs"));
        daemon.wait_text("Subnet added: 10.10.200.0/24", secs(3));
        for line in ["addr add 10.77.0.101/24 dev eth0", "addr del 10.77.0.1/24 dev eth0"] {
            lab.sh(&lab.host(1), "echo 1 >/proc/sys/net/ipv4/conf/all/promote_secondaries");
            lab.ip(&format!("-n {} {line}", lab.host(1)));
        }
        let moved = eventually(secs(5), "the new address", || {
            let value = lab.leases(api).get(&subnet.key()).cloned()?;
            value.starts_with(r#"{"PublicIP":"10.77.0.101""#).then_some(value)
        });
        assert_eq!(named(&moved).1, "ours");
        // Nothing was taken from the other one, and the log names it.
        assert_eq!(lab.leases(api)["10.10.200.0-24"], theirs("theirs"));
        daemon.wait_text("its PublicIP is our own, and its node id is another one: theirs", secs(5));
        // A later start finds the lease of its name and new address at once, but for the other one's.
        daemon.terminate();
        lab.delete_lease(api, "10.10.200.0-24");
        let started = Instant::now();
        let mut again = host(&lab, 1, api, "ours", &[]);
        assert_eq!(again.subnet(), subnet);
        assert!(started.elapsed() < secs(4), "{:?}", started.elapsed());
    }
}

/// It is known by its NodeID, and a copy of it may live at the old address.
#[test]
fn a_host_with_a_new_address_starts_from_its_cache_and_asks_before_it_writes() {
    let Some(mut lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, CONFIG);
    let start = |lab: &Lab, i: usize, more: &[&str]| {
        let state = format!("--state-dir={}", lab.path(&format!("state-{i}")).display());
        lab.daemon(i, &[&["--etcd-api=v3", &state], more].concat())
    };
    let mut daemon = start(&lab, 1, &[]);
    let subnet = daemon.subnet();
    let before = lab.leases(Api::V3)[&subnet.key()].clone();
    daemon.terminate();
    lab.stop_etcd();
    let copy = format!("cp -r {0}/state-1 {0}/state-2", lab.path("").display());
    lab.sh(&lab.host(1), &copy);

    let mut daemon = start(&lab, 1, &["--public-ip=10.77.0.9"]);
    daemon.wait_text("Starting from the state directory", secs(5));
    assert_eq!(daemon.subnet(), subnet);
    lab.start_etcd();
    daemon.wait_text("under another public IP, 10.77.0.1 (ours is 10.77.0.9)", secs(10));
    let value = before.replace("10.77.0.1\"", "10.77.0.9\"");
    eventually(secs(10), "the new address", || (lab.leases(Api::V3)[&subnet.key()] == value).then_some(()));
    assert!(!daemon.text().contains("Lease has been revoked"), "{}", daemon.text());

    // The copy of the directory has a lease in it. It is used as long as the store is away, and asked about then.
    lab.stop_etcd();
    let mut second = start(&lab, 2, &[]);
    second.wait_text("Starting from the state directory", secs(5));
    lab.start_etcd();
    ends_with(&mut second, 3, 20, &["under another public IP, 10.77.0.9 (ours is 10.77.0.2)"]);
    assert!(!lab.path("state-2/network.cache").exists(), "it would be used again");
    assert_eq!(lab.leases(Api::V3)[&subnet.key()], value);
    assert!(daemon.running() && !daemon.text().contains("Lease has been revoked"), "{}", daemon.text());
}

#[test]
fn a_lease_of_flannel_is_ours_by_its_public_ip() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, CONFIG);
    let lease = |value: &str| {
        let url = "http://10.77.0.254:2379/v2/keys/coreos.com/network/subnets/10.10.7.0-24";
        let body = format!("value={value}");
        lab.run(&lab.ns("sw"), &["curl", "-fsSm5", "-XPUT", url, "-dttl=3600", "--data-urlencode", &body]);
    };
    let theirs = r#"{"PublicIP":"10.77.0.1"}"#;
    lease(theirs);
    let started = Instant::now();
    let mut daemon = host(&lab, 1, Api::V2, "ours", &["--healthz-port=8471"]);
    assert_eq!(daemon.subnet().key(), "10.10.7.0-24");
    assert!(started.elapsed() < secs(4), "{:?}", started.elapsed());
    assert_eq!(named(&lab.leases(Api::V2)["10.10.7.0-24"]), (theirs.to_owned(), "ours".to_owned()));
    // A flannel that runs beside us writes it again and again. We take it back, and say so once.
    assert_eq!(metric(&lab, 1, "flanneld_lease_overwrites_total"), "0");
    for round in 1..=2 {
        lease(theirs);
        eventually(secs(7), "our value", || {
            (named(&lab.leases(Api::V2)["10.10.7.0-24"]).1 == "ours").then_some(())
        });
        assert_eq!(metric(&lab, 1, "flanneld_lease_overwrites_total"), round.to_string());
    }
    let lines = daemon.text().matches("another flanneld writes our lease of 10.10.7.0/24 as its own").count();
    assert_eq!(lines, 1, "{}", daemon.text());
}

#[test]
fn a_peers_lease_that_changes_hands_is_told_and_counted() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    lab.put_lease(Api::V3, "10.10.200.0-24", "192.0.2.8");
    let mut daemon = host(&lab, 1, Api::V3, "ours", &["--healthz-port=8471"]);
    daemon.subnet();
    daemon.wait_text("Subnet added: 10.10.200.0/24", secs(3));
    lab.put_lease(Api::V3, "10.10.200.0-24", "192.0.2.9");
    daemon.wait_text("Lease of 10.10.200.0/24 has changed hands: from 192.0.2.8 to 192.0.2.9", secs(3));
    let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"NodeID":"b"}"#;
    for node in ["a", "b"] {
        lab.put(Api::V3, "subnets/10.10.200.0-24", &value.replace("\"b\"", &format!("\"{node}\"")));
    }
    daemon.wait_text("from 192.0.2.9 (node a) to 192.0.2.9 (node b)", secs(3));
    assert_eq!(metric(&lab, 1, "flanneld_lease_handovers_total"), "2");
}
