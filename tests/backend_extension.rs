//! Promise: the extension backend runs the operator's commands as flannel does, without a shell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::store::named;
use lab::{Api, Lab, secs};
use serde_json::json;
use std::fs;

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

fn script(lab: &Lab, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = lab.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn commands_get_arguments_environment_and_input() {
    let Some(lab) = Lab::start(1) else { return };
    let out = lab.path("out").display().to_string();
    let pre = script(&lab, "pre", "echo \" key-of-$1\"; echo and more >&2");
    let post = script(&lab, "post", &format!("echo post $* $NETWORK $SUBNET $PUBLIC_IP >>{out}"));
    let add = script(&lab, "add", &format!("read data; echo add $* $SUBNET $PUBLIC_IP \"<$data>\" >>{out}"));
    let remove = script(&lab, "remove", &format!("read data; echo remove $* \"<$data>\" >>{out}"));
    let config = json!({"Network": "10.10.0.0/16", "Backend": {
        "Type": "extension",
        "PreStartupCommand": format!("{pre} host;1"),
        "PostStartupCommand": format!("{post} $SUBNET ${{PUBLIC_IP}} $HOME"),
        "SubnetAddCommand": format!("{add} $SUBNET via $PUBLIC_IP && echo no shell"),
        "SubnetRemoveCommand": format!("{remove} $SUBNET"),
    }});
    lab.put_config(Api::V3, &config.to_string());
    let peer = |n: u8, kind: &str, data: &str| {
        let value = format!(r#"{{"PublicIP":"10.77.0.{n}","BackendType":"{kind}"{data}}}"#);
        lab.put(Api::V3, &format!("subnets/10.10.{n}.0-24"), &value);
    };
    peer(201, "extension", r#","BackendData":"$(touch /tmp/never) two words""#);
    peer(202, "vxlan", r#","BackendData":"x""#);
    peer(203, "extension", r#","BackendData":{"not":"a string"}"#);
    peer(204, "extension", "");
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    let subnet = daemon.subnet();
    assert_eq!(subnet.mtu, 1500);
    let value = &lab.leases(Api::V3)[&subnet.key()];
    let expected = r#"{"PublicIP":"10.77.0.1","PublicIPv6":null,"BackendType":"extension","BackendData":"key-of-host;1\nand more"}"#;
    let (value, node) = named(value);
    assert_eq!(value, expected);
    assert!(!node.is_empty(), "no NodeID");
    let read = || fs::read_to_string(&out).unwrap_or_default();
    lab::eventually(secs(3), "two additions", || (read().lines().count() == 3).then_some(()));
    lab.delete_lease(Api::V3, "10.10.201.0-24");
    lab.delete_lease(Api::V3, "10.10.202.0-24");
    lab::eventually(secs(3), "a removal", || (read().lines().count() == 4).then_some(()));
    let own = format!("{}/24", subnet.base());
    let lines = [
        format!("post {own} 10.77.0.1 $HOME 10.10.0.0/16 {own} 10.77.0.1"),
        "add 10.10.201.0/24 via 10.77.0.201 && echo no shell 10.10.201.0/24 10.77.0.201 <$(touch /tmp/never) two words>"
            .to_owned(),
        "add 10.10.204.0/24 via 10.77.0.204 && echo no shell 10.10.204.0/24 10.77.0.204 <>".to_owned(),
        "remove 10.10.201.0/24 <$(touch /tmp/never) two words>".to_owned(),
    ];
    assert_eq!(read().lines().collect::<Vec<_>>(), lines);
    daemon.signal("USR1");
    daemon.wait_text("count foreign_leases 1\ncount unusable_leases 1\ncount failed_commands 0", secs(2));
    assert!(daemon.terminate().0.success());
}

#[test]
fn a_failed_start_command_is_fatal_and_a_failed_peer_command_is_not() {
    let Some(lab) = Lab::start(1) else { return };
    for field in ["PreStartupCommand", "PostStartupCommand"] {
        let config =
            json!({"Network": "10.10.0.0/16", "Backend": {"Type": "extension", field: "ls /does/not/exist"}});
        lab.put_config(Api::V3, &config.to_string());
        let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
        let status = daemon.wait(secs(5)).expect("it should end");
        assert_eq!(status.code(), Some(1));
        assert!(daemon.text().contains("No such file or directory"), "{field}: {}", daemon.text());
    }
    let config =
        json!({"Network": "10.10.0.0/16", "Backend": {"Type": "extension", "SubnetAddCommand": "false"}});
    lab.put_config(Api::V3, &config.to_string());
    lab.put(Api::V3, "subnets/10.10.201.0-24", r#"{"PublicIP":"10.77.0.9","BackendType":"extension"}"#);
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.subnet();
    daemon.wait_text("\"false\": exit status: 1", secs(3));
    assert!(daemon.running());
}

/// A command that hangs must not hold up the stop.
#[test]
fn a_stop_does_not_wait_for_a_command() {
    let Some(lab) = Lab::start(1) else { return };
    let config =
        json!({"Network": "10.10.0.0/16", "Backend": {"Type": "extension", "PreStartupCommand": "sleep 20"}});
    lab.put_config(Api::V3, &config.to_string());
    let mut daemon = lab.daemon(1, &["--etcd-api=v3"]);
    daemon.wait_text("Backend type: extension", secs(5));
    let (status, took) = daemon.terminate();
    assert!(status.success() && took < secs(1), "{status} after {took:?}");
}
