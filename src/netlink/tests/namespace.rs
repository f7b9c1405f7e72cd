//! A fresh network namespace for a test. The test binary runs itself again under `unshare --net`, for that one test;
//! the namespace ends with the child process.

use std::future::Future;
use std::process::Command;

const INSIDE: &str = "FLANNELD_TEST_INSIDE_NAMESPACE";

/// Runs `body` on a current-thread runtime in a namespace of its own. `test` is the full path of the
/// calling test, as `cargo test -- --list` shows it. This needs root.
pub(crate) fn run<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
        return;
    }
    let binary = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .arg("--net")
        .arg(binary)
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in the namespace: {stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "no test of the name {test}: {stdout}");
}

/// Runs `ip` with these words, for instance `ip("link add d0 type dummy")`.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `ip` with these words and returns its output.
pub(crate) fn ip_shows(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
