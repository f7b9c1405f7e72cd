//! Promise: `-networks` and `-watch-networks` run each network below the prefix on its own, as they come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Api, Lab, Proc, Subnet, eventually, flanneld, ms, secs};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// This is longer than the daemon's pause between two lists of the networks.
const LISTED: u64 = 10;

fn config(network: &str, backend: &str) -> String {
    format!(r#"{{"Network":"{network}","Backend":{backend}}}"#)
}

fn udp(port: u16) -> String {
    format!(r#"{{"Type":"udp","Port":{port}}}"#)
}

/// Starts a daemon of several networks on host `i`, with v0.6.2's flags in v0.6.2's spelling.
fn start(lab: &Lab, i: usize, args: &[&str], envs: &[(&str, &str)]) -> Proc {
    let (program, dir) = (flanneld(), dir(lab, i));
    let (dir, log) = (format!("-subnet-dir={}", dir.display()), lab.path(&format!("several-{i}.log")));
    let head = [&*program, "-etcd-endpoints=http://10.77.0.254:2379", "-iface=eth0", &dir];
    Proc::start(&lab.host(i), &[&head, args].concat(), envs, &log)
}

fn dir(lab: &Lab, i: usize) -> PathBuf {
    lab.path(&format!("networks-{i}"))
}

fn subnet(lab: &Lab, i: usize, daemon: &mut Proc, name: &str) -> Subnet {
    let file = dir(lab, i).join(format!("{name}.env"));
    eventually(secs(LISTED), &format!("{}", file.display()), || {
        assert!(daemon.running(), "flanneld is gone:\n{}", daemon.text());
        Subnet::parse(&fs::read_to_string(&file).ok()?)
    })
}

/// The files that a host's daemon has written.
fn files(lab: &Lab, i: usize) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir(lab, i)) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The TUN devices of host `i`.
fn devices(lab: &Lab, i: usize) -> usize {
    lab.ip(&format!("-n {} -o link show type tun", lab.host(i))).lines().count()
}

fn delete_config(lab: &Lab, api: Api, name: &str) {
    let sw = lab.ns("sw");
    match api {
        Api::V2 => {
            let url = format!("http://10.77.0.254:2379/v2/keys/coreos.com/network/{name}/config");
            lab.run(&sw, &["curl", "-fsSm5", "-XDELETE", &url])
        }
        Api::V3 => {
            let key = format!("/coreos.com/network/{name}/config");
            lab.run(&sw, &["etcdctl", "--endpoints", "http://10.77.0.254:2379", "del", &key])
        }
    };
}

/// Networks come, carry packets beside each other, and go; no other is disturbed.
fn networks_come_and_go(api: Api) {
    let Some(lab) = Lab::start(2) else { return };
    lab.put(api, "blue/config", &config("10.11.0.0/16", &udp(7891)));
    let path = lab.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let envs = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    // One daemon names the API, the other finds it out.
    let mut daemons = [
        start(&lab, 1, &["-watch-networks", api.flag()], &envs),
        start(&lab, 2, &["-watch-networks=true"], &[]),
    ];
    let mut pair =
        |name: &str| [subnet(&lab, 1, &mut daemons[0], name), subnet(&lab, 2, &mut daemons[1], name)];
    let blue = pair("blue");
    lab.put(api, "red/config", &config("10.12.0.0/16", &udp(7892)));
    lab.put(api, "idle/config", &config("10.13.0.0/16", r#"{"Type":"alloc"}"#));
    if api == Api::V3 {
        // A name that would lead out of the prefix; v2 takes no such key.
        lab.put(api, "../config", &config("10.14.0.0/16", r#"{"Type":"alloc"}"#));
    }
    let red = pair("red");
    pair("idle");
    for i in [1, 2] {
        assert_eq!(devices(&lab, i), 2, "two udp networks");
        let wanted = ["blue.env", "idle.env", "red.env"].map(str::to_owned);
        assert_eq!(files(&lab, i), BTreeSet::from(wanted));
    }
    for (subnets, network) in [(&blue, "10.11."), (&red, "10.12.")] {
        assert!(subnets.iter().all(|one| one.subnet.starts_with(network)), "{subnets:?}");
        // The address of flannel0 or flannel1 at the other end.
        lab.reaches(&lab.host(1), subnets[1].base(), secs(5));
    }
    // Each has its lease under its own prefix, and there is none where a single network would have one.
    let lease = lab.lease_keys(api);
    assert!(lease.contains(&format!("red/subnets/{}", red[0].key())), "{lease:?}");
    assert!(lease.contains(&format!("blue/subnets/{}", blue[1].key())), "{lease:?}");
    assert!(!lease.iter().any(|key| key.starts_with("subnets/")), "{lease:?}");

    delete_config(&lab, api, "red");
    eventually(secs(LISTED), "one device less", || {
        (devices(&lab, 1) == 1 && devices(&lab, 2) == 1).then_some(())
    });
    assert!(lab.pings(&lab.host(1), blue[1].base()), "blue was disturbed");
    lab.put(api, "red/config", &config("10.12.0.0/16", &udp(7892)));
    eventually(secs(LISTED), "red again", || (devices(&lab, 1) == 2).then_some(()));
    lab.reaches(&lab.host(1), red[1].base(), secs(LISTED));

    let (status, took) = daemons[0].terminate();
    assert_eq!(status.code(), Some(0), "{}", daemons[0].text());
    assert!(took < secs(1), "it took {took:?} to stop");
    // The kernel takes a device away a little after its process.
    eventually(secs(1), "no device", || (devices(&lab, 1) == 0).then_some(()));
    assert_eq!(files(&lab, 1).len(), 3, "the subnet files stay");
    socket.set_nonblocking(true).unwrap();
    let (mut heard, mut buffer) = (String::new(), [0; 1024]);
    while let Ok(len) = socket.recv(&mut buffer) {
        heard += &String::from_utf8_lossy(&buffer[..len]);
    }
    assert!(heard.contains("STOPPING=1") && heard.contains("networks: blue, idle, red"), "{heard}");
    assert!(!heard.contains("READY=1"), "{heard}");
}

impl Lab {
    /// The keys of all networks' leases, below the prefix.
    fn lease_keys(&self, api: Api) -> Vec<String> {
        let sw = self.ns("sw");
        let text = match api {
            Api::V2 => {
                let url = "http://10.77.0.254:2379/v2/keys/coreos.com/network?recursive=true";
                self.run(&sw, &["curl", "-fsSm5", url])
            }
            Api::V3 => {
                let args = [
                    "--endpoints",
                    "http://10.77.0.254:2379",
                    "get",
                    "--prefix",
                    "--keys-only",
                    "/coreos.com",
                ];
                self.run(&sw, &[&["etcdctl"], &args[..]].concat())
            }
        };
        let keys = text.split(['"', '\n']).filter_map(|word| word.strip_prefix("/coreos.com/network/"));
        keys.filter(|key| key.contains("subnets/")).map(str::to_owned).collect()
    }
}

#[test]
fn networks_come_and_go_on_v2() {
    networks_come_and_go(Api::V2);
}

#[test]
fn networks_come_and_go_on_v3() {
    networks_come_and_go(Api::V3);
}

/// Only the named networks run; a bad config, a port in use and an unknown backend are logged, retried, and end no
/// other network.
#[test]
fn a_network_that_fails_leaves_the_others_alone() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put(Api::V3, "good/config", &config("10.11.0.0/16", &udp(7891)));
    lab.put(Api::V3, "same-port/config", &config("10.12.0.0/16", &udp(7891)));
    lab.put(Api::V3, "bad/config", "{\"Network\":");
    lab.put(Api::V3, "odd/config", &config("10.14.0.0/16", r#"{"Type":"carrier-pigeon"}"#));
    lab.put(Api::V3, "unnamed/config", &config("10.15.0.0/16", &udp(7895)));
    let args = ["-networks=good, same-port,bad,odd,absent", "--healthz-port=8471", "--etcd-api=v3"];
    let mut daemon = start(&lab, 1, &args, &[]);
    let files_then = || -> BTreeSet<String> { files(&lab, 1) };
    eventually(secs(LISTED), "one of the two that share a port", || {
        files_then().iter().any(|name| name == "good.env" || name == "same-port.env").then_some(())
    });
    daemon.wait_text("network absent has no config yet", secs(5));
    daemon.wait_text("network{name=\"odd\"}", secs(5));
    daemon.wait_text("carrier-pigeon", secs(5));
    daemon.wait_text("UDP port 7891 on 10.77.0.1 is in use", secs(5));
    std::thread::sleep(secs(2));
    assert!(daemon.running(), "{}", daemon.text());
    assert_eq!(files_then().len(), 1, "{:?}\n{}", files_then(), daemon.text());
    let retries = daemon.text().matches("port 7891 on 10.77.0.1 is in use").count();
    assert!((2..20).contains(&retries), "{retries} attempts in 2 s");

    // `/healthz` and `/readyz` speak for all networks; ready means that all are.
    let curl = |path: &str| {
        let url = format!("http://127.0.0.1:8471{path}");
        lab.run(&lab.host(1), &["curl", "-sSm5", &url])
    };
    assert_eq!(curl("/healthz"), "flanneld is running");
    assert_eq!(curl("/readyz"), "flanneld is not ready yet");
    let metrics = curl("/metrics");
    let ready = metrics.lines().filter(|line| line.starts_with("flanneld_ready{network=")).count();
    assert_eq!(ready, 4, "{metrics}");

    // Once its config is mended in the store, each comes up without a restart.
    lab.put(Api::V3, "bad/config", &config("10.13.0.0/16", &udp(7893)));
    lab.put(Api::V3, "odd/config", &config("10.14.0.0/16", &udp(7894)));
    lab.put(Api::V3, "absent/config", &config("10.16.0.0/16", &udp(7896)));
    for name in ["bad", "odd", "absent"] {
        subnet(&lab, 1, &mut daemon, name);
    }
    assert!(!files_then().contains("unnamed.env"));
    // What is put under a name that nobody asked for, and etcd's absence, change nothing.
    let before = devices(&lab, 1);
    lab.put(Api::V3, "other/config", &config("10.17.0.0/16", &udp(7897)));
    std::thread::sleep(ms(2500));
    assert_eq!(devices(&lab, 1), before);
    assert_eq!(daemon.terminate().0.code(), Some(0));
}

/// The daemon starts before etcd, and later etcd is gone for a while: the log says so once, and no network ends.
#[test]
fn etcd_may_come_late_and_go() {
    let Some(mut lab) = Lab::without_etcd(1) else { return };
    let mut daemon = start(&lab, 1, &["-watch-networks", "--etcd-api=v3", "--etcd-timeout=500ms"], &[]);
    daemon.wait_text("Couldn't list the networks", secs(5));
    lab.start_etcd();
    lab.put(Api::V3, "blue/config", &config("10.11.0.0/16", &udp(7891)));
    subnet(&lab, 1, &mut daemon, "blue");
    lab.stop_etcd();
    std::thread::sleep(secs(4));
    assert!(daemon.running() && devices(&lab, 1) == 1, "{}", daemon.text());
    let said = daemon.text().matches("Couldn't list the networks").count();
    assert_eq!(said, 2, "{}", daemon.text());
    assert_eq!(daemon.terminate().0.code(), Some(0));
}

#[test]
fn a_lease_server_is_refused_with_what_to_do_instead() {
    for flag in ["-listen=:8888", "-remote=10.0.0.1:8888"] {
        let out = std::process::Command::new(flanneld()).arg(flag).output().unwrap();
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{text}");
        let name = flag.split('=').next().unwrap();
        assert!(text.contains(name) && text.contains("-etcd-endpoints naming etcd itself"), "{text}");
    }
}
