//! Promise: an old flanneld can be swapped for this one. Through etcd v2 a network keeps the defaults and limits of flannel
//! v0.6.2, through v3 those of the newer one; a host keeps its subnet, or the config is refused where that flannel
//! refuses it too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, secs};
use std::fs;

const US: &str = "10.77.0.1";
const KEYS: &str = "http://10.77.0.254:2379/v2/keys/coreos.com/network";

/// A lease as an old flanneld leaves it: with a TTL.
fn leave_lease(lab: &Lab, api: Api, key: &str) {
    let value = match api {
        Api::V2 => format!(r#"{{"PublicIP":"{US}"}}"#),
        Api::V3 => format!(r#"{{"PublicIP":"{US}","PublicIPv6":null}}"#),
    };
    let script = match api {
        Api::V2 => {
            format!("curl -fsSm10 -XPUT -d ttl=86400 --data-urlencode 'value={value}' {KEYS}/subnets/{key}")
        }
        Api::V3 => format!(
            "id=$(etcdctl --endpoints http://10.77.0.254:2379 lease grant 86400 | cut -d' ' -f2) && \
             etcdctl --endpoints http://10.77.0.254:2379 put --lease=$id '/coreos.com/network/subnets/{key}' '{value}'"
        ),
    };
    lab.sh(&lab.ns("sw"), &script);
}

/// Starts the daemon over `config`, with nothing but the store to tell which generation counts.
fn over(lab: &Lab, api: Api, config: &str, leases: &[&str]) -> Daemon {
    lab.clear(api);
    let _ = fs::remove_file(lab.path("h1/flannel/subnet.env"));
    leases.iter().for_each(|key| leave_lease(lab, api, key));
    lab.put_config(api, config);
    lab.daemon(1, &["--etcd-api=auto"])
}

/// Network, its other fields, and the lease that the old flanneld has left.
const KEPT_ON_V2: [(&str, &str, &str); 7] = [
    ("10.3.0.0/16", "", "10.3.7.0-24"),
    ("10.3.0.0/23", "", "10.3.1.0-24"),
    ("10.3.0.0/24", "", "10.3.0.128-25"),
    ("10.3.0.0/24", r#","SubnetLen":25"#, "10.3.0.128-25"),
    ("10.3.0.0/24", r#","SubnetLen":24,"SubnetMin":"10.3.0.0""#, "10.3.0.0-24"),
    ("10.3.0.0/30", "", "10.3.0.2-31"),
    ("10.3.0.0/16", r#","SubnetMin":"10.3.4.7","SubnetMax":"10.3.9.255""#, "10.3.5.7-24"),
];

const KEPT_ON_V3: [(&str, &str, &str); 3] = [
    ("10.3.0.0/16", "", "10.3.7.0-24"),
    ("10.3.0.0/23", "", "10.3.1.0-25"),
    ("10.3.0.0/24", "", "10.3.0.64-26"),
];

fn keeps(api: Api, cases: &[(&str, &str, &str)]) {
    let Some(lab) = Lab::start(1) else { return };
    for (network, fields, key) in cases {
        let config = format!(r#"{{"Network":"{network}"{fields},"Backend":{{"Type":"alloc"}}}}"#);
        let mut daemon = over(&lab, api, &config, &[key]);
        let subnet = daemon.subnet();
        assert_eq!((&*subnet.key(), &*subnet.network), (*key, *network), "{config}:\n{}", daemon.text());
        assert_eq!(lab.leases(api).into_keys().collect::<Vec<_>>(), [*key], "{config}");
        assert!(daemon.text().contains("found by our public IP"), "{}", daemon.text());
        daemon.terminate();
        // The lease is gone as well, as after a day without a daemon: `subnet.env` still tells the subnet.
        lab.delete_lease(api, key);
        let mut again = lab.daemon(1, &["--etcd-api=auto"]);
        assert_eq!(again.subnet().key(), *key, "{config}:\n{}", again.text());
    }
}

#[test]
fn a_swap_on_v2_keeps_the_subnet_of_0_6() {
    keeps(Api::V2, &KEPT_ON_V2);
}

#[test]
fn a_swap_on_v3_keeps_the_subnet_of_0_28() {
    keeps(Api::V3, &KEPT_ON_V3);
}

#[test]
fn each_api_refuses_what_its_flannel_refuses() {
    let Some(lab) = Lab::start(1) else { return };
    let alloc = r#""Backend":{"Type":"alloc"}"#;
    let cases = [
        (Api::V2, r#""Network":"10.3.0.0/24","SubnetLen":23"#, "SubnetLen 23: must be 24 or more"),
        (
            Api::V2,
            r#""Network":"10.3.0.0/24","SubnetLen":24"#,
            "SubnetMin 10.3.0.0 would lease the first one too",
        ),
        (Api::V3, r#""Network":"10.3.0.0/24","SubnetLen":25"#, "SubnetLen 25: must be 26 or more"),
        (Api::V3, r#""Network":"10.3.0.0/29""#, "room for 4 subnets of /30"),
    ];
    for (api, fields, reason) in cases {
        let mut daemon = over(&lab, api, &format!("{{{fields},{alloc}}}"), &[]);
        daemon.wait_text(reason, secs(10));
        assert!(daemon.running() && !daemon.subnet_file.exists(), "{fields}");
        assert_eq!(lab.leases(api).len(), 0, "{fields}");
        // A config that makes sense ends the wait.
        lab.put_config(api, &format!(r#"{{"Network":"10.4.0.0/16",{alloc}}}"#));
        assert_eq!(daemon.subnet().network, "10.4.0.0/16");
        daemon.terminate();
        lab.clear(api);
    }
}

#[test]
fn a_lease_that_does_not_fit_goes_with_a_line_that_says_why() {
    let Some(lab) = Lab::start(1) else { return };
    let config = r#"{"Network":"10.3.0.0/24","Backend":{"Type":"alloc"}}"#;
    for (api, key, has, reason) in [
        (Api::V2, "10.3.0.64-26", "10.3.0.128-25", "the network config has subnets of /25"),
        (Api::V3, "10.3.0.0-26", "", "the network config has subnets from 10.3.0.64 to 10.3.0.192"),
    ] {
        let mut daemon = over(&lab, api, config, &[key]);
        let subnet = daemon.subnet();
        daemon
            .wait_text(&format!("Discarding our lease {key}, and taking another subnet: {reason}"), secs(3));
        assert!(has.is_empty() || subnet.key() == has, "{subnet:?}");
        assert_eq!(lab.leases(api).into_keys().collect::<Vec<_>>(), [subnet.key()]);
        daemon.terminate();
    }
}

/// A peer whose subnet does not begin on a boundary, as v0.6.2 leases it where `SubnetMin` does not: packets reach it.
#[test]
fn subnets_off_the_boundary_carry_packets() {
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(Api::V2, r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.4.7","Backend":{"Type":"vxlan"}}"#);
    let mut daemons: Vec<Daemon> = (1..=2).map(|i| lab.daemon(i, &[])).collect();
    let subnets: Vec<_> = daemons.iter_mut().map(Daemon::subnet).collect();
    assert!(subnets.iter().all(|subnet| subnet.base().octets()[3] == 7), "{subnets:?}");
    let containers: Vec<_> = (1..=2).map(|i| lab.container(i, &subnets[i - 1])).collect();
    lab.reaches(&containers[0].ns, containers[1].addr, secs(10));
    lab.reaches(&containers[1].ns, containers[0].addr, secs(3));
}

/// The IPv4 part of a dual-stack node's key is a subnet like any other.
#[test]
fn a_dual_stack_key_over_our_subnet_is_said_and_taken_seriously() {
    let Some(lab) = Lab::start(1) else { return };
    let config = r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.1.0","Backend":{"Type":"alloc"}}"#;
    lab.put_config(Api::V3, config);
    let dual = "10.3.1.0-24&fd00:1::-64";
    // At the start it takes the only subnet that there is.
    lab.put_lease(Api::V3, dual, "10.77.0.9");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("out of subnets", secs(10));
    lab.delete_lease(Api::V3, dual);
    assert_eq!(daemon.subnet().key(), "10.3.1.0-24");
    // Over a subnet that we hold it is refused and said, and when our key goes the subnet is that node's.
    lab.put_lease(Api::V3, dual, "10.77.0.9");
    daemon.wait_text(&format!("Ignoring lease {dual}: it overlaps our own subnet"), secs(5));
    lab.delete_lease(Api::V3, "10.3.1.0-24");
    daemon.wait_text("10.3.1.0/24 belongs to 10.77.0.9 now", secs(5));
    assert_eq!(daemon.wait(secs(5)).and_then(|status| status.code()), Some(1));
}
