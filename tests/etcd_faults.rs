//! The store when things go wrong: refusals, expired tokens, certificates, dead endpoints, restarts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::{Api, Change, Credentials, Error, Registry, Settings, Store, Watch, connect};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Etcd, Options, attrs, free_port, key, run, store, until_available};

const DAY: Duration = Duration::from_secs(86_400);
const BOTH: [Api; 2] = [Api::V2, Api::V3];

fn credentials(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials { username: username.to_owned(), password: password.to_owned() })
}

/// One of each call, which must all succeed.
async fn works(store: &Store) {
    let before = store.list().await.unwrap();
    let mut watch = store.watch(before.revision).await.unwrap();
    let made = store.create(key("10.9.9.0-24"), &attrs(9), DAY).await.unwrap();
    let newer = store.update(&made, &attrs(8), DAY).await.unwrap();
    store.delete(&newer).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap());
    }
    assert_eq!(seen[..2], [Change::Set(made), Change::Set(newer)]);
    assert!(matches!(seen[2], Change::Gone { .. }));
}

/// The error of a list, which must come within `limit`.
async fn failure(store: &Store, limit: Duration) -> Error {
    let since = Instant::now();
    let error = store.list().await.unwrap_err();
    assert!(since.elapsed() < limit, "{error:?} took {:?}", since.elapsed());
    error
}

fn is_denied(error: &Error) -> bool {
    matches!(error, Error::Denied(reason) if !reason.contains("secret"))
}

#[test]
fn v2_users_and_passwords() {
    let etcd = Etcd::start();
    let root = ["--user", "root:top"];
    let put = |path: &str, body: &str| {
        let answer = etcd.curl(path, &["-XPUT", root[0], root[1], "--data", body]);
        assert!(!answer.contains("\"message\""), "{path}: {answer}");
    };
    put("/v2/auth/users/root", r#"{"user":"root","password":"top"}"#);
    put("/v2/auth/enable", "");
    put(
        "/v2/auth/roles/net",
        r#"{"role":"net","permissions":{"kv":{"read":["/n/*","/n"],"write":["/n/*","/n"]}}}"#,
    );
    put("/v2/auth/users/flannel", r#"{"user":"flannel","password":"secret word","roles":["net"]}"#);
    put("/v2/auth/roles/guest", r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#);
    run(async {
        let mut settings = etcd.settings(Api::V2, "/n");
        for wrong in [None, credentials("flannel", "secret"), credentials("nobody", "secret word")] {
            settings.credentials = wrong;
            let error = failure(&store(&settings), Duration::from_secs(2)).await;
            assert!(is_denied(&error), "{error:?}");
        }
        settings.credentials = credentials("flannel", "secret word");
        works(&store(&settings)).await;
        settings.prefix = "/elsewhere".to_owned();
        assert!(is_denied(&failure(&store(&settings), Duration::from_secs(2)).await));
        assert!(!format!("{settings:?}").contains("secret"));
    });
}

/// Users of etcd v3: root, and flannel who may only touch `/n/`.
fn enable_v3_auth(etcd: &Etcd) {
    for command in [
        "user add root:top",
        "user grant-role root root",
        "role add net",
        "role grant-permission net --prefix=true readwrite /n/",
        "user add flannel:secret",
        "user grant-role flannel net",
        "auth enable",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        if command == "user grant-role root root" {
            etcd.etcdctl(&["role", "add", "root"]);
        }
        etcd.etcdctl(&words);
    }
}

#[test]
fn v3_wrong_users_and_expired_tokens() {
    let flags = vec!["--auth-token-ttl=1".to_owned(), "--bcrypt-cost=4".to_owned()];
    let etcd = Etcd::with(Options { flags, ..Options::default() });
    let mut settings = etcd.settings(Api::V3, "/n");
    settings.credentials = credentials("flannel", "secret");
    run(async {
        works(&store(&settings)).await; // authentication is off: a user does no harm
        enable_v3_auth(&etcd);
        let store_ = store(&settings);
        works(&store_).await;
        let made = store_.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        let mut watch = store_.watch(made.revision).await.unwrap();

        // The token dies of disuse, and every kind of call must notice.
        let idle = Duration::from_secs(3);
        tokio::time::sleep(idle).await;
        assert_eq!(store_.list().await.unwrap().entries.len(), 1);
        tokio::time::sleep(idle).await;
        let newer = store_.update(&made, &attrs(2), DAY).await.unwrap();
        assert_eq!(watch.next().await, Ok(vec![Change::Set(newer.clone())]), "the old watch lives on");
        tokio::time::sleep(idle).await;
        let mut watch = store_.watch(made.revision).await.unwrap();
        assert_eq!(watch.next().await, Ok(vec![Change::Set(newer.clone())]));
        let leases = etcd.etcdctl(&["--user=root:top", "lease", "list"]);
        assert_eq!(leases.lines().skip(1).count(), 1, "{leases}");

        for wrong in [None, credentials("flannel", "secrets"), credentials("nobody", "secret")] {
            settings.credentials = wrong;
            let error = failure(&store(&settings), Duration::from_secs(2)).await;
            assert!(is_denied(&error), "{error:?}");
        }
        settings.credentials = credentials("flannel", "secret");
        settings.prefix = "/elsewhere".to_owned();
        let elsewhere = store(&settings);
        assert!(is_denied(&failure(&elsewhere, Duration::from_secs(2)).await));
        let watch = elsewhere.watch(1).await;
        assert!(matches!(&watch, Err(error) if is_denied(error)), "{watch:?}");
    });
}

/// With JWT every change of users makes every token old.
#[test]
fn v3_auth_store_moves_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).output();
        assert!(output.expect("install the Debian package openssl").status.success());
    };
    openssl(&["genrsa", "-out", &path("key"), "2048"]);
    openssl(&["rsa", "-in", &path("key"), "-pubout", "-out", &path("pub")]);
    let token =
        format!("--auth-token=jwt,pub-key={},priv-key={},sign-method=RS256", path("pub"), path("key"));
    let flags = vec![token, "--bcrypt-cost=4".to_owned()];
    let etcd = Etcd::with(Options { flags, ..Options::default() });
    enable_v3_auth(&etcd);
    let mut settings = etcd.settings(Api::V3, "/n");
    settings.credentials = credentials("flannel", "secret");
    run(async {
        let store = store(&settings);
        works(&store).await;
        etcd.etcdctl(&["--user=root:top", "user", "add", "more:pw"]);
        let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        etcd.etcdctl(&["--user=root:top", "user", "add", "evenmore:pw"]);
        let mut watch = store.watch(made.revision).await.unwrap();
        etcd.etcdctl(&["--user=root:top", "user", "delete", "more"]);
        let newer = store.update(&made, &attrs(2), DAY).await.unwrap();
        assert_eq!(watch.next().await, Ok(vec![Change::Set(newer)]));
        let leases = etcd.etcdctl(&["--user=root:top", "lease", "list"]);
        assert_eq!(leases.lines().skip(1).count(), 1, "{leases}");

        etcd.etcdctl(&["--user=root:top", "user", "delete", "flannel"]);
        assert!(is_denied(&failure(&store, Duration::from_secs(2)).await));
    });
}

/// A CA with what it signs, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", free_port()));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate and its key, as `<name>.pem` and `<name>.key`.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let pair = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&pair, &self.issuer).unwrap();
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, cert.pem()).unwrap();
        std::fs::write(&files.1, pair.serialize_pem()).unwrap();
        files
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// An etcd that clients reach over TLS, with a certificate of their own if `mutual`.
fn tls_etcd(authority: &Authority, mutual: bool) -> Etcd {
    let (cert, key) = authority.sign("server");
    let mut flags = vec![flag("cert-file", &cert), flag("key-file", &key)];
    let mut curl = vec!["--cacert".to_owned(), authority.ca().display().to_string()];
    if mutual {
        flags.extend(["--client-cert-auth".to_owned(), flag("trusted-ca-file", &authority.ca())]);
        let (cert, key) = authority.sign("admin");
        curl.extend(["--cert".to_owned(), cert.display().to_string()]);
        curl.extend(["--key".to_owned(), key.display().to_string()]);
    }
    Etcd::with(Options { flags, tls: true, curl })
}

#[test]
fn tls_with_nothing_but_a_ca() {
    let authority = Authority::new();
    let etcd = tls_etcd(&authority, false);
    let stranger = Authority::new();
    run(async {
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.ca_file = Some(authority.ca());
            works(&store(&settings)).await;
            // By the system's roots, and by another CA: neither knows this server.
            for ca in [None, Some(stranger.ca())] {
                settings.ca_file = ca;
                let error = failure(&store(&settings), Duration::from_secs(4)).await;
                assert!(is_denied(&error) && error.to_string().contains("certificate"), "{error:?}");
            }
        }
    });
}

#[test]
fn tls_with_client_certificates_that_are_replaced() {
    let authority = Authority::new();
    let etcd = tls_etcd(&authority, true);
    let stranger = Authority::new();
    run(async {
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.ca_file = Some(authority.ca());
            let error = failure(&store(&settings), Duration::from_secs(4)).await;
            assert!(is_denied(&error), "{error:?}");

            // The files hold a stranger's certificate at first; the same store takes the new one.
            let (theirs, their_key) = stranger.sign("client");
            let (ours, our_key) = authority.sign("client");
            let (cert, key) = (authority.file("current.pem"), authority.file("current.key"));
            std::fs::copy(theirs, &cert).unwrap();
            std::fs::copy(their_key, &key).unwrap();
            settings.cert_file = Some(cert.clone());
            settings.key_file = Some(key.clone());
            let store = store(&settings);
            let error = failure(&store, Duration::from_secs(4)).await;
            assert!(is_denied(&error), "{error:?}");
            std::fs::copy(ours, &cert).unwrap();
            std::fs::copy(our_key, &key).unwrap();
            works(&store).await;
        }
    });
}

#[test]
fn settings_that_can_never_work_are_refused_at_once() {
    let good = support::settings(vec!["http://127.0.0.1:1".to_owned()], Api::Auto, "/n");
    assert!(connect(&good).is_ok());
    let missing = Some(PathBuf::from("/nonexistent/file.pem"));
    let cases: [Settings; 4] = [
        Settings { endpoints: vec![" ".to_owned()], ..good.clone() },
        Settings { endpoints: vec!["http://me:secret@127.0.0.1:1".to_owned()], ..good.clone() },
        Settings { ca_file: missing.clone(), ..good.clone() },
        Settings { cert_file: missing, ..good },
    ];
    for settings in cases {
        let error = connect(&settings).unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if !text.contains("secret")), "{error:?}");
    }
}

/// A server that reads a request on every connection and gives one answer, none if it is empty.
fn server(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut silent: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().take(50).flatten() {
            if answer.is_empty() {
                silent.push(stream);
                continue;
            }
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn another_endpoint_is_asked() {
    let etcd = Etcd::start();
    let dead = format!("http://127.0.0.1:{}", free_port());
    let black_hole = server(String::new());
    let broken = server("HTTP/1.1 503 Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned());
    run(async {
        for api in BOTH {
            for other in [&dead, &black_hole, &broken] {
                let mut settings = support::settings(vec![other.clone(), etcd.url()], api, "/n");
                settings.timeout = Duration::from_secs(1);
                let store = store(&settings);
                let since = Instant::now();
                assert_eq!(store.list().await.unwrap().entries, []);
                assert!(since.elapsed() < Duration::from_secs(2), "{api:?} over {other}");
                let since = Instant::now();
                works(&store).await;
                assert!(since.elapsed() < Duration::from_secs(1), "the call did not stay with the good one");
            }
            let none = support::settings(vec![dead.clone(), dead.clone()], api, "/n");
            let error = failure(&store(&none), Duration::from_secs(2)).await;
            assert!(matches!(&error, Error::Unavailable(text) if text.contains(&dead)), "{error:?}");
        }
    });
}

/// A write may be the first thing that meets a dead endpoint. One that never left goes to the next.
#[test]
fn a_write_that_never_left_goes_elsewhere() {
    let etcd = Etcd::start();
    let dead = format!("http://127.0.0.1:{}", free_port());
    run(async {
        for (api, name) in [(Api::V2, "10.1.5.0-24"), (Api::V3, "10.1.5.0-24")] {
            let settings = support::settings(vec![dead.clone(), etcd.url()], api, "/n");
            let made = store(&settings).create(key(name), &attrs(1), DAY).await.unwrap();
            store(&settings).delete(&made).await.unwrap();
        }
        // One that may have arrived does not: it would meet itself.
        let mut settings = support::settings(vec![server(String::new()), etcd.url()], Api::V2, "/n");
        settings.timeout = Duration::from_millis(500);
        let store = store(&settings);
        let lost = store.create(key("10.1.6.0-24"), &attrs(1), DAY).await;
        assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
        assert!(store.create(key("10.1.6.0-24"), &attrs(1), DAY).await.is_ok());
    });
}

#[test]
fn v2_redirects_are_followed() {
    let etcd = Etcd::start();
    let location = format!("{}/v2/keys/n/config?quorum=true", etcd.url());
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    etcd.curl("/v2/keys/n/config", &["-XPUT", "--data", "value=here"]);
    let settings = support::settings(vec![server(answer)], Api::V2, "/n");
    assert_eq!(run(async { store(&settings).config().await }).as_deref(), Ok("here"));
}

#[test]
fn etcd_stops_and_comes_back() {
    for api in BOTH {
        let mut etcd = Etcd::start();
        run(async {
            let mut settings = etcd.settings(api, "/n");
            settings.timeout = Duration::from_secs(1);
            let store = store(&settings);
            let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
            let mut watch = store.watch(made.revision).await.unwrap();
            etcd.stop();
            let ended = tokio::time::timeout(Duration::from_secs(3), watch.next()).await.unwrap();
            assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
            for _ in 0..3 {
                let error = failure(&store, Duration::from_millis(1500)).await;
                assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            }
            let lost = store.update(&made, &attrs(2), DAY).await;
            assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");

            etcd.run();
            let entries = until_available(async || store.list().await).await.entries;
            assert_eq!(entries, std::slice::from_ref(&made));
            let newer = store.update(&made, &attrs(2), DAY).await.unwrap();
            let mut watch = store.watch(made.revision).await.unwrap();
            assert_eq!(watch.next().await, Ok(vec![Change::Set(newer)]));
        });
    }
}

/// A server that holds its connections and says nothing.
#[test]
fn etcd_freezes_and_thaws() {
    let etcd = Etcd::start();
    run(async {
        let mut watches = Vec::new();
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.timeout = Duration::from_millis(400);
            let store = store(&settings);
            let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
            let mut watch = store.watch(made.revision).await.unwrap();
            // The server shows that it answers when asked for a sign of life.
            let quiet = tokio::time::timeout(settings.timeout * 8, watch.next()).await;
            assert!(quiet.is_err(), "{quiet:?}");
            watches.push((store, watch, made));
        }
        etcd.signal("-STOP");
        for (store, watch, made) in &mut watches {
            let since = Instant::now();
            let error = failure(store, Duration::from_millis(900)).await;
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            let lost = store.update(made, &attrs(2), DAY).await;
            assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
            let ended = tokio::time::timeout(Duration::from_secs(6), watch.next()).await.unwrap();
            assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?} after {:?}", since.elapsed());
        }
        etcd.signal("-CONT");
        for (store, ..) in &watches {
            let entries = until_available(async || store.list().await).await.entries;
            assert_eq!(entries.len(), 1);
            until_available(async || store.watch(1).await).await;
        }
    });
}

#[test]
fn auto_takes_the_api_that_holds_the_config() {
    let mut etcd = Etcd::start();
    let chosen = |store: &Store| match store {
        Store::Auto(auto) => auto.chosen(),
        other => panic!("not auto: {other:?}"),
    };
    let auto = |prefix: &str| store(&etcd.settings(Api::Auto, prefix));
    run(async {
        etcd.curl("/v2/keys/two/config", &["-XPUT", "--data", "value=v2"]);
        etcd.etcdctl(&["put", "/three/config", "v3"]);
        etcd.curl("/v2/keys/both/config", &["-XPUT", "--data", "value=v2"]);
        etcd.etcdctl(&["put", "/both/config", "v3"]);
        for (prefix, text, api) in
            [("/two", "v2", Api::V2), ("/three", "v3", Api::V3), ("/both", "v3", Api::V3)]
        {
            let store = auto(prefix);
            assert_eq!(chosen(&store), None);
            assert_eq!(store.config().await.as_deref(), Ok(text));
            assert_eq!(chosen(&store), Some(api));
            works(&store).await;
        }
        for late in [Api::V2, Api::V3] {
            let prefix = format!("/late{late:?}");
            let store = auto(&prefix);
            for _ in 0..2 {
                assert!(matches!(store.config().await, Err(Error::NotFound(_))));
                assert!(matches!(store.list().await, Err(Error::NotFound(_))));
            }
            if late == Api::V2 {
                etcd.curl(&format!("/v2/keys{prefix}/config"), &["-XPUT", "--data", "value=x"]);
            } else {
                etcd.etcdctl(&["put", &format!("{prefix}/config"), "x"]);
            }
            works(&store).await;
            assert_eq!(chosen(&store), Some(late));
        }
    });
    let store = auto("/two");
    etcd.stop();
    run(async {
        assert!(matches!(store.config().await, Err(Error::Unavailable(_))));
        assert_eq!(chosen(&store), None, "silence decides nothing");
    });
}

#[test]
fn etcd_without_v2_says_so() {
    let flags = vec!["--enable-v2=false".to_owned()];
    let etcd = Etcd::with(Options { flags, ..Options::default() });
    run(async {
        let v2 = store(&etcd.settings(Api::V2, "/n"));
        let auto = store(&etcd.settings(Api::Auto, "/n"));
        let error = v2.config().await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("--enable-v2=true")), "{error:?}");
        assert!(matches!(auto.config().await, Err(Error::NotFound(_))));
        etcd.etcdctl(&["put", "/n/config", "v3"]);
        assert_eq!(auto.config().await.as_deref(), Ok("v3"));
    });
}
