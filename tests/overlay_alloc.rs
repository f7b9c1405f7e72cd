//! Promise: many daemons at once on a small pool all get a subnet of their own; a lost race is not a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, secs};
use std::collections::BTreeSet;
use std::time::Instant;

const DAEMONS: usize = 40;
/// 42 subnets: 10.5.1.0/24 to 10.5.42.0/24.
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.42.0","Backend":{"Type":"alloc"}}"#;

fn forty_at_once(api: Api) {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(api, CONFIG);
    let host = lab.host(1);
    let addresses: Vec<String> = (0..DAEMONS).map(|n| format!("10.77.0.{}", 100 + n)).collect();
    for address in &addresses {
        lab.ip(&format!("-n {host} addr add {address}/24 dev eth0"));
    }
    let start = Instant::now();
    let mut daemons: Vec<Daemon> = addresses
        .iter()
        .map(|address| {
            let file = lab.path(&format!("{address}/subnet.env"));
            let (iface, public) = (format!("--iface={address}"), format!("--public-ip={address}"));
            Daemon::start(&lab, &host, &file, &[&iface, &public, api.flag()], &[])
        })
        .collect();
    let subnets: Vec<_> = daemons.iter_mut().map(Daemon::subnet).collect();
    let took = start.elapsed();
    eprintln!("{DAEMONS} daemons took {took:?}");
    assert!(took < secs(15), "took {took:?}");

    let keys: BTreeSet<String> = subnets.iter().map(lab::Subnet::key).collect();
    assert_eq!(keys.len(), DAEMONS, "shared subnets");
    // The store says the same: each key is its daemon's, and there are no others.
    let leases = lab.leases(api);
    assert_eq!(leases.keys().cloned().collect::<BTreeSet<_>>(), keys);
    for (address, subnet) in addresses.iter().zip(&subnets) {
        let value = &leases[&subnet.key()];
        assert!(value.starts_with(&format!("{{\"PublicIP\":\"{address}\"")), "{}: {value}", subnet.key());
        let third = subnet.base().octets()[2];
        assert!((1..=42).contains(&third) && subnet.prefix_len() == 24, "{subnet:?} is outside the pool");
        assert_eq!(subnet.mtu, 1500, "alloc has no overhead");
    }
    for daemon in &mut daemons {
        assert!(daemon.running(), "flanneld is gone:\n{}", daemon.text());
    }
}

#[test]
fn forty_daemons_on_v2() {
    forty_at_once(Api::V2);
}

#[test]
fn forty_daemons_on_v3() {
    forty_at_once(Api::V3);
}

/// The pool is full: the daemon says so, stays, and takes the first subnet that falls free.
#[test]
fn a_full_pool_is_waited_for() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    for n in 1..=42 {
        lab.put_lease(Api::V3, &format!("10.5.{n}.0-24"), &format!("10.77.9.{n}"));
    }
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("out of subnets", secs(10));
    assert!(daemon.running() && !daemon.subnet_file.exists());
    lab.delete_lease(Api::V3, "10.5.17.0-24");
    assert_eq!(daemon.subnet().subnet, "10.5.17.1/24");
}
