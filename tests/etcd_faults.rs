//! The store when things go wrong: refusals, expired tokens, dead endpoints, restarts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::{Api, Settings, Store, connect};
use flanneld::store::{Change, Error, Registry, Watch};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::users::{credentials, enable_v2_auth, enable_v3_auth};
use support::{
    Etcd, Options, Release, attrs, failure, free_port, is_denied, key, on_newer_etcds, run, store,
    until_available, works,
};

const DAY: Duration = Duration::from_secs(86_400);
const BOTH: [Api; 2] = [Api::V2, Api::V3];

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

/// A server that reads a request on every connection and gives this answer; it stays silent if the answer is empty.
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

/// A server that answers every read and swallows every write.
fn deaf_to_writes() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = r#"{"action":"get","node":{"key":"/n/config","value":"x","modifiedIndex":1}}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().take(50).flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if bytes[..count].starts_with(b"GET") && stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            });
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

/// A log line must hold neither the whole page of a proxy nor the debug form of a library's error.
#[test]
fn an_odd_servers_answer_is_one_short_line() {
    let page = format!("<html>\r\n\x1b[2J{}", "x".repeat(100_000));
    run(async {
        for status in ["200 OK", "403 Forbidden", "418 Odd", "503 Down"] {
            let length = page.len();
            let odd = server(format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
            ));
            for api in BOTH {
                let mut settings = support::settings(vec![odd.clone()], api, "/n");
                settings.timeout = Duration::from_secs(2);
                let text = failure(&store(&settings), Duration::from_secs(5)).await.to_string();
                assert!(
                    !text.contains(char::is_control) && text.len() < 500,
                    "{api:?}, {status}: {text:.500}"
                );
                assert!(!text.contains("Error(") && !text.contains("Error {"), "{api:?}, {status}: {text}");
            }
        }
    });
}

/// A write may be the first request that meets a dead endpoint. If it was never sent, it goes to the next endpoint.
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
        // A write that may have arrived does not go there: it could find its own key and fail.
        let mut settings = support::settings(vec![deaf_to_writes(), etcd.url()], Api::V2, "/n");
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
    stops_and_comes_back(Release::Installed);
}

#[test]
fn stops_and_comes_back_on_newer_etcds() {
    on_newer_etcds(stops_and_comes_back);
}

/// The APIs of a release.
fn apis(release: Release) -> &'static [Api] {
    if release.has_v2() { &BOTH } else { &BOTH[1..] }
}

fn stops_and_comes_back(release: Release) {
    for &api in apis(release) {
        let mut etcd = Etcd::of(release);
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

#[test]
fn etcd_freezes_and_thaws() {
    freezes_and_thaws(Release::Installed);
}

#[test]
fn freezes_and_thaws_on_newer_etcds() {
    on_newer_etcds(freezes_and_thaws);
}

/// A server that holds its connections and says nothing.
fn freezes_and_thaws(release: Release) {
    let etcd = Etcd::of(release);
    run(async {
        let mut watches = Vec::new();
        for &api in apis(release) {
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

/// The watch of the config has no sign of life of its own. It ends with the connection that the watch of the leases gives
/// up, and sooner than by the pings of HTTP/2, which take 15 s.
#[test]
fn a_v3_watch_of_the_config_ends_with_that_of_the_leases() {
    let etcd = Etcd::start();
    etcd.etcdctl(&["put", "/n/config", "{}"]);
    let mut settings = etcd.settings(Api::V3, "/n");
    settings.timeout = Duration::from_millis(300);
    let store = store(&settings);
    run(async {
        store.config().await.unwrap();
        let revision = store.list().await.unwrap().revision;
        let mut watch = store.watch(revision).await.unwrap();
        let mut config = std::pin::pin!(store.config_changed());
        // A second in which both show that they live.
        tokio::select! {
            news = watch.next() => panic!("{news:?}"),
            news = &mut config => panic!("{news:?}"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        etcd.signal("-STOP");
        let since = Instant::now();
        let (leases, config) = tokio::join!(
            async {
                assert!(matches!(watch.next().await, Err(Error::Unavailable(_))));
                since.elapsed()
            },
            async {
                assert!(matches!(config.await, Err(Error::Unavailable(_))));
                since.elapsed()
            },
        );
        assert!(
            leases < Duration::from_secs(8) && config < leases + Duration::from_secs(1),
            "{leases:?} {config:?}"
        );
        etcd.signal("-CONT");
        until_available(async || store.config().await).await;
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
        // Nodes that had leases in v2 before the config came to v3 keep all others in v2.
        etcd.curl("/v2/keys/joined/config", &["-XPUT", "--data", "value=v2"]);
        let first = auto("/joined");
        first.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        etcd.etcdctl(&["put", "/joined/config", "v3"]);
        let second = auto("/joined");
        assert_eq!(second.config().await.as_deref(), Ok("v2"));
        assert_eq!((chosen(&first), chosen(&second)), (Some(Api::V2), Some(Api::V2)));
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

/// When v2 refuses us, that means neither that it holds no config nor that it holds no networks.
#[test]
fn auto_takes_no_refusal_for_absence() {
    let etcd = Etcd::start();
    etcd.curl("/v2/keys/n/config", &["-XPUT", "--data", "value=v2"]);
    enable_v2_auth(&etcd);
    let mut settings = etcd.settings(Api::Auto, "/n");
    let remedy = |error: &Error| is_denied(error) && error.to_string().contains("--etcd-api");
    run(async {
        let refused = store(&settings);
        let error = refused.config().await.unwrap_err();
        assert!(remedy(&error), "{error:?}");
        let error = refused.networks().await.unwrap_err();
        assert!(remedy(&error), "{error:?}");
        settings.credentials = credentials("flannel", "secret word");
        assert_eq!(store(&settings).config().await.as_deref(), Ok("v2"));
        assert_eq!(store(&settings).networks().await, Ok(Vec::new()));
        etcd.etcdctl(&["put", "/n/config", "v3"]);
        assert_eq!(refused.config().await.as_deref(), Ok("v3"));
    });
    // The same holds when v3 refuses.
    let etcd = Etcd::start();
    enable_v3_auth(&etcd);
    etcd.curl("/v2/keys/n/config", &["-XPUT", "--data", "value=v2"]);
    let error = run(store(&etcd.settings(Api::Auto, "/n")).config()).unwrap_err();
    assert!(remedy(&error), "{error:?}");
}

/// A store that was restored from an older state has not reached the revisions that a watch asks for. The watch must not
/// wait in silence until it has.
#[test]
fn a_watch_from_the_future_is_over_at_once() {
    watch_from_the_future(Release::Installed);
}

#[test]
fn a_watch_from_the_future_on_newer_etcds() {
    on_newer_etcds(watch_from_the_future);
}

fn watch_from_the_future(release: Release) {
    let etcd = Etcd::of(release);
    run(async {
        for &api in apis(release) {
            let store = store(&etcd.settings(api, "/n"));
            let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
            assert!(store.watch(made.revision).await.is_ok());
            let error = match store.watch(made.revision + 1000).await {
                Err(error) => error,
                Ok(mut watch) => {
                    tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap_err()
                }
            };
            assert_eq!(error, Error::Compacted, "{api:?}");
        }
    });
}

#[test]
fn etcd_without_v2_says_so() {
    without_v2(Release::Installed);
}

#[test]
fn without_v2_on_newer_etcds() {
    on_newer_etcds(without_v2);
}

fn without_v2(release: Release) {
    let flags = if release.has_v2() { vec!["--enable-v2=false".to_owned()] } else { Vec::new() };
    let etcd = Etcd::with(Options { release, flags, ..Options::default() });
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
