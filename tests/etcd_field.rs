//! Promise: stores as they stand in the field are found and used: odd prefixes, proxies, dead endpoints, names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, secs};

const ETCD: &str = "http://10.77.0.254:2379";

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
