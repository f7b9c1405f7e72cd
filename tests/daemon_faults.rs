//! Promise: what goes wrong around a running daemon is said once, costs little, and is over when its cause is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Container, Daemon, Lab, Proc, TUTORIAL, eventually, flanneld, ms, secs};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// Two hosts with a container each, and what systemd would hear of the first.
struct Pair {
    daemons: [Daemon; 2],
    ends: [Container; 2],
    socket: UnixDatagram,
    lab: Lab,
}

impl Pair {
    fn set() -> Option<Self> {
        let lab = Lab::start(2)?;
        lab.put_config(Api::V3, TUTORIAL);
        let path = lab.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let envs = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let file = lab.path("first.env");
        let first = Daemon::start(&lab, &lab.host(1), &file, &["--iface=eth0"], &envs);
        let mut daemons = [first, lab.daemon(2, &[])];
        let subnets = [daemons[0].subnet(), daemons[1].subnet()];
        let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
        lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
        Some(Self { daemons, ends, socket, lab })
    }

    fn ip(&self, line: &str) {
        self.lab.ip(&format!("-n {} {line}", self.lab.host(1)));
    }

    /// What systemd has heard since the last call.
    fn heard(&self) -> String {
        let (mut heard, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(len) = self.socket.recv(&mut buffer) {
            heard += &String::from_utf8_lossy(&buffer[..len]);
            heard.push('\n');
        }
        heard
    }

    /// Takes the underlay away, sees that it is said, brings it back, and sees that all works within two seconds.
    fn survives(&mut self, takes: &[&str], said: &str, brings: &[&str]) {
        let before = self.daemons[0].text().len();
        let news = |pair: &Self| pair.daemons[0].text()[before..].to_owned();
        self.heard();
        takes.iter().for_each(|line| self.ip(line));
        eventually(secs(2), said, || news(self).contains(said).then_some(()));
        assert!(!self.lab.pings(&self.ends[0].ns, self.ends[1].addr), "{takes:?} took nothing");
        let heard = self.heard();
        assert!(heard.contains("STATUS=udp backend, subnet 10.") && heard.contains(said), "{heard}");

        brings.iter().for_each(|line| self.ip(line));
        let start = Instant::now();
        self.lab.reaches(&self.ends[0].ns, self.ends[1].addr, secs(5));
        self.lab.reaches(&self.ends[1].ns, self.ends[0].addr, secs(2));
        eprintln!("{takes:?}: works again after {:?}", start.elapsed());
        assert!(start.elapsed() < secs(2), "{takes:?}: works only after {:?}", start.elapsed());
        eventually(secs(3), "the good news", || news(self).contains(" is back after ").then_some(()));
        eventually(secs(1), "a good status", || {
            self.heard().lines().last().is_some_and(|line| !line.contains("eth0")).then_some(())
        });
        let text = news(self);
        assert!(text.matches("external interface: ").count() <= 2 + takes.len().max(brings.len()), "{text}");
        assert!(self.daemons[0].running(), "{text}");
    }
}

#[test]
fn the_external_interface_goes_and_comes_back() {
    let Some(mut pair) = Pair::set() else { return };
    let add = "addr add 10.77.0.1/24 dev eth0";
    pair.survives(&["addr del 10.77.0.1/24 dev eth0"], "eth0 has lost its address 10.77.0.1", &[add]);
    pair.survives(&["link set eth0 down"], "eth0 is down", &["link set eth0 up"]);
    let sw = pair.lab.ns("sw");
    let make = format!("link add eth0 type veth peer name p1 netns {sw}");
    // A bridge port that is not in its bridge: the peer's end of the cable is made anew too.
    let join = format!("netns exec {sw} ip link set p1 master br0 up");
    let brings = [&*make, &*join, "link set eth0 up", add];
    pair.survives(&["link del eth0"], "eth0 is gone", &brings);
    let unplug = format!("netns exec {sw} ip link set p1 down");
    let plug = format!("netns exec {sw} ip link set p1 up");
    pair.survives(&[&unplug], "eth0 has no carrier", &[&plug]);
}

#[test]
fn an_address_that_moves_to_a_bridge_is_no_trouble() {
    let Some(pair) = Pair::set() else { return };
    let before = pair.daemons[0].text().len();
    for line in ["link add brx type bridge", "link set brx up", "link set eth0 master brx"] {
        pair.ip(line);
    }
    pair.ip("addr add 10.77.0.1/24 dev brx");
    pair.ip("addr del 10.77.0.1/24 dev eth0");
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(2));
    pair.daemons[0].wait_text("10.77.0.1 is on brx now", secs(2));
    let news = pair.daemons[0].text()[before..].to_owned();
    assert!(!news.contains("WARN") && !news.contains("ERROR"), "{news}");
}

/// Somebody removes our route, again and again: the log is not flooded, no core is busy, and the route is back at the
/// end.
#[test]
fn a_fight_over_a_route_is_told_in_few_lines() {
    let Some(mut pair) = Pair::set() else { return };
    let (host, before) = (pair.lab.host(1), pair.daemons[0].text().len());
    let script = "while :; do ip route del 10.0.0.0/8 dev flannel0 2>/dev/null; sleep 0.02; done";
    let (cpu, start) = (pair.daemons[0].cpu(|_| true), Instant::now());
    let foe = pair.lab.spawn(&host, "foe", &["sh", "-c", script]);
    std::thread::sleep(secs(6));
    let share = (pair.daemons[0].cpu(|_| true) - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    drop(foe);
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(2));
    let text = pair.daemons[0].text()[before..].to_owned();
    let lines = text.lines().count();
    assert!((3..8).contains(&lines) && text.contains("somebody undoes this again and again"), "{text}");
    eprintln!("{:.1} % of a core during the fight", share * 100.0);
    assert!(share < 0.10);
    // A stranger's route comes and goes in its place: that makes two lines, not two each time.
    pair.ip("addr add 10.79.0.1/24 dev eth0");
    let before = pair.daemons[0].text().len();
    let script = "while :; do ip route replace 10.0.0.0/8 dev eth0; sleep 0.03; ip route del 10.0.0.0/8; sleep 0.03; done";
    let foe = pair.lab.spawn(&host, "stranger", &["sh", "-c", script]);
    std::thread::sleep(secs(5));
    drop(foe);
    let _ = pair.lab.try_run(&host, &["ip", "route", "del", "10.0.0.0/8", "dev", "eth0"]);
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(3));
    let text = pair.daemons[0].text()[before..].to_owned();
    assert!(text.lines().count() < 6, "{text}");
    assert!(pair.daemons[0].running());
}

/// The subscription overruns while no descriptor is left: it is made again later.
#[test]
fn a_lost_subscription_is_made_again() {
    let Some(mut pair) = Pair::set() else { return };
    let (host, pid) = (pair.lab.host(1), pair.daemons[0].pid().to_string());
    let limit = |n: &str| {
        pair.lab.run(&host, &["prlimit", "--pid", &pid, &format!("--nofile={n}:")]);
    };
    limit("3");
    pair.daemons[0].signal("STOP");
    let mut batch = String::new();
    for n in 0..4000 {
        batch += &format!("route add 203.0.{}.{} dev lo table 77\n", n / 250, n % 250);
    }
    std::fs::write(pair.lab.path("batch"), batch).unwrap();
    pair.lab.run(&host, &["ip", "-batch", pair.lab.path("batch").to_str().unwrap()]);
    pair.daemons[0].signal("CONT");
    pair.daemons[0].wait_text("subscribe to changes of links, addresses and routes", secs(3));
    std::thread::sleep(ms(1500));
    assert!(pair.daemons[0].running(), "{}", pair.daemons[0].text());
    assert!(pair.lab.pings(&pair.ends[0].ns, pair.ends[1].addr));
    let said = pair.daemons[0].text().matches("subscribe to changes").count();
    assert!(said <= 2, "{}", pair.daemons[0].text());
    // Nobody hears of this change; the look after the subscription's return finds it.
    pair.ip("route del 10.0.0.0/8 dev flannel0");
    limit("1024");
    pair.daemons[0].wait_text("following the kernel's tables again", secs(3));
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(2));
    pair.ip("route del 10.0.0.0/8 dev flannel0");
    pair.lab.reaches(&pair.ends[0].ns, pair.ends[1].addr, secs(2));
}

/// In a read-only directory the daemon is not ready and says why, and the data path runs; once the directory is
/// writable again, the file comes by itself.
#[test]
fn a_subnet_file_that_cannot_be_written_is_tried_again() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let (path, dir) = (lab.path("notify"), lab.path("sealed"));
    std::fs::create_dir(&dir).unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let heard = || {
        let (mut heard, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(len) = socket.recv(&mut buffer) {
            heard += &String::from_utf8_lossy(&buffer[..len]);
        }
        heard
    };
    // The mount is the daemon's own: `ip netns exec` makes a mount namespace.
    let script = format!("mount -t tmpfs -o ro none {} && exec \"$@\"", dir.display());
    let file = format!("--subnet-file={}", dir.join("flannel/subnet.env").display());
    let program = flanneld();
    let head = ["sh", "-c", &script, "sh", &program, "--etcd-endpoints=http://10.77.0.254:2379", &file];
    let args = [&head, &["--iface=eth0", "--healthz-port=8471"][..]].concat();
    let envs = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut daemon = Proc::start(&lab.host(1), &args, &envs, &lab.path("sealed.log"));
    daemon.wait_text("Failed to write subnet file: cannot create", secs(5));
    let mut other = lab.daemon(2, &[]);
    other.subnet();
    let keys = lab.leases(Api::V3);
    let (key, _) = keys.iter().find(|(_, value)| value.contains("10.77.0.1\"")).unwrap();
    let base = key.split('-').next().unwrap().parse().unwrap();
    lab.reaches(&lab.host(2), base, secs(3));
    std::thread::sleep(secs(2));
    assert!(daemon.running(), "{}", daemon.text());
    assert_eq!(daemon.text().matches("Failed to write subnet file").count(), 1, "{}", daemon.text());
    let ready = || lab.run(&lab.host(1), &["curl", "-sm4", "http://127.0.0.1:8471/readyz"]);
    assert_eq!(ready(), "flanneld is not ready yet");
    let before = heard();
    assert!(before.contains("; cannot create") && !before.contains("READY=1"), "{before}");

    let (pid, dir) = (daemon.pid().to_string(), dir.to_str().unwrap());
    lab.run(&lab.host(1), &["nsenter", "-t", &pid, "-m", "mount", "-o", "remount,rw", dir]);
    daemon.wait_text("Wrote subnet file to", secs(3));
    let text = std::fs::read_to_string(format!("/proc/{pid}/root{dir}/flannel/subnet.env")).unwrap();
    assert!(text.contains("FLANNEL_SUBNET=10."), "{text}");
    assert_eq!(ready(), "flanneld is ready");
    let after = heard();
    assert!(after.contains("READY=1") && !after.contains("cannot create"), "{after}");
}

/// HTTP/2 to etcd makes several debug lines a second, among which nobody finds ours.
#[test]
fn verbosity_is_of_our_own_messages_first() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let foreign = |v: &str| {
        let mut daemon = lab.daemon(1, &[v, "--log_dir=/tmp"]);
        daemon.subnet();
        daemon.terminate();
        let text = daemon.text();
        assert_eq!(text.matches("-log_dir has no effect: the log goes to stderr").count(), 1, "{text}");
        text.lines().filter(|line| line.contains(" DEBUG ") && !line.contains(" DEBUG flanneld::")).count()
    };
    assert_eq!(foreign("-v=1"), 0);
    assert!(foreign("-v=10") > 0, "the libraries say nothing at all");
}

/// The kernel closes a killed daemon's io_uring, and with it the port, some time after the process is gone.
#[test]
fn a_killed_daemon_is_followed_by_one_that_comes_up() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let mut subnet = None;
    for args in [["--engine=uring", "--workers=1"], ["--engine=uring", "--workers=2"]] {
        for _ in 0..10 {
            let mut daemon = lab.daemon(1, &args);
            let now = Some(daemon.subnet());
            assert!(subnet.is_none() || subnet == now, "another subnet");
            subnet = now;
            daemon.kill();
        }
    }
}
