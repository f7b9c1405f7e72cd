//! A store that is restored from an older state hands out the same revisions again. So a write has to compare the value,
//! too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::Api;
use flanneld::store::{Entry, Error, Memory, Registry};
use std::time::Duration;
use support::{Etcd, attrs, key, run, store, until_available};

const DAY: Duration = Duration::from_secs(86_400);
const SUBNET: &str = "10.1.5.0-24";

async fn entry(store: &impl Registry) -> Entry {
    store.list().await.unwrap().entries.remove(0)
}

/// Checks that the store refuses both writes and that the key stays as it is.
async fn is_refused(store: &impl Registry, held: &Entry, case: &str) {
    let before = store.list().await.unwrap();
    assert_eq!(store.update(held, &held.attrs, DAY).await, Err(Error::Conflict), "{case}");
    assert_eq!(store.delete(held).await, Err(Error::Conflict), "{case}");
    assert_eq!(store.list().await.unwrap().entries, before.entries, "{case}");
}

/// A node sleeps while the store is restored and another node takes its subnet, at the same revision.
#[test]
fn a_restored_store_refuses_the_renewal_of_a_lease_that_it_never_gave() {
    let mut etcd = Etcd::start();
    let backup = etcd.back_up();
    let create = |etcd: &Etcd, last: u8| {
        run(async {
            let mut made = Vec::new();
            for api in [Api::V2, Api::V3] {
                let store = store(&etcd.settings(api, "/n"));
                made.push(until_available(async || store.create(key(SUBNET), &attrs(last), DAY).await).await);
            }
            made
        })
    };
    let ours = create(&etcd, 1);
    etcd.restore(&backup);
    let theirs = create(&etcd, 2);
    run(async {
        for (api, (ours, theirs)) in [Api::V2, Api::V3].into_iter().zip(ours.iter().zip(&theirs)) {
            assert_eq!(ours.revision, theirs.revision, "{api:?}: else this test proves nothing");
            let store = store(&etcd.settings(api, "/n"));
            is_refused(&store, ours, &format!("{api:?}")).await;
            assert_eq!(&entry(&store).await, theirs);
            let renewed = store.update(theirs, &attrs(2), DAY).await.unwrap();
            assert_eq!(store.delete(&renewed).await, Ok(()));
        }
    });
}

/// The value is compared as it stands in the store, however another program has written it.
#[test]
fn any_value_that_reads_well_can_be_compared() {
    let etcd = Etcd::start();
    let memory = Memory::new();
    let values = [
        r#"{ "PublicIP" : "192.0.2.1" }"#,
        r#"{"BackendType":"x","BackendData":"a+b %2B &c=d;#é\"\\\n","PublicIP":"192.0.2.1"}"#,
    ];
    run(async {
        for value in values {
            let body = format!("value={value}");
            let path = format!("/v2/keys/n/subnets/{SUBNET}");
            etcd.curl(&path, &["-XPUT", "--data-urlencode", &body]);
            etcd.etcdctl(&["put", &format!("/n/subnets/{SUBNET}"), "--", value]);
            memory.put_raw(SUBNET, value, None);
            may_be_compared(&store(&etcd.settings(Api::V2, "/n")), value, "v2").await;
            may_be_compared(&store(&etcd.settings(Api::V3, "/n")), value, "v3").await;
            may_be_compared(&memory, value, "memory").await;
        }
    });
}

/// Checks that a value is refused when another is expected, and taken when it is the one that stands there.
async fn may_be_compared(store: &impl Registry, value: &str, name: &str) {
    let found = entry(store).await;
    assert_eq!(found.value, value, "{name}");
    let other = Entry { value: value.replace("192.0.2.1", "192.0.2.2"), ..found.clone() };
    is_refused(store, &other, name).await;
    let updated = store.update(&found, &found.attrs, DAY).await.unwrap();
    assert_eq!(entry(store).await, updated, "{name}: what we wrote is known as it stands");
}
