//! Promise: a stop is obeyed within a second whatever hangs, and a log that nobody takes ends nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Api, Daemon, Lab, Proc, TUTORIAL, eventually, flanneld, ms, secs};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const HEALTH: &str = "--healthz-port=8471";

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

/// Starts flanneld on host 1 with its stderr where the shell puts it.
fn start(lab: &Lab, stderr: &str, args: &[&str]) -> Proc {
    let script = format!("exec \"$@\" 2>{stderr}");
    let file = format!("--subnet-file={}", lab.path("redirected.env").display());
    let program = flanneld();
    let head = ["sh", "-c", &script, "sh", &program, "--etcd-endpoints=http://10.77.0.254:2379", &file];
    let args = [&head, &["--iface=eth0", HEALTH][..], args].concat();
    Proc::start(&lab.host(1), &args, &[], &lab.path("redirected.log"))
}

fn curl(lab: &Lab, path: &str) -> String {
    let out = lab.try_run(&lab.host(1), &["curl", "-sm4", &format!("http://127.0.0.1:8471{path}")]);
    String::from_utf8(out.stdout).unwrap()
}

fn until_ready(lab: &Lab, daemon: &mut Proc) {
    eventually(secs(10), "readiness", || {
        assert!(daemon.running(), "flanneld is gone");
        (curl(lab, "/readyz") == "flanneld is ready").then_some(())
    });
}

/// Ends the daemon: it must exit with code 0, within `limit`.
fn stops(daemon: &mut Proc, limit: std::time::Duration) {
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{status:?} after {took:?}\n{}", daemon.text());
    assert!(took < limit, "stopping took {took:?}\n{}", daemon.text());
}

/// Makes a pipe and opens its end for reading, so that a writer need not wait for a reader.
fn pipe(lab: &Lab, name: &str) -> (PathBuf, File) {
    let path = lab.path(name);
    lab.run(&lab.host(1), &["mkfifo", path.to_str().unwrap()]);
    let end = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    (path, end.unwrap())
}

fn fill(mut pipe: &File) {
    while pipe.write(&[b'x'; 512]).is_ok() {}
    while pipe.write(b"x").is_ok() {}
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let (path, reader) = pipe(&lab, "closed");
    let mut reader = Some(reader);
    for stderr in ["/dev/full", path.to_str().unwrap()] {
        let mut daemon = start(&lab, stderr, &[]);
        until_ready(&lab, &mut daemon);
        if stderr != "/dev/full" {
            reader = None;
        }
        // Reports, events and repairs make lines of the log.
        for n in 0..3 {
            daemon.signal("USR1");
            lab.put_lease(Api::V3, &format!("10.98.{}.0-20", n * 16), "10.77.0.99");
            lab.ip(&format!("-n {} addr flush dev flannel0", lab.host(1)));
            std::thread::sleep(ms(200));
        }
        eventually(secs(3), "the peers", || curl(&lab, "/metrics").contains("peers 3").then_some(()));
        assert!(daemon.running());
        stops(&mut daemon, secs(1));
        for n in 0..3 {
            lab.delete_lease(Api::V3, &format!("10.98.{}.0-20", n * 16));
        }
    }
    assert!(reader.is_none());
}

/// The texts of a refused command line may find no reader either; the exit code stays.
#[test]
fn a_refusal_that_cannot_be_written_keeps_its_code() {
    for (flag, code) in [("-version", 0), ("-help", 0), ("-nonsense", 2), ("-etcd-cafile=/nowhere", 1)] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = std::process::Command::new(flanneld()).arg(flag).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{flag}");
    }
}

/// The reader of the log hangs, at the first line or later: the control loop hangs with it, but a stop does not.
#[test]
fn a_log_that_hangs_does_not_hold_up_a_stop() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let (path, pipe) = pipe(&lab, "full");
    fill(&pipe);
    let mut daemon = start(&lab, path.to_str().unwrap(), &[]);
    std::thread::sleep(secs(1));
    assert!(daemon.running() && !lab.path("redirected.env").exists());
    stops(&mut daemon, secs(1));

    let mut drained = &pipe;
    let mut bytes = [0; 4096];
    while std::io::Read::read(&mut drained, &mut bytes).is_ok() {}
    let mut daemon = start(&lab, path.to_str().unwrap(), &[]);
    until_ready(&lab, &mut daemon);
    fill(&pipe);
    daemon.signal("USR1");
    std::thread::sleep(ms(100));
    assert_eq!(curl(&lab, "/healthz"), "flanneld's control loop does not answer");
    stops(&mut daemon, secs(1));

    // The second signal ends the process at once.
    let mut daemon = start(&lab, path.to_str().unwrap(), &[]);
    std::thread::sleep(ms(500));
    daemon.signal("INT");
    std::thread::sleep(ms(100));
    assert!(daemon.running());
    daemon.signal("TERM");
    let status = daemon.wait(ms(300)).expect("the second signal does not end it");
    assert_eq!(status.code(), Some(128 + 15));
}

/// `/etc/netns/<namespace>/resolv.conf`, which `ip netns exec` puts over `/etc`.
struct Resolver(PathBuf);

impl Resolver {
    fn set(ns: &str, server: &str) -> Self {
        let dir = Path::new("/etc/netns").join(ns);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("resolv.conf"), format!("nameserver {server}\n")).unwrap();
        Self(dir)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // This succeeds only if nobody else has anything there.
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// An etcd by name, and a name server that takes every question and answers none.
#[test]
fn a_silent_name_server_does_not_hold_up_a_stop() {
    let Some(lab) = Lab::without_etcd(1) else { return };
    let _resolver = Resolver::set(&lab.host(1), "10.77.0.254");
    let server = lab.tool(&lab.ns("sw"), "udp_socket 10.77.0.254:53");
    for api in [Api::V2, Api::V3] {
        server.drain();
        let mut daemon = lab.daemon(1, &["--etcd-endpoints=http://etcd.flanneld.test:2379", api.flag()]);
        assert!(server.line(secs(5)).starts_with("10.77.0.1:"), "no question to the name server");
        std::thread::sleep(ms(300));
        // The end comes well before `fl-sig` would force it, so it was an orderly one.
        stops(&mut daemon, ms(600));
        assert!(daemon.text().contains("SIGTERM: stopping"), "{}", daemon.text());
    }
}

/// Makes firewall programs that take four seconds each while `busy` exists, as on a host with many rules and a
/// contended lock.
fn slow_programs(lab: &Lab) -> (String, PathBuf) {
    let (dir, busy) = (lab.path("slow"), lab.path("busy"));
    fs::create_dir(&dir).unwrap();
    fs::write(&busy, "").unwrap();
    for name in ["iptables", "iptables-save", "iptables-restore", "nft"] {
        let script =
            format!("#!/bin/sh\n[ -e {} ] && sleep 4\nexec /usr/sbin/{name} \"$@\"\n", busy.display());
        fs::write(dir.join(name), script).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    (format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()), busy)
}

/// Rules are written beside the control loop, which hears of peers and obeys signals meanwhile. Only `-ip-masq` makes
/// the subnet file wait.
#[test]
fn slow_firewall_programs_hold_up_nothing_but_masquerading() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let (path, busy) = slow_programs(&lab);
    for masquerade in [false, true] {
        let file = lab.path(&format!("masquerade-{masquerade}.env"));
        let args = ["--iface=eth0", "--etcd-api=v3", &format!("-ip-masq={masquerade}"), HEALTH];
        let launch = || Daemon::start(&lab, &lab.host(1), &file, &args, &[("PATH", &path)]);
        let mut daemon = launch();
        daemon.wait_text("worker started", secs(3));
        std::thread::sleep(ms(500));
        assert_eq!(file.exists(), !masquerade, "{}", daemon.text());
        lab.put_lease(Api::V3, "10.98.0.0-20", "10.77.0.99");
        daemon.wait_text("Subnet added: 10.98.0.0/20", secs(1));
        assert!(curl(&lab, "/metrics").contains("flanneld_peers 1"), "{}", curl(&lab, "/metrics"));
        stops(&mut daemon, ms(600));
        lab.delete_lease(Api::V3, "10.98.0.0-20");

        if masquerade {
            assert!(!file.exists(), "{}", daemon.text());
            let mut daemon = launch();
            daemon.wait_text("worker started", secs(3));
            fs::remove_file(&busy).unwrap();
            eventually(secs(10), "the subnet file", || file.exists().then_some(()));
            let text = daemon.text();
            let [rules, written] = ["Masquerade and forward rules for", "Wrote subnet file"]
                .map(|what| text.find(what).unwrap_or_else(|| panic!("no {what:?}:\n{text}")));
            assert!(rules < written, "{text}");
            stops(&mut daemon, ms(600));
        }
    }
}
