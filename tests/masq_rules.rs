//! Promise: masquerade and forward rules are flannel's to the letter, come back when somebody deletes them, and
//! are the only ones that are touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, ms, secs};
use std::path::Path;

/// Starts a lab of one host with firewall tools; `None` where there can be none.
fn host() -> Option<Lab> {
    if lab::has_firewall_tools() { Lab::start(1) } else { None }
}

/// A pool of one subnet, so that every address is known beforehand.
fn config(lab: &Lab, net: u8, nftables: bool) {
    lab.put_config(
        Api::V3,
        &format!(
            r#"{{"Network":"10.{net}.0.0/16","SubnetMin":"10.{net}.5.0","SubnetMax":"10.{net}.5.0","EnableNFTables":{nftables},"Backend":{{"Type":"alloc"}}}}"#
        ),
    );
    for (key, _) in lab.leases(Api::V3) {
        lab.delete_lease(Api::V3, &key);
    }
}

fn start(lab: &Lab, args: &[&str]) -> Daemon {
    let file = lab.path("h1/flannel/subnet.env");
    let before = std::fs::metadata(&file).and_then(|file| file.modified()).ok();
    let daemon = lab.daemon(1, &[&["--etcd-api=v3", "--iptables-resync=1"], args].concat());
    lab::eventually(secs(10), "a new subnet file", || {
        let now = std::fs::metadata(&file).and_then(|file| file.modified()).ok();
        (now.is_some() && now != before).then_some(())
    });
    daemon
}

fn sh(lab: &Lab, script: &str) -> String {
    lab.sh(&lab.host(1), &format!("PATH=$PATH:/usr/sbin:/sbin; set -e; {script}"))
}

/// Runs `iptables-save` and leaves out comments and counters.
fn saved(lab: &Lab) -> String {
    sh(lab, "iptables-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//' || true")
}

fn becomes(what: &str, wanted: &str, shown: impl Fn() -> String) {
    let end = std::time::Instant::now() + secs(4);
    loop {
        let text = shown();
        if text == wanted {
            return;
        }
        assert!(std::time::Instant::now() < end, "{what}:\n{text}\ninstead of\n{wanted}");
        std::thread::sleep(ms(50));
    }
}

/// Does damage while the daemon stands still, and waits for the repair.
fn damaged(lab: &Lab, daemon: &Daemon, damage: &str, wanted: &str, shown: impl Fn() -> String) {
    daemon.signal("STOP");
    sh(lab, damage);
    assert_ne!(shown(), wanted, "{damage}");
    daemon.signal("CONT");
    becomes(damage, wanted, shown);
}

const FOREIGN: &str = "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; \
                       iptables -P FORWARD DROP; iptables -A FORWARD -s 192.0.2.0/24 -j REJECT; \
                       nft add table ip mine; nft add chain ip mine c";

/// What `iptables-save` says on a host with foreign rules and those of one network; with `None`, foreign rules alone.
fn expected(net: Option<u8>, masquerade: bool) -> String {
    let (mut fwd_chain, mut fwd_jump, mut fwd) = ("", "", String::new());
    let (mut nat_chain, mut nat_jump, mut nat) = ("", "", String::new());
    if let Some(n) = net {
        let comment = "-m comment --comment \"flanneld forward\" -j ACCEPT";
        fwd_chain = ":FLANNEL-FWD -\n";
        fwd_jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
        fwd = format!(
            "-A FLANNEL-FWD -s 10.{n}.0.0/16 {comment}\n\
             -A FLANNEL-FWD -d 10.{n}.0.0/16 {comment}\n"
        );
    }
    if let Some(n) = net.filter(|_| masquerade) {
        let comment = "-m comment --comment \"flanneld masq\" -j";
        nat_chain = ":FLANNEL-POSTRTG -\n";
        nat_jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n";
        nat = format!(
            "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} RETURN\n\
             -A FLANNEL-POSTRTG -s 10.{n}.5.0/24 -d 10.{n}.0.0/16 {comment} RETURN\n\
             -A FLANNEL-POSTRTG -s 10.{n}.0.0/16 -d 10.{n}.5.0/24 {comment} RETURN\n\
             -A FLANNEL-POSTRTG ! -s 10.{n}.0.0/16 -d 10.{n}.5.0/24 {comment} RETURN\n\
             -A FLANNEL-POSTRTG -s 10.{n}.0.0/16 ! -d 224.0.0.0/4 {comment} MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s 10.{n}.0.0/16 -d 10.{n}.0.0/16 {comment} MASQUERADE --random-fully\n"
        );
    }
    format!(
        "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n{fwd_chain}\
         -A FORWARD -s 192.0.2.0/24 -j REJECT --reject-with icmp-port-unreachable\n{fwd_jump}{fwd}COMMIT\n\
         *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n{nat_chain}\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n{nat_jump}{nat}COMMIT\n"
    )
}

fn only_foreign_nft(lab: &Lab) {
    assert_eq!(sh(lab, "nft list table ip mine"), "table ip mine {\n\tchain c {\n\t}\n}\n");
}

#[test]
fn iptables_rules_are_flannels_to_the_letter_and_stay_so() {
    let Some(lab) = host() else { return };
    config(&lab, 10, false);
    sh(&lab, FOREIGN);
    assert_eq!(saved(&lab), expected(None, false));
    let whole = expected(Some(10), true);
    for _ in 0..2 {
        let mut daemon = start(&lab, &["-ip-masq"]);
        assert_eq!(saved(&lab), whole);
        assert_eq!(daemon.subnet().ipmasq, "true");
        // Some resync periods later the daemon has found nothing wrong.
        std::thread::sleep(ms(2200));
        assert_eq!(saved(&lab), whole);
        assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
        daemon.terminate();
        assert_eq!(saved(&lab), whole, "SIGTERM leaves the rules");
    }
    let mut daemon = start(&lab, &["-ip-masq", "--cleanup-on-exit"]);
    for damage in [
        "iptables -t nat -D FLANNEL-POSTRTG 4",
        "iptables -t nat -F FLANNEL-POSTRTG",
        "iptables -D FLANNEL-FWD 1",
        "iptables -A FLANNEL-FWD -s 10.10.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT",
        "iptables -t nat -D POSTROUTING 2; iptables -t nat -F FLANNEL-POSTRTG; iptables -t nat -X FLANNEL-POSTRTG",
        "iptables -D FORWARD 2",
    ] {
        damaged(&lab, &daemon, damage, &whole, || saved(&lab));
    }
    assert!(daemon.text().contains("changed by somebody"), "{}", daemon.text());
    daemon.terminate();
    assert_eq!(saved(&lab), expected(None, false), "--cleanup-on-exit");
    only_foreign_nft(&lab);
}

#[test]
fn rules_of_an_older_network_and_of_flags_now_off_go() {
    let Some(lab) = host() else { return };
    config(&lab, 10, false);
    sh(&lab, FOREIGN);
    start(&lab, &["-ip-masq"]).terminate();
    config(&lab, 20, false);
    start(&lab, &["-ip-masq", "-ip-blackhole-route"]).terminate();
    assert_eq!(saved(&lab), expected(Some(20), true));
    let blackholes = || lab.ip(&format!("-n {} route show type blackhole", lab.host(1)));
    assert!(blackholes().starts_with("blackhole 10.20.5.0/24 "), "{}", blackholes());
    // Forward rules are on by default, masquerading is not. Without masquerading the subnet file does not wait for the
    // rules.
    let mut daemon = start(&lab, &[]);
    becomes("the blackhole route", "", blackholes);
    becomes("forward rules only", &expected(Some(20), false), || saved(&lab));
    daemon.terminate();
    start(&lab, &["-ip-masq", "-iptables-forward-rules=false", "-ip-masq-fully-random-disable"]).terminate();
    let text = saved(&lab);
    assert!(!text.contains("FLANNEL-FWD") && !text.contains("random-fully"), "{text}");
    assert!(text.contains("-A FLANNEL-POSTRTG -s 10.20.0.0/16 ! -d 224.0.0.0/4"), "{text}");
    let mut daemon = start(&lab, &["-iptables-forward-rules=false"]);
    becomes("no rules", &expected(None, false), || saved(&lab));
    daemon.terminate();
}

const NFT: &str = "table ip flannel-ipv4 {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.10.5.0/24 ip daddr 10.10.0.0/16 return
		ip saddr 10.10.0.0/16 ip daddr 10.10.5.0/24 return
		ip saddr != 10.10.0.0/16 ip daddr 10.10.5.0/24 return
		ip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.10.0.0/16 ip daddr 10.10.0.0/16 masquerade fully-random
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.10.0.0/16 accept
		ip daddr 10.10.0.0/16 accept
	}
}
";

#[test]
fn the_nftables_table_is_ours_whole_and_each_flavour_cleans_the_other() {
    let Some(lab) = host() else { return };
    sh(&lab, "nft add table ip mine; nft add chain ip mine c");
    let foreign = sh(&lab, "nft list ruleset");
    let whole = format!("{foreign}{NFT}");
    let ruleset = || sh(&lab, "nft list ruleset");
    config(&lab, 10, true);
    for _ in 0..2 {
        let mut daemon = start(&lab, &["-ip-masq"]);
        assert_eq!(ruleset(), whole);
        std::thread::sleep(ms(2200));
        assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
        daemon.terminate();
        assert_eq!(ruleset(), whole, "SIGTERM leaves the rules");
    }
    let mut daemon = start(&lab, &["-ip-masq"]);
    for damage in [
        "nft flush chain ip flannel-ipv4 postrtg",
        "nft add rule ip flannel-ipv4 forward drop",
        "nft delete table ip flannel-ipv4",
    ] {
        damaged(&lab, &daemon, damage, &whole, ruleset);
    }
    daemon.terminate();

    config(&lab, 10, false);
    start(&lab, &["-ip-masq"]).terminate();
    assert!(!ruleset().contains("flannel-ipv4"), "{}", ruleset());
    assert!(saved(&lab).contains("FLANNEL-POSTRTG") && saved(&lab).contains("FLANNEL-FWD"));
    config(&lab, 10, true);
    let mut daemon = start(&lab, &["-ip-masq", "--cleanup-on-exit"]);
    assert!(!saved(&lab).contains("FLANNEL"), "{}", saved(&lab));
    assert_eq!(sh(&lab, "nft list table ip flannel-ipv4"), NFT);
    daemon.terminate();
    assert!(!ruleset().contains("flannel"), "{}", ruleset());
    only_foreign_nft(&lab);
}

/// Daemons of networks 10.10.0.0/16, 10.20.0.0/16 and so on start at once on one host: none of them finds another's
/// rules when it looks.
fn several(lab: &Lab, nftables: bool, args: &[&str]) -> [Daemon; 4] {
    let networks = [10, 20, 30, 40];
    for n in networks {
        let config = format!(
            r#"{{"Network":"10.{n}.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"alloc"}}}}"#
        );
        lab.put(Api::V3, &format!("n{n}/config"), &config);
    }
    let mut daemons = networks.map(|n| {
        let file = lab.path(&format!("n{n}/subnet.env"));
        let prefix = format!("--etcd-prefix=/coreos.com/network/n{n}");
        let words = ["--iface=eth0", "--etcd-api=v3", "--iptables-resync=1", "-ip-masq", &prefix];
        Daemon::start(lab, &lab.host(1), &file, &[&words, args].concat(), &[])
    });
    for daemon in &mut daemons {
        daemon.subnet();
    }
    daemons
}

#[test]
fn nftables_daemons_of_several_networks_have_a_table_each() {
    let Some(lab) = host() else { return };
    let ruleset = || sh(&lab, "nft list ruleset");
    let tables = || sh(&lab, "nft list tables | sort");
    for last in [false, true] {
        let daemons = several(&lab, true, if last { &["--cleanup-on-exit"] } else { &[] });
        // A daemon that lost the race for flannel's table notices when it next looks.
        std::thread::sleep(ms(2500));
        let (text, names) = (ruleset(), tables());
        assert_eq!(text.matches("masquerade").count(), 4 * 2, "{text}");
        assert_eq!(names.lines().filter(|name| *name == "table ip flannel-ipv4").count(), 1, "{names}");
        let said =
            || daemons.iter().map(|daemon| daemon.text().matches("by somebody").count()).sum::<usize>();
        let before = said();
        std::thread::sleep(ms(2500));
        assert_eq!((ruleset(), said()), (text, before), "they fight");
        for mut daemon in daemons {
            daemon.terminate();
        }
        assert_eq!(
            tables(),
            if last { String::new() } else { names },
            "the second run takes over the first's"
        );
    }
}

#[test]
fn daemons_of_several_networks_on_one_host_leave_each_other_in_peace() {
    let Some(lab) = host() else { return };
    let daemons = several(&lab, false, &[]);
    let text = saved(&lab);
    assert_eq!(text.matches("-A FLANNEL-POSTRTG").count(), 1 + 4 * 5, "{text}");
    assert_eq!(text.matches("-A FLANNEL-FWD").count(), 4 * 2, "{text}");
    assert_eq!(text.matches("-j FLANNEL-").count(), 2, "{text}");
    std::thread::sleep(ms(2500));
    assert_eq!(saved(&lab), text);
    for daemon in &daemons {
        assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
    }
}

/// Without `br_netfilter` flannel does not start at all.
#[test]
fn without_bridge_netfilter_there_is_one_warning() {
    let Some(lab) = host() else { return };
    if !Path::new("/proc/sys/net/bridge").exists() {
        eprintln!("skipped: there is no /proc/sys/net/bridge to hide");
        return;
    }
    config(&lab, 10, false);
    let hide = "mount -t tmpfs none /proc/sys/net/bridge; exec \"$0\" \"$@\"";
    let file = format!("--subnet-file={}", lab.path("subnet.env").display());
    let program = lab::flanneld();
    let head = ["unshare", "-m", "sh", "-c", hide, &program, "--etcd-endpoints=http://10.77.0.254:2379"];
    let words = ["--iface=eth0", "--etcd-api=v3", "-ip-masq", &file];
    let daemon = lab.spawn(&lab.host(1), "hidden", &[&head[..], &words].concat());
    daemon.wait_text("Wrote subnet file", secs(10));
    assert_eq!(daemon.text().matches("br_netfilter").count(), 1, "{}", daemon.text());
    assert!(saved(&lab).contains("FLANNEL-POSTRTG"), "{}", saved(&lab));
    assert!(!start(&lab, &[]).text().contains("br_netfilter"));
}

#[test]
fn the_blackhole_route_is_kept() {
    let Some(lab) = host() else { return };
    config(&lab, 10, false);
    let host = lab.host(1);
    let routes = || lab.ip(&format!("-n {host} route show type blackhole"));
    let wanted = "blackhole 10.10.5.0/24 proto 78 metric 4294967295 \n";
    let mut daemon = start(&lab, &["-ip-blackhole-route"]);
    becomes("at the start", wanted, routes);
    lab.ip(&format!("-n {host} route del blackhole 10.10.5.0/24 metric 4294967295"));
    becomes("after its deletion", wanted, routes);
    daemon.terminate();
    assert_eq!(routes(), wanted, "SIGTERM leaves it");
    config(&lab, 20, false);
    let mut daemon = start(&lab, &["-ip-blackhole-route", "--cleanup-on-exit"]);
    becomes("for another subnet", "blackhole 10.20.5.0/24 proto 78 metric 4294967295 \n", routes);
    lab.ip(&format!("-n {host} route add blackhole 192.0.2.0/24"));
    daemon.terminate();
    assert_eq!(routes(), "blackhole 192.0.2.0/24 \n");
}

#[test]
fn without_the_programs_masquerading_is_refused_and_forward_rules_are_done_without() {
    let Some(lab) = host() else { return };
    for (nftables, package) in [(false, "iptables"), (true, "nftables")] {
        config(&lab, 10, nftables);
        let run = |name: &str, args: &[&str]| {
            let file = format!("--subnet-file={}", lab.path(&format!("{name}/subnet.env")).display());
            let hide = "mount -t tmpfs none /usr/sbin; exec \"$0\" \"$@\"";
            let program = lab::flanneld();
            let head =
                ["unshare", "-m", "sh", "-c", hide, &program, "--etcd-endpoints=http://10.77.0.254:2379"];
            let common = ["--iface=eth0", "--etcd-api=v3", &file];
            lab.spawn(&lab.host(1), &format!("{name}-{package}"), &[&head[..], &common, args].concat())
        };
        let mut refused = run("refused", &["-ip-masq"]);
        let status = refused.wait(secs(10)).expect("an end");
        assert_eq!(status.code(), Some(1), "{}", refused.text());
        let text = refused.text();
        assert!(text.contains("-ip-masq needs") && text.contains(&format!("package {package}")), "{text}");
        assert!(lab.leases(Api::V3).is_empty(), "it leased a subnet first");

        let mut warned = run("warned", &["--healthz-port=8471"]);
        warned.wait_text("Wrote subnet file", secs(10));
        assert!(warned.running());
        assert_eq!(warned.text().matches("no forward rules").count(), 1, "{}", warned.text());
        let metrics = lab.run(&lab.host(1), &["curl", "-sSm5", "http://127.0.0.1:8471/metrics"]);
        assert!(metrics.contains("\nflanneld_rules_in_place 0\n"), "{metrics}");
        warned.terminate();
    }
}

#[test]
fn legacy_iptables_works_too() {
    let Some(lab) = host() else { return };
    let binary = Path::new("/usr/sbin/xtables-legacy-multi");
    let works =
        || lab.try_run(&lab.host(1), &["/usr/sbin/iptables-legacy", "-t", "nat", "-S"]).status.success();
    if !binary.exists() || !works() {
        eprintln!("skipped: no legacy iptables, or none in this kernel");
        return;
    }
    let dir = lab.path("legacy");
    std::fs::create_dir(&dir).unwrap();
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        std::os::unix::fs::symlink(binary, dir.join(name)).unwrap();
    }
    config(&lab, 10, false);
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let file = lab.path("legacy/subnet.env");
    let words = ["--iface=eth0", "--etcd-api=v3", "--iptables-resync=1", "-ip-masq", "--cleanup-on-exit"];
    let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &words, &[("PATH", &path)]);
    daemon.subnet();
    let saved = || sh(&lab, "iptables-legacy-save | grep '^-A' || true");
    let ours = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("-A") && line.contains("flanneld"))
            .fold(String::new(), |all, line| all + line + "\n")
    };
    // The legacy listing has the tables in another order.
    let sorted = |text: &str| {
        let (nat, filter): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("flanneld masq"));
        [nat, filter].concat().join("\n")
    };
    let wanted = sorted(&ours(&expected(Some(10), true)));
    assert_eq!(sorted(&saved()), wanted);
    sh(&lab, "iptables-legacy -t nat -D FLANNEL-POSTRTG 2");
    becomes("a deleted rule", &wanted, || sorted(&saved()));
    std::thread::sleep(ms(1500));
    assert_eq!(daemon.text().matches("changed by somebody").count(), 1, "{}", daemon.text());
    daemon.terminate();
    assert_eq!(saved(), "");
}
