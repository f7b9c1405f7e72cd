//! Promise: a store that refuses the daemon is asked rarely, and the daemon is let in as soon as its files are right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod certificates;
mod lab;

use certificates::{Folder, SERVER, flag};
use lab::capture::Capture;
use lab::{Api, Daemon, Lab, eventually, ms, secs};
use std::fs;

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.99.0","Backend":{"Type":"alloc"}}"#;
const ETCD: &str = "http://10.77.0.254:2379";

fn curl(lab: &Lab, args: &[&str]) -> String {
    lab.run(&lab.ns("sw"), &[&["curl", "-sSm10"], args].concat())
}

/// Makes root and flannel, whose password is `right`, in v3, and lets in nobody else.
fn require_v3_users(lab: &Lab) {
    for words in ["user add root:top", "role add root", "user grant-role root root", "user add flannel:right"]
    {
        etcdctl(lab, words);
    }
    etcdctl(lab, "user grant-role flannel root");
    etcdctl(lab, "auth enable");
}

fn etcdctl(lab: &Lab, words: &str) -> String {
    let head = ["etcdctl", "--endpoints", ETCD, "--user=root:top"];
    // Without authentication etcd takes no user.
    let head = if words.starts_with("as-root ") { &head[..] } else { &head[..3] };
    let words = words.trim_start_matches("as-root ");
    lab.run(&lab.ns("sw"), &[head, &lab::words(words)].concat())
}

/// Makes the same users in v2.
fn require_v2_users(lab: &Lab) {
    let put = |path: &str, body: &str| {
        let url = format!("{ETCD}/v2/auth/{path}");
        let answer = curl(lab, &["-XPUT", "-uroot:top", "--data", body, &url]);
        assert!(!answer.contains("\"message\""), "{path}: {answer}");
    };
    put("users/root", r#"{"user":"root","password":"top"}"#);
    put("users/flannel", r#"{"user":"flannel","password":"right","roles":["root"]}"#);
    put("enable", "");
    put("roles/guest", r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#);
}

/// How many wrong passwords etcd has refused over v3.
fn refused_v3(lab: &Lab) -> usize {
    let text = curl(lab, &[&format!("{ETCD}/metrics")]);
    let parts = ["grpc_server_handled_total", "\"Authenticate\"", "InvalidArgument"];
    let line =
        text.lines().find(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
}

/// Counts the attempts of the host to get in.
enum Attempts {
    V3(usize),
    /// etcd has no counter for v2, so the requests are counted on their way.
    V2(Capture),
}

impl Attempts {
    fn count(lab: &Lab, api: Api) -> Self {
        match api {
            Api::V2 => Self::V2(Capture::start(
                lab,
                &lab.ns("sw"),
                "br0",
                "in",
                "tcp dst port 2379 and src host 10.77.0.1",
            )),
            Api::V3 => Self::V3(refused_v3(lab)),
        }
    }

    fn so_far(&self, lab: &Lab) -> usize {
        let is_request = |packet: &Vec<u8>| packet.windows(8).any(|part| part == b"GET /v2/");
        match self {
            Self::V2(capture) => capture.packets().iter().filter(|packet| is_request(packet)).count(),
            Self::V3(before) => refused_v3(lab) - before,
        }
    }
}

fn start(lab: &Lab, api: Api) -> (Daemon, std::path::PathBuf) {
    let (file, password) = (lab.path("subnet.env"), lab.path("password"));
    fs::write(&password, "wrong\n").unwrap();
    let flag = format!("--etcd-password-file={}", password.display());
    let args = [api.flag(), "--etcd-username=flannel", &flag, "--iface=eth0", "--lease-ttl=12s"];
    (Daemon::start(lab, &lab.host(1), &file, &args, &[]), password)
}

#[test]
fn a_wrong_password_is_tried_rarely_and_a_mended_one_at_once() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, CONFIG);
        if api == Api::V3 {
            require_v3_users(&lab);
        } else {
            require_v2_users(&lab);
        }
        let attempts = Attempts::count(&lab, api);
        let (mut daemon, password) = start(&lab, api);
        daemon.wait_text("etcd refuses", secs(5));
        std::thread::sleep(secs(15));
        // Attempts after 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3 and 12.7 s, or sooner by up to a half.
        let tried = attempts.so_far(&lab);
        assert!((4..=10).contains(&tried), "{api:?}: {tried} attempts\n{}", daemon.text());
        let said = daemon.text().matches("etcd refuses").count();
        assert!(said <= 2, "{}", daemon.text());

        fs::write(&password, "right\n").unwrap();
        eventually(secs(4), "a subnet with the right password", || daemon.subnet_file.exists().then_some(()));
        assert!(daemon.running());
    }
}

#[test]
fn a_rotated_password_is_one_outage_that_events_do_not_end() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    require_v3_users(&lab);
    let (mut daemon, password) = start(&lab, Api::V3);
    fs::write(&password, "right\n").unwrap();
    daemon.subnet();

    let attempts = Attempts::count(&lab, Api::V3);
    // etcdctl asks for the new password twice, unless it is told to read it from its input.
    let change = "printf 'new\\n' | etcdctl --endpoints http://10.77.0.254:2379 --user=root:top user passwd \
                  --interactive=false flannel";
    lab.run(&lab.ns("sw"), &["sh", "-c", change]);
    daemon.wait_text("etcd refuses", secs(12));
    for third in 101..140 {
        let key = format!(
            "as-root put /coreos.com/network/subnets/10.1.{third}.0-24 {{\"PublicIP\":\"10.77.0.9\"}}"
        );
        etcdctl(&lab, &key);
        std::thread::sleep(ms(250));
    }
    let text = daemon.text();
    assert!(text.contains("10.1.139.0/24"), "the watch is over:\n{text}");
    assert!(!text.contains("store is back"), "an event ended the outage:\n{text}");
    let tried = attempts.so_far(&lab);
    assert!((2..=9).contains(&tried), "{tried} attempts\n{text}");

    fs::write(&password, "new\n").unwrap();
    daemon.wait_text("store is back", secs(8));
    assert!(daemon.running());
}

/// Makes users as above, except that flannel may only read.
fn require_readers(lab: &Lab, api: Api) {
    if api == Api::V3 {
        let reader = "role grant-permission reader read --prefix=true /coreos.com/network/";
        let users =
            ["user add root:top", "role add root", "user grant-role root root", "role add reader", reader];
        let flannel = ["user add flannel:right", "user grant-role flannel reader", "auth enable"];
        users.iter().chain(&flannel).for_each(|words| drop(etcdctl(lab, words)));
        return;
    }
    let put = |path: &str, body: &str| {
        let url = format!("{ETCD}/v2/auth/{path}");
        let answer = curl(lab, &["-XPUT", "-uroot:top", "--data", body, &url]);
        assert!(!answer.contains("\"message\""), "{path}: {answer}");
    };
    put("users/root", r#"{"user":"root","password":"top"}"#);
    let keys = "/coreos.com/network/*";
    put(
        "roles/reader",
        &format!(r#"{{"role":"reader","permissions":{{"kv":{{"read":["{keys}"],"write":[]}}}}}}"#),
    );
    put("users/flannel", r#"{"user":"flannel","password":"right","roles":["reader"]}"#);
    put("enable", "");
    put("roles/guest", r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#);
}

/// How many calls of this kind etcd has answered over v3, whatever the answer.
fn handled(lab: &Lab, method: &str) -> usize {
    let text = curl(lab, &[&format!("{ETCD}/metrics")]);
    let name = format!("grpc_method=\"{method}\"");
    let lines =
        text.lines().filter(|line| line.starts_with("grpc_server_handled_total") && line.contains(&name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// What the daemon of the first host says of itself.
fn status(lab: &Lab, path: &str) -> String {
    lab.run(&lab.host(1), &["curl", "-sSm5", &format!("http://127.0.0.1:8471{path}")])
}

const STATUS: [&str; 2] = ["--healthz-ip=127.0.0.1", "--healthz-port=8471"];

#[test]
fn a_user_who_may_only_read_costs_etcd_little() {
    for api in [Api::V3, Api::V2] {
        let Some(lab) = Lab::start(1) else { return };
        lab.put_config(api, CONFIG);
        require_readers(&lab, api);
        let requests = Attempts::count(&lab, api);
        let user = ["--etcd-username=flannel", "--etcd-password=right", "--iface=eth0", api.flag()];
        let file = lab.path("subnet.env");
        let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &[&user, &STATUS[..]].concat(), &[]);
        daemon.wait_text("takes no write: etcd refuses", secs(5));
        std::thread::sleep(secs(10));
        // Attempts as above, each with a list.
        let text = daemon.text();
        if api == Api::V3 {
            let leases = etcdctl(&lab, "as-root lease list");
            assert!(leases.lines().count() <= 3, "{leases}\n{text}");
            let ranges = handled(&lab, "Range");
            assert!((6..=30).contains(&ranges), "{ranges} reads\n{text}");
        } else {
            let reads = requests.so_far(&lab);
            assert!((6..=30).contains(&reads), "{reads} reads\n{text}");
        }
        assert!(!text.contains("store is back"), "{text}");
        let ready = status(&lab, "/readyz");
        assert!(
            ready.contains("no subnet lease from etcd: it answers, but takes no write: etcd refuses"),
            "{ready}"
        );
        assert!(status(&lab, "/metrics").contains("\nflanneld_store_read_only 1"));

        if api == Api::V3 {
            etcdctl(
                &lab,
                "as-root role grant-permission reader readwrite --prefix=true /coreos.com/network/",
            );
            daemon.wait_text("The store is back", secs(20));
            daemon.subnet();
            assert!(status(&lab, "/metrics").contains("\nflanneld_store_read_only 0"));
        }
        assert!(daemon.running());
    }
}

#[test]
fn a_full_etcd_is_left_in_peace() {
    let Some(lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    let alarm = |action: &str| {
        let body = format!(r#"{{"action":"{action}","memberID":"0","alarm":"NOSPACE"}}"#);
        let answer = curl(&lab, &["--data", &body, &format!("{ETCD}/v3/maintenance/alarm")]);
        assert!(!answer.contains("error"), "{action}: {answer}");
    };
    alarm("ACTIVATE");
    let file = lab.path("subnet.env");
    let args = [&["--iface=eth0", Api::V3.flag()], &STATUS[..]].concat();
    let mut daemon = Daemon::start(&lab, &lab.host(1), &file, &args, &[]);
    daemon.wait_text("takes no write: etcd refuses: etcdserver: mvcc: database space exceeded", secs(5));
    std::thread::sleep(secs(10));
    let (grants, ranges) = (handled(&lab, "LeaseGrant"), handled(&lab, "Range"));
    assert!((4..=10).contains(&grants) && ranges <= 30, "{grants} grants, {ranges} reads\n{}", daemon.text());
    assert!(status(&lab, "/readyz").contains("database space exceeded"));
    alarm("DEACTIVATE");
    daemon.wait_text("The store is back", secs(20));
    daemon.subnet();
}

/// A pipe such as bash's `<(...)` can be read once only; its password serves every connection.
#[test]
fn a_password_from_a_pipe_is_read_once() {
    let Some(mut lab) = Lab::start(1) else { return };
    lab.put_config(Api::V3, CONFIG);
    require_v3_users(&lab);
    let file = lab.path("subnet.env");
    let script = format!(
        "exec {} --etcd-endpoints={ETCD} --etcd-api=v3 --etcd-username=flannel --iface=eth0 --subnet-file={} \
         --etcd-password-file=<(sleep 0.3; echo right)",
        lab::flanneld(),
        file.display()
    );
    let mut daemon = lab.spawn(&lab.host(1), "pipe", &["bash", "-c", &script]);
    eventually(secs(5), "a subnet with the password of the pipe", || file.exists().then_some(()));
    daemon.signal("HUP");
    daemon.wait_text("SIGHUP", secs(3));
    lab.stop_etcd();
    lab.start_etcd();
    etcdctl(&lab, r#"as-root put /coreos.com/network/subnets/10.1.9.0-24 {"PublicIP":"10.77.0.9"}"#);
    daemon.wait_text("Subnet added: 10.1.9.0/24", secs(15));
    assert!(daemon.running() && !daemon.text().contains("refuses"), "{}", daemon.text());
}

/// A file at fault is no silent store: the daemon ends at once, and says which file and why.
#[test]
fn a_file_at_fault_ends_the_start() {
    let Some(lab) = Lab::start(1) else { return };
    let folder = Folder::new();
    folder.own("good", "ec:P-256", &[SERVER]);
    folder.openssl("pkcs8 -topk8 -in good.key -out encrypted.key -passout pass:x");
    folder.key("other", "ec:P-256");
    folder.write("broken.pem", folder.read("good.pem").replace("END", "DNE"));
    folder.write("empty", "");
    let cases = [
        ("good.pem", "encrypted.key", "good.pem", "encrypted.key: the key is encrypted"),
        ("good.pem", "other.key", "good.pem", "is not that of this certificate"),
        ("broken.pem", "good.key", "good.pem", "broken.pem: block 1 is no certificate"),
        ("good.pem", "good.key", "empty", "empty: the file is empty"),
    ];
    for (cert, key, ca, cause) in cases {
        let [cert, key, ca] = [("certfile", cert), ("keyfile", key), ("cafile", ca)]
            .map(|(name, file)| flag(&format!("etcd-{name}"), &folder.path(file)));
        let args = [&*cert, &key, &ca, "--iface=eth0"];
        let mut daemon = Daemon::start(&lab, &lab.host(1), &lab.path("subnet.env"), &args, &[]);
        let status = daemon.wait(secs(5)).unwrap_or_else(|| panic!("{cause}: it waits:\n{}", daemon.text()));
        assert!(status.code() == Some(1) && daemon.text().contains(cause), "{cause}: {}", daemon.text());
    }
}
