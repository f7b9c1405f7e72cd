//! A real dockerd on a lab's host; `perf/dockerd.sh` says how. Only control groups outlive it, under a parent of a
//! random name, and the drop removes them.

use super::{Lab, Proc, eventually, ms, random, secs};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A running dockerd. Dropping it ends it and all its containers.
pub struct Docker {
    proc: Proc,
    dir: PathBuf,
    cgroup: String,
}

/// What this machine lacks for Docker, if anything.
pub fn missing() -> Option<String> {
    for (tool, package) in [
        ("dockerd", "docker.io"),
        ("docker", "docker.io"),
        ("busybox", "busybox-static"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
    ] {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output();
        if !found.is_ok_and(|o| o.status.success()) {
            return Some(format!("{tool} is missing (package {package})"));
        }
    }
    let mounted = fs::read_dir("/sys/fs/cgroup").is_ok_and(|mut entries| entries.next().is_some());
    (!mounted).then(|| "no control groups are mounted on /sys/fs/cgroup".to_owned())
}

impl Docker {
    /// Starts it on host `i` and waits until it answers. A second one on a host finds the first one's data.
    pub fn start(lab: &Lab, i: usize, options: &[String]) -> Self {
        let mut docker = Self::spawn(lab, i, options);
        docker.ready();
        docker
    }

    /// Starts dockerd as [`Docker::start`] does, without the wait; see [`Docker::ready`].
    pub fn spawn(lab: &Lab, i: usize, options: &[String]) -> Self {
        let dir = lab.path(&format!("docker{i}"));
        fs::create_dir_all(&dir).unwrap();
        let cgroup = format!("flanneld-lab-{:016x}", random());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/dockerd.sh");
        let mut command = Command::new("setpriv");
        // A test that is killed cannot drop anything.
        command
            .args(["--pdeathsig", "KILL"])
            .arg(script)
            .arg(lab.host(i))
            .arg(&dir)
            .arg(&cgroup)
            .args(options);
        let proc = Proc::of(&mut command, &lab.path(&format!("dockerd{i}.log")));
        Self { proc, dir, cgroup }
    }

    /// Waits until it answers.
    pub fn ready(&mut self) {
        eventually(secs(20), "dockerd", || {
            assert!(self.proc.running(), "dockerd is gone:\n{}", self.proc.text());
            self.try_cli(&["version"]).status.success().then_some(())
        });
    }

    /// Runs the client, for at most half a minute.
    pub fn try_cli(&self, args: &[&str]) -> Output {
        let socket = format!("unix://{}", self.dir.join("sock").display());
        let head = ["30", "docker", "--host", &socket];
        let config = self.dir.join("client");
        Command::new("timeout").args(head).args(args).env("DOCKER_CONFIG", config).output().unwrap()
    }

    /// Runs the client, which must succeed; returns its standard output without the blanks at its ends.
    pub fn cli(&self, args: &[&str]) -> String {
        let out = self.try_cli(args);
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "docker {args:?}: {}\n{text}\n{errors}", out.status);
        text
    }

    /// One field of a container, as a Go template says it.
    pub fn inspect(&self, container: &str, template: &str) -> String {
        self.cli(&["inspect", "--format", template, container])
    }

    /// The address that Docker gave a container on its bridge.
    pub fn addr(&self, container: &str) -> Ipv4Addr {
        self.inspect(container, "{{.NetworkSettings.IPAddress}}").parse().unwrap()
    }

    /// SIGTERM, as a service manager stops it: its containers end first. Returns how long it took.
    pub fn terminate(mut self) -> Duration {
        let start = Instant::now();
        assert!(self.signal("TERM"), "cannot signal dockerd");
        let ended = self.proc.wait(secs(20));
        assert!(ended.is_some(), "SIGTERM does not end dockerd:\n{}", self.proc.text());
        start.elapsed()
    }

    /// Sends a signal to dockerd, which is `unshare`'s only child; `unshare` itself waits for it deaf.
    fn signal(&self, name: &str) -> bool {
        let unshare = self.proc.pid();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let Ok(child) = children.unwrap_or_default().trim().parse::<u32>() else { return false };
        let sent = Command::new("kill").args([&format!("-{name}"), &child.to_string()]).status();
        sent.is_ok_and(|status| status.success())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.signal("KILL") {
            let _ = self.proc.wait(secs(5));
        }
        self.proc.kill();
        // One parent in each hierarchy (cgroup v1), or one in all (v2).
        let Ok(entries) = fs::read_dir("/sys/fs/cgroup") else { return };
        let parents = entries.flatten().map(|e| e.path().join(&self.cgroup));
        let parents: Vec<_> = parents.chain([Path::new("/sys/fs/cgroup").join(&self.cgroup)]).collect();
        // The kernel takes a moment to end what ran in them.
        let end = Instant::now() + secs(3);
        while parents.iter().filter(|p| p.exists()).any(|p| !remove_cgroup(p)) && Instant::now() < end {
            std::thread::sleep(ms(20));
        }
    }
}

/// Removes a control group and those in it; false as long as one is in use.
fn remove_cgroup(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return true };
    let mut groups = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let emptied = groups.all(|e| remove_cgroup(&e.path()));
    emptied && fs::remove_dir(path).is_ok()
}
