//! The part that every etcd of the tests has in common, whether it runs on loopback for `etcd_*` or in the netns lab.

use std::path::Path;

/// The command line of an etcd that is alone and serves both APIs.
pub(crate) fn command_line(client_url: &str, peer_url: &str, data: &Path) -> Vec<String> {
    let cluster = format!("one={peer_url}");
    let data = data.display().to_string();
    let pairs = [
        ("--name", "one"),
        ("--data-dir", &data),
        ("--listen-client-urls", client_url),
        ("--advertise-client-urls", client_url),
        ("--listen-peer-urls", peer_url),
        ("--initial-advertise-peer-urls", peer_url),
        ("--initial-cluster", &cluster),
    ];
    let mut words = vec!["etcd".to_owned(), "--enable-v2=true".to_owned()];
    words.extend(pairs.map(|(flag, value)| format!("{flag}={value}")));
    words
}

/// Whether an answer of `/health` says that etcd serves.
pub(crate) fn serves(health: &str) -> bool {
    health.contains("\"true\"")
}
