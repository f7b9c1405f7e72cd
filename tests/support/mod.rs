//! A real etcd for one test. It has random loopback ports and a directory of its own, and ends when it is dropped.
#![allow(dead_code, reason = "each test file uses its own part of this")]

mod etcd;
pub(crate) mod users;

pub(crate) use etcd::Release;
use flanneld::etcd::{Api, Settings, Store, connect};
use flanneld::store::{Change, Error, Registry, Watch};
use flanneld::subnet::{LeaseAttrs, SubnetKey};
use std::future::Future;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How to start an etcd.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The release of etcd.
    pub(crate) release: Release,
    /// More flags for its command line.
    pub(crate) flags: Vec<String>,
    /// Whether it serves clients over TLS. The flags name the files.
    pub(crate) tls: bool,
    /// More arguments for every curl, such as a client certificate.
    pub(crate) curl: Vec<String>,
}

/// A running etcd process.
pub(crate) struct Etcd {
    child: Option<Child>,
    directory: tempfile::TempDir,
    options: Options,
    port: u16,
    peer_port: u16,
}

/// Runs a case on each of the newer releases of etcd at the same time. Where they are not built, it says so and does
/// nothing; with `FLANNELD_TEST_REQUIRE=1` that is a failure instead, unless `FLANNELD_TEST_WITHOUT_PARTS=1` allows it,
/// as `tests/run.sh` does on a machine without Go. The names of the tests that call this end in `_on_newer_etcds`, by
/// which that script finds them.
#[allow(clippy::print_stderr)]
pub(crate) fn on_newer_etcds(case: impl Fn(Release) + Sync) {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| value == "1");
    let missing = Release::BUILT.into_iter().find(|release| !release.program().exists());
    if let Some(release) = missing {
        let why = format!("{} is not built; tests/parts/build.sh does that", release.program().display());
        let may_skip = !is_set("FLANNELD_TEST_REQUIRE") || is_set("FLANNELD_TEST_WITHOUT_PARTS");
        assert!(may_skip, "this test cannot run here: {why}");
        eprintln!("skipped: {why}");
        return;
    }
    let case = &case;
    std::thread::scope(|scope| {
        for release in Release::BUILT {
            let name = format!("{release:?}");
            std::thread::Builder::new().name(name).spawn_scoped(scope, move || case(release)).unwrap();
        }
    });
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn of(release: Release) -> Self {
        Self::with(Options { release, ..Options::default() })
    }

    pub(crate) fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut etcd = Self { child: None, directory, options, port: free_port(), peer_port: free_port() };
        etcd.run();
        etcd
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Starts the process and waits until it serves. A second start finds the same data and ports.
    pub(crate) fn run(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let release = self.options.release;
        let line = etcd::command_line(release, &self.url(), &peer, &self.directory.path().join("data"));
        let child = Command::new(&line[0])
            .args(&line[1..])
            .args(["--logger=zap", "--log-level=error"])
            .args(&self.options.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd does not start: install the Debian packages etcd-server and etcd-client, or run tests/parts/build.sh");
        self.child = Some(child);
        let since = Instant::now();
        while let Err(answer) = self.health() {
            assert!(since.elapsed() < Duration::from_secs(20), "etcd does not serve: {answer}{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn health(&self) -> Result<(), String> {
        let output = self.curl_command("/health").output();
        let output = output.expect("curl does not start: install the Debian package curl");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        if etcd::serves(&text) { Ok(()) } else { Err(text) }
    }

    fn curl_command(&self, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10"]).args(&self.options.curl);
        curl.arg(format!("{}{path}", self.url()));
        curl
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Kills the process; its data stay.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Copies what both APIs hold now. The process is stopped for it and then started again.
    pub(crate) fn back_up(&mut self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        self.stop();
        self.copy_data("data", copy.path());
        self.run();
        copy
    }

    /// Goes on from a copy of its data. Revisions that were handed out since the copy come again.
    pub(crate) fn restore(&mut self, copy: &tempfile::TempDir) {
        self.stop();
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.copy_data(copy.path().join("data").to_str().unwrap(), self.directory.path());
        self.run();
    }

    fn copy_data(&self, from: &str, to: &std::path::Path) {
        let mut cp = Command::new("cp");
        cp.current_dir(self.directory.path()).args(["-a", "--sparse=always", from]).arg(to);
        assert!(cp.status().unwrap().success());
    }

    /// Sends the process a signal: `-STOP` freezes it, `-CONT` thaws it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("etcd runs").id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
        // A running thread does not stop at once, but when it enters the kernel next.
        let stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('T'))
        };
        let all_stopped = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(stopped);
        while name == "-STOP" && !all_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs etcdctl on this etcd and returns its output.
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url()))
            .args(arguments)
            .output()
            .expect("etcdctl does not start: install the Debian package etcd-client");
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {text}{error}");
        text
    }

    /// Runs curl on a path of this etcd and returns the body.
    pub(crate) fn curl(&self, path: &str, arguments: &[&str]) -> String {
        let output = self.curl_command(path).args(arguments).output().unwrap();
        assert!(output.status.success(), "curl {path}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn settings(&self, api: Api, prefix: &str) -> Settings {
        settings(vec![self.url()], api, prefix)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn settings(endpoints: Vec<String>, api: Api, prefix: &str) -> Settings {
    Settings {
        endpoints,
        prefix: prefix.to_owned(),
        api,
        ca_file: None,
        cert_file: None,
        key_file: None,
        credentials: None,
        timeout: Settings::TIMEOUT,
    }
}

pub(crate) fn store(settings: &Settings) -> Store {
    connect(settings).unwrap()
}

pub(crate) fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

pub(crate) fn attrs(last: u8) -> LeaseAttrs {
    LeaseAttrs::new([192, 0, 2, last].into())
}

/// Runs a future on a runtime like the daemon's, for at most a minute.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("the test takes over a minute")
    })
}

/// Repeats a call while it fails as `Unavailable`, for at most ten seconds.
pub(crate) async fn until_available<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let since = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(Error::Unavailable(reason)) => {
                assert!(since.elapsed() < Duration::from_secs(10), "still unavailable: {reason}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Makes one call of each kind. All must succeed.
pub(crate) async fn works(store: &Store) {
    let before = store.list().await.unwrap();
    let mut watch = store.watch(before.revision).await.unwrap();
    let made = store.create(key("10.9.9.0-24"), &attrs(9), Duration::from_secs(86_400)).await.unwrap();
    let newer = store.update(&made, &attrs(8), Duration::from_secs(86_400)).await.unwrap();
    store.delete(&newer).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap());
    }
    assert_eq!(seen[..2], [Change::Set(made), Change::Set(newer)]);
    assert!(matches!(seen[2], Change::Gone { .. }));
}

/// Lists the leases and returns the error, which must come within `limit`.
pub(crate) async fn failure(store: &Store, limit: Duration) -> Error {
    let since = Instant::now();
    let error = store.list().await.unwrap_err();
    assert!(since.elapsed() < limit, "{error:?} took {:?}", since.elapsed());
    error
}

pub(crate) fn is_denied(error: &Error) -> bool {
    matches!(error, Error::Denied(reason) if !reason.contains("secret"))
}
