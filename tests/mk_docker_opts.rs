//! Promise: `mk-docker-opts.sh` has flannel's options and output, to the byte, in every POSIX shell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SUBNET: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
const INDIVIDUAL: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
const OPTIONS: &str = "--bip=10.1.74.1/24 --ip-masq=true --mtu=1472";

/// The shells that this machine has; at least `sh`.
fn shells() -> Vec<Vec<&'static str>> {
    let all: [&[&str]; 4] = [&["sh"], &["dash"], &["busybox", "sh"], &["bash", "--posix"]];
    let here = |shell: &&&[&str]| {
        Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", ":"])
            .output()
            .is_ok_and(|out| out.status.success())
    };
    all.iter().filter(here).map(|shell| shell.to_vec()).collect()
}

/// A run of the script: its output, and what it wrote.
struct Run {
    output: Output,
    written: Option<String>,
}

struct Case {
    dir: tempfile::TempDir,
    shell: Vec<&'static str>,
}

impl Case {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str], envs: &[(&str, &str)]) -> Run {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mk-docker-opts.sh");
        let (from, to) = (self.path("subnet.env"), self.path("docker.env"));
        let output = Command::new(self.shell[0])
            .args(&self.shell[1..])
            .arg(script)
            .args(["-f", from.to_str().unwrap(), "-d", to.to_str().unwrap()])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs(envs.iter().copied())
            .output()
            .unwrap();
        Run { output, written: std::fs::read_to_string(to).ok() }
    }

    fn writes(&self, args: &[&str], envs: &[(&str, &str)], expected: &str) {
        let run = self.run(args, envs);
        let shown = String::from_utf8_lossy(&run.output.stderr).into_owned();
        assert!(run.output.status.success() && shown.is_empty(), "{:?} {args:?}: {shown}", self.shell);
        assert_eq!(run.written.as_deref(), Some(expected), "{:?} {args:?}", self.shell);
    }
}

/// Runs the script in every shell, with this subnet file.
fn each(subnet: Option<&str>, test: impl Fn(&Case)) {
    let shells = shells();
    assert!(!shells.is_empty());
    for shell in shells {
        let case = Case { dir: tempfile::tempdir().unwrap(), shell };
        if let Some(text) = subnet {
            std::fs::write(case.path("subnet.env"), text).unwrap();
        }
        test(&case);
    }
}

#[test]
fn the_five_forms() {
    each(Some(SUBNET), |case| {
        let both = format!("{INDIVIDUAL}DOCKER_OPTS=\" {OPTIONS}\"\n");
        case.writes(&[], &[], &both);
        case.writes(&["-i"], &[], INDIVIDUAL);
        case.writes(&["-c"], &[], &format!("DOCKER_OPTS=\" {OPTIONS}\"\n"));
        case.writes(
            &["-c", "-k", "DOCKER_NETWORK_OPTIONS"],
            &[],
            &format!("DOCKER_NETWORK_OPTIONS=\" {OPTIONS}\"\n"),
        );
        case.writes(&["-i", "-c"], &[], &both);
    });
}

#[test]
fn without_a_subnet_file_the_options_are_empty() {
    each(None, |case| {
        case.writes(&[], &[], "DOCKER_OPTS=\"\"\n");
        case.writes(&["-i"], &[], "");
        case.writes(
            &["-c"],
            &[("DOCKER_OPT_LOG", "--log-level=warn")],
            "DOCKER_OPTS=\" --log-level=warn\"\n",
        );
    });
}

#[test]
fn masquerade_is_negated_left_out_or_refused() {
    let masq = |value: &str| SUBNET.replace("IPMASQ=false", &format!("IPMASQ={value}"));
    each(Some(&masq("true")), |case| {
        case.writes(&["-c"], &[], "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n");
        case.writes(&["-c", "-m"], &[], "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
    });
    each(Some(&masq("maybe")), |case| {
        let run = case.run(&[], &[]);
        let text = String::from_utf8(run.output.stderr).unwrap();
        assert_eq!(run.output.status.code(), Some(1));
        assert!(text.contains("FLANNEL_IPMASQ=maybe"), "{text}");
        case.writes(&["-m", "-c"], &[], "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
    });
}

#[test]
fn the_environment_is_taken_along_in_alphabetical_order() {
    each(Some(SUBNET), |case| {
        let envs = [
            ("DOCKER_OPT_ZZ", "--zz"),
            ("DOCKER_OPT_CACHE", "--a b=\"c\" $HOME"),
            ("DOCKER_OPTS", "--first"),
            ("DOCKER_OPTION", "no"),
            ("XDOCKER_OPT_A", "no"),
            ("TRAP", "x\nDOCKER_OPT_FAKE=y\n"),
        ];
        let all = "--first  --bip=10.1.74.1/24 --a b=\"c\" $HOME --ip-masq=true --mtu=1472 --zz";
        case.writes(&["-c"], &envs, &format!("DOCKER_OPTS=\"{all}\"\n"));
        let lines: Vec<&str> = INDIVIDUAL.lines().collect();
        let expected = format!(
            "{}\nDOCKER_OPT_CACHE=\"--a b=\"c\" $HOME\"\n{}\n{}\nDOCKER_OPT_ZZ=\"--zz\"\n",
            lines[0], lines[1], lines[2]
        );
        case.writes(&["-i"], &envs, &expected);
    });
}

#[test]
fn the_target_is_replaced_and_bad_usage_writes_nothing() {
    each(Some(SUBNET), |case| {
        std::fs::write(case.path("docker.env"), "old\n".repeat(100)).unwrap();
        case.writes(&["-i"], &[], INDIVIDUAL);
        std::fs::write(case.path("docker.env"), "old\n").unwrap();
        for args in [&["-h"][..], &["-?"], &["-x"], &["-k"], &["-k", "A;reboot"], &["-k", ""], &["-k", "1A"]]
        {
            let run = case.run(args, &[]);
            assert_eq!(run.output.status.code(), Some(1), "{:?} {args:?}", case.shell);
            assert!(!run.output.stderr.is_empty() && run.output.stdout.is_empty());
            assert_eq!(run.written.as_deref(), Some("old\n"), "{args:?}");
        }
        let nowhere = case.run(&["-d", "/nonexistent/docker.env"], &[]);
        assert!(!nowhere.output.status.success());
    });
}

/// A subnet file without a slash is one in this directory, not in PATH.
#[test]
fn a_subnet_file_is_found_beside_us() {
    each(Some(SUBNET), |case| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mk-docker-opts.sh");
        let out = Command::new(case.shell[0])
            .args(&case.shell[1..])
            .arg(script)
            .args(["-f", "subnet.env", "-d", "docker.env", "-i"])
            .current_dir(case.dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read_to_string(case.path("docker.env")).unwrap(), INDIVIDUAL);
    });
}

/// Two hosts claim one subnet: the file is written, and the exit code says that something is wrong.
#[test]
fn a_route_to_our_subnet_via_another_host_is_told() {
    each(Some(SUBNET), |case| {
        if case.shell[0].ends_with("busybox") {
            // The static build prefers its own `ip` to the one in PATH.
            return;
        }
        // An `ip` that answers as iproute2 does with such a route.
        let ip = case.path("ip");
        std::fs::write(&ip, "#!/bin/sh\n[ \"$*\" = '-4 route show exact 10.1.74.1/24' ] && echo '10.1.74.0/24 via 192.0.2.9 dev eth0'\n").unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&ip).status().unwrap().success());
        let path = format!("{}:{}", case.dir.path().display(), std::env::var("PATH").unwrap());
        let run = case.run(&["-i"], &[("PATH", &path)]);
        let text = String::from_utf8(run.output.stderr).unwrap();
        assert_eq!(run.output.status.code(), Some(1), "{text}");
        assert!(text.contains("two hosts claim this subnet"), "{text}");
        assert_eq!(run.written.as_deref(), Some(INDIVIDUAL));
    });
}

#[test]
fn only_a_change_replaces_the_file() {
    use std::os::unix::fs::MetadataExt;
    each(Some(SUBNET), |case| {
        let (to, link) = (case.path("docker.env"), case.path("elsewhere.env"));
        let inode = || std::fs::metadata(&to).unwrap().ino();
        case.writes(&["-i"], &[], INDIVIDUAL);
        let (first, written) = (inode(), std::fs::metadata(&to).unwrap().modified().unwrap());
        case.writes(&["-i"], &[], INDIVIDUAL);
        assert_eq!((inode(), std::fs::metadata(&to).unwrap().modified().unwrap()), (first, written));
        // A reader that has the old file open keeps the whole old text.
        let other = SUBNET.replace("10.1.74.1", "10.1.75.1");
        std::fs::write(case.path("subnet.env"), &other).unwrap();
        case.writes(&["-i"], &[], &INDIVIDUAL.replace("10.1.74.1", "10.1.75.1"));
        assert_ne!(inode(), first, "{:?}", case.shell);
        // A link stays a link.
        std::fs::rename(&to, &link).unwrap();
        std::os::unix::fs::symlink(&link, &to).unwrap();
        std::fs::write(case.path("subnet.env"), SUBNET).unwrap();
        case.writes(&["-i"], &[], INDIVIDUAL);
        assert!(to.is_symlink() && std::fs::read_to_string(&link).unwrap() == INDIVIDUAL);
        let left: Vec<_> =
            std::fs::read_dir(case.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    });
}
