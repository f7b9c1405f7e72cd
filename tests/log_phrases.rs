//! Promise: the words that people search for in flannel's log are said when they are true, and only then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Api, Daemon, Lab, secs};

/// The rows of the table in docs/log.md: phrase and level.
fn phrases() -> Vec<(String, String)> {
    let page = include_str!("../docs/log.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        let (phrase, rest) = row.split_once("` | ").unwrap();
        (phrase.to_owned(), rest.split_once(" | ").unwrap().0.to_owned())
    };
    rows.map(row).collect()
}

/// The texts of a log that begin with this phrase, with their levels.
fn said<'a>(log: &'a str, phrase: &str) -> Vec<&'a str> {
    let text_of = |line: &'a str| {
        let rest = line.split_once("flanneld::")?.1;
        rest.split_once(": ").map(|(_, text)| (line, text))
    };
    let lines = log.lines().filter_map(text_of).filter(|(_, text)| text.starts_with(phrase));
    lines.map(|(line, _)| line.split_whitespace().nth(1).unwrap()).collect()
}

const CONFIG: &str = r#"{"Network":"10.10.0.0/16","Backend":{"Type":"udp"}}"#;

#[test]
fn every_phrase_of_the_docs_is_said_when_it_is_true() {
    let Some(mut lab) = Lab::start(1) else { return };
    let args = ["--etcd-api=v3", "--lease-ttl=5s"];
    let mut logs = String::new();

    // No interface.
    let mut daemon = Daemon::start(&lab, &lab.host(1), &lab.path("none.env"), &["--iface=eth7"], &[]);
    assert_eq!(daemon.wait(secs(5)).and_then(|status| status.code()), Some(1));
    logs += &daemon.text();

    // No config, then one; a subnet, its renewal, peers that come and go, an end.
    let mut daemon = lab.daemon(1, &args);
    daemon.wait_text("Couldn't fetch network config", secs(5));
    lab.put_config(Api::V3, CONFIG);
    let subnet = daemon.subnet();
    assert!(said(&daemon.text(), "Found lease").is_empty(), "{}", daemon.text());
    daemon.wait_text("Lease renewed, new expiration", secs(8));
    let waits = said(&daemon.text(), "Waiting for").len();
    assert!(waits >= 2, "after the first write and after the renewal: {}", daemon.text());
    let peer = if subnet.key() == "10.10.77.0-24" { "10.10.78.0-24" } else { "10.10.77.0-24" };
    lab.put_lease(Api::V3, peer, "10.77.0.2");
    daemon.wait_text("Subnet added", secs(5));
    lab.delete_lease(Api::V3, peer);
    daemon.wait_text("Subnet removed", secs(5));

    // A deleted lease is regained, and that is no revocation.
    lab.delete_lease(Api::V3, &subnet.key());
    daemon.wait_text("was deleted by somebody; trying to get it back", secs(5));
    daemon.wait_text("(regained)", secs(5));
    assert!(said(&daemon.text(), "Lease has been revoked").is_empty(), "{}", daemon.text());
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let text = daemon.text();
    assert_eq!(text.lines().filter(|line| line.contains("Exiting cleanly...")).count(), 1, "{text}");
    logs += &text;

    // The lease is found again, and taken by another host.
    let mut daemon = lab.daemon(1, &args);
    assert_eq!(daemon.subnet().key(), subnet.key());
    let found = format!("Found lease ({}/24) for current IP (10.77.0.1), reusing", subnet.base());
    assert!(daemon.text().contains(&found), "{}", daemon.text());
    lab.put_lease(Api::V3, &subnet.key(), "10.77.0.9");
    assert_eq!(daemon.wait(secs(5)).and_then(|status| status.code()), Some(1));
    assert!(said(&daemon.text(), "Exiting cleanly...").is_empty(), "{}", daemon.text());
    logs += &daemon.text();
    lab.stop_etcd();

    let phrases = phrases();
    assert_eq!(phrases.len(), 15, "{phrases:?}");
    for (phrase, level) in phrases {
        let levels = said(&logs, &phrase);
        let other = levels.iter().any(|said| **said != *level);
        let at_the_end = logs.contains(&phrase) && level == "ERROR";
        assert!(!levels.is_empty() || at_the_end, "{phrase} was never said:\n{logs}");
        assert!(!other, "{phrase} is said as {levels:?}, not {level}:\n{logs}");
    }
}

/// A single file that is mounted into a container cannot be renamed over (rename(2), EBUSY).
#[test]
fn a_subnet_file_that_is_a_mount_of_its_own_is_written_in_place_with_one_warning() {
    is_written_in_place(false);
}

/// Nor can one be replaced in a directory that is read-only beside it (EROFS).
#[test]
fn a_subnet_file_in_a_read_only_directory_is_written_in_place_with_one_warning() {
    is_written_in_place(true);
}

fn is_written_in_place(in_read_only_directory: bool) {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let (outside, dir) = (lab.path("outside.env"), lab.path("inside"));
    let inside = dir.join("subnet.env");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&outside, "an old and longer text than the new one".repeat(20)).unwrap();
    std::fs::write(&inside, "").unwrap();
    let (outside_path, inside_path, dir) = (outside.display(), inside.display(), dir.display());
    let bind = format!("mount --bind {outside_path} {inside_path}");
    let bind = match in_read_only_directory {
        false => bind,
        true => format!("mount -t tmpfs none {dir}; >{inside_path}; {bind}; mount -o remount,ro {dir}"),
    };
    let bind = format!("set -e; {bind}; exec \"$0\" \"$@\"");
    let file = format!("--subnet-file={}", inside.display());
    let program = lab::flanneld();
    let head = ["unshare", "-m", "sh", "-c", &bind, &program, "--etcd-endpoints=http://10.77.0.254:2379"];
    let words = ["--iface=eth0", "--etcd-api=v3", &file];
    let mut daemon = lab.spawn(&lab.host(1), "mounted", &[&head[..], &words].concat());
    daemon.wait_text("Wrote subnet file to", secs(10));
    let text = std::fs::read_to_string(&outside).unwrap();
    assert!(text.starts_with("FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10."), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
    assert_eq!(daemon.text().matches("is a mount point").count(), 1, "{}", daemon.text());
    assert!(daemon.running());
}
