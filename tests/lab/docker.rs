//! A real dockerd on a lab's host.
//!
//! It gets the host's network and, as a host of its own would have, namespaces of mounts and of processes: when
//! its first process ends, the kernel ends every process under it and lets go of every mount, however that came.
//! The machine's own Docker (`/etc/docker`, `/run/docker`, `/run/containerd`) is out of its sight. What remains
//! are control groups, under a parent of a random name; the drop removes them.

use super::{Lab, Proc, eventually, ms, random, secs};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Makes the mounts, then becomes dockerd. `ip netns exec` would do for the network, but it mounts /sys anew and
/// so hides the control groups.
const BECOME_DOCKERD: &str = "for dir in /etc/docker /run/docker /run/containerd; do \
                                  mkdir -p $dir && mount -t tmpfs -o mode=0711 tmpfs $dir || exit 1; \
                              done; \
                              exec dockerd \"$@\"";

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

    /// The same without the wait; see [`Docker::ready`].
    pub fn spawn(lab: &Lab, i: usize, options: &[String]) -> Self {
        let dir = lab.path(&format!("docker{i}"));
        fs::create_dir_all(&dir).unwrap();
        let cgroup = format!("flanneld-lab-{:016x}", random());
        let at = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", lab.host(i)))
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", BECOME_DOCKERD, "dockerd"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["--host", &format!("unix://{}", at("sock"))])
            // This machine may have no systemd to ask for a control group.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &format!("/{cgroup}")])
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

    /// The same; it must succeed. Returns its standard output without the blanks at its ends.
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
        let unshare = self.proc.pid();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        let sent = Command::new("kill").args(["-TERM", children.trim()]).status().unwrap();
        assert!(sent.success(), "cannot signal dockerd ({children})");
        let ended = self.proc.wait(secs(20));
        assert!(ended.is_some(), "SIGTERM does not end dockerd:\n{}", self.proc.text());
        start.elapsed()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
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
