//! Promise: `/healthz`, `/readyz`, `/metrics` and systemd's notifications say what is so, and nobody can hang them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use flanneld::report::{State, metric};
use flanneld::status::{self, Ask};
use lab::{Api, Daemon, Lab, TUTORIAL, eventually, ms, secs};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const HEALTH: &str = "--healthz-port=8471";

/// Sends bytes as they are and reads until the server closes, which must come within ten seconds.
fn raw(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(secs(10))).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    // A server that closes before it has read everything resets the connection.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// A request by hand: status code and body.
fn request(to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let answer = raw(to, format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A server whose control loop is the closure.
fn server(mut answer: impl FnMut(Ask) + Send + 'static) -> SocketAddr {
    let (address, mut asks) = status::serve("127.0.0.1:0".parse().unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Some(ask) = asks.blocking_recv() {
            answer(ask);
        }
    });
    address
}

fn good() -> State {
    State { alive: true, ready: true, ..State::default() }
}

#[test]
fn the_answers_follow_the_control_loop() {
    let bad = |change: fn(&mut State)| {
        let mut network = good();
        change(&mut network);
        network
    };
    let cases = [
        (vec![good(), good()], (200, "flanneld is running"), (200, "flanneld is ready")),
        (vec![], (200, "flanneld is running"), (503, "flanneld is not ready yet")),
        (
            vec![good(), bad(|n| n.ready = false)],
            (200, "flanneld is running"),
            (503, "flanneld is not ready yet"),
        ),
        (
            vec![good(), bad(|n| (n.network, n.degraded) = ("a".to_owned(), Some("why".to_owned())))],
            (200, "flanneld is running"),
            (200, "flanneld is ready; degraded: network a why"),
        ),
        (
            vec![
                good(),
                bad(|n| {
                    (n.ready, n.hindrance, n.network) = (false, Some("eth0 is down".into()), "blue".into());
                }),
            ],
            (200, "flanneld is running"),
            (503, "flanneld is not ready: network blue eth0 is down"),
        ),
        (
            vec![good(), bad(|n| n.alive = false)],
            (503, "a worker of flanneld has ended"),
            (200, "flanneld is ready"),
        ),
    ];
    for (networks, health, ready) in cases {
        let to = server(move |ask| ask.answer(networks.clone()));
        let shown = |(code, text): (u16, &str)| (code, text.to_owned());
        assert_eq!(request(to, "GET", "/healthz"), shown(health));
        assert_eq!(request(to, "GET", "/readyz?verbose"), shown(ready));
    }
}

#[test]
fn any_method_will_do_and_other_paths_are_not_found() {
    let to = server(|ask| ask.answer(vec![good()]));
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        assert_eq!(request(to, method, "/healthz"), (200, "flanneld is running".to_owned()), "{method}");
    }
    assert_eq!(request(to, "HEAD", "/readyz"), (200, String::new()));
    for path in ["/", "/healthz/", "/Healthz", "/metric", "/healthz%00", "//healthz"] {
        assert_eq!(request(to, "GET", path).0, 404, "{path}");
    }
    assert!(raw(to, b"GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
}

/// When the control loop hangs, health says so within a bounded time.
#[test]
fn a_control_loop_that_hangs_is_unhealthy() {
    let mut kept = Vec::new();
    let to = server(move |ask| kept.push(ask));
    let start = Instant::now();
    assert_eq!(request(to, "GET", "/healthz"), (503, "flanneld's control loop does not answer".to_owned()));
    assert_eq!(request(to, "GET", "/readyz").0, 503);
    assert_eq!(request(to, "GET", "/metrics").0, 503);
    assert!(start.elapsed() < 3 * status::PATIENCE + secs(2), "{:?}", start.elapsed());
}

#[test]
fn bad_requests_are_refused_and_cost_nothing() {
    let to = server(|ask| ask.answer(vec![good()]));
    let long = format!("GET /healthz HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(raw(to, long.as_bytes()).starts_with("HTTP/1.1 431"), "{}", raw(to, long.as_bytes()));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert!(raw(to, many.as_bytes()).starts_with("HTTP/1.1 431"));
    let line = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    assert!(raw(to, line.as_bytes()).starts_with("HTTP/1.1 4"));
    for junk in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
    {
        let answer = raw(to, junk);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(request(to, "GET", "/healthz").0, 200);
}

/// More clients come than are served at once, and none ever finishes its request or reads its answer.
#[test]
fn slow_clients_do_not_keep_others_out() {
    let to = server(|ask| ask.answer(vec![good()]));
    let starts: [&[u8]; 3] =
        [b"", b"GET /healthz HT", b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx"];
    let slow: Vec<TcpStream> = (0..150)
        .map(|n| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(starts[n % 3]).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    assert_eq!(request(to, "GET", "/healthz").0, 200);
    eprintln!("behind 150 slow clients it took {:?}", start.elapsed());
    assert!(start.elapsed() < secs(15));
    let mut first = &slow[0];
    first.set_read_timeout(Some(secs(1))).unwrap();
    let mut answer = String::new();
    let _ = first.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// Checks what a Prometheus server would read: families typed once, samples in the form, no sample twice.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let (mut types, mut samples, mut family) = (BTreeSet::new(), BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned()), "{name} twice");
            assert_eq!(kind, if name.ends_with("_total") { "counter" } else { "gauge" }, "{line}");
            name.clone_into(&mut family);
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert_eq!(name, family, "{line}");
            assert!(sample.len() == name.len() || sample.ends_with("\"}"), "{line}");
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
        }
    }
    samples
}

fn curl(lab: &Lab, path: &str) -> (String, String) {
    let url = format!("http://10.77.0.1:8471{path}");
    let out = lab.run(&lab.ns("sw"), &["curl", "-sSm5", "-w", "\n%{http_code}", &url]);
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

fn answers(lab: &Lab, path: &str, code: &str, body: &str) {
    let got = curl(lab, path);
    assert_eq!(got, (code.to_owned(), body.to_owned()), "{path}");
}

/// A udp daemon shows every metric but those of other backends, and none that the table does not hold.
fn every_metric_is_there(scrape: &BTreeMap<String, f64>) {
    let of_others = [&metric::UNUSABLE_LEASES, &metric::OFF_LINK_PEERS, &metric::FAILED_COMMANDS];
    let seen: BTreeSet<&str> = scrape.keys().map(|name| name.split('{').next().unwrap()).collect();
    let mut known = BTreeSet::new();
    for metric in metric::ALL.iter().filter(|metric| !of_others.contains(metric)) {
        known.insert(metric.name);
        known.extend(metric.formerly);
    }
    assert_eq!(seen, known);
}

#[test]
fn a_daemon_is_running_then_ready_and_counts() {
    let Some(mut lab) = Lab::start(2) else { return };
    let mut one = lab.daemon(1, &[HEALTH]);
    one.wait_text("Serving /healthz, /readyz and /metrics on http://0.0.0.0:8471", secs(5));
    answers(&lab, "/healthz", "200", "flanneld is running");
    answers(&lab, "/readyz", "503", "flanneld is not ready yet");
    assert_eq!(metrics(&curl(&lab, "/metrics").1)["flanneld_ready"], 0.0);

    lab.put_config(Api::V3, TUTORIAL);
    let subnets = [one.subnet(), lab.daemon(2, &["--healthz-ip=10.77.0.2", HEALTH]).subnet()];
    eventually(secs(2), "ready", || (curl(&lab, "/readyz").0 == "200").then_some(()));
    answers(&lab, "/readyz", "200", "flanneld is ready");
    answers(&lab, "/healthz", "200", "flanneld is running");
    let peers = |lab: &Lab| metrics(&curl(lab, "/metrics").1)["flanneld_peers"];
    eventually(secs(3), "the peer", || (peers(&lab) == 1.0).then_some(()));

    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    let before = metrics(&curl(&lab, "/metrics").1);
    lab.try_run(&ends[0].ns, &["ping", "-c20", "-i0.01", "-W1", "10.98.0.9"]);
    let after = metrics(&curl(&lab, "/metrics").1);
    let gained = |name: &str| after[name] - before[name];
    assert!(gained("flanneld_dropped_packets_total{reason=\"no_route\"}") >= 20.0, "{after:?}");
    assert!(gained("flanneld_icmp_sent_total") + gained("flanneld_icmp_limited_total") >= 20.0, "{after:?}");
    assert_eq!(after["flanneld_lease_state{state=\"held\"}"], 1.0);
    assert_eq!(after["flanneld_backend_info{backend=\"udp\"}"], 1.0);
    let day = after["flanneld_lease_expiry_timestamp_seconds"]
        - std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((86_300.0..86_410.0).contains(&day), "{day}");
    assert!(after["process_resident_memory_bytes"] > 1e6 && after["process_cpu_seconds_total"] > 0.0);
    every_metric_is_there(&after);
    eventually(secs(5), "the rules", || {
        (metrics(&curl(&lab, "/metrics").1)["flanneld_rules_in_place"] == 1.0).then_some(())
    });

    // A daemon without etcd is healthy.
    lab.stop_etcd();
    eventually(secs(10), "etcd_up 0", || {
        (metrics(&curl(&lab, "/metrics").1)["flanneld_etcd_up"] == 0.0).then_some(())
    });
    answers(&lab, "/healthz", "200", "flanneld is running");
    answers(&lab, "/readyz", "200", "flanneld is ready");
    let (status, _) = one.terminate();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_port_in_use_is_said_and_fatal() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, TUTORIAL);
    let first = lab.daemon(1, &[HEALTH, "--healthz-ip=127.0.0.1"]);
    first.wait_text("Serving /healthz", secs(5));
    let file = lab.path("second/subnet.env");
    let mut second = Daemon::start(&lab, &lab.host(1), &file, &["--iface=eth0", HEALTH], &[]);
    assert_eq!(second.wait(secs(5)).expect("it goes on").code(), Some(1));
    assert!(
        second.text().contains("cannot serve health on 0.0.0.0:8471: Address already in use"),
        "{}",
        second.text()
    );
    assert!(!file.exists());
}

/// Everything that systemd would hear, with the time when it came.
fn heard(socket: &UnixDatagram, time: Duration) -> Vec<(Instant, String)> {
    let (end, mut heard, mut buffer) = (Instant::now() + time, Vec::new(), [0; 1024]);
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).unwrap();
        if let Ok(len) = socket.recv(&mut buffer) {
            heard.push((Instant::now(), String::from_utf8_lossy(&buffer[..len]).into_owned()));
        }
    }
    heard
}

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() {
    let Some(lab) = Lab::start(1) else { return };
    let path = lab.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let envs = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let file = lab.path("subnet.env");
    let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &["--iface=eth0"], &envs);
    let texts = |heard: &[(Instant, String)]| heard.iter().map(|(_, text)| text.clone()).collect::<String>();
    let before = texts(&heard(&socket, ms(1500)));
    assert!(before.contains("STATUS=waiting for the network config in etcd"), "{before}");
    assert!(!before.contains("READY=1"), "{before}");
    assert!(before.matches("WATCHDOG=1").count() >= 5, "{before}");

    lab.put_config(Api::V3, TUTORIAL);
    let after = heard(&socket, secs(8));
    let ready = after.iter().position(|(_, text)| text.contains("READY=1")).expect("no READY=1");
    assert!(file.exists() && after[ready].1.contains("STATUS=udp backend, subnet 10."), "{}", after[ready].1);
    assert_eq!(texts(&after).matches("READY=1").count(), 1);
    let beats: Vec<_> =
        after.iter().filter(|(_, text)| text.contains("WATCHDOG=1")).map(|(at, _)| *at).collect();
    let longest = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(beats.len() >= 30 && longest < ms(400), "{} beats, longest gap {longest:?}", beats.len());

    daemon.terminate();
    assert!(texts(&heard(&socket, ms(100))).contains("STOPPING=1"));
}
