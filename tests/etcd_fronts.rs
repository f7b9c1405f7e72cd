//! Promise: etcd is used through whatever stands before it: balancers for HTTP/1.1, etcd's own proxies and gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Daemon, Lab, Proc, Tool, secs};
use std::time::Duration;

const ETCD: &str = "http://10.77.0.254:2379";

#[test]
#[ignore = "a tool that the tests start inside a namespace"]
fn tool_entry() {
    lab::tools::entry();
}

fn config(network: &str) -> String {
    format!(r#"{{"Network":"{network}","Backend":{{"Type":"udp"}}}}"#)
}

/// A daemon that knows etcd by this endpoint only.
fn behind(lab: &Lab, endpoint: &str, args: &[&str]) -> Daemon {
    lab.daemon(1, &[&[&*format!("-etcd-endpoints={endpoint}")], args].concat())
}

/// Registers a peer, and waits until the daemon has heard of it.
fn hears_of(lab: &Lab, api: Api, daemon: &Daemon, third: u8, limit: Duration) {
    lab.put_lease(api, &format!("10.11.{third}.0-24"), &format!("10.77.0.{third}"));
    daemon.wait_text(&format!("Subnet added: 10.11.{third}.0/24"), limit);
}

/// A reverse proxy of the lab for HTTP/1.1, before its etcd.
fn front(lab: &Lab, listen: &str, path: &str, tls: &str) -> Tool {
    lab.tool(&lab.ns("sw"), &format!("front {listen} {path} {ETCD} {tls}"))
}

/// Starts one of etcd's own commands in the switch.
fn etcds_own(lab: &Lab, name: &str, line: &str) -> Proc {
    let own = lab.spawn(&lab.ns("sw"), name, &lab::words(line));
    std::thread::sleep(lab::ms(500));
    own
}

/// etcd's v2 proxy, which withholds the head of a long poll until there is an event.
fn v2_proxy(lab: &Lab) -> Proc {
    let data = lab.path("proxy");
    let line = format!(
        "etcd --proxy on --name proxy --data-dir {} --listen-client-urls http://10.77.0.254:4001 \
         --initial-cluster one=http://127.0.0.1:2380",
        data.display()
    );
    etcds_own(lab, "proxy", &line)
}

/// What a server without HTTP/2 has is the v2 API, and `auto` finds the config there.
#[test]
fn auto_finds_a_v2_store_behind_http1() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, &config("10.11.0.0/16"));
    let (cert, key) = (lab.path("front.pem"), lab.path("front.key"));
    let tls = format!("{} {}", cert.display(), key.display());
    let openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
        -subj /CN=front -addext subjectAltName=IP:10.77.0.254 -addext basicConstraints=critical,CA:false";
    let ca_flag = format!("-etcd-cafile={}", cert.display());
    let files = format!("{openssl} -keyout {} -out {}", key.display(), cert.display());
    lab.run(&lab.ns("sw"), &lab::words(&files));
    let _fronts = [
        front(&lab, "10.77.0.254:8080", "/", ""),
        front(&lab, "10.77.0.254:8081", "/some/etcd", ""),
        front(&lab, "10.77.0.254:8443", "/some/etcd", &tls),
    ];
    let _proxy = v2_proxy(&lab);
    let cases: [(&str, &[&str]); 4] = [
        ("http://10.77.0.254:8080", &[]),
        ("http://10.77.0.254:8080,http://10.77.0.254:8081/some/etcd/", &[]),
        ("https://10.77.0.254:8443/some/etcd", &[&ca_flag]),
        ("http://10.77.0.254:4001", &[]),
    ];
    for (number, (endpoint, args)) in (150..).zip(cases) {
        let mut daemon = behind(&lab, endpoint, args);
        assert_eq!(daemon.subnet().network, "10.11.0.0/16", "{endpoint}");
        hears_of(&lab, Api::V2, &daemon, number, secs(4));
        daemon.terminate();
        std::fs::remove_file(&daemon.subnet_file).unwrap();
    }
    lab.clear(Api::V2);
    lab.put(Api::V2, "blue/config", &config("10.12.0.0/16"));
    for (name, (endpoint, args)) in ["a", "b", "c", "d"].into_iter().zip(cases) {
        let dir = lab.path(&format!("networks-{name}"));
        let dir_flag = format!("-subnet-dir={}", dir.display());
        let mut daemon = behind(&lab, endpoint, &[args, &["-watch-networks", &dir_flag]].concat());
        lab::eventually(secs(10), endpoint, || dir.join("blue.env").exists().then_some(()));
        daemon.terminate();
    }
}

/// A store that has the v3 API is not taken for an old one because one of its endpoints is a proxy for HTTP/1.1.
#[test]
fn auto_stays_with_v3_where_one_endpoint_has_it() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, &config("10.11.0.0/16"));
    lab.put_config(Api::V3, &config("10.12.0.0/16"));
    lab.put_lease(Api::V3, "10.12.9.0-24", "10.77.0.99");
    let _front = front(&lab, "10.77.0.254:8080", "/", "");
    let mut daemon = behind(&lab, &format!("http://10.77.0.254:8080,{ETCD}"), &[]);
    assert_eq!(daemon.subnet().network, "10.12.0.0/16", "{}", daemon.text());
}

/// An endpoint that is down may have the v3 API, so a proxy for HTTP/1.1 beside it settles nothing.
#[test]
fn auto_waits_for_an_endpoint_that_may_have_v3() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, &config("10.11.0.0/16"));
    lab.put_config(Api::V3, &config("10.12.0.0/16"));
    lab.put_lease(Api::V3, "10.12.9.0-24", "10.77.0.99");
    let _front = front(&lab, "10.77.0.254:8080", "/", "");
    let mut daemon = behind(&lab, "http://10.77.0.254:8080,http://10.77.0.254:4002", &[]);
    daemon.wait_text("(--etcd-api names the one to use)", secs(5));
    std::thread::sleep(secs(4));
    assert!(daemon.running() && !daemon.subnet_file.exists(), "{}", daemon.text());
    let line = "etcd gateway start --listen-addr=10.77.0.254:4002 --endpoints=10.77.0.254:2379";
    let _gateway = etcds_own(&lab, "gateway", line);
    assert_eq!(daemon.subnet().network, "10.12.0.0/16", "{}", daemon.text());
}

/// A port of etcd that serves gRPC and nothing else has no v2 API, and needs none.
#[test]
fn auto_takes_v3_where_nothing_speaks_http1() {
    let etcd = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("parts").join("etcd-3.6.16");
    if !etcd.exists() {
        return lab::skip(&format!("{} is missing; tests/parts/build.sh builds it", etcd.display()));
    }
    let Some(lab) = Lab::start(1) else { return };
    let (cert, key) = (lab.path("etcd.pem"), lab.path("etcd.key"));
    let openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=etcd \
        -addext subjectAltName=IP:10.77.0.254";
    let files = format!("{openssl} -keyout {} -out {}", key.display(), cert.display());
    lab.run(&lab.ns("sw"), &lab::words(&files));
    let (etcd, cert, key) = (etcd.display(), cert.display(), key.display());
    for (number, scheme) in (0..).zip(["http", "https"]) {
        let port = 4100 + number * 10;
        let [grpc, http, peer] = [0, 1, 2].map(|n| format!("10.77.0.254:{}", port + n));
        let data = lab.path(scheme);
        let line = format!(
            "{etcd} --name one --data-dir {} --listen-client-urls {scheme}://{grpc} --advertise-client-urls \
             {scheme}://{grpc} --listen-client-http-urls {scheme}://{http} --listen-peer-urls http://{peer} \
             --initial-advertise-peer-urls http://{peer} --initial-cluster one=http://{peer}",
            data.display()
        );
        let (tls, ctl, ca) = if scheme == "https" {
            let tls = format!(" --cert-file {cert} --key-file {key}");
            (tls, format!("--cacert {cert}"), format!("-etcd-cafile={cert}"))
        } else {
            (String::new(), String::new(), "-v=0".to_owned())
        };
        let _etcd = etcds_own(&lab, scheme, &format!("{line}{tls}"));
        let put = format!("etcdctl --endpoints {scheme}://{grpc} {ctl} put /coreos.com/network/config");
        let config = config("10.11.0.0/16");
        lab.run(&lab.ns("sw"), &[lab::words(&put), vec![&config]].concat());
        let mut daemon = behind(&lab, &format!("{scheme}://{grpc}"), &[&ca]);
        assert_eq!(daemon.subnet().network, "10.11.0.0/16", "{}", daemon.text());
        daemon.terminate();
        std::fs::remove_file(&daemon.subnet_file).unwrap();

        // Several networks are found by the same rule.
        let put = put.replace("network/config", "network/blue/config");
        lab.run(&lab.ns("sw"), &[lab::words(&put), vec![&config]].concat());
        let dir = lab.path(&format!("networks-{scheme}"));
        let dir_flag = format!("-subnet-dir={}", dir.display());
        let mut daemon = behind(&lab, &format!("{scheme}://{grpc}"), &[&ca, "-watch-networks", &dir_flag]);
        lab::eventually(secs(10), "the network blue", || dir.join("blue.env").exists().then_some(()));
        daemon.terminate();
    }
}

/// The watch of a store behind etcd 2's proxy is no outage, and peers are heard of at once.
#[test]
fn a_v2_watch_holds_where_the_head_is_withheld() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V2, &config("10.11.0.0/16"));
    let _proxy = v2_proxy(&lab);
    let mut daemon = behind(&lab, "http://10.77.0.254:4001", &["-etcd-api=v2", "-etcd-timeout=1s"]);
    daemon.subnet();
    // Longer than a deadline, and than the silence after which a poll is begun anew (six deadlines).
    for (third, pause) in [(151, 2), (152, 8), (153, 0)] {
        hears_of(&lab, Api::V2, &daemon, third, secs(3));
        std::thread::sleep(secs(pause));
    }
    lab.delete_lease(Api::V2, "10.11.152.0-24");
    daemon.wait_text("Subnet removed: 10.11.152.0/24", secs(3));
    let text = daemon.text();
    assert!(!text.contains("Lost the store") && !text.contains("Still no store"), "{text}");
}

/// `etcd gateway` passes bytes on.
#[test]
fn both_apis_work_through_etcd_gateway() {
    let Some(lab) = Lab::start(1) else { return };
    let line = "etcd gateway start --listen-addr=10.77.0.254:4002 --endpoints=10.77.0.254:2379";
    let _gateway = etcds_own(&lab, "gateway", line);
    for (api, third) in [(Api::V2, 151), (Api::V3, 152)] {
        lab.put_config(api, &config("10.11.0.0/16"));
        let mut daemon = behind(&lab, "http://10.77.0.254:4002", &[api.flag()]);
        daemon.subnet();
        hears_of(&lab, api, &daemon, third, secs(3));
        daemon.terminate();
    }
}

/// `etcd grpc-proxy` closes a connection after the third ping that comes within five minutes. That happens once.
#[test]
fn v3_works_through_etcd_grpc_proxy() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, &config("10.11.0.0/16"));
    let line = "etcd grpc-proxy start --listen-addr=10.77.0.254:4003 --endpoints=10.77.0.254:2379";
    let mut proxy = etcds_own(&lab, "grpc-proxy", line);
    let mut daemon = behind(&lab, "http://10.77.0.254:4003", &["-v=1"]);
    daemon.subnet();
    hears_of(&lab, Api::V3, &daemon, 151, secs(3));
    // The first connection ends after some 40 s; the second one must outlive as long a time.
    std::thread::sleep(secs(86));
    assert!(proxy.running(), "{}", proxy.text());
    hears_of(&lab, Api::V3, &daemon, 152, secs(3));
    let text = daemon.text();
    let closed = text.matches("wants fewer pings").count();
    assert!(closed == 1 && text.matches("Lost the store").count() <= 1, "{text}");
}
