//! Promise: a watch that broke goes on without a list if etcd is still the same, and only then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::{Api, Store, StoreWatch};
use flanneld::store::{Change, Entry, Error, Registry, Seen, Watch};
use flanneld::subnet::SubnetKey;
use std::time::{Duration, Instant};
use support::{Etcd, Options, Release, attrs, key, on_newer_etcds, run, store, until_available};

const DAY: Duration = Duration::from_secs(86_400);

/// One etcd and a store whose connection survives its restarts.
struct Case {
    etcd: Etcd,
    store: Store,
}

impl Case {
    fn of(release: Release) -> Self {
        let etcd = Etcd::with(Options { release, ..Options::default() });
        let store = store(&etcd.settings(Api::V3, "/n"));
        Self { etcd, store }
    }

    async fn create(&self, third: u8) -> Entry {
        let key: SubnetKey = key(&format!("10.1.{third}.0-24"));
        until_available(async || self.store.create(key, &attrs(third), DAY).await).await
    }

    /// Resumes, and says how long the answer took.
    async fn resume(&self, seen: &Seen) -> (Result<StoreWatch, Error>, Duration) {
        // A connection from before a restart is found dead by the first call.
        until_available(async || self.store.config().await.or_else(none)).await;
        let since = Instant::now();
        (self.store.resume(seen).await, since.elapsed())
    }

    /// Checks that the store does not prove itself, and says so soon.
    async fn is_other(&self, seen: &Seen, case: &str) {
        let (result, took) = self.resume(seen).await;
        assert_eq!(result.map(drop), Err(Error::Compacted), "{case}");
        assert!(took < Duration::from_secs(2), "{case}: {took:?}");
    }
}

/// No config is needed here.
fn none(error: Error) -> Result<String, Error> {
    if matches!(error, Error::NotFound(_)) { Ok(String::new()) } else { Err(error) }
}

fn seen(first: &Entry, after: &[Change]) -> Seen {
    after.iter().try_fold(Seen::new(first).unwrap(), Seen::with).unwrap()
}

async fn told(watch: &mut StoreWatch) -> Vec<Change> {
    tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("a change").unwrap()
}

/// A restart, and what happened meanwhile.
fn goes_on(release: Release) {
    let mut case = Case::of(release);
    let (first, gone) = run(async {
        let first = case.create(1).await;
        let doomed = case.create(2).await;
        let mut watch = case.store.watch(first.revision).await.unwrap();
        case.store.delete(&doomed).await.unwrap();
        let mut all = Vec::new();
        while all.len() < 2 {
            all.extend(told(&mut watch).await);
        }
        assert_eq!(all[0], Change::Set(doomed.clone()));
        (doomed, all[1].clone())
    });
    let seen = seen(&first, std::slice::from_ref(&gone));
    for round in 3..5 {
        case.etcd.stop();
        case.etcd.run();
        run(async {
            let (watch, took) = case.resume(&seen).await;
            let mut watch = watch.unwrap_or_else(|error| panic!("{release:?}, round {round}: {error:?}"));
            assert!(took < Duration::from_secs(2), "{release:?}: {took:?}");
            // What came since the last change that was seen, be it before the watch or after.
            let mut wanted: Vec<Change> = Vec::new();
            for third in 3..round {
                let entries = case.store.list().await.unwrap().entries;
                wanted.extend(
                    entries
                        .into_iter()
                        .filter(|one| one.key == key(&format!("10.1.{third}.0-24")))
                        .map(Change::Set),
                );
            }
            wanted.push(Change::Set(case.create(round).await));
            let mut all = Vec::new();
            while all.len() < wanted.len() {
                all.extend(told(&mut watch).await);
            }
            assert_eq!(all, wanted, "{release:?}, round {round}");
        });
    }
    // What is compacted cannot be shown.
    let revision = run(async { case.create(9).await.revision });
    case.etcd.etcdctl(&["compact", &revision.to_string()]);
    run(case.is_other(&seen, &format!("{release:?}, compacted")));
}

/// A copy of older data, in the same directory at the same address: the cluster's id is the same.
fn is_told_apart(release: Release) {
    let mut case = Case::of(release);
    let first = run(case.create(1));
    let backup = case.etcd.back_up();
    let (lost, gone) = run(async {
        until_available(async || case.store.config().await.or_else(none)).await;
        let lost = case.create(2).await;
        let revision = lost.revision + 1;
        case.store.delete(&lost).await.unwrap();
        (lost.clone(), Change::Gone { key: lost.key, revision })
    });
    let (proof, with_gone) = (seen(&lost, &[]), seen(&lost, std::slice::from_ref(&gone)));
    case.etcd.restore(&backup);
    run(async {
        case.is_other(&proof, &format!("{release:?}: the future")).await;
        // The same key and value at the same revision.
        let again = case.create(2).await;
        assert_eq!(
            (again.revision, &again.value),
            (lost.revision, &lost.value),
            "else this test proves nothing"
        );
        case.is_other(&proof, &format!("{release:?}: the same revision again")).await;
        case.store.delete(&again).await.unwrap();
        case.is_other(&with_gone, &format!("{release:?}: the same deletion again")).await;
        // What was before the copy is the same.
        assert!(case.resume(&seen(&first, &[])).await.0.is_ok(), "{release:?}");
    });
    // The restored store comes past the revision without a single lease: there is nothing to tell.
    case.etcd.restore(&backup);
    for _ in 0..3 {
        case.etcd.etcdctl(&["put", "/elsewhere", "x"]);
    }
    run(case.is_other(&proof, &format!("{release:?}: silence")));
    // The deletion alone is void.
    case.etcd.restore(&backup);
    let proof = run(async {
        until_available(async || case.store.config().await.or_else(none)).await;
        let revision = first.revision + 1;
        case.store.delete(&first).await.unwrap();
        seen(&first, &[Change::Gone { key: first.key, revision }])
    });
    case.etcd.restore(&backup);
    case.etcd.etcdctl(&["put", "/elsewhere", "x"]);
    run(case.is_other(&proof, &format!("{release:?}: a deletion that never was")));
    // A new cluster.
    let fresh = Case::of(release);
    run(async {
        fresh.is_other(&proof, &format!("{release:?}: an empty store")).await;
        for third in 1..6 {
            fresh.create(third).await;
        }
        fresh.is_other(&proof, &format!("{release:?}: a new store")).await;
    });
}

#[test]
fn a_watch_goes_on_after_a_restart() {
    goes_on(Release::Installed);
}

#[test]
fn a_restored_store_is_told_apart() {
    is_told_apart(Release::Installed);
}

#[test]
fn a_watch_goes_on_and_a_restored_store_is_told_apart_on_newer_etcds() {
    on_newer_etcds(|release| {
        goes_on(release);
        is_told_apart(release);
    });
}

/// v2 has no leases with ids, so nothing there proves anything.
#[test]
fn v2_proves_nothing() {
    let etcd = Etcd::start();
    run(async {
        let store = store(&etcd.settings(Api::V2, "/n"));
        let made = until_available(async || store.create(key("10.1.1.0-24"), &attrs(1), DAY).await).await;
        assert_eq!(Seen::new(&made), None);
    });
}
