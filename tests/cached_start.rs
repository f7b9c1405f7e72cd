//! Promise: with a state directory a daemon starts while the store is away, and never on what is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use lab::{Lab, secs};
use std::fs;

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
