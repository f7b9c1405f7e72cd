//! Promise: a config that changes in the store is noticed: what is safe counts at once, the rest is named, and an
//! operator who edits it and deletes the leases gets new subnets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Api, Daemon, Lab, secs};

fn config(lab: &Lab, api: Api, rest: &str) {
    lab.put_config(api, &format!(r#"{{"Network":"10.10.0.0/16"{rest}}}"#));
}

fn drift(lab: &Lab) -> String {
    let text = lab.try_run(&lab.host(1), &["curl", "-sSm5", "http://127.0.0.1:8471/metrics"]).stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find_map(|line| line.strip_prefix("flanneld_config_drift ")).unwrap_or("?").to_owned()
}

fn start(lab: &Lab, api: Api, args: &[&str]) -> Daemon {
    lab.daemon(1, &[&[api.flag(), "--healthz-port=8471"], args].concat())
}

/// With v2 the store is asked now and then; with v3 it tells.
fn noticed_within(api: Api) -> std::time::Duration {
    if api == Api::V2 { secs(20) } else { secs(3) }
}

fn changes_are_noticed(api: Api) {
    let Some(lab) = Lab::start(1) else { return };
    config(&lab, api, "");
    let mut daemon = start(&lab, api, &[]);
    let subnet = daemon.subnet();
    let soon = noticed_within(api);
    assert_eq!(drift(&lab), "0");

    config(&lab, api, r#","SubnetMin":"10.10.200.0""#);
    daemon.wait_text("SubnetMin counts from now on", soon);
    assert_eq!(drift(&lab), "0", "the bounds are taken over");

    config(&lab, api, r#","SubnetMin":"10.10.200.0","Backend":{"Type":"vxlan"}"#);
    daemon.wait_text("Backend differs from what runs here; restart flanneld", soon);
    assert_eq!(drift(&lab), "1");

    config(&lab, api, r#","SubnetMin":"10.10.200.0""#);
    daemon.wait_text("The network config says again what runs here", soon);
    assert_eq!(drift(&lab), "0");

    lab.put(api, "config", "no JSON");
    daemon.wait_text("The network config cannot be used any more", soon);
    assert_eq!(drift(&lab), "1");
    assert!(daemon.running());
    assert!(lab.leases(api).contains_key(&subnet.key()), "the subnet stays");
}

#[test]
fn changes_are_noticed_through_v3() {
    changes_are_noticed(Api::V3);
}

#[test]
fn changes_are_noticed_through_v2() {
    changes_are_noticed(Api::V2);
}

/// flannel's way to renumber: edit the config, delete the leases.
fn renumbered(api: Api) {
    let Some(lab) = Lab::start(1) else { return };
    config(&lab, api, r#","SubnetMax":"10.10.99.0""#);
    let mut daemon = start(&lab, api, &[]);
    let first = daemon.subnet();
    config(&lab, api, r#","SubnetMin":"10.10.100.0""#);
    lab.delete_lease(api, &first.key());
    let status = daemon.wait(secs(5)).expect("it goes on with the old subnet");
    assert_eq!(status.code(), Some(1), "{}", daemon.text());
    assert!(daemon.text().contains("the network config has no place for it any more"), "{}", daemon.text());
    assert!(!daemon.text().contains("Lease has been revoked"), "nobody else has it: {}", daemon.text());
    assert!(lab.leases(api).is_empty(), "{:?}", lab.leases(api));
    // The unit starts it again.
    let mut daemon = start(&lab, api, &[]);
    let second = daemon.subnet();
    assert!(second.base().octets()[2] >= 100, "{:?}", second.base());
    drop(daemon);

    // In one process, if the operator wants it so.
    let mut daemon = start(&lab, api, &["--on-lease-lost=reacquire"]);
    assert_eq!(daemon.subnet().base(), second.base());
    config(&lab, api, r#","SubnetMax":"10.10.99.0""#);
    lab.delete_lease(api, &second.key());
    lab::eventually(secs(5), "another subnet", || {
        lab.leases(api).keys().any(|key| !key.starts_with("10.10.1") || key.len() < 14).then_some(())
    });
    lab::eventually(secs(5), "its subnet file", || (daemon.subnet().base().octets()[2] < 100).then_some(()));
    assert!(daemon.running());
}

#[test]
fn an_edited_config_and_deleted_leases_renumber_through_v3() {
    renumbered(Api::V3);
}

#[test]
fn an_edited_config_and_deleted_leases_renumber_through_v2() {
    renumbered(Api::V2);
}

/// Whoever deletes all without a new config is no operator who renumbers.
#[test]
fn a_config_that_is_gone_takes_no_subnet_away() {
    let Some(lab) = Lab::start(1) else { return };
    config(&lab, Api::V3, "");
    let mut daemon = start(&lab, Api::V3, &[]);
    let subnet = daemon.subnet();
    lab.clear(Api::V3);
    daemon.wait_text("(regained)", secs(5));
    assert!(lab.leases(Api::V3).contains_key(&subnet.key()));
    daemon.wait_text("The network config cannot be used any more: the network config was deleted", secs(5));
    assert!(daemon.running());
}
