//! Users and passwords: who is refused, tokens that expire, users that change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::Api;
use flanneld::store::{Change, Registry, Watch};
use std::time::Duration;
use support::users::{credentials, enable_v2_auth, enable_v3_auth};
use support::{Etcd, Options, Release, attrs, failure, is_denied, key, on_newer_etcds, run, store, works};

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn v2_users_and_passwords() {
    let etcd = Etcd::start();
    enable_v2_auth(&etcd);
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

#[test]
fn v3_wrong_users_and_expired_tokens() {
    wrong_users_and_expired_tokens(Release::Installed);
}

#[test]
fn users_and_tokens_on_newer_etcds() {
    on_newer_etcds(wrong_users_and_expired_tokens);
}

fn wrong_users_and_expired_tokens(release: Release) {
    let flags = vec!["--auth-token-ttl=1".to_owned(), "--bcrypt-cost=4".to_owned()];
    let etcd = Etcd::with(Options { release, flags, ..Options::default() });
    let mut settings = etcd.settings(Api::V3, "/n");
    settings.credentials = credentials("flannel", "secret");
    run(async {
        works(&store(&settings)).await; // authentication is off: a user does no harm
        enable_v3_auth(&etcd);
        let store_ = store(&settings);
        works(&store_).await;
        let made = store_.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        let mut watch = store_.watch(made.revision).await.unwrap();

        // The token expires while it is not used, and every kind of call must notice that.
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

#[test]
fn v3_auth_store_moves_on() {
    auth_store_moves_on(Release::Installed);
}

#[test]
fn auth_store_moves_on_on_newer_etcds() {
    on_newer_etcds(auth_store_moves_on);
}

/// With JWT, every change of users makes all tokens old.
fn auth_store_moves_on(release: Release) {
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
    let etcd = Etcd::with(Options { release, flags, ..Options::default() });
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
