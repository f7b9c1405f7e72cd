//! Promise: SIGHUP reads the settings again. What can change while packets flow takes effect, the rest is named, and
//! damaged files change nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certificates;
mod lab;

use certificates::{AUTHORITY, Folder, flag};
use lab::capture::Capture;
use lab::ipv4::{hex, udp};
use lab::{Api, Lab, Proc, eventually, secs};
use std::fs;
use std::path::Path;

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
        eventually(secs(3), expected, || daemon.text()[before..].contains(expected).then_some(()));
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

/// A fleet may be told to read its settings at once. Nothing has changed for etcd, so etcd notices nothing.
#[test]
fn sighup_without_a_change_is_no_outage() {
    for api in [Api::V2, Api::V3] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, CONFIG);
        let mut daemon = lab.daemon(1, &[api.flag()]);
        daemon.subnet();
        // The watch is running by the time that a new peer is heard of.
        lab.put_lease(api, "10.1.9.0-24", "10.77.0.2");
        daemon.wait_text("Subnet added: 10.1.9.0/24", secs(5));
        let lists = daemon.count("store_lists");
        daemon.signal("HUP");
        daemon.wait_text("SIGHUP: settings", secs(3));
        lab.put_lease(api, "10.1.10.0-24", "10.77.0.3");
        daemon.wait_text("Subnet added: 10.1.10.0/24", secs(5));
        assert!(!daemon.text().contains("Lost the store"), "{}", daemon.text());
        assert_eq!(daemon.count("store_lists"), lists);
    }
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
    let mut daemon = Proc::start(&lab.host(1), &argv, &[], &log);
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
    eventually(secs(12), "two renewals", || {
        (daemon.text()[before..].matches("Lease renewed").count() >= 2).then_some(())
    });
    assert!(!daemon.text()[before..].contains("expired"), "{}", daemon.text());
    // A password file that is gone changes nothing.
    fs::remove_file(&password).unwrap();
    daemon.signal("HUP");
    daemon.wait_text("the old settings stay", secs(3));
    let before = daemon.text().len();
    eventually(secs(8), "a renewal", || daemon.text()[before..].contains("Lease renewed").then_some(()));
}

/// Where the lab's etcd is reached, too.
const ALSO: &str = "http://10.77.0.254:12379";

/// Gives etcd that second port, which one can go on to use when the first is closed.
fn open_second_port(lab: &Lab) {
    let rule = "PREROUTING -d 10.77.0.254 -p tcp --dport 12379 -j REDIRECT --to-ports 2379";
    lab.sh(&lab.ns("sw"), &format!("iptables -t nat -A {rule}"));
}

fn close_first_port(lab: &Lab) {
    lab.sh(&lab.ns("sw"), "iptables -t mangle -A PREROUTING -i br0 -p tcp --dport 2379 -j DROP");
}

fn wait_for(file: &Path, text: &str) {
    eventually(secs(10), &format!("{text} in {}", file.display()), || {
        fs::read_to_string(file).ok()?.contains(text).then_some(())
    });
}

#[test]
fn every_network_takes_over_filter_and_endpoints_also_one_that_comes_later() {
    let Some(lab) = Lab::start(1) else { return };
    open_second_port(&lab);
    let config = |third: u8| {
        format!(r#"{{"Network":"10.{third}.0.0/16","Backend":{{"Type":"udp","Port":78{third}}}}}"#)
    };
    lab.put(Api::V3, "blue/config", &config(11));
    lab.put(Api::V3, "red/config", &config(12));
    let (file, dir, log) = (lab.path("flanneld.env"), lab.path("networks"), lab.path("several.log"));
    let write = |endpoint: &str, filter: &str| {
        let text = format!(
            "FLANNELD_ETCD_ENDPOINTS={endpoint}\nFLANNELD_PEER_FILTER={filter}\nFLANNELD_ETCD_TIMEOUT=500ms\n"
        );
        fs::write(&file, text).unwrap();
    };
    write("http://10.77.0.254:2379", "strict");
    let flags = [flag("env-file", &file), flag("subnet-dir", &dir)];
    let program = lab::flanneld();
    let argv = [&program, "--iface=eth0", "--etcd-api=v3", "--watch-networks", &flags[0], &flags[1]];
    let mut daemon = Proc::start(&lab.host(1), &argv, &[], &log);
    for name in ["blue", "red"] {
        wait_for(&dir.join(format!("{name}.env")), "FLANNEL_SUBNET");
    }
    let accept_local = || lab.sh(&lab.host(1), "cat /proc/sys/net/ipv4/conf/flannel[0-9]*/accept_local");
    assert_eq!(accept_local(), "1\n1\n");

    write(ALSO, "off");
    daemon.signal("HUP");
    eventually(secs(5), "both devices without a filter", || (accept_local() == "0\n0\n").then_some(()));
    close_first_port(&lab);
    lab.put(Api::V3, "green/config", &config(13));
    for (name, key) in [("blue", "10.11.250.0"), ("red", "10.12.250.0")] {
        lab.put(Api::V3, &format!("{name}/subnets/{key}-24"), r#"{"PublicIP":"10.77.0.9"}"#);
        daemon.wait_text(&format!("Subnet added: {key}/24"), secs(10));
    }
    wait_for(&dir.join("green.env"), "FLANNEL_SUBNET");
    eventually(secs(5), "the new network's device", || (accept_local() == "0\n0\n0\n").then_some(()));
    assert!(daemon.running());
}

#[test]
fn a_changed_config_does_not_forget_what_sighup_has_changed() {
    let Some(mut lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let file = lab.path("flanneld.env");
    fs::write(&file, "FLANNELD_PEER_FILTER=strict\n").unwrap();
    let flags = [flag("env-file", &file), flag("state-dir", &lab.path("state"))];
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", &flags[0], &flags[1]]);
    daemon.subnet();
    wait_for(&lab.path("state/network.cache"), "10.1.0.0/16");
    daemon.terminate();
    // The config changes while no daemon looks, and the next start does not find etcd.
    lab.put_config(Api::V3, &CONFIG.replace("10.1.0.0", "10.2.0.0"));
    lab.stop_etcd();
    let mut daemon = lab.daemon(1, &["--etcd-api=v3", &flags[0], &flags[1]]);
    daemon.wait_text("Wrote subnet file to", secs(5));
    fs::write(&file, "FLANNELD_PEER_FILTER=off\n").unwrap();
    daemon.signal("HUP");
    daemon.wait_text("the peer filter is off now", secs(3));
    lab.start_etcd();
    daemon.wait_text("starting anew with it", secs(15));
    wait_for(&daemon.subnet_file, "FLANNEL_NETWORK=10.2.0.0/16");
    let accepts = lab.sh(&lab.host(1), "cat /proc/sys/net/ipv4/conf/flannel0/accept_local");
    assert_eq!(accepts, "0\n", "the filter is as at the start of the process:\n{}", daemon.text());
    assert!(daemon.running());
}

#[test]
fn the_cache_follows_endpoints_that_sighup_changes() {
    let Some(mut lab) = Lab::start(1) else { return };
    open_second_port(&lab);
    lab.put_config(Api::V3, CONFIG);
    let file = lab.path("flanneld.env");
    let write = |endpoint: &str| {
        let text = format!(
            "FLANNELD_ETCD_ENDPOINTS={endpoint}\nFLANNELD_STATE_DIR={}\n",
            lab.path("state").display()
        );
        fs::write(&file, text).unwrap();
    };
    write("http://10.77.0.254:2379");
    let (argument, subnet_file) = (flag("env-file", &file), flag("subnet-file", &lab.path("h1/subnet.env")));
    let program = lab::flanneld();
    let (host, logs) = (lab.host(1), ["one.log", "two.log"].map(|name| lab.path(name)));
    let argv = [&program, "--iface=eth0", "--etcd-api=v3", &argument, &subnet_file];
    let mut daemon = Proc::start(&host, &argv, &[], &logs[0]);
    let cache = lab.path("state/network.cache");
    wait_for(&cache, "http://10.77.0.254:2379");
    write(ALSO);
    daemon.signal("HUP");
    wait_for(&cache, ALSO);
    daemon.terminate();
    lab.stop_etcd();
    let mut daemon = Proc::start(&host, &argv, &[], &logs[1]);
    daemon.wait_text("Starting from the state directory", secs(5));
    daemon.wait_text("Wrote subnet file to", secs(5));
    assert!(daemon.running());
}

/// An etcd in the lab that wants certificates of clients; on loopback it takes plain HTTP.
fn etcd_with_tls(lab: &Lab, folder: &Folder, name: &str, authority: &str) -> Proc {
    let files = |what: &str, file: &str| flag(what, &folder.path(file));
    let argv = [
        "etcd".to_owned(),
        flag("data-dir", &lab.path("tls-etcd")),
        "--listen-client-urls=https://10.77.0.254:2379,http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=https://10.77.0.254:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        files("cert-file", &format!("{name}.pem")),
        files("key-file", &format!("{name}.key")),
        files("trusted-ca-file", &format!("{authority}.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let etcd = lab.spawn(&lab.ns("sw"), &format!("etcd-{name}"), &argv);
    eventually(secs(20), "etcd", || {
        let health = lab.try_run(&lab.ns("sw"), &["curl", "-fsSm2", "http://127.0.0.1:2379/health"]);
        health.status.success().then_some(())
    });
    etcd
}

/// The authority is exchanged, and with it the certificates of etcd and of the daemon, as a rotation does it.
#[test]
fn rotated_certificates_are_used_and_the_lease_stays() {
    let Some(lab) = Lab::without_etcd(1) else { return };
    let folder = Folder::new();
    for n in [1, 2] {
        folder.own(&format!("ca{n}"), "ec:P-256", &[AUTHORITY]);
        let (ca, server) = (format!("ca{n}"), "subjectAltName=IP:10.77.0.254");
        folder.signed(&format!("server{n}"), "ec:P-256", &ca, &[server], "");
        folder.signed(&format!("client{n}"), "ec:P-256", &ca, &["extendedKeyUsage=clientAuth"], "");
    }
    let install = |n: u8| {
        for (from, to) in [("ca", "ca.pem"), ("client", "client.pem")] {
            fs::copy(folder.path(&format!("{from}{n}.pem")), folder.path(to)).unwrap();
        }
        fs::copy(folder.path(&format!("client{n}.key")), folder.path("client.key")).unwrap();
    };
    install(1);
    let mut etcd = etcd_with_tls(&lab, &folder, "server1", "ca1");
    let ctl = |line: &str| {
        lab.sh(&lab.ns("sw"), &format!("ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 {line}"))
    };
    ctl(&format!("put /coreos.com/network/config '{CONFIG}'"));
    let tls = ["cafile", "certfile", "keyfile"].map(|what| {
        let file = if what == "cafile" {
            "ca.pem"
        } else if what == "certfile" {
            "client.pem"
        } else {
            "client.key"
        };
        flag(&format!("etcd-{what}"), &folder.path(file))
    });
    let args =
        ["--etcd-api=v3", "--etcd-endpoints=https://10.77.0.254:2379", "--lease-ttl=20", "--etcd-timeout=1s"];
    let mut daemon = lab.daemon(1, &[&args[..], &[&*tls[0], &*tls[1], &*tls[2]]].concat());
    let subnet = daemon.subnet();
    let key = format!("/coreos.com/network/subnets/{}", subnet.key());
    let before = ctl(&format!("get {key} -w fields"));

    install(2);
    daemon.signal("HUP");
    daemon.wait_text("SIGHUP: settings, password and TLS files are read again", secs(3));
    etcd.terminate();
    let mut etcd = etcd_with_tls(&lab, &folder, "server2", "ca2");
    let said = daemon.text().len();
    eventually(secs(20), "a renewal with the new certificate", || {
        daemon.text()[said..].contains("Lease renewed").then_some(())
    });
    let after = ctl(&format!("get {key} -w fields"));
    let created = |text: &str| text.lines().find(|line| line.contains("CreateRevision")).unwrap().to_owned();
    assert_eq!(created(&after), created(&before), "the key was never gone");
    let text = daemon.text();
    assert!(!text.contains("expired") && text.matches("Lease acquired").count() == 1, "{text}");
    assert!(daemon.running() && etcd.running());

    // Files that do not fit each other change nothing.
    fs::copy(folder.path("client1.key"), folder.path("client.key")).unwrap();
    let said = daemon.text().len();
    daemon.signal("HUP");
    eventually(secs(3), "a refusal", || daemon.text()[said..].contains("ERROR").then_some(()));
    let said = daemon.text().len();
    eventually(secs(20), "another renewal", || daemon.text()[said..].contains("Lease renewed").then_some(()));
    assert!(daemon.running());
}
