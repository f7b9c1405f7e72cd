//! Promise: rules hold beside the firewalls that hosts really have: rules of nft in iptables' tables, rules that lost
//! their comments, rules of older flannels, walls in FORWARD, hosts with one of the two programs; and no container can
//! send what looks like the overlay's own packets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Container, Daemon, Lab, Subnet, ms, secs};
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
#[ignore = "a tool of the lab, not a test"]
fn tool_entry() {
    lab::tools::entry();
}

/// Starts a lab with firewall tools; `None` where there can be none.
fn hosts(count: usize) -> Option<Lab> {
    if lab::has_firewall_tools() { Lab::start(count) } else { None }
}

fn config(lab: &Lab, nftables: bool) {
    let config =
        format!(r#"{{"Network":"10.10.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"udp"}}}}"#);
    lab.put_config(Api::V3, &config);
}

const COMMON: [&str; 2] = ["--etcd-api=v3", "--iptables-resync=1"];

fn start(lab: &Lab, i: usize, args: &[&str]) -> (Daemon, Subnet) {
    let mut daemon = lab.daemon(i, &[&COMMON, args].concat());
    let subnet = daemon.subnet();
    (daemon, subnet)
}

fn sh(lab: &Lab, i: usize, script: &str) -> String {
    lab.sh(&lab.host(i), &format!("PATH=$PATH:/usr/sbin:/sbin; set -e; {script}"))
}

/// The rules of iptables, without counters.
fn rules(lab: &Lab) -> String {
    sh(lab, 1, "iptables-save | grep -E '^(-A|\\*|#.*incompat)' || true")
}

fn eventually(what: &str, limit: u64, probe: impl Fn() -> bool, shown: impl Fn() -> String) {
    let end = std::time::Instant::now() + secs(limit);
    while !probe() {
        assert!(std::time::Instant::now() < end, "{what}:\n{}", shown());
        std::thread::sleep(ms(50));
    }
}

/// Two containers on two hosts, with a daemon each.
fn pair(lab: &Lab, args: &[&str]) -> ([Daemon; 2], [Container; 2]) {
    let (one, first) = start(lab, 1, args);
    let (two, second) = start(lab, 2, args);
    ([one, two], [lab.container(1, &first), lab.container(2, &second)])
}

/// A rule that nft wrote makes iptables-save print nothing of its table.
#[test]
fn a_table_that_iptables_cannot_show_is_no_empty_table() {
    let Some(lab) = hosts(1) else { return };
    config(&lab, false);
    let ruleset = || sh(&lab, 1, "nft -s list ruleset");
    start(&lab, 1, &["-ip-masq"]).0.terminate();
    sh(&lab, 1, "nft add chain ip nat theirs; nft add rule ip nat theirs ip saddr 192.0.2.0/24 masquerade");
    assert!(rules(&lab).contains("# Table `nat' is incompatible"), "{}", rules(&lab));
    for _ in 0..2 {
        let (mut daemon, subnet) = start(&lab, 1, &["-ip-masq"]);
        assert_eq!(subnet.ipmasq, "true");
        let text = sh(&lab, 1, "nft -s list table ip flannel-ipv4");
        assert_eq!(text.matches("masquerade").count(), 2, "{text}");
        assert!(!text.contains("chain forward"), "iptables can keep the forward rules: {text}");
        let nat = sh(&lab, 1, "nft -s list table ip nat");
        assert!(!nat.contains("FLANNEL"), "those of the run before, for whichever subnet: {nat}");
        assert!(nat.contains("ip saddr 192.0.2.0/24 masquerade"), "{nat}");
        assert!(rules(&lab).contains("-A FLANNEL-FWD -s 10.10.0.0/16"), "{}", rules(&lab));
        assert_eq!(daemon.text().matches("the table nat of iptables holds rules that nft wrote").count(), 1);
        std::thread::sleep(ms(2200));
        assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
        sh(&lab, 1, "nft delete table ip flannel-ipv4");
        eventually("put back", 4, || ruleset().contains("flannel-ipv4"), ruleset);
        daemon.terminate();
    }
    // Once the table can be shown again, its rules go back to where everybody looks for them.
    let (mut daemon, _) = start(&lab, 1, &["-ip-masq", "--cleanup-on-exit"]);
    sh(&lab, 1, "nft flush chain ip nat theirs; nft delete chain ip nat theirs");
    eventually(
        "nat again",
        4,
        || !ruleset().contains("flannel-ipv4") && rules(&lab).contains("-A FLANNEL-POSTRTG"),
        ruleset,
    );
    daemon.terminate();
    assert!(!rules(&lab).contains("FLANNEL"), "{}", rules(&lab));
}

/// Without nft, the daemon goes on with a loud line.
#[test]
fn a_table_that_iptables_cannot_show_ends_no_daemon() {
    let Some(lab) = hosts(1) else { return };
    config(&lab, false);
    sh(&lab, 1, "iptables -t nat -N X; nft add chain ip nat theirs; nft add rule ip nat theirs masquerade");
    let dir = lab.path("only-iptables");
    std::fs::create_dir(&dir).unwrap();
    let mut daemon = beside(
        &lab,
        &dir,
        &["iptables", "iptables-save", "iptables-restore"],
        &["-ip-masq", "--healthz-port=8471"],
    );
    daemon.wait_text("Wrote subnet file", secs(10));
    daemon.wait_text("the table nat of iptables holds rules that nft wrote", secs(5));
    daemon.wait_text("install the package nftables", secs(5));
    assert!(daemon.running());
    let metrics = lab.run(&lab.host(1), &["curl", "-sSm5", "http://127.0.0.1:8471/metrics"]);
    assert!(metrics.contains("\nflanneld_rules_in_place 0\n"), "{metrics}");
    // Nobody has changed rules that were never there.
    sh(&lab, 1, "nft delete chain ip nat theirs");
    daemon.wait_text("Masquerade and forward rules are in place now", secs(5));
    assert!(rules(&lab).contains("-A FLANNEL-POSTRTG -s 10.10.0.0/16"), "{}", rules(&lab));
    assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
    daemon.terminate();
}

/// A daemon on a host that has only these programs.
fn beside(lab: &Lab, dir: &Path, programs: &[&str], args: &[&str]) -> lab::Proc {
    for name in programs {
        let program = std::fs::canonicalize(Path::new("/usr/sbin").join(name)).unwrap();
        // A program that looks at its own name is told it by a script; its binary lies below /usr/sbin, which is hidden.
        let copy = dir.join(format!("{name}.bin.d"));
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(&program, copy.join(name)).unwrap();
        symlink(copy.join(name), dir.join(name)).unwrap();
    }
    let file = format!("--subnet-file={}", dir.join("subnet.env").display());
    let hide = "mount -t tmpfs none /usr/sbin; exec \"$0\" \"$@\"";
    let program = lab::flanneld();
    let path = format!("PATH={}:{}", dir.display(), std::env::var("PATH").unwrap());
    let head = [
        "env",
        &path,
        "unshare",
        "-m",
        "sh",
        "-c",
        hide,
        &program,
        "--etcd-endpoints=http://10.77.0.254:2379",
    ];
    let words = ["--iface=eth0", &file];
    let name = dir.file_name().unwrap().to_str().unwrap();
    lab.spawn(&lab.host(1), name, &[&head[..], &words, &COMMON, args].concat())
}

#[test]
fn the_program_that_is_there_is_used() {
    let Some(lab) = hosts(1) else { return };
    config(&lab, false);
    let dir = lab.path("only-nft");
    std::fs::create_dir(&dir).unwrap();
    let mut daemon = beside(&lab, &dir, &["nft"], &["-ip-masq", "--cleanup-on-exit"]);
    daemon.wait_text("Wrote subnet file", secs(10));
    daemon.wait_text("iptables-restore is not here: rules go through nft", secs(5));
    let table = sh(&lab, 1, "nft -s list table ip flannel-ipv4");
    assert_eq!(table.matches("masquerade").count(), 2, "{table}");
    daemon.terminate();
    assert!(!sh(&lab, 1, "nft list tables").contains("flannel"));
}

/// `nft list ruleset` prints no comments of iptables, so a ruleset that was saved and loaded by it has lost them. Its
/// masquerade rules are such as iptables cannot show, and with them it shows nothing of the table nat.
#[test]
fn rules_that_lost_their_comments_are_still_known() {
    let reload = "nft list ruleset > /tmp/$$.nft; nft flush ruleset; nft -f /tmp/$$.nft; rm /tmp/$$.nft";
    for masq in [&[] as &[&str], &["-ip-masq"]] {
        let Some(lab) = hosts(1) else { return };
        config(&lab, false);
        let (mut daemon, first) = start(&lab, 1, masq);
        daemon.terminate();
        let whole = rules(&lab);
        assert!(whole.contains("FLANNEL-FWD") && whole.contains("FLANNEL-GUARD"), "{whole}");
        assert_eq!(whole.contains("FLANNEL-POSTRTG"), !masq.is_empty(), "{whole}");
        for round in 0..3 {
            sh(&lab, 1, reload);
            assert!(!rules(&lab).contains("comment"), "{}", rules(&lab));
            assert_eq!(rules(&lab).contains("# Table `nat' is incompatible"), !masq.is_empty());
            // The lease of the run before may have expired, and the stale rules are for its subnet.
            for (key, _) in lab.leases(Api::V3) {
                lab.delete_lease(Api::V3, &key);
            }
            std::fs::remove_file(lab.path("h1/flannel/subnet.env")).unwrap();
            let (mut daemon, now) = start(&lab, 1, masq);
            let whole = whole.replace(&first.key().replace('-', "/"), &now.key().replace('-', "/"));
            let shown = || format!("round {round}: {}\n{whole}", rules(&lab));
            eventually("as before", 4, || rules(&lab) == whole, shown);
            assert!(!daemon.text().contains("changed by somebody"), "{}", daemon.text());
            assert!(!sh(&lab, 1, "nft list tables").contains("flannel"), "it has moved back");
            daemon.terminate();
        }
        sh(&lab, 1, reload);
        let (mut daemon, _) = start(&lab, 1, &[masq, &["--cleanup-on-exit"]].concat());
        sh(&lab, 1, reload);
        daemon.terminate();
        let left = sh(&lab, 1, "nft list ruleset");
        assert!(!left.contains("FLANNEL") && !left.contains("flannel"), "{left}");
    }
}

/// What flannel 0.6.2, 0.9 to 0.11 and 0.16 wrote straight into the built-in chains.
#[test]
fn rules_of_older_flannels_go_at_the_start_and_rules_like_them_stay() {
    let Some(lab) = hosts(1) else { return };
    config(&lab, false);
    let c = "10.10.0.0/16";
    let old = |comment: &str, random: &str| {
        format!(
            "iptables -t nat -A POSTROUTING -s {c} -d {c} {comment} -j RETURN; \
             iptables -t nat -A POSTROUTING -s {c} ! -d 224.0.0.0/4 {comment} -j MASQUERADE {random}; \
             iptables -t nat -A POSTROUTING ! -s {c} -d 10.10.7.0/24 {comment} -j RETURN; \
             iptables -t nat -A POSTROUTING ! -s {c} -d {c} {comment} -j MASQUERADE {random};"
        )
    };
    let forward = |comment: &str| {
        format!(
            "iptables -A FORWARD -s {c} {comment} -j ACCEPT; iptables -A FORWARD -d {c} {comment} -j ACCEPT;"
        )
    };
    let foreign = "-A POSTROUTING -s 10.10.0.0/16 -o eth7 -j MASQUERADE\n-A POSTROUTING -s 10.20.0.0/16 -d 10.20.0.0/16 -j RETURN\n";
    let masq = "-m comment --comment 'flanneld masq'";
    let fwd = "-m comment --comment 'flanneld forward'";
    for (nat, filter) in [
        (old("", ""), String::new()),
        (old("", "--random-fully"), forward("")),
        (old(masq, "--random-fully"), forward(fwd)),
    ] {
        sh(
            &lab,
            1,
            &format!(
                "iptables -t nat -A POSTROUTING -s {c} -o eth7 -j MASQUERADE; iptables -t nat -A POSTROUTING -s 10.20.0.0/16 -d 10.20.0.0/16 -j RETURN; {nat} {filter}"
            ),
        );
        let (mut daemon, _) = start(&lab, 1, &["-ip-masq", "--cleanup-on-exit"]);
        daemon.wait_text("that an older flannel left", secs(5));
        let now = rules(&lab);
        let builtin: String = now
            .lines()
            .filter(|l| l.starts_with("-A POSTROUTING") && !l.contains("FLANNEL"))
            .map(|l| l.to_owned() + "\n")
            .collect();
        assert_eq!(builtin, foreign, "{now}");
        assert!(!now.lines().any(|l| l.starts_with("-A FORWARD") && !l.contains("-j FLANNEL-")), "{now}");
        daemon.terminate();
        sh(&lab, 1, "iptables -t nat -F; iptables -F");
    }
    // One rule like them, alone, is an operator's own.
    sh(
        &lab,
        1,
        &format!(
            "iptables -t nat -A POSTROUTING -s {c} -d {c} -j RETURN; iptables -A FORWARD -s {c} -j ACCEPT"
        ),
    );
    let before = rules(&lab);
    let (mut daemon, _) = start(&lab, 1, &["-ip-masq", "--cleanup-on-exit"]);
    daemon.terminate();
    let after = rules(&lab);
    for line in before.lines() {
        assert!(after.contains(line), "{line} is gone:\n{after}");
    }
}

/// An accept of nft cannot undo a drop of iptables, so the accept is in iptables' chain, too.
#[test]
fn docker_s_drop_in_forward_stops_no_overlay_of_the_nft_flavour() {
    let Some(lab) = hosts(2) else { return };
    config(&lab, true);
    for i in [1, 2] {
        sh(&lab, i, "iptables -P FORWARD DROP");
    }
    let (mut daemons, ends) = pair(&lab, &["-ip-masq", "--cleanup-on-exit"]);
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    assert!(rules(&lab).contains("-A FLANNEL-FWD -s 10.10.0.0/16"), "{}", rules(&lab));
    assert!(!rules(&lab).contains("FLANNEL-POSTRTG"), "masquerading is nft's: {}", rules(&lab));
    sh(&lab, 1, "iptables -P FORWARD ACCEPT");
    eventually("no longer needed", 4, || !rules(&lab).contains("FLANNEL"), || rules(&lab));
    sh(&lab, 1, "iptables -P FORWARD DROP");
    eventually("needed again", 4, || rules(&lab).contains("FLANNEL-FWD"), || rules(&lab));
    daemons[0].terminate();
    assert!(!rules(&lab).contains("FLANNEL"), "{}", rules(&lab));
}

/// A rule that rejects everything, at the end of FORWARD, is what Red Hat's default rules and ufw have.
#[test]
fn a_reject_at_the_end_of_forward_comes_after_our_accepts() {
    let Some(lab) = hosts(2) else { return };
    config(&lab, false);
    for i in [1, 2] {
        sh(
            &lab,
            i,
            "iptables -N wall; iptables -A wall -j REJECT; iptables -A FORWARD -i lo -j ACCEPT; iptables -A FORWARD -j wall",
        );
    }
    let (mut daemons, ends) = pair(&lab, &["--cleanup-on-exit"]);
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    let forward = || sh(&lab, 1, "iptables -S FORWARD | grep -o -- '-j .*' | tr '\\n' ' '");
    assert_eq!(forward(), "-j ACCEPT -j FLANNEL-FWD -j wall ");
    std::thread::sleep(ms(2200));
    assert!(!daemons[0].text().contains("changed by somebody"), "{}", daemons[0].text());
    daemons[0].terminate();
    assert_eq!(forward(), "-j ACCEPT -j wall ");
}

/// A table of nft that drops, such as firewalld's, can only be named. So can a chain of iptables' own tables where our
/// accepts cannot be: one that iptables cannot show, or one of another table than filter.
#[test]
fn a_wall_in_another_table_is_named() {
    let firewalld = "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state established accept; reject with icmpx admin-prohibited; }; }'";
    let unseen = "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; iifname lo numgen random mod 2 0 accept; }; }'";
    let mangle = "iptables -t mangle -P FORWARD DROP";
    for nftables in [false, true] {
        for (wall, chain, accepts) in [
            (firewalld, "filter_FORWARD of nft's table inet firewalld", "inet firewalld filter_FORWARD"),
            (unseen, "FORWARD of nft's table ip filter", "ip filter FORWARD"),
            (mangle, "FORWARD of nft's table ip mangle", "ip mangle FORWARD"),
        ] {
            let Some(lab) = hosts(1) else { return };
            config(&lab, nftables);
            sh(&lab, 1, wall);
            let (mut daemon, _) = start(&lab, 1, &[]);
            daemon.wait_text(&format!("may be dropped by the chain {chain},"), secs(5));
            std::thread::sleep(ms(1500));
            assert_eq!(daemon.text().matches("may be dropped").count(), 1, "{}", daemon.text());
            daemon.terminate();
            sh(&lab, 1, &format!("nft insert rule {accepts} ip saddr 10.10.0.0/16 accept"));
            let (mut daemon, _) = start(&lab, 1, &[]);
            daemon.wait_text("Wrote subnet file", secs(5));
            std::thread::sleep(ms(500));
            assert!(!daemon.text().contains("may be dropped"), "{}", daemon.text());
            daemon.terminate();
        }
    }
    // Where our accepts come first, nothing is in the way.
    let Some(lab) = hosts(1) else { return };
    config(&lab, false);
    sh(&lab, 1, "iptables -P FORWARD DROP");
    let (mut daemon, _) = start(&lab, 1, &[]);
    daemon.wait_text("Wrote subnet file", secs(5));
    std::thread::sleep(ms(500));
    assert!(!daemon.text().contains("may be dropped"), "{}", daemon.text());
    daemon.terminate();
}

/// The hosts' addresses lie outside the network, or inside of it, as in the tutorial.
const OUTSIDE: &str = r#""Network":"10.10.0.0/16""#;
const INSIDE: &str =
    r#""Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.15.0.0","SubnetMax":"10.15.255.0""#;

fn config_with(lab: &Lab, network: &str, nftables: bool, backend: &str) {
    let config = format!(r#"{{{network},"EnableNFTables":{nftables},"Backend":{backend}}}"#);
    lab.put_config(Api::V3, &config);
}

/// The datagrams of a container that reach a socket on the overlay's port of another host.
fn forged(nftables: bool, network: &str, args: &[&str]) -> (usize, Lab) {
    let Some(lab) = hosts(2) else { panic!("checked by the caller") };
    config_with(&lab, network, nftables, r#"{"Type":"udp"}"#);
    let (daemon, subnet) = start(&lab, 1, args);
    let container = lab.container(1, &subnet);
    // Docker masquerades, whether we do or not.
    sh(&lab, 1, "iptables -t nat -I POSTROUTING -s 10.0.0.0/9 -o eth0 -j MASQUERADE");
    sh(&lab, 1, "sysctl -qw net.ipv4.ip_forward=1");
    // Another host's port of the overlay, without a daemon that would refuse the packet.
    let socket = lab.tool(&lab.host(2), "udp_socket 10.77.0.2:8285");
    let other = lab.tool(&lab.host(2), "udp_socket 10.77.0.2:4000");
    let mut sender = lab.tool(&container.ns, &format!("udp_socket {}:5000", container.addr));
    eventually(
        "another port",
        10,
        || {
            sender_write(&lab, &container, 4000);
            other.maybe_line(ms(300)).is_some()
        },
        String::new,
    );
    for _ in 0..5 {
        sender.write("10.77.0.2:8285 01");
    }
    let mut seen = 0;
    while socket.maybe_line(ms(300)).is_some() {
        seen += 1;
    }
    drop(daemon);
    (seen, lab)
}

fn sender_write(lab: &Lab, container: &Container, port: u16) {
    let line = format!("exec 3>/dev/udp/10.77.0.2/{port}; echo x >&3");
    lab.try_run(&container.ns, &["bash", "-c", &line]);
}

fn no_container_forges(nftables: bool) {
    if hosts(1).is_none() {
        return;
    }
    for (network, masq) in
        [(OUTSIDE, &[] as &[&str]), (OUTSIDE, &["-ip-masq"]), (INSIDE, &[]), (INSIDE, &["-ip-masq"])]
    {
        let (seen, lab) = forged(nftables, network, masq);
        assert_eq!(seen, 0, "{network} with {masq:?}");
        let count = if nftables {
            sh(&lab, 1, "nft list chain ip flannel-ipv4 guard | grep -o 'packets [0-9]*'")
        } else {
            sh(&lab, 1, "iptables -t mangle -L FLANNEL-GUARD -vnx | awk '/DROP/ {print \"packets \" $1}'")
        };
        assert_eq!(count.trim(), "packets 5", "the rule counts what it drops");
    }
    let (seen, _) = forged(nftables, INSIDE, &["--port-guard=false"]);
    assert_eq!(seen, 5, "the switch");
}

/// A container may have a socket of its own on the overlay's port, and other containers reach it.
fn containers_may_use_the_port(nftables: bool, network: &str, backend: &str, port: u16) {
    let Some(lab) = hosts(2) else { return };
    config_with(&lab, network, nftables, backend);
    let (_daemons, ends) = pair(&lab, &[]);
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    let socket = lab.tool(&ends[1].ns, &format!("udp_socket {}:{port}", ends[1].addr));
    let mut sender = lab.tool(&ends[0].ns, &format!("udp_socket {}:5000", ends[0].addr));
    sender.write(&format!("{}:{port} 01", ends[1].addr));
    assert_eq!(socket.line(secs(3)), format!("{}:5000 01", ends[0].addr), "{backend}");
}

#[test]
fn containers_reach_that_port_of_each_other() {
    let direct = r#"{"Type":"vxlan","DirectRouting":true}"#;
    for (nftables, network) in [(false, INSIDE), (true, OUTSIDE)] {
        containers_may_use_the_port(nftables, network, r#"{"Type":"udp"}"#, 8285);
        containers_may_use_the_port(nftables, network, r#"{"Type":"vxlan"}"#, 8472);
        containers_may_use_the_port(nftables, network, direct, 8472);
    }
}

#[test]
fn no_container_sends_to_the_overlay_s_port_with_iptables() {
    no_container_forges(false);
}

#[test]
fn no_container_sends_to_the_overlay_s_port_with_nftables() {
    no_container_forges(true);
}
