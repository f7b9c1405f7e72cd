//! Promise: what etcd-client and etcd do in odd cases is what this daemon allows for. Each test shows the oddity with
//! the library alone, and then that the store does not suffer from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use etcd_client::{Client, ConnectOptions};
use flanneld::etcd::{Api, Credentials, Password};
use flanneld::store::{Change, Registry, Watch};
use std::time::Duration;
use support::{Etcd, Options, attrs, free_port, key, run, store};

const DAY: Duration = Duration::from_secs(86_400);

/// This is why each client of ours has one endpoint. A client with several tries the closed one again and again, and
/// does not repeat the call at the live one. If the first assertion fails one day, the library has learnt it.
#[test]
fn one_client_for_several_endpoints_would_fail_many_calls() {
    let etcd = Etcd::start();
    let endpoints = vec![format!("http://127.0.0.1:{}", free_port()), etcd.url()];
    run(async {
        let mut library = Client::connect(&endpoints, None).await.unwrap();
        let mut failed = 0;
        for _ in 0..300 {
            failed += usize::from(library.get("key", None).await.is_err());
        }
        assert!(failed > 30, "only {failed} of 300 calls of the library have failed");

        let store = store(&support::settings(endpoints, Api::V3, "/n"));
        for _ in 0..300 {
            assert_eq!(store.list().await.unwrap().entries, []);
        }
    });
}

/// etcd answers a watch with an expired token by a watch that is created and cancelled at once, with the id −1. The
/// store takes a new token and asks again.
#[test]
fn a_watch_with_an_expired_token_is_asked_for_again() {
    let flags = vec!["--auth-token-ttl=1".to_owned(), "--bcrypt-cost=4".to_owned()];
    let etcd = Etcd::with(Options { flags, ..Options::default() });
    for line in [
        "role add root",
        "user add root:top",
        "user grant-role root root",
        "user add flannel:secret",
        "role add net",
        "role grant-permission net --prefix=true readwrite /n/",
        "user grant-role flannel net",
        "auth enable",
    ] {
        etcd.etcdctl(&line.split(' ').collect::<Vec<_>>());
    }
    let mut settings = etcd.settings(Api::V3, "/n");
    let (username, password) = ("flannel".to_owned(), Password::Typed("secret".to_owned()));
    settings.credentials = Some(Credentials { username, password });
    run(async {
        let store = store(&settings);
        let made = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        let user = ConnectOptions::new().with_user("flannel", "secret");
        let mut library = Client::connect([etcd.url()], Some(user)).await.unwrap();
        // The token of both ends meanwhile.
        tokio::time::sleep(Duration::from_secs(3)).await;

        let mut watch = library.watch("/n/subnets/", None).await.unwrap();
        let first = watch.message().await.unwrap().unwrap();
        assert!(first.created() && first.canceled() && first.watch_id() == -1, "{first:?}");

        let mut watch = store.watch(made.revision).await.unwrap();
        let newer = store.update(&made, &attrs(2), DAY).await.unwrap();
        assert_eq!(watch.next().await, Ok(vec![Change::Set(newer)]));
    });
}
