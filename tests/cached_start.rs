//! Promise: with a state directory a daemon starts while the store is away, and never on what is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::{Api, Container, Daemon, Lab, Proc, Subnet, TUTORIAL, eventually, secs};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

const HEALTH: &str = "--healthz-port=8471";

/// Two hosts with a state directory each, and containers that reach each other.
struct Site {
    daemons: Vec<Daemon>,
    subnets: Vec<Subnet>,
    ends: Vec<Container>,
    args: Vec<String>,
    lab: Lab,
}

impl Site {
    /// Runs the network of that config with these flags beside `--state-dir`.
    fn set(api: Api, json: &str, args: &[&str]) -> Option<Site> {
        let lab = Lab::start(2)?;
        lab.put_config(api, json);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut site = Site { daemons: vec![], subnets: vec![], ends: vec![], args, lab };
        for i in [1, 2] {
            let mut daemon = site.start(i, &[]);
            let subnet = daemon.subnet();
            site.ends.push(site.lab.container(i, &subnet));
            site.subnets.push(subnet);
            site.daemons.push(daemon);
        }
        site.lab.reaches(&site.ends[0].ns, site.ends[1].addr, secs(5));
        Some(site)
    }

    fn dir(&self, i: usize) -> PathBuf {
        self.lab.path(&format!("state-{i}"))
    }

    /// The file of host 1, once it holds its lease and the one peer.
    fn file(&self) -> PathBuf {
        let file = self.dir(1).join("network.cache");
        eventually(secs(10), "a cache with a peer", || {
            let text = fs::read_to_string(&file).ok()?;
            text.contains("\"peers\":1").then_some(())
        });
        file
    }

    fn start(&self, i: usize, more: &[&str]) -> Daemon {
        let state = format!("--state-dir={}", self.dir(i).display());
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.lab.daemon(i, &[&[&*state, HEALTH], &args[..], more].concat())
    }

    /// Ends the first host's daemon and the store, as a power cut of both does to those who come back.
    fn stop(&mut self) {
        self.file();
        self.daemons[0].terminate();
        self.lab.stop_etcd();
    }

    /// Starts the first host's daemon anew and returns how long the container's first packet takes.
    fn first_packet(&mut self, more: &[&str]) -> Option<Duration> {
        let end = self.ends[1].addr.to_string();
        let log = format!("ping-{:x}", lab::random());
        // Without stdbuf, ping would keep its lines until it has many; with a -w of its own it would end at an ICMP error.
        let line = ["timeout", "4", "stdbuf", "-oL", "ping", "-D", "-n", "-i0.02", &end];
        let ping = self.lab.spawn(&self.ends[0].ns, &log, &line);
        std::thread::sleep(lab::ms(100));
        assert!(!ping.text().contains("bytes from"), "it forwards without a daemon:\n{}", ping.text());
        let start = SystemTime::now();
        self.daemons[0] = self.start(1, more);
        let answered = || {
            let text = ping.text();
            let line = text.lines().find(|line| line.contains("bytes from"))?;
            let at: f64 = line.split([']', '[']).nth(1)?.parse().ok()?;
            let start = start.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
            Some(Duration::from_secs_f64(at - start))
        };
        let end = std::time::Instant::now() + secs(2);
        while std::time::Instant::now() < end {
            if let Some(after) = answered() {
                return Some(after);
            }
            std::thread::sleep(lab::ms(20));
        }
        eprintln!("no packet: {}", ping.text());
        None
    }

    /// Status code and body of a path of host 1's status server.
    fn get(&self, path: &str) -> (String, String) {
        let url = format!("http://127.0.0.1:8471{path}");
        let out = self.lab.try_run(&self.lab.host(1), &["curl", "-sm2", "-w\n%{http_code}", &url]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or_default();
        (code.to_owned(), body.to_owned())
    }

    fn metric(&self, line: &str) -> bool {
        self.get("/metrics").1.lines().any(|found| found == line)
    }

    /// Waits until `/readyz` answers with that code and a body that contains `text`.
    fn ready(&self, code: &str, text: &str) {
        eventually(secs(10), &format!("{code} {text}\n{}", self.daemons[0].text()), || {
            let (is, body) = self.get("/readyz");
            (is == code && body.contains(text)).then_some(())
        });
    }

    /// Checks that the daemon that runs on host 1 has not begun with what was kept, and why.
    fn refuses(&mut self, more: &[&str], reason: &str) {
        self.daemons[0] = self.start(1, more);
        self.daemons[0].wait_text("not using network.cache of the state directory: ", secs(5));
        let text = self.daemons[0].text();
        assert!(text.contains(reason), "{reason}:\n{text}");
        // A daemon that did use it would forward by now.
        std::thread::sleep(lab::ms(700));
        assert!(!self.lab.pings(&self.ends[0].ns, self.ends[1].addr), "{}", self.daemons[0].text());
        assert_eq!(self.get("/readyz").0, "503");
        assert!(self.metric("flanneld_from_cache 0") && self.daemons[0].running());
        self.daemons[0].terminate();
    }
}

/// The store is away, comes back with the lease, and never knew that anything was amiss.
fn away_and_back(api: Api, flag: &str) {
    let Some(mut site) = Site::set(api, TUTORIAL, &[flag]) else { return };
    let before = site.lab.leases(api);
    site.stop();
    let file = fs::read(site.file()).unwrap();
    let after = site.first_packet(&[]).unwrap_or_else(|| panic!("no packet:\n{}", site.daemons[0].text()));
    eprintln!("{flag}: the first packet {after:?} after the start, without a store");
    assert!(after < secs(1), "{after:?}\n{}", site.daemons[0].text());
    assert_eq!(site.daemons[0].subnet(), site.subnets[0]);
    site.ready("200", "flanneld is ready; degraded: running from the state directory, without etcd");
    assert!(site.metric("flanneld_from_cache 1") && site.metric("flanneld_store_up 0"));
    assert!(site.metric("flanneld_lease_state{state=\"held\"} 1") && site.metric("flanneld_peers 1"));
    assert_eq!(fs::read(site.file()).unwrap(), file, "it bears witness for itself");

    site.lab.start_etcd();
    site.daemons[0].wait_text("Lease renewed, new expiration:", secs(20));
    eventually(secs(5), "the end of the cache", || {
        (site.get("/readyz") == ("200".to_owned(), "flanneld is ready".to_owned())).then_some(())
    });
    assert!(site.metric("flanneld_from_cache 0") && site.metric("flanneld_store_up 1"));
    assert_eq!(site.lab.leases(api), before, "the same lease");
    site.daemons[0].wait_text("etcd has the network config of the state directory", secs(10));
    let text = site.daemons[0].text();
    for word in ["Lease has been revoked", "Subnet removed", "expired", "panicked"] {
        assert!(!text.contains(word), "{word}:\n{text}");
    }
    assert!(site.lab.pings(&site.ends[0].ns, site.ends[1].addr));
    // The peers' changes reach it again, and what is kept follows.
    site.lab.put_lease(api, "10.98.0.0-20", "10.77.0.99");
    eventually(secs(10), "the new peer in the cache", || {
        fs::read_to_string(site.dir(1).join("network.cache")).ok()?.contains("10.98.0.0-20").then_some(())
    });
}

#[test]
fn etcd_v3_away_at_the_start() {
    away_and_back(Api::V3, "--etcd-api=v3");
}

#[test]
fn etcd_v2_away_at_the_start() {
    away_and_back(Api::V2, "--etcd-api=v2");
}

#[test]
fn etcd_of_either_api_away_at_the_start() {
    away_and_back(Api::V3, "--etcd-api=auto");
}

/// A store whose packets are dropped on the way takes its whole deadline to fail.
#[test]
fn a_store_that_swallows_packets_is_not_waited_for() {
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &["--etcd-api=v3"]) else { return };
    site.stop();
    let sw = site.lab.ns("sw");
    // The address stays, so nobody answers that the port is closed.
    site.lab.sh(&sw, "nft add table ip t; nft 'add chain ip t i { type filter hook input priority 0; }'; nft add rule ip t i tcp dport 2379 drop");
    let after = site.first_packet(&[]).unwrap_or_else(|| panic!("no packet:\n{}", site.daemons[0].text()));
    eprintln!("black hole: the first packet {after:?} after the start");
    assert!(after < secs(1), "{after:?}\n{}", site.daemons[0].text());
}

#[test]
fn without_a_cache_it_waits() {
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &["--etcd-api=v3"]) else { return };
    site.stop();
    fs::remove_file(site.dir(1).join("network.cache")).unwrap();
    assert_eq!(site.first_packet(&[]), None, "{}", site.daemons[0].text());
    assert_eq!(site.get("/readyz").0, "503");
    site.lab.start_etcd();
    site.lab.reaches(&site.ends[0].ns, site.ends[1].addr, secs(10));
}

#[test]
fn a_lease_that_has_ended_is_not_forwarded() {
    let args = ["--etcd-api=v3", "--lease-ttl=4s"];
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &args) else { return };
    site.stop();
    std::thread::sleep(secs(5));
    site.refuses(&[], "its lease ended ");
}

/// The deadline passes while the daemon runs on what was kept.
#[test]
fn nothing_is_forwarded_beyond_the_deadline() {
    let args = ["--etcd-api=v3", "--lease-ttl=8s"];
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &args) else { return };
    site.stop();
    assert!(site.first_packet(&[]).is_some_and(|after| after < secs(1)), "{}", site.daemons[0].text());
    site.daemons[0].wait_text("has ended before the store answered: not forwarding", secs(10));
    site.ready("503", "");
    assert!(!site.lab.pings(&site.ends[0].ns, site.ends[1].addr));
    assert!(site.metric("flanneld_peers 0") && site.metric("flanneld_lease_state{state=\"none\"} 1"));
    assert!(site.daemons[0].running(), "{}", site.daemons[0].text());
    site.lab.start_etcd();
    site.daemons[0].wait_text("regained", secs(20));
    site.lab.reaches(&site.ends[0].ns, site.ends[1].addr, secs(5));
    site.ready("200", "flanneld is ready");
}

/// While both were down, another node took the subnet.
#[test]
fn a_subnet_that_another_node_took_meanwhile_is_lost() {
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &["--etcd-api=v3"]) else { return };
    let key = site.subnets[0].key();
    site.stop();
    let kept = fs::read(site.file()).unwrap();
    site.lab.start_etcd();
    site.lab.put_lease(Api::V3, &key, "10.77.0.66");
    site.lab.stop_etcd();
    // The operator's default: the daemon ends, and what it kept goes with it.
    site.daemons[0] = site.start(1, &[]);
    site.daemons[0].wait_text("Starting from the state directory", secs(5));
    site.lab.start_etcd();
    let status = site.daemons[0].wait(secs(20)).expect("it goes on with another node's subnet");
    assert_eq!(status.code(), Some(1), "{}", site.daemons[0].text());
    assert!(site.daemons[0].text().contains("belongs to 10.77.0.66 now"), "{}", site.daemons[0].text());
    assert!(!site.dir(1).join("network.cache").exists());

    site.lab.stop_etcd();
    fs::write(site.dir(1).join("network.cache"), &kept).unwrap();
    site.daemons[0] = site.start(1, &["--on-lease-lost=keep"]);
    site.daemons[0].wait_text("Starting from the state directory", secs(5));
    site.lab.start_etcd();
    site.daemons[0].wait_text("forwarding on with it, as --on-lease-lost=keep says", secs(20));
    assert!(site.daemons[0].running());
    eventually(secs(5), "no cache of a lost lease", || {
        (!site.dir(1).join("network.cache").exists()).then_some(())
    });
    assert_eq!(site.lab.leases(Api::V3)[&key], "{\"PublicIP\":\"10.77.0.66\"}", "nobody's lease was touched");
}

/// A reservation has no end, so nothing but the store's word ends what was kept of it.
#[test]
fn what_the_store_has_no_more_is_not_used_at_a_later_start() {
    // A pool of two subnets: who loses one finds no other, and so has nothing new to keep.
    let pool = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.1.1.0","SubnetMax":"10.1.2.0"}"#;
    let Some(mut site) = Site::set(Api::V3, pool, &["--etcd-api=v3"]) else { return };
    let key = site.subnets[0].key();
    let value = site.lab.leases(Api::V3)[&key].clone();
    site.lab.put(Api::V3, &format!("subnets/{key}"), &value);
    site.daemons[0].wait_text("is a reservation now", secs(10));
    eventually(secs(10), "a cache of a reservation", || {
        fs::read_to_string(site.file()).ok()?.contains("\"left_ms\":null").then_some(())
    });
    site.stop();
    let file = site.dir(1).join("network.cache");
    let kept = fs::read(&file).unwrap();
    site.lab.start_etcd();
    site.lab.put_lease(Api::V3, &key, "10.77.0.66");
    for (json, said) in [
        (pool.to_owned(), "Forgetting the lease of"),
        (pool.replace("}", ",\"Backend\":{\"Type\":\"host-gw\"}}"), "of an older network config: not used"),
    ] {
        fs::write(&file, &kept).unwrap();
        site.lab.put_config(Api::V3, &json);
        site.daemons[0] = site.start(1, &[]);
        site.daemons[0].wait_text("Failed to acquire a subnet", secs(10));
        let text = site.daemons[0].text();
        assert!(text.contains(said) && !text.contains("Starting from the state directory"), "{text}");
        eventually(secs(5), "no file", || (!file.exists()).then_some(()));
        site.daemons[0].terminate();
    }
}

/// The network config was changed while the daemon was down, with the store there or not at its start.
#[test]
fn an_older_network_config_is_not_used_for_long() {
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &["--etcd-api=v3"]) else { return };
    site.stop();
    site.lab.start_etcd();
    site.lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#));
    site.lab.stop_etcd();
    assert!(site.first_packet(&[]).is_some(), "{}", site.daemons[0].text());
    site.lab.start_etcd();
    site.daemons[0].wait_text("starting anew with it", secs(20));
    let subnet = eventually(secs(20), "a subnet of the new network", || {
        let text = fs::read_to_string(&site.daemons[0].subnet_file).ok()?;
        Subnet::parse(&text).filter(|subnet| subnet.network == "10.10.0.0/16")
    });
    assert!(site.daemons[0].running());
    site.ready("200", "flanneld is ready");
    let leases = site.lab.leases(Api::V3);
    assert!(leases.contains_key(&subnet.key()) && !leases.contains_key(&site.subnets[0].key()), "{leases:?}");

    eventually(secs(10), "a cache of the new network", || {
        let text = fs::read_to_string(site.dir(1).join("network.cache")).ok()?;
        text.contains("10.10.0.0/16").then_some(())
    });
    site.daemons[0].terminate();
    site.lab.put_config(Api::V3, TUTORIAL);
    site.daemons[0] = site.start(1, &[]);
    site.daemons[0].wait_text("is of an older network config: not used", secs(5));
    assert_eq!(site.daemons[0].subnet().network, "10.0.0.0/8");
    assert!(!site.daemons[0].text().contains("Starting from the state directory"));
}

#[test]
fn what_is_not_its_own_is_refused_with_a_reason() {
    let Some(mut site) = Site::set(Api::V3, TUTORIAL, &["--etcd-api=v3"]) else { return };
    site.stop();
    let file = site.dir(1).join("network.cache");
    let whole = fs::read(&file).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    // A byte in the format's line, in the config, in a peer, and in the checksum; half a file; an empty one.
    for at in [3, 40, text.find("Network").unwrap(), text.find("10.77.0.2\"").unwrap(), whole.len() - 3] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        site.refuses(&[], "it is damaged");
    }
    for cut in [0, whole.len() / 2] {
        fs::write(&file, &whole[..cut]).unwrap();
        site.refuses(&[], "it is damaged");
    }
    fs::write(&file, text.replacen("flanneld-cache 1", "flanneld-cache 0", 1)).unwrap();
    site.refuses(&[], "its format is number 0, and this version reads 1");
    fs::write(&file, &whole).unwrap();
    site.refuses(
        &["--etcd-prefix=/other"],
        "another --etcd-prefix: /coreos.com/network, and here it is /other",
    );
    site.refuses(&["--etcd-endpoints=http://10.77.0.253:2379"], "another etcd: http://10.77.0.254:2379");
    site.refuses(&["--node-id=another"], "of another host, by its node id: ");
    // A NodeID that the state directory does not keep is no proof, so the address has to agree.
    let node = site.dir(1).join("node-id");
    let id = fs::read(&node).unwrap();
    fs::remove_file(&node).unwrap();
    fs::create_dir(&node).unwrap();
    site.refuses(&[], "of another host, by its node id: ");
    fs::remove_dir(&node).unwrap();
    fs::write(&node, id).unwrap();
    // None of it has harmed the file.
    assert!(site.first_packet(&[]).is_some_and(|after| after < secs(1)), "{}", site.daemons[0].text());
}

/// The kernel's tables are empty, as after a reboot.
fn kernel_tables(backend: &str, clean: &str) {
    let Some(mut site) = Site::set(Api::V3, &config(backend), &["--etcd-api=v3"]) else { return };
    site.stop();
    site.lab.sh(&site.lab.host(1), clean);
    let after = site.first_packet(&[]).unwrap_or_else(|| panic!("no packet:\n{}", site.daemons[0].text()));
    eprintln!("{backend}: the first packet {after:?} after the start, without a store");
    assert!(after < secs(1), "{after:?}\n{}", site.daemons[0].text());
    site.ready("200", "degraded: running from the state directory");
    site.lab.start_etcd();
    site.daemons[0].wait_text("Lease renewed, new expiration:", secs(20));
    site.ready("200", "flanneld is ready");
    assert!(site.lab.pings(&site.ends[0].ns, site.ends[1].addr));
}

#[test]
fn vxlan_without_a_store() {
    kernel_tables(r#"{"Type":"vxlan"}"#, "ip link del flannel.1");
}

#[test]
fn host_gw_without_a_store() {
    kernel_tables(r#"{"Type":"host-gw"}"#, "ip route flush proto 78");
}

#[test]
fn a_state_directory_that_cannot_be_used_ends_the_start() {
    let Some(lab) = Lab::without_etcd(1) else { return };
    let file = lab.path("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let mut daemon = lab.daemon(1, &[&format!("--state-dir={}", path.display())]);
        let status = daemon.wait(secs(5)).expect("it goes on");
        assert_eq!(status.code(), Some(1), "{}", daemon.text());
        let text = daemon.text();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("leave out --state-dir"), "{text}");
    }
}

/// The networks of host 1: their subnet files.
fn networks(lab: &Lab, daemon: &mut Proc, names: &[&str]) -> Vec<Subnet> {
    let file = |name: &str| lab.path(&format!("networks/{name}.env"));
    let written = |name: &&str| {
        eventually(secs(10), &format!("{name}.env"), || {
            assert!(daemon.running(), "{}", daemon.text());
            Subnet::parse(&fs::read_to_string(file(name)).ok()?)
        })
    };
    names.iter().map(written).collect()
}

#[test]
fn several_networks_without_a_store() {
    let Some(mut lab) = Lab::start(1) else { return };
    for (name, network, port) in [("a", "10.20.0.0/16", 7001), ("b", "10.30.0.0/16", 7002)] {
        let json = format!(r#"{{"Network":"{network}","Backend":{{"Type":"udp","Port":{port}}}}}"#);
        lab.put(Api::V3, &format!("{name}/config"), &json);
    }
    let (dir, state) = (lab.path("networks"), lab.path("state"));
    let flags = [format!("--subnet-dir={}", dir.display()), format!("--state-dir={}", state.display())];
    let start = |lab: &Lab, log: &str, which: &str| {
        let program = lab::flanneld();
        let line = [&*program, "--etcd-endpoints=http://10.77.0.254:2379", "--iface=eth0", which, HEALTH];
        let line = [&line[..], &[&flags[0], &flags[1]]].concat();
        Proc::start(&lab.host(1), &line, &[], &lab.path(log))
    };
    let mut daemon = start(&lab, "first.log", "--watch-networks");
    let subnets = networks(&lab, &mut daemon, &["a", "b"]);
    for name in ["a", "b"] {
        let file = state.join(format!("network-{name}.cache"));
        eventually(secs(10), "a cache for each network", || file.exists().then_some(()));
    }
    daemon.terminate();
    lab.stop_etcd();
    fs::remove_dir_all(&dir).unwrap();

    let mut daemon = start(&lab, "second.log", "--watch-networks");
    assert_eq!(networks(&lab, &mut daemon, &["a", "b"]), subnets, "{}", daemon.text());
    let ready = || lab.run(&lab.host(1), &["curl", "-sm2", "http://127.0.0.1:8471/readyz"]);
    eventually(secs(5), "both degraded", || {
        let body = ready();
        let is = |name| body.contains(&format!("degraded: network {name} running from the state directory"));
        (is("a") && is("b")).then_some(())
    });
    // The config of one is deleted before the store is back: it ends, and so does what was kept of it.
    drop(daemon);
    lab.start_etcd();
    lab.sh(
        &lab.ns("sw"),
        "ETCDCTL_API=3 etcdctl --endpoints http://10.77.0.254:2379 del /coreos.com/network/b/config",
    );
    lab.stop_etcd();
    let daemon = start(&lab, "third.log", "--watch-networks");
    daemon.wait_text("network b: starting", secs(5));
    lab.start_etcd();
    daemon.wait_text("network b: stopping", secs(15));
    eventually(secs(5), "no cache of a network that is no more", || {
        (!state.join("network-b.cache").exists() && state.join("network-a.cache").exists()).then_some(())
    });
    drop(daemon);

    // Only what is asked for begins.
    lab.stop_etcd();
    fs::remove_dir_all(&dir).unwrap();
    let mut daemon = start(&lab, "fourth.log", "--networks=a,c");
    assert_eq!(networks(&lab, &mut daemon, &["a"]), subnets[..1]);
    assert!(!daemon.text().contains("network c: starting"), "{}", daemon.text());
}
