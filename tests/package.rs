//! Promise: the Debian package installs, and what it installs works with the rights that its unit gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::systemd::package;
use lab::{Api, Lab, Proc, Subnet, TUTORIAL, eventually, flanneld, secs, skip};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What it takes to make the package and to install it.
const PACKAGERS: [&str; 6] = ["dpkg", "dpkg-deb", "dpkg-shlibdeps", "jq", "strip", "cargo"];
const UNIT: &str = "usr/lib/systemd/system/flanneld.service";

fn here(command: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", command]).output();
    found.is_ok_and(|out| out.status.success())
}

/// Whether the test can run.
fn can(commands: &[&str]) -> bool {
    let Some(missing) = commands.iter().find(|command| !here(command)) else { return true };
    skip(&format!("{missing} is missing"));
    false
}

fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{text}{errors}");
    text.into_owned()
}

/// An empty system with a package database of its own.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for path in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    root
}

fn dpkg(root: &Path, args: &[&str]) -> String {
    let force = ["--force-depends", "--force-script-chrootless", "--force-confold"];
    // dpkg warns on stderr about the dependencies that this system lacks.
    ok(Command::new("dpkg").arg(format!("--root={}", root.display())).args(force).args(args))
}

/// The last value of each setting in a unit.
fn settings(unit: &str) -> BTreeMap<&str, &str> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_package_installs_keeps_settings_and_goes() {
    if !can(&PACKAGERS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (deb, root) = (package(dir.path()), root(dir.path()));
    let deb = deb.to_str().unwrap();
    dpkg(&root, &["-i", deb]);
    assert!(dpkg(&root, &["-s", "flanneld"]).contains("Status: install ok installed"));
    let listed = dpkg(&root, &["-L", "flanneld"]);
    let files: Vec<_> = listed.lines().filter(|path| root.join(&path[1..]).is_file()).collect();
    assert_eq!(files.len(), 14, "{files:?}");
    for (path, mode) in [
        ("usr/bin/flanneld", 0o755),
        ("usr/bin/mk-docker-opts.sh", 0o755),
        ("usr/lib/flanneld/docker-opts", 0o755),
        (UNIT, 0o644),
        ("usr/lib/systemd/system/flannel-docker-opts.path", 0o644),
        ("usr/lib/systemd/system/flannel-docker-opts.service", 0o644),
        ("usr/lib/systemd/system/flannel-docker.path", 0o644),
        ("usr/lib/systemd/system/flannel-docker.service", 0o644),
        ("etc/default/flanneld", 0o644),
        ("usr/lib/systemd/network/10-flannel.link", 0o644),
        ("usr/lib/systemd/network/10-flannel.network", 0o644),
        ("usr/lib/systemd/networkd.conf.d/flannel.conf", 0o644),
        ("usr/lib/NetworkManager/conf.d/flannel.conf", 0o644),
        ("usr/share/doc/flanneld/copyright", 0o644),
    ] {
        let data = fs::metadata(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(data.permissions().mode() & 0o7777, mode, "{path}");
        assert!(data.len() > 0, "{path}");
    }
    let version = Command::new(root.join("usr/bin/flanneld")).arg("-version").output().unwrap();
    assert_eq!(version.stderr, format!("v{}\n", env!("CARGO_PKG_VERSION")).as_bytes());

    // An operator's settings outlive an upgrade and a removal, and go with a purge.
    let settings = root.join("etc/default/flanneld");
    fs::write(&settings, "FLANNELD_IFACE=eth7\n").unwrap();
    dpkg(&root, &["-i", deb]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "FLANNELD_IFACE=eth7\n");
    dpkg(&root, &["-r", "flanneld"]);
    assert!(!root.join(UNIT).exists() && settings.exists());
    dpkg(&root, &["-P", "flanneld"]);
    assert!(!settings.exists());
}

/// A library that is no dependency is a daemon that does not start on a small Debian. dpkg's own database says which
/// package a library is of, and readelf which libraries the binary takes.
#[test]
fn the_package_depends_on_the_libraries_of_its_binary() {
    if !can(&PACKAGERS) || !can(&["readelf", "dpkg-query"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let deb = package(dir.path());
    let depends = ok(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Depends"));
    let depends: BTreeSet<&str> =
        depends.split([',', '|']).filter_map(|one| one.split_whitespace().next()).collect();
    ok(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir.path()));
    let dynamic = ok(Command::new("readelf").arg("-dW").arg(dir.path().join("usr/bin/flanneld")));
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    assert!(needed.contains(&"libc.so.6"), "{dynamic}");
    let mut owners = BTreeSet::new();
    for library in needed {
        let owned = ok(Command::new("dpkg-query").args(["-S", &format!("*/{library}")]));
        let packages: BTreeSet<String> = owned
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.0.split(':').next()?.to_owned()))
            .collect();
        assert!(
            packages.iter().any(|one| depends.contains(one.as_str())),
            "{library} of {packages:?}: {depends:?}"
        );
        owners.extend(packages);
    }
    assert!(depends.iter().all(|one| owners.contains(*one)), "{depends:?} of {owners:?}");
    // cargo-deb fills in the same list.
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\ndepends = \"$auto\"\n"));
}

#[test]
fn systemd_accepts_the_unit() {
    if !can(&["systemd-analyze"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let unit = fs::read_to_string(packaging.join("systemd/flanneld.service")).unwrap();
    // systemd looks for the programs: here they are elsewhere.
    let unit = unit
        .replace("/usr/bin/flanneld", &flanneld())
        .replace("/usr/lib/flanneld/docker-opts", packaging.join("docker-opts").to_str().unwrap());
    let file = dir.path().join("flanneld.service");
    fs::write(&file, &unit).unwrap();
    let verify = |file: &Path| Command::new("systemd-analyze").arg("verify").arg(file).output().unwrap();
    let out = verify(&file);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && !text.contains("flanneld.service"), "{text}");
    // systemd-analyze complains of a wrong unit, so its silence about ours means something.
    fs::write(&file, unit.replace("ProtectSystem=strict", "ProtectSystem=perhaps")).unwrap();
    assert!(String::from_utf8_lossy(&verify(&file).stderr).contains("flanneld.service"));

    let settings = settings(&unit);
    assert_eq!((settings["Type"], settings["Restart"]), ("notify", "always"));
    assert_eq!(
        settings["StartLimitIntervalSec"], "0",
        "after five failures in ten seconds it would stay down"
    );
    assert_eq!(settings["RuntimeDirectoryPreserve"], "yes", "subnet.env would go at a restart");
    assert_eq!(settings["StateDirectory"], "flanneld");
    assert_eq!(settings["RestartPreventExitStatus"], "3", "a refused host would ask again and again");
    assert!(settings["RestrictAddressFamilies"].ends_with(" AF_PACKET"), "ARP could not be asked");
    assert_eq!(settings["Environment"], "FLANNELD_STATE_DIR=/var/lib/flanneld");
    let at = |name: &str| unit.find(&format!("\n{name}=")).unwrap();
    assert!(at("Environment") < at("EnvironmentFile"), "the operator's file could not change it");
    assert_eq!(
        settings["SystemCallFilter"], "@system-service bpf io_uring_setup io_uring_enter io_uring_register",
        "the group alone would forbid io_uring and the steering program"
    );
    // Whoever must not be restarted with flanneld must not require it.
    assert_eq!(settings["WantedBy"], "multi-user.target docker.service");
    assert!(!settings.contains_key("RequiredBy"), "Docker would be restarted with every flanneld");
    assert!(
        !settings.contains_key("ProtectKernelTunables"),
        "IPv6 is switched off on flannel0 through /proc/sys"
    );
}

/// An image cannot be built here; what its recipe takes from this directory can be looked at.
#[test]
fn the_image_is_made_of_what_is_here() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = fs::read_to_string(top.join("packaging/Containerfile")).unwrap();
    let copies: Vec<&str> = recipe
        .lines()
        .filter_map(|line| line.strip_prefix("COPY ").filter(|rest| !rest.starts_with("--from")))
        .flat_map(|rest| rest.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    for path in &copies {
        assert!(top.join(path).exists(), "{path}");
    }
    // cargo wants every target that the manifest names before it builds anything.
    let manifest = fs::read_to_string(top.join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("[[bench]]") || copies.contains(&"benches"), "{copies:?}");
    // protoc comes without the files that etcd-client imports.
    assert!(recipe.contains("protobuf-compiler libprotobuf-dev"), "{recipe}");
}

/// Runs the installed program as the unit does: its settings file, its capabilities, its limits.
fn start(lab: &Lab, root: &Path, capabilities: &str, log: &str, subnet_file: &Path) -> Proc {
    let unit = fs::read_to_string(root.join(UNIT)).unwrap();
    let settings = settings(&unit);
    let files = "--env-file=-/etc/sysconfig/flanneld --env-file=-/etc/default/flanneld";
    assert_eq!(
        settings["ExecStart"],
        format!("/usr/bin/flanneld {files} $FLANNEL_OPTIONS $FLANNELD_OPTIONS")
    );
    assert_eq!(settings["EnvironmentFile"], "-/etc/default/flanneld");
    let default = fs::read_to_string(root.join("etc/default/flanneld")).unwrap();
    let envs: Vec<(&str, &str)> = default
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let file = subnet_file.to_str().unwrap();
    let envs = [&envs[..], &[("FLANNELD_SUBNET_FILE", file)]].concat();
    let megabytes: u64 = settings["LimitMEMLOCK"].strip_suffix('M').unwrap().parse().unwrap();
    // Where the limit is lower already and may not be raised, the lower one must do.
    let limit = format!("ulimit -l {} 2>/dev/null; exec \"$@\"", megabytes << 10);
    let set = capabilities
        .split_whitespace()
        .map(|cap| format!(",+{}", cap.trim_start_matches("CAP_").to_lowercase()));
    let set = format!("-all{}", set.collect::<String>());
    let (bounding, inheritable, ambient) =
        (format!("--bounding-set={set}"), format!("--inh-caps={set}"), format!("--ambient-caps={set}"));
    let program = root.join("usr/bin/flanneld");
    let argv = ["sh", "-c", &limit, "sh", "setpriv", "--no-new-privs", &bounding, &inheritable, &ambient];
    Proc::start(&lab.host(1), &[&argv[..], &[program.to_str().unwrap()]].concat(), &envs, &lab.path(log))
}

#[test]
fn the_installed_daemon_works_with_the_units_rights_alone() {
    if !can(&PACKAGERS) || !can(&["setpriv"]) {
        return;
    }
    let Some(lab) = Lab::start(2) else { return };
    let (deb, root) = (package(&lab.path("")), root(&lab.path("")));
    dpkg(&root, &["-i", deb.to_str().unwrap()]);
    fs::write(
        root.join("etc/default/flanneld"),
        // With one worker CAP_BPF would not be missed.
        "FLANNELD_ETCD_ENDPOINTS=http://10.77.0.254:2379\nFLANNELD_IFACE=eth0\nFLANNELD_WORKERS=2\n",
    )
    .unwrap();
    lab.put_config(Api::V2, TUTORIAL);
    let unit = fs::read_to_string(root.join(UNIT)).unwrap();
    let settings = settings(&unit);
    assert_eq!(settings["AmbientCapabilities"], settings["CapabilityBoundingSet"]);

    // With fewer rights it fails, and says what is missing.
    let mut poor = start(&lab, &root, "", "poor.log", &lab.path("poor.env"));
    assert_eq!(poor.wait(secs(10)).expect("it goes on without rights").code(), Some(1), "{}", poor.text());
    assert!(poor.text().contains("CAP_NET_ADMIN"), "{}", poor.text());

    let file = lab.path("run/subnet.env");
    let mut daemon = start(&lab, &root, settings["CapabilityBoundingSet"], "unit.log", &file);
    let mine = eventually(secs(10), "subnet.env", || {
        assert!(daemon.running(), "flanneld is gone:\n{}", daemon.text());
        Subnet::parse(&fs::read_to_string(&file).ok()?)
    });
    // It would do nothing better with more rights: it warns only of what this lab lacks.
    // The lab's hosts lie in the tutorial's network, which is worth a warning whatever the rights.
    let is_of_rights = |line: &&str| !line.contains("the network 10.0.0.0/8 holds");
    let told = daemon.text();
    let complaints = told.lines().filter(is_of_rights).filter(|l| l.contains("WARN") || l.contains("ERROR"));
    assert_eq!(complaints.count(), 0, "{told}");
    let caps = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    // CAP_NET_BIND_SERVICE is bit 10, CAP_NET_ADMIN bit 12, CAP_NET_RAW bit 13, CAP_BPF bit 39.
    for set in ["CapEff", "CapBnd", "CapPrm"] {
        assert!(caps.contains(&format!("{set}:\t0000008000003400\n")), "{caps}");
    }

    let docker = lab.path("docker_opts.env");
    let script = root.join("usr/bin/mk-docker-opts.sh");
    ok(Command::new(script).arg("-f").arg(&file).arg("-d").arg(&docker));
    let options = fs::read_to_string(docker).unwrap();
    let expected = format!("DOCKER_OPTS=\" --bip={} --ip-masq=true --mtu={}\"\n", mine.subnet, mine.mtu);
    assert!(options.ends_with(&expected), "{options}");

    let mut second = lab.daemon(2, &[]);
    let theirs = second.subnet();
    let ends = [lab.container(1, &mine), lab.container(2, &theirs)];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    assert_eq!(daemon.terminate().0.code(), Some(0));
}
