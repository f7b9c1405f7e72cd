//! Promise: stores as they stand in the field are found and used: odd prefixes, proxies, dead endpoints, names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, flanneld, ms, secs};
use std::time::{Duration, Instant};

const ETCD: &str = "http://10.77.0.254:2379";
/// An address of the switch that swallows every packet.
const HOLE: &str = "10.77.0.66";

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

fn config(network: &str) -> String {
    format!(r#"{{"Network":"{network}","Backend":{{"Type":"alloc"}}}}"#)
}

/// Writes a key of the v3 API just as it is given.
fn put_v3(lab: &Lab, key: &str, value: &str) {
    lab.run(&lab.ns("sw"), &["etcdctl", "--endpoints", ETCD, "put", key, "--", value]);
}

/// flannel adds no slash to the prefix. With a key of either form in the store, each daemon takes its own one.
#[test]
fn a_v3_prefix_is_taken_as_typed() {
    let Some(lab) = Lab::start(1) else { return };
    let cases = [
        ("my/net", "my/net/config", "10.11.0.0/16"),
        ("/my/net", "/my/net/config", "10.12.0.0/16"),
        ("my//net/./x/..", "my/net/config", "10.11.0.0/16"),
        ("/", "/config", "10.13.0.0/16"),
    ];
    for (_, key, network) in cases {
        put_v3(&lab, key, &config(network));
    }
    for (prefix, key, network) in cases {
        for api in ["v3", "auto"] {
            let mut daemon = lab.daemon(1, &[&format!("-etcd-prefix={prefix}"), &format!("-etcd-api={api}")]);
            let subnet = daemon.subnet();
            assert_eq!(subnet.network, network, "{prefix} with {api}");
            let lease = key.replace("config", &format!("subnets/{}", subnet.key()));
            let found =
                lab.run(&lab.ns("sw"), &["etcdctl", "--endpoints", ETCD, "get", "--keys-only", &lease]);
            assert_eq!(found.trim(), lease, "the lease of {prefix} with {api}");
            daemon.terminate();
            std::fs::remove_file(&daemon.subnet_file).unwrap();
        }
    }
    // In v2's tree both forms are one key.
    lab.put_config(Api::V2, &config("10.14.0.0/16"));
    for prefix in ["coreos.com/network", "/coreos.com/network/"] {
        let mut daemon = lab.daemon(1, &[&format!("-etcd-prefix={prefix}"), "-etcd-api=v2"]);
        assert_eq!(daemon.subnet().network, "10.14.0.0/16", "{prefix}");
        daemon.terminate();
    }
}

/// The networks below a prefix without a slash, and below the root of all prefixes.
#[test]
fn networks_are_found_below_any_prefix() {
    let Some(lab) = Lab::start(1) else { return };
    put_v3(&lab, "my/net/blue/config", &config("10.11.0.0/16"));
    put_v3(&lab, "/green/config", &config("10.12.0.0/16"));
    for (prefix, name) in [("my/net", "blue"), ("/", "green")] {
        let dir = lab.path(&format!("networks-{name}"));
        let dir_flag = format!("-subnet-dir={}", dir.display());
        let prefix_flag = format!("-etcd-prefix={prefix}");
        let mut daemon = lab.daemon(1, &["-watch-networks", &prefix_flag, &dir_flag]);
        lab::eventually(secs(10), name, || dir.join(format!("{name}.env")).exists().then_some(()));
        daemon.terminate();
    }
}

/// Gives the switch addresses whose packets vanish without an answer.
fn dig_holes(lab: &Lab, addresses: &[&str]) {
    for address in addresses {
        lab.ip(&format!("-n {} addr add {address}/24 dev br0", lab.ns("sw")));
        lab.run(&lab.ns("sw"), &["iptables", "-A", "INPUT", "-d", address, "-j", "DROP"]);
    }
}

/// How long a daemon takes from its start to its subnet.
fn time_to_subnet(lab: &Lab, args: &[&str]) -> Duration {
    let since = Instant::now();
    let mut daemon = lab.daemon(1, args);
    daemon.subnet();
    let took = since.elapsed();
    daemon.terminate();
    std::fs::remove_file(&daemon.subnet_file).unwrap();
    took
}

/// Two endpoints that swallow packets cost two staggers of 250 ms, not the seconds of a deadline.
#[test]
fn black_holes_before_a_live_endpoint_cost_little() {
    let Some(lab) = Lab::start(1) else { return };
    dig_holes(&lab, &[HOLE, "10.77.0.67"]);
    let holes = format!("-etcd-endpoints=http://{HOLE}:2379,http://10.77.0.67:2379,{ETCD}");
    for api in [Api::V2, Api::V3] {
        lab.put_config(api, &config("10.11.0.0/16"));
        let plain = time_to_subnet(&lab, &[api.flag()]);
        let took = time_to_subnet(&lab, &[api.flag(), &holes]);
        eprintln!("{api:?}: {plain:?} without, {took:?} with two black holes");
        assert!(took < plain + ms(1100), "{api:?}: {took:?} instead of {plain:?}");
    }
}

/// The same for the addresses of one name. `/etc/hosts` names two dead ones and a live one.
#[test]
fn dead_addresses_of_a_name_cost_little() {
    let Some(lab) = Lab::start(1) else { return };
    dig_holes(&lab, &[HOLE, "10.77.0.67"]);
    let hosts = lab.path("hosts");
    std::fs::write(&hosts, format!("{HOLE} etcd.test\n10.77.0.67 etcd.test\n10.77.0.254 etcd.test\n"))
        .unwrap();
    for api in [Api::V2, Api::V3] {
        lab.put_config(api, &config("10.11.0.0/16"));
        let plain = time_to_subnet(&lab, &[api.flag()]);
        let (program, file) = (flanneld(), lab.path(&format!("named-{api:?}.env")));
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let file_flag = format!("-subnet-file={}", file.display());
        let line = [
            &["unshare", "-m", "sh", "-c", script, hosts.to_str().unwrap(), &program, "-iface=eth0"][..],
            &[&file_flag, api.flag(), "-etcd-endpoints=http://etcd.test:2379"],
        ];
        let since = Instant::now();
        let daemon = lab.spawn(&lab.host(1), &format!("named-{api:?}"), &line.concat());
        daemon.wait_text("Wrote subnet file to ", secs(15));
        let took = since.elapsed();
        eprintln!("{api:?}: {plain:?} without, {took:?} with two dead addresses");
        assert!(took < plain + ms(1100), "{api:?}: {took:?} instead of {plain:?}\n{}", daemon.text());
    }
}

/// As with flannel's v2, and with the same meaning for v3.
#[test]
fn a_user_in_an_endpoint_is_used_and_never_told() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config("10.11.0.0/16"));
    let etcdctl = |line: &str| {
        lab.run(&lab.ns("sw"), &[&["etcdctl", "--endpoints", ETCD], &*lab::words(line)].concat());
    };
    for line in [
        "role add root",
        "user add root:top",
        "user grant-role root root",
        "role add net",
        "role grant-permission net --prefix=true readwrite /coreos.com/",
        "user add flannel:hunter2@x",
        "user grant-role flannel net",
        "auth enable",
    ] {
        etcdctl(line);
    }
    let with = |password: &str| format!("-etcd-endpoints=http://flannel:{password}@10.77.0.254:2379");
    let mut daemon = lab.daemon(1, &["-etcd-api=v3", "-v=10", &with("hunter2%40x")]);
    daemon.subnet();
    daemon.signal("USR1");
    daemon.terminate();
    assert!(!daemon.text().contains("hunter2"), "{}", daemon.text());
    let wrong = lab.daemon(1, &["-etcd-api=v3", "-v=10", &with("hunter3")]);
    wrong.wait_text("etcd refuses", secs(10));
    assert!(!wrong.text().contains("hunter3"), "{}", wrong.text());
}
