//! A host whose PID 1 is a real systemd, in namespaces of its own (`tests/systemd-lab.sh`), with the Debian package of
//! this build.

use super::pair::config;
use super::{Api, Lab, Subnet, eventually, flanneld, secs, skip};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A running systemd on one of the lab's hosts. Dropping it powers it off.
pub struct Machine {
    dir: PathBuf,
    root: PathBuf,
}

/// The package of this build, made in `dir`; or the one that `FLANNELD_TEST_DEB` names.
pub fn package(dir: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("FLANNELD_TEST_DEB") {
        return path.into();
    }
    let out = Command::new(script("packaging/deb.sh")).arg(flanneld()).arg(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().into()
}

/// The same package under another version, beside it.
pub fn with_version(deb: &Path, version: &str) -> PathBuf {
    let (tree, new) = (deb.with_extension("tree"), deb.with_extension("new.deb"));
    let script = "dpkg-deb -R \"$0\" \"$1\" && sed -i \"s/^Version: .*/Version: $3/\" \"$1/DEBIAN/control\" && \
                  dpkg-deb --root-owner-group -Znone -b \"$1\" \"$2\"";
    let out =
        Command::new("sh").args(["-c", script]).arg(deb).arg(tree).arg(&new).arg(version).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    new
}

fn script(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What this machine lacks for a systemd of its own, if anything.
fn missing() -> Option<String> {
    let tools =
        ["mmdebstrap", "unshare", "nsenter", "setsid", "dpkg-deb", "dpkg-shlibdeps", "jq", "strip", "cargo"];
    let lacks = |tool: &&&str| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output();
        !found.is_ok_and(|out| out.status.success())
    };
    if let Some(tool) = tools.iter().find(lacks) {
        return Some(format!("{tool} is missing"));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let has_cgroup = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    (!has_cgroup).then(|| "no cgroup v2 is mounted".to_owned())
}

impl Machine {
    /// Boots systemd on host `i` and installs the package. `None`, and a sentence why, where it cannot be.
    pub fn boot(lab: &Lab, i: usize) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let dir = lab.path(&format!("machine{i}"));
        let lab_script = script("tests/systemd-lab.sh");
        let out = Command::new(&lab_script).arg("up").arg(&dir).arg(lab.host(i)).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let root = Command::new(&lab_script).arg("root").arg(&dir).output().unwrap();
        let root = String::from_utf8(root.stdout).unwrap().trim().into();
        Some(Self { dir, root })
    }

    /// Copies the package into the host and installs it; returns dpkg's output.
    pub fn install(&self, deb: &Path) -> String {
        fs::copy(deb, self.root.join("root/flanneld.deb")).unwrap();
        self.run("dpkg -i /root/flanneld.deb 2>&1")
    }

    /// Runs a shell script on the host.
    pub fn try_run(&self, line: &str) -> Output {
        let command = ["run", self.dir.to_str().unwrap(), "sh", "-c", line];
        Command::new(script("tests/systemd-lab.sh")).args(command).output().unwrap()
    }

    /// Runs a shell script on the host; it must succeed. Returns its standard output.
    pub fn run(&self, line: &str) -> String {
        let Output { status, stdout, stderr } = self.try_run(line);
        let (text, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{line}: {status}\n{text}{errors}{}", self.journal(""));
        text.into_owned()
    }

    /// Writes a file on the host, with the directories above it.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Reads a file of the host, if it is there.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()
    }

    /// Writes a drop-in of flanneld.service and has systemd read it.
    pub fn drop_in(&self, text: &str) {
        self.write("/etc/systemd/system/flanneld.service.d/test.conf", text);
        self.run("systemctl daemon-reload");
    }

    /// A property of a unit, as `systemctl show` prints it.
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.run(&format!("systemctl show -P {property} {unit}")).trim().to_owned()
    }

    /// Waits until a property of a unit has a value that passes; returns it.
    pub fn wait_for(&self, unit: &str, property: &str, is_right: impl Fn(&str) -> bool) -> String {
        eventually(secs(10), &format!("{property} of {unit}"), || {
            Some(self.show(unit, property)).filter(|value| is_right(value))
        })
    }

    /// The lines of flanneld in the journal, chosen by more of journalctl's arguments.
    pub fn journal(&self, arguments: &str) -> String {
        let line = format!("journalctl --sync; journalctl -u flanneld -o cat {arguments}");
        String::from_utf8_lossy(&self.try_run(&line).stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.journal("-n 40"));
        }
        let _ = Command::new(script("tests/systemd-lab.sh")).arg("down").arg(&self.dir).output();
    }
}

/// A service in Docker's place, ordered as Docker's own unit is. It keeps the environment of its start.
const DOCKER: &str = "[Unit]\nAfter=network-online.target containerd.service\nWants=network-online.target\n\
    [Service]\nEnvironmentFile=-/run/flannel/docker_opts.env\nExecStart=/bin/sleep infinity\n\
    [Install]\nWantedBy=multi-user.target\n";
/// The settings file of a host without wishes.
pub const SETTINGS: &str = "FLANNELD_ETCD_ENDPOINTS=http://10.77.0.254:2379\nFLANNELD_ETCD_API=v3\n";
/// So that a test need not wait for a second after each crash.
pub const QUICK: &str = "[Service]\nRestartSec=100ms\n";

/// A host with the package under systemd, a service in Docker's place, and a lab with etcd around it. The fields are
/// dropped in this order.
pub struct Host {
    pub machine: Machine,
    pub deb: PathBuf,
    pub lab: Lab,
}

impl Host {
    pub fn start(backend: &str, settings: &str) -> Option<Self> {
        let lab = Lab::start(2)?;
        let machine = Machine::boot(&lab, 1)?;
        lab.put_config(Api::V3, &config(backend));
        let deb = package(&lab.path(""));
        machine.install(&deb);
        machine.write("/etc/systemd/system/docker.service", DOCKER);
        machine.write("/etc/default/flanneld", &format!("{SETTINGS}{settings}"));
        machine.drop_in(QUICK);
        Some(Self { machine, deb, lab })
    }

    pub fn subnet(&self) -> Subnet {
        Subnet::parse(&self.machine.read("/run/flannel/subnet.env").unwrap()).unwrap()
    }

    /// Docker's process, and the options that it was started with.
    pub fn docker(&self) -> (String, String) {
        let pid = self.machine.show("docker", "MainPID");
        let environment = self.machine.run(&format!("tr '\\0' '\\n' </proc/{pid}/environ"));
        let options = environment.lines().find_map(|line| line.strip_prefix("DOCKER_OPTS="));
        (pid, options.unwrap_or_default().to_owned())
    }

    /// Waits until flanneld runs as another process than `before` and is ready.
    pub fn restarted(&self, before: &str) -> String {
        let pid = self.machine.wait_for("flanneld", "MainPID", |pid| pid != before && pid != "0");
        self.machine.wait_for("flanneld", "ActiveState", |state| state == "active");
        pid
    }

    pub fn pid(&self) -> String {
        self.machine.show("flanneld", "MainPID")
    }

    /// Has another node write over this host's key, so that the lease is lost.
    pub fn take_the_lease(&self) {
        let key = format!("subnets/{}", self.subnet().key());
        self.lab.put(Api::V3, &key, r#"{"PublicIP":"10.77.0.99"}"#);
    }
}
