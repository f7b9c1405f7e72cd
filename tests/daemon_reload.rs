//! Promise: SIGHUP reads the settings again. What can change while packets flow takes effect, the rest is named, and
//! damaged files change nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::capture::Capture;
use lab::ipv4::{hex, udp};
use lab::{Api, Lab, secs};
use std::fs;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":8285}}"#;

#[test]
fn level_and_filter_change_live_and_the_rest_is_named() {
    let Some(lab) = Lab::start(3) else { return };
    lab.put_config(Api::V2, CONFIG);
    lab.put_lease(Api::V2, "10.1.5.0-24", "10.77.0.1");
    lab.put_lease(Api::V2, "10.1.9.0-24", "10.77.0.2");
    let file = lab.path("flanneld.env");
    let write = |text: &str| fs::write(&file, text).unwrap();
    write("FLANNELD_PEER_FILTER=strict\nFLANNELD_BATCH=32\n");
    let argument = format!("--env-file={}", file.display());
    // Two workers, so that both must take the change.
    let mut daemon = lab.daemon(1, &["--etcd-api=v2", "--workers=2", &argument]);
    daemon.subnet();
    let host = lab.host(1);
    let accepts_local = || lab.sh(&host, "cat /proc/sys/net/ipv4/conf/flannel0/accept_local") == "1\n";
    let reload = |expected: &str| {
        let before = daemon.text().len();
        daemon.signal("HUP");
        lab::eventually(secs(3), expected, || daemon.text()[before..].contains(expected).then_some(()));
        daemon.text()[before..].to_owned()
    };
    let mut stranger = lab.tool(&lab.host(3), "udp_socket 10.77.0.3:8285");
    let mut strange = || {
        let packet = udp("10.1.9.3", "10.1.5.2", 60, b"from a stranger");
        stranger.write(&format!("10.77.0.1:8285 {}", hex(&packet)));
    };
    lab.ip(&format!("-n {host} route add blackhole 10.1.5.0/24"));
    let written = Capture::start(&lab, &host, "flannel0", "in", "not icmp");
    let counted = daemon.drops();
    strange();
    let (gained, _) = daemon.gained(&counted);
    assert_eq!(gained.into_iter().collect::<Vec<_>>(), [("unknown_peer".to_owned(), 1)]);
    assert!(accepts_local());

    write("FLANNELD_PEER_FILTER=off\nFLANNELD_BATCH=32\n");
    let said = reload("the peer filter is off now");
    assert!(said.contains(&format!("changed: FLANNELD_PEER_FILTER in {}", file.display())), "{said}");
    assert!(!accepts_local(), "without a filter strangers could speak as this host");
    strange();
    written.at_least(1, secs(3));

    // The command line wins over the file, then as now; what takes a restart is named each time.
    write(
        "FLANNELD_PEER_FILTER=inner\nFLANNELD_BATCH=64\nFLANNELD_WORKERS=1\nFLANNELD_V=1\nFLANNELD_NONE=1\n",
    );
    for _ in 0..2 {
        let said = reload("FLANNELD_BATCH in");
        assert!(said.contains("has changed and takes effect at a restart"), "{said}");
        assert!(said.contains("FLANNELD_NONE in") && !said.contains("FLANNELD_WORKERS"), "{said}");
    }
    assert!(accepts_local());

    // A file that was written by half, or whose values make no sense, changes nothing.
    for (damaged, expected) in [
        ("FLANNELD_PEER_FILTER=off\nFLANN", "line 2: a line without ="),
        ("FLANNELD_PEER_FILTER=of\n", "invalid value \"of\" for FLANNELD_PEER_FILTER in"),
    ] {
        write(damaged);
        let said = reload("the old settings stay");
        assert!(said.contains(expected) && said.contains("ERROR"), "{said}");
    }
    fs::remove_file(&file).unwrap();
    assert!(reload("the old settings stay").contains("cannot read"));
    assert!(accepts_local() && daemon.running());
}

#[test]
fn without_a_file_sighup_ends_nothing() {
    let Some(lab) = Lab::without_etcd(1) else { return };
    // No network yet: the signal is obeyed while the daemon waits.
    let mut daemon = lab.daemon(1, &[]);
    daemon.wait_text("Couldn't fetch network config", secs(10));
    daemon.signal("HUP");
    daemon.wait_text("SIGHUP: settings", secs(3));
    assert!(daemon.running());
    assert_eq!(daemon.terminate().0.code(), Some(0));
}

#[test]
fn endpoints_change_before_and_after_the_start() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, CONFIG);
    let file = lab.path("flanneld.env");
    let good = "FLANNELD_ETCD_ENDPOINTS=http://10.77.0.254:2379\nFLANNELD_ETCD_TIMEOUT=500ms\n";
    let bad = "FLANNELD_ETCD_ENDPOINTS=http://10.77.0.254:1\nFLANNELD_ETCD_TIMEOUT=500ms\n";
    let write = |text: &str| fs::write(&file, text).unwrap();
    write(bad);
    let argument = format!("--env-file={}", file.display());
    let subnet_file = lab.path("h1/subnet.env");
    let subnet_argument = format!("--subnet-file={}", subnet_file.display());
    let log = lab.path("flanneld.log");
    let argv = [&lab::flanneld(), "--iface=eth0", &argument, &subnet_argument];
    let mut daemon = lab::Proc::start(&lab.host(1), &argv, &[], &log);
    daemon.wait_text("Couldn't fetch network config", secs(10));
    write(good);
    daemon.signal("HUP");
    daemon.wait_text("Wrote subnet file to", secs(10));

    // A second host joins while the first looks for etcd where it is not.
    write(bad);
    daemon.signal("HUP");
    daemon.wait_text("Lost the store", secs(10));
    let mut second = lab.daemon(2, &["--etcd-api=v3"]);
    let theirs = second.subnet();
    write(good);
    daemon.signal("HUP");
    daemon.wait_text(&format!("Subnet added: {}/{}", theirs.base(), theirs.prefix_len()), secs(10));
    let mine = lab::Subnet::parse(&fs::read_to_string(&subnet_file).unwrap()).unwrap();
    let ends = [lab.container(1, &mine), lab.container(2, &theirs)];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    // The watch has moved, too: it tells of a peer that comes now.
    lab.put_lease(Api::V3, "10.1.250.0-24", "10.77.0.9");
    daemon.wait_text("Subnet added: 10.1.250.0/24", secs(3));
    assert!(daemon.running());
}

#[test]
fn a_new_password_is_taken_from_its_file() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let sw = lab.ns("sw");
    let etcdctl = |line: &str| {
        lab.sh(&sw, &format!("ETCDCTL_API=3 etcdctl --endpoints=http://10.77.0.254:2379 {line}"))
    };
    etcdctl("user add root:root && etcdctl --endpoints=http://10.77.0.254:2379 user grant-role root root");
    etcdctl(
        "user add flannel:one && etcdctl --endpoints=http://10.77.0.254:2379 user grant-role flannel root",
    );
    etcdctl("auth enable");
    let (file, password) = (lab.path("flanneld.env"), lab.path("password"));
    fs::write(&password, "one\n").unwrap();
    let settings = |user: &str| {
        let text =
            format!("FLANNELD_ETCD_USERNAME={user}\nFLANNELD_ETCD_PASSWORD_FILE={}\n", password.display());
        fs::write(&file, text).unwrap();
    };
    settings("flannel");
    let mut daemon =
        lab.daemon(1, &["--etcd-api=v3", "--lease-ttl=6", &format!("--env-file={}", file.display())]);
    daemon.subnet();
    etcdctl("--user=root:root user passwd flannel --interactive=false <<'END'\ntwo\nEND");
    fs::write(&password, "two\n").unwrap();
    let before = daemon.text().len();
    daemon.signal("HUP");
    // The lease is renewed with the new password, twice.
    lab::eventually(secs(12), "two renewals", || {
        (daemon.text()[before..].matches("Lease renewed").count() >= 2).then_some(())
    });
    assert!(!daemon.text()[before..].contains("expired"), "{}", daemon.text());
    // A password file that is gone changes nothing.
    fs::remove_file(&password).unwrap();
    daemon.signal("HUP");
    daemon.wait_text("the old settings stay", secs(3));
    let before = daemon.text().len();
    lab::eventually(secs(8), "a renewal", || daemon.text()[before..].contains("Lease renewed").then_some(()));
}
