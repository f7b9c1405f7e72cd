//! The contract of a store as cases, which every store passes: memory, etcd v2 and etcd v3, in each of its releases.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use super::support::{self, Etcd, attrs, key};
use flanneld::etcd::{Api, Store};
use flanneld::store::{Change, Entry, Error, Memory, Registry, Revision, Watch};
use futures_util::future::{LocalBoxFuture, join_all};
use std::time::Duration;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const SHORT: Duration = Duration::from_secs(2);
/// The time within which etcd expires a lease of 2 s.
pub(crate) const EXPIRED: Duration = Duration::from_secs(5);

/// One network in one store, and a way to write to it as other programs do.
pub(crate) struct Net<'a, S> {
    pub(crate) store: S,
    pub(crate) prefix: String,
    pub(crate) back_door: BackDoor<'a>,
}

pub(crate) enum BackDoor<'a> {
    Memory(Memory),
    Curl(&'a Etcd),
    Etcdctl(&'a Etcd),
}

pub(crate) fn in_memory() -> Net<'static, Memory> {
    let store = Memory::new();
    Net { store: store.clone(), prefix: String::new(), back_door: BackDoor::Memory(store) }
}

pub(crate) fn in_etcd<'a>(api: Api, etcd: &'a Etcd, prefix: &str) -> Net<'a, Store> {
    let store = support::store(&etcd.settings(api, prefix));
    let back_door = if api == Api::V2 { BackDoor::Curl(etcd) } else { BackDoor::Etcdctl(etcd) };
    Net { store, prefix: prefix.to_owned(), back_door }
}

impl<S: Registry> Net<'_, S> {
    fn put_config(&self, text: &str) {
        let key = format!("{}/config", self.prefix);
        match &self.back_door {
            BackDoor::Memory(memory) => memory.put_config(text),
            BackDoor::Curl(etcd) => put_v2(etcd, &key, text),
            BackDoor::Etcdctl(etcd) => put_v3(etcd, &key, text),
        }
    }

    /// Writes a key without a TTL, whatever was there before.
    fn put(&self, name: &str, value: &str) {
        let key = format!("{}/subnets/{name}", self.prefix);
        match &self.back_door {
            BackDoor::Memory(memory) => drop(memory.put_raw(name, value, None)),
            BackDoor::Curl(etcd) => put_v2(etcd, &key, value),
            BackDoor::Etcdctl(etcd) => put_v3(etcd, &key, value),
        }
    }

    /// Adds or removes the config of a network below the prefix.
    fn set_network(&self, name: &str, present: bool) {
        let key = format!("{}/{name}/config", self.prefix);
        match (&self.back_door, present) {
            (BackDoor::Memory(memory), _) => memory.set_network(name, present),
            (BackDoor::Curl(etcd), true) => put_v2(etcd, &key, "{}"),
            (BackDoor::Etcdctl(etcd), true) => put_v3(etcd, &key, "{}"),
            (BackDoor::Curl(etcd), false) => drop(etcd.curl(&format!("/v2/keys{key}"), &["-XDELETE"])),
            (BackDoor::Etcdctl(etcd), false) => drop(etcd.etcdctl(&["del", &key])),
        }
    }

    fn delete(&self, name: &str) {
        let key = format!("{}/subnets/{name}", self.prefix);
        match &self.back_door {
            BackDoor::Memory(memory) => memory.delete_raw(name),
            BackDoor::Curl(etcd) => drop(etcd.curl(&format!("/v2/keys{key}"), &["-XDELETE"])),
            BackDoor::Etcdctl(etcd) => drop(etcd.etcdctl(&["del", &key])),
        }
    }

    async fn pass(&self, time: Duration) {
        match &self.back_door {
            BackDoor::Memory(memory) => memory.advance(time),
            _ => tokio::time::sleep(time).await,
        }
    }

    /// Makes the store forget its events. v2 forgets them only when a thousand others have come.
    fn forget(&self, now: Revision) {
        match &self.back_door {
            BackDoor::Memory(memory) => memory.compact(now),
            BackDoor::Curl(etcd) => noise(etcd, 1050),
            BackDoor::Etcdctl(etcd) => drop(etcd.etcdctl(&["compact", &now.to_string()])),
        }
    }

    pub(crate) async fn now(&self) -> Revision {
        self.store.list().await.unwrap().revision
    }

    pub(crate) async fn create(&self, name: &str, last: u8) -> Entry {
        self.store.create(key(name), &attrs(last), DAY).await.unwrap()
    }

    pub(crate) async fn entries(&self) -> Vec<Entry> {
        self.store.list().await.unwrap().entries
    }
}

fn put_v2(etcd: &Etcd, key: &str, value: &str) {
    let body = format!("value={value}");
    let answer = etcd.curl(&format!("/v2/keys{key}"), &["-XPUT", "--data-urlencode", &body]);
    assert!(answer.contains("\"action\":\"set\""), "{answer}");
}

fn put_v3(etcd: &Etcd, key: &str, value: &str) {
    etcd.etcdctl(&["put", key, "--", value]);
}

/// Makes events elsewhere in the store. v2 remembers a thousand of the whole store.
pub(crate) fn noise(etcd: &Etcd, count: usize) {
    let path = format!("/v2/keys/noise/[1-{count}]");
    etcd.curl(&path, &["-XPUT", "--data", "value=x", "--output", "/dev/null"]);
}

/// The next changes, which must come soon.
pub(crate) async fn next(watch: &mut impl Watch) -> Result<Vec<Change>, Error> {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no change within 10 s")
}

/// The next `count` changes, in order.
pub(crate) async fn changes(watch: &mut impl Watch, count: usize) -> Vec<Change> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(next(watch).await.unwrap());
    }
    assert_eq!(seen.len(), count, "{seen:?}");
    seen
}

fn gone(change: &Change) -> (String, Revision) {
    match change {
        Change::Gone { key, revision } => (key.to_string(), *revision),
        other => panic!("not gone: {other:?}"),
    }
}

fn skipped(change: &Change) -> &str {
    match change {
        Change::Skipped(skipped) => &skipped.key,
        other => panic!("not skipped: {other:?}"),
    }
}

async fn config_is_absent_then_its_text(net: Net<'_, impl Registry>) {
    assert!(matches!(net.store.config().await, Err(Error::NotFound(key)) if key.ends_with("/config")));
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"Backend":{"Type":"udp"}}"#;
    net.put_config(text);
    assert_eq!(net.store.config().await.as_deref(), Ok(text));
    assert_eq!(net.entries().await, []);
}

async fn networks_are_children_with_a_config(net: Net<'_, impl Registry>) {
    assert_eq!(net.store.networks().await, Ok(vec![]));
    net.put_config("{}");
    net.create("10.1.5.0-24", 1).await;
    assert_eq!(net.store.networks().await, Ok(vec![]));
    for name in ["red", "blue", "blue-2", "blue0", "a"] {
        net.set_network(name, true);
    }
    net.put("junk", "x");
    assert_eq!(net.store.networks().await.unwrap(), ["a", "blue", "blue-2", "blue0", "red"]);
    net.set_network("a", false);
    assert_eq!(net.store.networks().await.unwrap(), ["blue", "blue-2", "blue0", "red"]);
}

async fn a_subnet_is_created_once(net: Net<'_, impl Registry>) {
    let before = net.now().await;
    let made = net.create("10.1.5.0-24", 1).await;
    assert!(made.revision > before && made.lease.is_some());
    assert_eq!(net.store.create(key("10.1.5.0-24"), &attrs(2), DAY).await, Err(Error::Exists));
    let other = net.create("10.1.6.0-24", 2).await;
    let dual = net.create("10.1.7.0-24&fc00:0:0:1::-64", 3).await;
    assert!(other.revision > made.revision && dual.revision > other.revision);
    let listing = net.store.list().await.unwrap();
    assert!(listing.revision >= dual.revision && listing.skipped.is_empty());
    assert_eq!(listing.entries, [made, other, dual]);
}

async fn an_update_is_refused_after_a_foreign_write(net: Net<'_, impl Registry>) {
    let made = net.create("10.1.5.0-24", 1).await;
    let newer = net.store.update(&made, &attrs(1), DAY).await.unwrap();
    assert!(newer.revision > made.revision);
    assert_eq!(net.store.update(&made, &attrs(1), DAY).await, Err(Error::Conflict));
    net.put("10.1.5.0-24", r#"{"PublicIP":"192.0.2.66"}"#);
    assert_eq!(net.store.update(&newer, &attrs(1), DAY).await, Err(Error::Conflict));
    let entries = net.entries().await;
    assert_eq!(entries[0].attrs, attrs(66), "the other's value was touched");
    net.delete("10.1.5.0-24");
    assert_eq!(net.store.update(&entries[0], &attrs(1), DAY).await, Err(Error::Conflict));
    assert_eq!(net.entries().await, []);
}

async fn an_expired_lease_cannot_be_updated(net: Net<'_, impl Registry>) {
    let made = net.store.create(key("10.1.5.0-24"), &attrs(1), SHORT).await.unwrap();
    net.pass(EXPIRED).await;
    assert_eq!(net.store.update(&made, &attrs(1), SHORT).await, Err(Error::Conflict));
    let taken = net.create("10.1.5.0-24", 2).await;
    assert_eq!(net.store.delete(&made).await, Err(Error::Conflict));
    assert_eq!(net.entries().await, [taken]);
}

async fn an_update_refreshes_the_time_to_live(net: Net<'_, impl Registry>) {
    let made = net.store.create(key("10.1.5.0-24"), &attrs(1), SHORT).await.unwrap();
    let renewed = net.store.update(&made, &attrs(9), DAY).await.unwrap();
    net.pass(EXPIRED).await;
    assert_eq!(net.entries().await, std::slice::from_ref(&renewed));
    net.store.update(&renewed, &attrs(9), SHORT).await.unwrap();
    net.pass(EXPIRED).await;
    assert_eq!(net.entries().await, []);
}

async fn only_the_holder_deletes(net: Net<'_, impl Registry>) {
    let made = net.create("10.1.5.0-24", 1).await;
    let newer = net.store.update(&made, &attrs(1), DAY).await.unwrap();
    assert_eq!(net.store.delete(&made).await, Err(Error::Conflict));
    assert_eq!(net.entries().await, std::slice::from_ref(&newer));
    assert_eq!(net.store.delete(&newer).await, Ok(()));
    assert_eq!(net.store.delete(&newer).await, Err(Error::Conflict));
    assert_eq!(net.entries().await, []);
}

async fn a_reservation_stays_one(net: Net<'_, impl Registry>) {
    net.put("10.1.5.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
    let [reserved] = <[Entry; 1]>::try_from(net.entries().await).unwrap();
    assert_eq!((reserved.lease, &reserved.attrs), (None, &attrs(1)));
    let updated = net.store.update(&reserved, &attrs(2), SHORT).await.unwrap();
    assert_eq!(updated.lease, None);
    net.pass(EXPIRED).await;
    assert_eq!(net.entries().await, std::slice::from_ref(&updated));
    assert_eq!(net.store.delete(&updated).await, Ok(()));
}

async fn what_cannot_be_read_is_skipped_and_told(net: Net<'_, impl Registry>) {
    let good = net.create("10.1.5.0-24", 1).await;
    let mut watch = net.store.watch(net.now().await).await.unwrap();
    net.put("junk", "x");
    net.put("10.1.6.0-24", "{not json");
    net.put("10.1.7.0-24", r#"{"PublicIP":"nowhere"}"#);
    net.put("10.1.300.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
    net.put("10.1.8.0-24x", r#"{"PublicIP":"192.0.2.1"}"#);
    let seen = changes(&mut watch, 5).await;
    let names: Vec<&str> = seen.iter().map(skipped).collect();
    assert_eq!(names, ["junk", "10.1.6.0-24", "10.1.7.0-24", "10.1.300.0-24", "10.1.8.0-24x"]);

    let listing = net.store.list().await.unwrap();
    assert_eq!(listing.entries, std::slice::from_ref(&good));
    let mut names: Vec<&str> = listing.skipped.iter().map(|skipped| skipped.key.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["10.1.300.0-24", "10.1.6.0-24", "10.1.7.0-24", "10.1.8.0-24x", "junk"]);
    assert!(listing.skipped.iter().all(|skipped| !skipped.reason.is_empty()));

    net.delete("junk");
    net.delete("10.1.6.0-24");
    let seen = changes(&mut watch, 1).await;
    assert_eq!(gone(&seen[0]).0, "10.1.6.0-24", "the deletion of junk is nobody's business");
    net.put("10.1.7.0-24", r#"{"PublicIP":"192.0.2.7"}"#);
    let seen = changes(&mut watch, 1).await;
    assert!(matches!(&seen[0], Change::Set(entry) if entry.attrs == attrs(7) && entry.lease.is_none()));
}

async fn a_watch_tells_all_in_order(net: Net<'_, impl Registry>) {
    let mut watch = net.store.watch(net.now().await).await.unwrap();
    let first = net.create("10.1.5.0-24", 1).await;
    let second = net.store.create(key("10.1.6.0-24"), &attrs(2), SHORT).await.unwrap();
    let renewed = net.store.update(&first, &attrs(3), DAY).await.unwrap();
    net.store.delete(&renewed).await.unwrap();
    net.pass(EXPIRED).await;
    let again = net.create("10.1.6.0-24", 4).await;

    let seen = changes(&mut watch, 6).await;
    assert_eq!(
        seen[..3],
        [Change::Set(first), Change::Set(second.clone()), Change::Set(renewed.clone())],
        "writes come as they were answered"
    );
    let (deleted, expired) = (gone(&seen[3]), gone(&seen[4]));
    assert_eq!((deleted.0.as_str(), expired.0.as_str()), ("10.1.5.0-24", "10.1.6.0-24"));
    assert!(renewed.revision < deleted.1 && deleted.1 < expired.1 && expired.1 < again.revision);
    assert_eq!(seen[5], Change::Set(again));
}

async fn a_watch_resumes_at_a_revision(net: Net<'_, impl Registry>) {
    let entries = [
        net.create("10.1.5.0-24", 1).await,
        net.create("10.1.6.0-24", 2).await,
        net.create("10.1.7.0-24", 3).await,
    ];
    for from in 0..2 {
        let mut watch = net.store.watch(entries[from].revision).await.unwrap();
        let expected: Vec<Change> = entries[from + 1..].iter().cloned().map(Change::Set).collect();
        assert_eq!(changes(&mut watch, expected.len()).await, expected);
    }
    let listed = net.now().await;
    let mut watch = net.store.watch(listed).await.unwrap();
    let later = net.create("10.1.8.0-24", 4).await;
    assert_eq!(changes(&mut watch, 1).await, [Change::Set(later)]);
}

/// The daemon selects over futures and so drops them all the time. No change may get lost by that.
async fn a_dropped_wait_loses_nothing(net: Net<'_, impl Registry>) {
    const COUNT: u8 = 40;
    let mut watch = net.store.watch(net.now().await).await.unwrap();
    let mut seen = Vec::new();
    let mut entry = net.create("10.1.5.0-24", 0).await;
    let mut written = vec![Change::Set(entry.clone())];
    let mut patience = 0_u64;
    while seen.len() < usize::from(COUNT) {
        if let Some(last) = u8::try_from(written.len()).ok().filter(|last| *last < COUNT) {
            entry = net.store.update(&entry, &attrs(last), DAY).await.unwrap();
            written.push(Change::Set(entry.clone()));
        }
        patience = (patience + 137) % 3000;
        match tokio::time::timeout(Duration::from_micros(patience), watch.next()).await {
            Ok(changes) => seen.extend(changes.unwrap()),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert_eq!(seen, written);
}

/// This case runs last, since it ends the watches of the others.
async fn a_forgotten_revision_asks_for_a_list(net: Net<'_, impl Registry>) {
    let first = net.create("10.1.5.0-24", 1).await;
    let second = net.create("10.1.6.0-24", 2).await;
    let third = net.create("10.1.7.0-24", 3).await;
    net.forget(third.revision);
    let watch = match net.store.watch(first.revision - 1).await {
        Ok(mut watch) => next(&mut watch).await,
        Err(error) => Err(error),
    };
    assert_eq!(watch, Err(Error::Compacted));
    let listing = net.store.list().await.unwrap();
    assert_eq!(listing.entries, [first, second, third]);
    let mut watch = net.store.watch(listing.revision).await.unwrap();
    let later = net.create("10.1.8.0-24", 4).await;
    assert_eq!(changes(&mut watch, 1).await, [Change::Set(later)]);
}

/// Runs all cases at once, each in a network of its own, since most of them only wait.
pub(crate) async fn contract<'a, S: Registry + 'a>(net: impl Fn() -> Net<'a, S>) {
    let cases: Vec<LocalBoxFuture<'a, ()>> = vec![
        Box::pin(config_is_absent_then_its_text(net())),
        Box::pin(networks_are_children_with_a_config(net())),
        Box::pin(a_subnet_is_created_once(net())),
        Box::pin(an_update_is_refused_after_a_foreign_write(net())),
        Box::pin(an_expired_lease_cannot_be_updated(net())),
        Box::pin(an_update_refreshes_the_time_to_live(net())),
        Box::pin(only_the_holder_deletes(net())),
        Box::pin(a_reservation_stays_one(net())),
        Box::pin(what_cannot_be_read_is_skipped_and_told(net())),
        Box::pin(a_watch_tells_all_in_order(net())),
        Box::pin(a_watch_resumes_at_a_revision(net())),
        Box::pin(a_dropped_wait_loses_nothing(net())),
    ];
    join_all(cases).await;
    a_forgotten_revision_asks_for_a_list(net()).await;
}

/// Gives the prefixes `/test/1/network`, `/test/2/network` and so on.
pub(crate) fn prefixes() -> impl Fn() -> String {
    let count = std::cell::Cell::new(0);
    move || {
        count.set(count.get() + 1);
        format!("/test/{}/network", count.get())
    }
}
