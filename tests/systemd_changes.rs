//! Promise: under a real systemd flanneld stays one process while its network changes, and Docker follows the subnet.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::pair::config;
use lab::systemd::{Host, QUICK};
use lab::{Api, eventually, secs};

/// Waits until Docker runs as another process than `before`, and checks that it has the subnet of now.
fn docker_follows(host: &Host, before: &str) -> (String, String) {
    host.machine.wait_for("docker", "MainPID", |pid| pid != before && pid != "0");
    let docker = host.docker();
    assert!(docker.1.contains(&format!("--bip={}", host.subnet().subnet)), "{docker:?}");
    docker
}

fn restarts_of_docker(host: &Host) -> usize {
    host.machine.run("journalctl -u flannel-docker -o cat").matches("Finished").count()
}

#[test]
fn docker_follows_a_subnet_that_changes_while_flanneld_runs() {
    let Some(host) = Host::start(r#"{"Type":"udp"}"#, "FLANNELD_ON_LEASE_LOST=reacquire\n") else { return };
    let machine = &host.machine;
    machine.run("systemctl enable -q flanneld docker && systemctl start docker");
    let (mut docker, flanneld) = (host.docker(), host.pid());
    for round in 1..=2 {
        let before = host.subnet();
        host.take_the_lease();
        docker = docker_follows(&host, &docker.0);
        assert_ne!(host.subnet().subnet, before.subnet);
        assert_eq!(restarts_of_docker(&host), round, "one change is one restart");
    }
    assert_eq!(host.pid(), flanneld, "it is the same process");
    // A subnet file that is written anew with the same content is no change.
    machine.run("cp -p /run/flannel/subnet.env /run/flannel/s && mv /run/flannel/s /run/flannel/subnet.env");
    eventually(secs(5), "a look at the file", || {
        let looks = machine.run("journalctl --sync; journalctl -u flannel-docker-opts -o cat");
        (looks.matches("Finished").count() >= 3).then_some(())
    });
    machine.run(&format!("kill -9 {flanneld}"));
    host.restarted(&flanneld);
    assert_eq!(
        (host.docker(), restarts_of_docker(&host)),
        (docker, 2),
        "the same subnet leaves Docker alone"
    );
}

/// A start from the state directory may find that the config has changed. Then the network begins anew in the same
/// process, which systemd would kill if it had heard of an end.
#[test]
fn another_config_than_the_kept_one_ends_no_process() {
    let Some(mut host) = Host::start(r#"{"Type":"udp"}"#, "") else { return };
    host.machine.drop_in(&format!("{QUICK}TimeoutStopSec=2\n"));
    host.machine.run("systemctl start flanneld");
    eventually(secs(10), "a kept lease", || host.machine.read("/var/lib/flanneld/network.cache"));
    host.machine.run("systemctl stop flanneld");
    host.lab.put_config(Api::V3, &config(r#"{"Type":"udp"}"#).replace("10.10", "10.40"));
    host.lab.stop_etcd();
    host.machine.run("systemctl start flanneld docker");
    let (flanneld, docker) = (host.pid(), host.docker());
    assert!(docker.1.contains("--bip=10.10."), "{docker:?}");

    host.lab.start_etcd();
    let machine = &host.machine;
    eventually(secs(20), "the new network", || (host.subnet().network == "10.40.0.0/16").then_some(()));
    docker_follows(&host, &docker.0);
    // The process would be killed in this time.
    std::thread::sleep(secs(3));
    assert_eq!(machine.show("flanneld", "ActiveState"), "active");
    assert_eq!((host.pid(), machine.show("flanneld", "NRestarts")), (flanneld, "0".to_owned()));
    assert!(machine.show("flanneld", "StatusText").starts_with("udp backend, subnet 10.40."));
    machine.run("systemctl stop flanneld");
    assert_eq!(machine.show("flanneld", "Result"), "success");
}
