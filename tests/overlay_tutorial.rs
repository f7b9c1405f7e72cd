//! Promise: flannel's tutorial works to the letter, over etcd v2 and v3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::store::named;
use lab::{Api, Daemon, Lab, Subnet, TUTORIAL, ms, secs};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

#[test]
fn tutorial_through_v2() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V2, TUTORIAL);
    tutorial(&lab, Api::V2, &[]);
}

#[test]
fn tutorial_through_v3() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    tutorial(&lab, Api::V3, &["--etcd-api=v3"]);
}

#[test]
fn auto_takes_the_store_that_holds_the_config() {
    for api in [Api::V2, Api::V3] {
        let Some(lab) = Lab::start(2) else { return };
        lab.put_config(api, TUTORIAL);
        tutorial(&lab, api, &["--etcd-api=auto"]);
        let other = if api == Api::V2 { Api::V3 } else { Api::V2 };
        assert_eq!(lab.leases(other).len(), 0, "leases in the store without a config");
    }
}

/// Starts two hosts, checks that both look as flannel's do, and pings both ways.
fn tutorial(lab: &Lab, api: Api, args: &[&str]) {
    let mut daemons = [lab.daemon(1, args), lab.daemon(2, args)];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let containers = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    for (i, (daemon, subnet)) in daemons.iter().zip(&subnets).enumerate() {
        looks_like_flannel(lab, i + 1, daemon, subnet);
        lease_is_exact(lab, api, i + 1, subnet);
    }
    assert_ne!(subnets[0].subnet, subnets[1].subnet);
    for (from, to) in [(0, 1), (1, 0)] {
        lab.reaches(&containers[from].ns, containers[to].addr, secs(3));
        let out = lab
            .run(&containers[from].ns, &["ping", "-c5", "-i0.05", "-W1", &containers[to].addr.to_string()]);
        assert!(out.contains(" 0% packet loss"), "{out}");
        // 64, less one for each host's forwarding, less one for each end of the tunnel.
        assert!(out.contains("ttl=60"), "{out}");
    }
}

fn looks_like_flannel(lab: &Lab, i: usize, daemon: &Daemon, subnet: &Subnet) {
    let host = lab.host(i);
    let base = subnet.base();
    let [a, b, c, d] = base.octets();
    assert!(a == 10 && (10..=99).contains(&b) && c % 16 == 0 && d == 0, "{base}");
    let link = lab.ip(&format!("-n {host} addr show dev flannel0"));
    assert!(link.contains(&format!("inet {base}/32 ")), "{link}");
    assert!(link.contains(" mtu 1472 ") && link.contains("UP"), "{link}");
    let routes = lab.ip(&format!("-n {host} route show 10.0.0.0/8"));
    let route = lab::words(&routes);
    assert!(route.starts_with(&["10.0.0.0/8", "dev", "flannel0"]), "{routes}");
    assert!(!routes.contains("via") && !routes.contains("src"), "{routes}");
    // The socket is bound to the interface's address, not to all of them.
    let sockets = lab.run(&host, &["ss", "-lunH"]);
    assert!(sockets.contains(&format!("10.77.0.{i}:7890")) && !sockets.contains("0.0.0.0:7890"), "{sockets}");
    let text = fs::read_to_string(&daemon.subnet_file).unwrap();
    let gateway = subnet.gateway();
    assert_eq!(
        text,
        format!(
            "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET={gateway}/20\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        )
    );
    assert_eq!(fs::metadata(&daemon.subnet_file).unwrap().permissions().mode() & 0o7777, 0o644);
    let siblings = fs::read_dir(daemon.subnet_file.parent().unwrap()).unwrap().count();
    assert_eq!(siblings, 1, "temporary files are left beside the subnet file");
    let log = daemon.text();
    for phrase in ["Found network config - Backend type: udp", "Lease acquired: ", "Wrote subnet file to "] {
        assert!(log.contains(phrase), "no {phrase:?} in the log:\n{log}");
    }
}

fn lease_is_exact(lab: &Lab, api: Api, i: usize, subnet: &Subnet) {
    let value = match api {
        Api::V2 => format!("{{\"PublicIP\":\"10.77.0.{i}\"}}"),
        Api::V3 => format!("{{\"PublicIP\":\"10.77.0.{i}\",\"PublicIPv6\":null}}"),
    };
    let leases = lab.leases(api);
    assert_eq!(leases.len(), 2, "{leases:?}");
    // Our own field follows flannel's, which are the same to the byte.
    let (flannels, node) = named(&leases[&subnet.key()]);
    assert_eq!(flannels, value, "{leases:?}");
    assert!(!node.is_empty(), "{leases:?}");
    let ttl = lab.ttl(api, &subnet.key()).expect("the lease has no TTL");
    assert!((86_300..=86_400).contains(&ttl), "TTL {ttl}");
}

#[test]
fn stops_at_once_and_keeps_the_lease() {
    for (api, signal) in [(Api::V2, "TERM"), (Api::V3, "INT")] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, TUTORIAL);
        let mut daemon = lab.daemon(1, &[api.flag()]);
        let subnet = daemon.subnet();
        daemon.signal(signal);
        let status = daemon.wait(secs(1)).expect("still running one second after the signal");
        assert_eq!(status.code(), Some(0), "{}", daemon.text());
        assert!(lab.leases(api).contains_key(&subnet.key()), "the lease is gone");
        assert!(daemon.subnet_file.exists(), "the subnet file is gone");
        // io_uring lets go of its descriptors a little after the process's end.
        lab::eventually(secs(1), "the end of flannel0", || {
            (!lab.ip(&format!("-n {} link show", lab.host(1))).contains("flannel0")).then_some(())
        });

        // The same public IP finds its subnet again, with and without the old subnet file.
        fs::remove_file(&daemon.subnet_file).unwrap();
        let mut again = lab.daemon(1, &[api.flag()]);
        assert_eq!(again.subnet(), subnet);
        assert_eq!(lab.leases(api).len(), 1);
        again.terminate();

        // When its lease is gone and its subnet file is there, it asks for the same subnet.
        lab.delete_lease(api, &subnet.key());
        let mut third = lab.daemon(1, &[api.flag()]);
        assert_eq!(third.subnet(), subnet);
        assert!(lab.leases(api).contains_key(&subnet.key()));
        // The port and the device's name were free again at once.
        let link = lab.ip(&format!("-n {} addr show dev flannel0", lab.host(1)));
        assert!(link.contains(&format!("{}/32", subnet.base())), "{link}");
    }
}

#[test]
fn ready_follows_the_subnet_file() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, TUTORIAL);
    let path = lab.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(secs(10))).unwrap();
    let file = lab.path("not/yet/there/subnet.env");
    let envs = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &["--iface=eth0"], &envs);
    let mut buffer = [0; 4096];
    loop {
        let len = socket.recv(&mut buffer).expect("no READY=1");
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if text.lines().any(|line| line == "READY=1") {
            break;
        }
    }
    assert!(file.exists(), "READY=1 came before the subnet file");
    // Nothing is missing at that moment: the device is there as well.
    let link = lab.ip(&format!("-n {} addr show dev flannel0", lab.host(1)));
    assert!(link.contains(&format!("{}/32", daemon.subnet().base())), "{link}");
}

#[test]
fn the_environment_works_and_the_command_line_wins() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let file = lab.path("env/subnet.env");
    let envs = [("FLANNELD_IFACE", "10.77.0.1"), ("FLANNELD_ETCD_API", "v2"), ("FLANNELD_IP_MASQ", "")];
    let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &["-etcd-api", "v3"], &envs);
    assert_eq!(daemon.subnet().ipmasq, "false");
    std::thread::sleep(ms(50));
    assert!(daemon.running());
}

#[test]
fn a_subnet_that_another_node_takes_ends_the_daemon_with_1() {
    for api in [Api::V2, Api::V3] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, TUTORIAL);
        let mut daemon = lab.daemon(1, &[api.flag()]);
        let key = daemon.subnet().key();
        lab.put_lease(api, &key, "10.77.0.9");
        assert_eq!(daemon.wait(secs(5)).expect("it goes on").code(), Some(1), "{}", daemon.text());
        assert!(daemon.text().contains("Lease has been revoked"), "{}", daemon.text());
        assert!(lab.leases(api)[&key].contains("10.77.0.9"), "the other's lease was overwritten");
    }
}
