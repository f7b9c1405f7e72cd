//! Promise: under a real systemd the packaged unit starts, fails with a sentence, logs with priorities, and leaves Docker
//! and the containers alone whatever happens to flanneld.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::systemd::{Host, QUICK, SETTINGS, with_version};
use lab::{Api, Subnet, eventually, ms, secs};
use std::time::Instant;

#[test]
#[ignore = "a tool of the lab, not a test"]
fn tool_entry() {
    lab::tools::entry();
}

#[test]
fn docker_outlives_restarts_crashes_and_the_end_of_flanneld() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "") else { return };
    let machine = &host.machine;
    machine.run("systemctl enable -q flanneld docker && systemctl start docker");
    // Docker was started after flanneld, with its options.
    let docker = host.docker();
    let mut flanneld = host.pid();
    assert!(docker.1.contains(&format!("--bip={}", host.subnet().subnet)), "{docker:?}");

    machine.run("systemctl restart flanneld");
    flanneld = host.restarted(&flanneld);
    machine.run(&format!("kill -9 {flanneld}"));
    flanneld = host.restarted(&flanneld);
    assert_eq!(host.docker(), docker, "a restart and kill -9 leave Docker alone");
    assert_eq!(machine.show("flannel-docker.path", "ActiveState"), "active");

    // A lost lease ends flanneld with 1; the next start has another subnet, and Docker follows it, once.
    let before = host.subnet();
    host.take_the_lease();
    flanneld = host.restarted(&flanneld);
    let after = host.subnet();
    assert_ne!(after.subnet, before.subnet);
    machine.wait_for("docker", "MainPID", |pid| pid != docker.0 && pid != "0");
    let follower = host.docker();
    assert!(follower.1.contains(&format!("--bip={}", after.subnet)), "{follower:?}");
    assert_eq!(machine.show("flannel-docker.service", "Result"), "success");

    // Without etcd flanneld stays in its start; Docker runs on.
    machine.write("/etc/default/flanneld", "FLANNELD_ETCD_ENDPOINTS=http://10.77.0.254:1\n");
    machine.run(&format!("kill -9 {flanneld}"));
    machine.wait_for("flanneld", "ActiveState", |state| state == "activating");
    machine.wait_for("flanneld", "StatusText", |text| text.contains("network config"));
    assert_eq!(host.docker(), follower);
    machine.run("systemctl stop flanneld");
    assert_eq!(host.docker(), follower, "nor does a stop end Docker");
    machine.run("dpkg -r flanneld 2>&1");
    assert_eq!(host.docker(), follower, "nor the end of the package");
    let restarts = machine.run("journalctl -u flannel-docker -o cat | grep -c '^Finished'");
    assert_eq!(restarts.trim(), "1", "only the new subnet restarted Docker");
}

#[test]
fn docker_starts_without_flanneld_and_follows_a_late_interface() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "FLANNELD_IFACE=eth7\n") else { return };
    let machine = &host.machine;
    machine.run("systemctl enable -q flanneld && systemctl start docker");
    let docker = host.docker();
    assert_eq!(docker.1, "", "there is no subnet yet");
    let error = machine.journal("-p err");
    assert!(error.contains("Failed to find any valid interface to use"), "{error}");
    host.lab.sh(
        &host.lab.host(1),
        "ip link add eth7 type veth peer name eth7p; ip link set eth7p up; ip addr add 10.78.0.1/24 dev eth7; ip link set eth7 up",
    );
    machine.wait_for("flanneld", "ActiveState", |state| state == "active");
    machine.wait_for("docker", "MainPID", |pid| pid != docker.0 && pid != "0");
    assert!(host.docker().1.contains(&format!("--bip={}", host.subnet().subnet)), "{:?}", host.docker());
}

#[test]
fn an_upgrade_keeps_docker_the_subnet_and_the_flow() {
    let Some(host) = Host::start(r#"{"Type":"vxlan"}"#, "") else { return };
    let (machine, lab) = (&host.machine, &host.lab);
    machine.run("systemctl enable -q flanneld docker && systemctl start docker");
    // Versions before this one installed this link, and removing it is up to the upgrade.
    machine.run(
        "cd /etc/systemd/system && mkdir -p docker.service.requires && rm -rf docker.service.wants && \
         ln -sf /lib/systemd/system/flanneld.service docker.service.requires/ && systemctl daemon-reload",
    );
    assert!(machine.show("docker", "Requires").contains("flanneld.service"));
    let (docker, flanneld, mine) = (host.docker(), host.pid(), host.subnet());
    let mut second = lab.daemon(2, &["--etcd-api=v3"]);
    let theirs = second.subnet();
    let ends = [lab.container(1, &mine), lab.container(2, &theirs)];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    let mut sink = lab.tool(&ends[1].ns, &format!("pulse_sink {}:7000", ends[1].addr));
    let mut send = lab.tool(&ends[0].ns, &format!("pulse_send {}:7000 2000", ends[1].addr));

    machine.install(&with_version(&host.deb, "99.0-1"));
    host.restarted(&flanneld);
    std::thread::sleep(ms(300));
    send.finish();
    let sent: u64 = send.line(secs(5)).parse().unwrap();
    std::thread::sleep(ms(200));
    sink.finish();
    let report = sink.line(secs(5));
    let received: u64 = report.split(' ').next().unwrap().parse().unwrap();
    assert!(sent > 100, "{sent}");
    assert_eq!(sent - received, 0, "packets lost over the upgrade, by vxlan: {report}");
    assert!(machine.run("dpkg -s flanneld").contains("Version: 99.0-1\n"));
    assert_eq!((host.docker(), host.subnet()), (docker, mine), "Docker and the subnet stay");
    assert!(!machine.show("docker", "Requires").contains("flanneld"), "the old link is gone");
    assert!(machine.show("docker", "Wants").contains("flanneld.service"));
    assert!(machine.read("/etc/default/flanneld").unwrap().starts_with(SETTINGS), "the settings stay");
}

#[test]
fn the_journal_has_priorities_and_one_line_of_counters() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "FLANNELD_LOG_DIR=/var/log\n") else { return };
    let machine = &host.machine;
    machine.run("systemctl start flanneld");
    let warnings = machine.journal("-p warning");
    assert!(warnings.contains("FLANNELD_LOG_DIR has no effect"), "{warnings}");
    assert!(!warnings.contains("Wrote subnet file"), "{warnings}");
    let all = machine.journal("-p info");
    let line = all.lines().find(|line| line.contains("Wrote subnet file to")).unwrap();
    assert!(line.starts_with("flanneld::") && !line.contains("INFO"), "no time, no level, no prefix: {line}");
    machine.run("systemctl stop flanneld");
    let end = machine.journal("-p info").split_off(all.len());
    let counters: Vec<_> =
        end.lines().filter(|line| line.contains("count ") || line.contains("drop ")).collect();
    assert!(counters.len() <= 1, "{counters:?}");
    assert!(end.contains("counters: worker 0 "), "{end}");
    // A refused command line is an error, too.
    machine.write("/etc/default/flanneld", "FLANNELD_OPTIONS=--no-such-flag\n");
    assert!(!machine.try_run("systemctl start flanneld").status.success());
    machine.run("systemctl stop flanneld");
    let errors = machine.journal("-p err");
    assert!(errors.contains("flanneld: flag provided but not defined: -no-such-flag"), "{errors}");
    // SIGUSR1's report is for the person who asked, in full.
    machine.write("/etc/default/flanneld", SETTINGS);
    machine.run("systemctl start flanneld && systemctl kill -s USR1 flanneld");
    eventually(secs(5), "the report", || {
        machine.journal("-p info").contains("drop no_route 0").then_some(())
    });
}

#[test]
fn a_subnet_file_elsewhere_works_or_fails_at_once() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "") else { return };
    let machine = &host.machine;
    let settings = |more: &str| machine.write("/etc/default/flanneld", &format!("{SETTINGS}{more}\n"));
    for (path, sentence) in [
        (
            "/var/lib/flannel/subnet.env",
            "the file system is read-only there; under systemd put it below /run",
        ),
        ("/tmp/flannel/subnet.env", "the unit has a private /tmp (PrivateTmp=yes)"),
    ] {
        settings(&format!("FLANNELD_SUBNET_FILE={path}"));
        let start = Instant::now();
        assert!(!machine.try_run("timeout 20 systemctl start flanneld").status.success(), "{path}");
        assert!(start.elapsed() < secs(5), "{path}: a start without an end");
        machine.run("systemctl stop flanneld");
        let errors = machine.journal("-p err");
        assert!(errors.contains(path) && errors.contains(sentence), "{path}: {errors}");
    }
    // Docker's options come from the file that flanneld wrote, however it was named.
    machine.write("/run/flannel/subnet.env", "FLANNEL_SUBNET=192.0.2.1/24\n");
    for more in
        ["FLANNELD_SUBNET_FILE=/run/other/subnet.env", "FLANNELD_OPTIONS=-subnet-file /run/other/subnet.env"]
    {
        settings(more);
        machine.run("rm -f /run/flannel/docker_opts.env; systemctl start flanneld; systemctl stop flanneld");
        let subnet = Subnet::parse(&machine.read("/run/other/subnet.env").unwrap()).unwrap().subnet;
        let options = machine.read("/run/flannel/docker_opts.env").unwrap();
        assert!(options.contains(&format!("--bip={subnet}")), "{more}: {options}");
    }
    // A drop-in opens another directory.
    machine.drop_in(&format!("{QUICK}ReadWritePaths=/var/lib/flannel\n"));
    machine.run("mkdir -p /var/lib/flannel");
    settings("FLANNELD_SUBNET_FILE=/var/lib/flannel/subnet.env");
    machine.run("timeout 20 systemctl start flanneld; systemctl stop flanneld");
    assert!(machine.read("/var/lib/flannel/subnet.env").is_some());
    // Several networks have no bridge of Docker's, and a file of an earlier run must not give it one.
    machine.drop_in(&format!("{QUICK}Type=simple\n"));
    host.lab.put(Api::V3, "blue/config", &config(r#"{"Type":"alloc"}"#));
    settings("FLANNELD_OPTIONS=-networks=blue");
    machine.run("timeout 20 systemctl start flanneld");
    eventually(secs(10), "the network's file", || machine.read("/run/flannel/networks/blue.env"));
    assert_eq!(machine.read("/run/flannel/docker_opts.env"), None);
    machine.run("systemctl stop flanneld");
    // Their directory may be the very one that a drop-in opens, and nothing beside it.
    settings("FLANNELD_OPTIONS=-networks=blue -subnet-dir=/var/lib/several");
    machine.run("systemctl start flanneld");
    eventually(secs(5), "the refusal", || {
        let errors = machine.journal("-p err");
        errors.contains("cannot write /var/lib/several: the file system is read-only there").then_some(())
    });
    machine.run("systemctl stop flanneld; mkdir -p /var/lib/several");
    machine.drop_in(&format!("{QUICK}Type=simple\nReadWritePaths=/var/lib/several\n"));
    machine.run("systemctl start flanneld");
    eventually(secs(10), "the network's file", || machine.read("/var/lib/several/blue.env"));
}

#[test]
fn rights_are_enough_for_low_ports_and_files_are_passed_on() {
    let Some(host) = Host::start(r#"{"Type":"udp","Port":285}"#, "FLANNELD_HEALTHZ_PORT=80\n") else {
        return;
    };
    let machine = &host.machine;
    machine.run("systemctl start flanneld");
    let ready = host.lab.run(&host.lab.ns("sw"), &["curl", "-sf", "http://10.77.0.1:80/readyz"]);
    assert!(!ready.is_empty());
    machine.run("ss -lun | grep -q ':285 '");
    machine.run("systemctl stop flanneld");

    // Files that the unit may not read: the sentence names file and remedy, and the remedy works.
    host.lab.sh(
        &host.lab.ns("sw"),
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=ca -keyout {0}/ca.key -out {0}/ca.pem 2>/dev/null",
            host.lab.path("").display()
        ),
    );
    let ca = std::fs::read_to_string(host.lab.path("ca.pem")).unwrap();
    machine.write("/root/ca.pem", &ca);
    machine.write("/etc/flannel/ca.pem", &ca);
    machine.run("chown 1234 /etc/flannel/ca.pem && chmod 600 /etc/flannel/ca.pem");
    for path in ["/root/ca.pem", "/etc/flannel/ca.pem"] {
        machine.write("/etc/default/flanneld", &format!("{SETTINGS}FLANNELD_ETCD_CAFILE={path}\n"));
        assert!(!machine.try_run("timeout 20 systemctl start flanneld").status.success(), "{path}");
        machine.run("systemctl stop flanneld");
        let errors = machine.journal("-p err");
        let line = errors.lines().find(|line| line.contains(&format!("cannot read {path}"))).expect("a line");
        assert!(line.contains("FLANNELD_ETCD_CAFILE") && line.contains("LoadCredential="), "{line}");
        machine.drop_in(&format!(
            "{QUICK}LoadCredential=ca.pem:{path}\nEnvironment=FLANNELD_ETCD_CAFILE=%d/ca.pem\n"
        ));
        machine.write("/etc/default/flanneld", SETTINGS);
        machine.run(
            "timeout 20 systemctl start flanneld && systemctl is-active flanneld && systemctl stop flanneld",
        );
    }
}

#[test]
fn every_backend_works_behind_the_filter_of_system_calls() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "") else { return };
    let (machine, lab) = (&host.machine, &host.lab);
    let exposure = machine.run("systemd-analyze security flanneld --no-pager | tail -1");
    let level: f64 = exposure.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(level < 3.0, "{exposure}");
    for (backend, options) in [
        (r#"{"Type":"udp"}"#, "--workers=2 --ip-masq"),
        (r#"{"Type":"udp"}"#, "--engine=poll"),
        (r#"{"Type":"vxlan"}"#, "--ip-masq"),
        (r#"{"Type":"host-gw"}"#, "--ip-masq --ip-blackhole-route"),
    ] {
        lab.put_config(Api::V3, &config(backend));
        machine.write("/etc/default/flanneld", &format!("{SETTINGS}FLANNELD_OPTIONS={options}\n"));
        // The other host comes first, so that its lease has this backend's form already.
        let mut second = lab.daemon(2, &["--etcd-api=v3"]);
        let theirs = second.subnet();
        let since = machine.run("date +%s.%N").trim().to_owned();
        machine.run("systemctl start flanneld");
        let status = machine.run(&format!("cat /proc/{}/status", host.pid()));
        assert!(status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"), "{status}");
        let ends = [lab.container(1, &host.subnet()), lab.container(2, &theirs)];
        lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
        lab.reaches(&ends[1].ns, ends[0].addr, secs(5));
        let warnings = machine.journal(&format!("-p warning --since=@{since}"));
        let is_of_this_machine = |line: &&str| line.contains("br_netfilter") || line.contains("io_uring");
        let others: Vec<_> =
            warnings.lines().filter(|line| !is_of_this_machine(line) && !line.starts_with("--")).collect();
        assert_eq!(others, Vec::<&str>::new(), "{backend} {options}");
        second.terminate();
        machine.run("systemctl stop flanneld");
    }
}

#[test]
fn the_settings_of_rhel_are_read() {
    let Some(host) = Host::start(r#"{"Type":"alloc"}"#, "") else { return };
    let machine = &host.machine;
    machine.run("rm /etc/default/flanneld");
    let other = config(r#"{"Type":"alloc"}"#).replace("10.10", "10.40");
    let put = ["etcdctl", "--endpoints=http://10.77.0.254:2379", "put", "/atomic.io/network/config", &other];
    host.lab.run(&host.lab.ns("sw"), &put);
    machine.write(
        "/etc/sysconfig/flanneld",
        "# Flanneld configuration options\n\nFLANNEL_ETCD_ENDPOINTS=\"http://10.77.0.254:2379\"\n\
         FLANNEL_ETCD_PREFIX=\"/atomic.io/network\"\n#FLANNEL_OPTIONS=\"\"\nFLANNEL_OPTIONS=\"-etcd-api=v3 -v=1\"\n",
    );
    machine.run("timeout 20 systemctl start flanneld");
    assert_eq!(host.subnet().network, "10.40.0.0/16");
    // The image's entry point takes flags alone, and the program's name before them.
    for words in ["-version", "flanneld -version", "/opt/bin/flanneld -version"] {
        let entry = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/entrypoint.sh");
        machine.write("/root/entrypoint.sh", &std::fs::read_to_string(entry).unwrap());
        let version = machine.run(&format!("sh /root/entrypoint.sh {words} 2>&1"));
        assert_eq!(version, format!("v{}\n", env!("CARGO_PKG_VERSION")), "{words}");
    }
}

#[test]
fn a_reload_takes_over_what_the_settings_file_says_now() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "FLANNELD_V=0\nFLANNELD_PEER_FILTER=strict\n") else {
        return;
    };
    let machine = &host.machine;
    machine.run("systemctl start flanneld");
    let pid = host.pid();
    assert_eq!(machine.journal("-p debug").matches("the peer filter is").count(), 0);
    // The unit has handed the file's old values over as the environment, which usually wins.
    let settings = format!("{SETTINGS}FLANNELD_V=1\nFLANNELD_PEER_FILTER=inner\nFLANNELD_BATCH=8\n");
    machine.write("/etc/default/flanneld", &settings);
    machine.run("systemctl reload flanneld");
    eventually(secs(5), "the reload", || {
        machine.journal("").contains("the peer filter is inner").then_some(())
    });
    let warnings = machine.journal("-p warning");
    assert!(
        warnings.contains("FLANNELD_BATCH in /etc/default/flanneld has changed and takes effect"),
        "{warnings}"
    );
    machine.write("/etc/default/flanneld", "FLANNELD_V=2\nFLANNEL");
    machine.run("systemctl reload flanneld");
    eventually(secs(5), "the refusal", || {
        machine.journal("-p err").contains("the old settings stay").then_some(())
    });
    assert_eq!(host.pid(), pid, "it is the same process");
    assert_eq!(machine.show("flanneld", "ActiveState"), "active");
}

#[test]
fn a_purge_removes_what_is_ours_and_nothing_else() {
    let Some(host) =
        Host::start(r#"{"Type":"vxlan"}"#, "FLANNELD_IP_MASQ=true\nFLANNELD_IP_BLACKHOLE_ROUTE=true\n")
    else {
        return;
    };
    let (machine, lab) = (&host.machine, &host.lab);
    // What belongs to others stands in the same tables.
    machine.run(
        "iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE && iptables -A FORWARD -d 192.0.2.0/24 -j ACCEPT && \
         nft add table ip others && ip route add blackhole 192.0.2.0/24 && \
         ip link add vxlan9 type vxlan id 9 dstport 4790 && iptables-legacy -A FORWARD -d 192.0.2.0/24 -j ACCEPT",
    );
    // An empty table of iptables' is no rule of anybody's.
    let state = "iptables-save | grep '^-'; nft list tables ip | grep -Ev ' (nat|filter|mangle|raw)$' | sort; ip -4 route show table main | sort; \
                 ip -br link | cut -d' ' -f1 | sort; iptables-legacy-save | grep '^-'";
    let before = machine.run(state);
    machine.run("systemctl start flanneld");
    let mut second = lab.daemon(2, &["--etcd-api=v3"]);
    second.subnet();
    eventually(secs(5), "a peer's route", || machine.run("ip route").contains("dev flannel.1").then_some(()));
    // A subnet that the host had once, and what an older network left in both flavours.
    machine.run(
        "ip route add blackhole 10.10.250.0/24 proto 78 && nft add table ip flannel-ipv4 && \
         iptables-legacy -t nat -N FLANNEL-POSTRTG && iptables-legacy -t nat -A POSTROUTING -m comment \
         --comment 'flanneld masq' -j FLANNEL-POSTRTG && iptables-legacy -t nat -A FLANNEL-POSTRTG -j RETURN",
    );
    machine.run("dpkg -r flanneld 2>&1");
    let kept = machine.run(state);
    assert!(
        kept.contains("FLANNEL-FWD") && kept.contains("flannel.1"),
        "a removal leaves containers their way: {kept}"
    );
    assert!(machine.read("/run/flannel/subnet.env").is_some());
    // A masquerade as nft writes it, which is what nft makes of ours when it saves and loads them: now iptables shows
    // nothing of the table nat.
    machine.run("nft add rule ip nat FLANNEL-POSTRTG ip saddr 10.10.0.0/16 masquerade");
    assert!(!machine.run("iptables-save").contains("FLANNEL-POSTRTG"));
    // A way past the overlay, which the host needed once.
    machine.run("ip route add 10.10.250.9 via 10.77.0.254 proto 79");
    machine.run("dpkg -P flanneld 2>&1");
    assert_eq!(machine.run(state), before);
    assert!(!machine.run("nft list ruleset").contains("FLANNEL"));
    for left in ["/run/flannel/subnet.env", "/etc/default/flanneld", "/var/lib/flanneld"] {
        assert!(!machine.try_run(&format!("test -e {left}")).status.success(), "{left} is left");
    }
}
