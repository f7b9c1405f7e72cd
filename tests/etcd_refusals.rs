//! Several servers of which one refuses, or lacks the API: the others serve.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod certificates;
mod support;

use certificates::{AUTHORITY, Folder, SERVER, flag};
use flanneld::etcd::Api;
use flanneld::store::{Error, Registry};
use std::time::{Duration, Instant};
use support::{Etcd, Options, is_denied, run, settings, store, works};

/// An etcd whose certificate is `NAME.pem`.
fn tls_etcd(folder: &Folder, name: &str) -> Etcd {
    let [cert, key] = ["pem", "key"].map(|kind| folder.path(&format!("{name}.{kind}")));
    let flags = vec![flag("cert-file", &cert), flag("key-file", &key)];
    Etcd::with(Options { flags, tls: true, curl: vec!["--insecure".to_owned()], ..Options::default() })
}

/// One member shows a certificate that is not accepted, and the other is down: that one may be back at any moment.
#[test]
fn a_refused_member_does_not_keep_us_from_one_that_comes_back() {
    let folder = Folder::new();
    folder.own("ca", "ec:P-256", &[AUTHORITY]);
    folder.signed("good", "ec:P-256", "ca", &[SERVER], "");
    folder.own("stranger", "ec:P-256", &[SERVER]);
    let (refused, mut good) = (tls_etcd(&folder, "stranger"), tls_etcd(&folder, "good"));
    for api in [Api::V3, Api::V2] {
        good.stop();
        let mut settings = settings(vec![refused.url(), good.url()], api, "/n");
        settings.ca_file = Some(folder.path("ca.pem"));
        let store = store(&settings);
        run(async {
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(12) {
                let error = store.list().await.unwrap_err();
                let text = error.to_string();
                assert!(
                    !is_denied(&error) && text.contains("is refused") && text.contains(&good.url()),
                    "{text}"
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            good.run();
            let listed = store.list().await;
            assert!(listed.is_ok(), "{api:?}: {listed:?}");
        });
    }
}

/// A server without the keys API, named before one that has it, is passed over.
#[test]
fn a_server_without_the_keys_api_is_passed_over() {
    let without = Etcd::with(Options { flags: vec!["--enable-v2=false".to_owned()], ..Options::default() });
    let mut good = Etcd::start();
    let both = store(&settings(vec![without.url(), good.url()], Api::V2, "/n"));
    let alone = store(&settings(vec![without.url()], Api::V2, "/n"));
    run(async {
        works(&both).await;
        let error = alone.list().await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("has no keys API")), "{error:?}");
        // A member that is away is no proof that nobody has the API.
        good.stop();
        let error = both.list().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(text) if text.contains("has no keys API")), "{error:?}");
        good.run();
        works(&both).await;
    });
}
