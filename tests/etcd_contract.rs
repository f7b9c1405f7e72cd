//! Three stores keep one contract: the same cases run over memory, etcd v2 and etcd v3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod contract;
mod support;

use contract::{DAY, changes, contract, in_etcd, in_memory, next, noise, prefixes};
use flanneld::etcd::Api;
use flanneld::store::{Change, Entry, Error, Registry, Watch};
use std::time::Duration;
use support::{Etcd, Release, attrs, key, on_newer_etcds, run};

#[test]
fn memory_keeps_the_contract() {
    run(contract(in_memory));
}

#[test]
fn etcd_v2_keeps_the_contract() {
    let etcd = Etcd::start();
    let prefix = prefixes();
    run(contract(|| in_etcd(Api::V2, &etcd, &prefix())));
}

#[test]
fn etcd_v3_keeps_the_contract() {
    let etcd = Etcd::start();
    let prefix = prefixes();
    run(contract(|| in_etcd(Api::V3, &etcd, &prefix())));
}

#[test]
fn the_contract_on_newer_etcds() {
    on_newer_etcds(|release| {
        let etcd = Etcd::of(release);
        let prefix = prefixes();
        run(contract(|| in_etcd(Api::V3, &etcd, &prefix())));
        if release.has_v2() {
            run(contract(|| in_etcd(Api::V2, &etcd, &prefix())));
        }
    });
}

/// etcd's own tools read keys and values, which must be as flannel writes them.
#[test]
fn bytes_in_the_store_are_flannels() {
    let etcd = Etcd::start();
    run(async {
        let mut vxlan = attrs(7);
        vxlan.backend_type = Some("vxlan".to_owned());
        vxlan.backend_data = Some(serde_json::json!({"VtepMAC": "aa:bb:cc:dd:ee:ff"}).into());
        // Our own fields follow flannel's.
        let mut named = vxlan.clone();
        named.node_id = Some("rack-7".parse().unwrap());
        for (api, prefix) in [(Api::V2, "coreos.com/network/"), (Api::V3, "/coreos.com//network/")] {
            let store = support::store(&etcd.settings(api, prefix));
            store.create(key("10.1.5.0-24"), &attrs(7), DAY).await.unwrap();
            store.create(key("10.1.6.0-24"), &vxlan, DAY).await.unwrap();
            store.create(key("10.1.7.0-24"), &named, DAY).await.unwrap();
        }
    });
    let get = |key: &str| {
        let answer = etcd.curl(&format!("/v2/keys/coreos.com/network/subnets/{key}"), &[]);
        let node: serde_json::Value =
            serde_json::from_str::<serde_json::Value>(&answer).unwrap()["node"].clone();
        (node["value"].as_str().unwrap().to_owned(), node["ttl"].as_u64().unwrap())
    };
    assert_eq!(get("10.1.5.0-24"), (r#"{"PublicIP":"192.0.2.7"}"#.to_owned(), 86_400));
    let text =
        r#"{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;
    assert_eq!(get("10.1.6.0-24").0, text);
    assert_eq!(get("10.1.7.0-24").0, text.replace("\"}}", "\"},\"NodeID\":\"rack-7\"}"));
    let text = concat!(
        "/coreos.com/network/subnets/10.1.5.0-24\n",
        r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#,
        "\n/coreos.com/network/subnets/10.1.6.0-24\n",
        r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","#,
        r#""BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#,
        "\n/coreos.com/network/subnets/10.1.7.0-24\n",
        r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","#,
        r#""BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"},"NodeID":"rack-7"}"#,
        "\n"
    );
    assert_eq!(etcd.etcdctl(&["get", "--prefix", "/"]), text);
}

/// flannel leaves the old etcd lease of every renewal to its TTL. Here there is one for each key, or none.
#[test]
fn etcd_v3_leases_do_not_pile_up() {
    leases_do_not_pile_up(Release::Installed);
}

#[test]
fn leases_do_not_pile_up_on_newer_etcds() {
    on_newer_etcds(leases_do_not_pile_up);
}

fn leases_do_not_pile_up(release: Release) {
    let etcd = Etcd::of(release);
    let leases = || etcd.etcdctl(&["lease", "list"]).lines().skip(1).count();
    run(async {
        let store = support::store(&etcd.settings(Api::V3, "/n"));
        let mut entry = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        for _ in 0..20 {
            entry = store.update(&entry, &attrs(1), DAY).await.unwrap();
        }
        assert_eq!(leases(), 1);
        for _ in 0..3 {
            assert_eq!(store.create(entry.key, &attrs(2), DAY).await, Err(Error::Exists));
            let stale = Entry { revision: entry.revision - 1, ..entry.clone() };
            assert_eq!(store.update(&stale, &attrs(2), DAY).await, Err(Error::Conflict));
        }
        assert_eq!(leases(), 1);
        // A key that an operator has attached to our lease stays when we replace that lease.
        etcd.etcdctl(&["put", "/mine", "x", &format!("--lease={:x}", entry.lease.unwrap())]);
        entry = store.update(&entry, &attrs(1), DAY).await.unwrap();
        assert_eq!(etcd.etcdctl(&["get", "/mine"]), "/mine\nx\n");
        etcd.etcdctl(&["del", "/mine"]);
        store.delete(&entry).await.unwrap();
        assert_eq!(leases(), 1, "only the one that the operator used");
    });
}

/// A deletion of the directory deletes every lease in it, and v2 tells of it by one event.
#[test]
fn etcd_v2_deleted_directory_asks_for_a_list() {
    let etcd = Etcd::start();
    let net = in_etcd(Api::V2, &etcd, "/a/b");
    run(async {
        for tree in ["/a/b/subnets", "/a"] {
            net.create("10.1.5.0-24", 1).await;
            let mut watch = net.store.watch(net.now().await).await.unwrap();
            etcd.curl(&format!("/v2/keys{tree}?recursive=true"), &["-XDELETE"]);
            assert_eq!(next(&mut watch).await, Err(Error::Compacted));
            assert_eq!(next(&mut watch).await, Err(Error::Compacted), "a watch that ended stays so");
            assert_eq!(net.entries().await, []);
        }
    });
}

/// When much happens elsewhere in the store and nothing here, the watch moves on with the store. It does not fall out of
/// the window of events, as long as fewer than a thousand come during one poll.
#[test]
fn etcd_v2_quiet_watch_keeps_up() {
    let etcd = Etcd::start();
    let mut settings = etcd.settings(Api::V2, "/n");
    settings.timeout = Duration::from_millis(300);
    let store = support::store(&settings);
    run(async {
        let listing = store.list().await.unwrap();
        let mut watch = store.watch(listing.revision).await.unwrap();
        for _ in 0..3 {
            noise(&etcd, 500);
            let quiet = tokio::time::timeout(settings.timeout * 8, watch.next()).await;
            assert!(quiet.is_err(), "{quiet:?}");
        }
        let entry = store.create(key("10.1.5.0-24"), &attrs(1), DAY).await.unwrap();
        assert_eq!(changes(&mut watch, 1).await, [Change::Set(entry)]);
        let old = store.watch(listing.revision).await;
        assert!(matches!(old, Err(Error::Compacted)), "the window was not left at all");
    });
}
