//! Promise: what others do to the device is repaired within two seconds, without spinning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Container, Daemon, Lab, Subnet, TUTORIAL, secs};
use std::time::{Duration, Instant};

struct Pair {
    daemons: [Daemon; 2],
    subnet: Subnet,
    ends: [Container; 2],
    lab: Lab,
}

impl Pair {
    fn set(args: &[&str]) -> Option<Self> {
        let lab = Lab::start(2)?;
        lab.put_config(Api::V3, TUTORIAL);
        let mut daemons = [lab.daemon(1, args), lab.daemon(2, args)];
        let subnets = [daemons[0].subnet(), daemons[1].subnet()];
        let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
        lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
        let [subnet, _] = subnets;
        Some(Self { daemons, subnet, ends, lab })
    }

    /// Does something to host 1's device, then waits until all is as it was.
    fn survives(&mut self, what: &str, commands: &[&str]) {
        let host = self.lab.host(1);
        for command in commands {
            self.lab.ip(&format!("-n {host} {command}"));
        }
        let start = Instant::now();
        lab::eventually(secs(5), &format!("the repair after {what}"), || self.whole().then_some(()));
        let took = start.elapsed();
        self.lab.reaches(&self.ends[0].ns, self.ends[1].addr, secs(2));
        self.lab.reaches(&self.ends[1].ns, self.ends[0].addr, secs(2));
        eprintln!("{what}: repaired after {took:?}");
        assert!(took < secs(2), "{what}: repaired only after {took:?}");
        assert!(self.daemons[0].running(), "{}", self.daemons[0].text());
        self.idles(what);
    }

    /// Reads address, MTU, state and route of `flannel0`.
    fn whole(&self) -> bool {
        let host = self.lab.host(1);
        let show = ["ip", "addr", "show", "dev", "flannel0"];
        let link = self.lab.try_run(&host, &show);
        let link = String::from_utf8_lossy(&link.stdout).into_owned();
        let routes = self.lab.run(&host, &["ip", "route", "show", "10.0.0.0/8"]);
        link.contains(&format!("inet {}/32 ", self.subnet.base()))
            && link.contains(" mtu 1472 ")
            && link.contains("UP")
            && routes.starts_with("10.0.0.0/8 dev flannel0")
    }

    /// Half a second without traffic must cost next to nothing.
    fn idles(&self, what: &str) {
        let (before, start) = (self.daemons[0].cpu(|_| true), Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let share = (self.daemons[0].cpu(|_| true) - before).as_secs_f64() / start.elapsed().as_secs_f64();
        assert!(share < 0.10, "after {what}: {:.0} % of a core with nothing to do", share * 100.0);
    }
}

fn repairs(args: &[&str]) {
    let Some(mut pair) = Pair::set(args) else { return };
    pair.survives("an address flush", &["addr flush dev flannel0"]);
    pair.survives("a route delete", &["route del 10.0.0.0/8 dev flannel0"]);
    pair.survives("an MTU change", &["link set flannel0 mtu 1400"]);
    pair.survives("down", &["link set flannel0 down"]);
    pair.survives("down and up", &["link set flannel0 down", "link set flannel0 up"]);
    pair.survives("a deleted device", &["link del flannel0"]);
    pair.survives("a device deleted again", &["link del flannel0"]);
}

#[test]
fn with_io_uring() {
    repairs(&["--engine=uring"]);
}

#[test]
fn with_poll() {
    repairs(&["--engine=poll"]);
}

/// The link below goes away and comes back: nothing has to be repaired, nothing breaks, and no core is busy.
#[test]
fn the_underlay_goes_down_and_up() {
    let Some(mut pair) = Pair::set(&[]) else { return };
    let host = pair.lab.host(1);
    pair.lab.ip(&format!("-n {host} link set eth0 down"));
    let pings =
        pair.lab.spawn(&pair.ends[0].ns, "ping", &["ping", "-i0.01", "-c50", &pair.ends[1].addr.to_string()]);
    std::thread::sleep(secs(1));
    drop(pings);
    pair.idles("the underlay's end");
    pair.survives("the underlay's return", &["link set eth0 up", "route replace default via 10.77.0.254"]);
}
