//! The gRPC API (etcd 3.0 and newer).
//!
//! | operation | requests |
//! |---|---|
//! | config, list | one linearizable range; a key without an etcd lease is a reservation |
//! | networks | ranges of one key that hop from child to child of the prefix, and a range for each `config` |
//! | create | grant; txn { version = 0 → put with the lease } |
//! | update | grant; txn { mod revision and value = held → put with the new lease }; the old lease becomes loose |
//! | update of a reservation | txn { mod revision and value = held → put without a lease } |
//! | delete | txn { mod revision and value = held → delete }; its lease becomes loose |
//! | watch | prefix watch from the known revision, which needs a leader |
//! | watch again | the same from the newest known write with a lease, which etcd has to tell again |
//!
//! Loose etcd leases, which hold no key any more, do not pile up: `loose.rs` revokes them.

mod channel;
mod connection;
mod loose;
mod pings;
mod watch;

pub use watch::V3Watch;

use super::Settings;
use super::endpoints::{MOST_BYTES, seconds};
use super::tls::TlsCache;
use crate::store::keyspace::{self, Keyspace};
use crate::store::{Entry, Error, Listing, Registry, Revision, Seen, Skipped};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use connection::Connection;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp};
use loose::LooseLeases;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// The store over gRPC.
#[derive(Debug)]
pub struct V3 {
    connection: Rc<Connection>,
    keys: Keyspace,
    loose: LooseLeases,
    /// The store's revision when the config was read last.
    config_read_at: Cell<i64>,
}

impl V3 {
    /// Checks the settings. No server is contacted yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work.
    pub(in crate::etcd) fn new(settings: &Settings, tls: TlsCache) -> Result<Self, Error> {
        let keys = Keyspace::new(&settings.prefix);
        let connection = Rc::new(Connection::new(settings.clone(), keys.config(), tls)?);
        Ok(Self { connection, keys, loose: LooseLeases::default(), config_read_at: Cell::new(0) })
    }

    /// Whether no site speaks HTTP/2; see [`Connection::has_no_http2`]. Then there is no v3 API.
    pub(super) fn has_no_http2(&self) -> bool {
        self.connection.has_no_http2()
    }

    /// Whether a site speaks no HTTP/2, while others may.
    pub(super) fn lacks_http2(&self) -> bool {
        self.connection.lacks_http2()
    }

    /// Whether every site hangs up on HTTP/2; see [`Connection::hung_up`].
    pub(super) fn hung_up(&self) -> bool {
        self.connection.hung_up()
    }

    /// Puts the value if all of `compares` hold, with a new lease if there is a TTL. `None` if they do not hold.
    async fn put(
        &self,
        key: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Option<Duration>,
        compares: impl Fn(&str) -> Vec<Compare>,
    ) -> Result<Option<Entry>, Error> {
        let name = self.keys.lease(&key);
        debug_assert!(!compares(&name).is_empty(), "every write is conditional");
        let value = attrs.encode(Generation::V3);
        self.connection
            .call(async |client, attempt| {
                let granted = match ttl {
                    Some(ttl) => {
                        Some(self.loose.guard(client.lease_grant(signed(seconds(ttl)), None).await?.id()))
                    }
                    None => None,
                };
                let options = granted.as_ref().map(|lease| PutOptions::new().with_lease(lease.id()));
                let txn = Txn::new().when(compares(&name)).and_then([TxnOp::put(
                    name.clone(),
                    value.clone(),
                    options,
                )]);
                attempt.write_leaves();
                let answer = client.txn(txn).await?;
                if !answer.succeeded() {
                    return Ok(None);
                }
                let revision = answer.header().map_or(0, |header| unsigned(header.revision()));
                let lease = granted.map(|lease| unsigned(lease.attached()));
                Ok(Some(Entry { key, attrs: attrs.clone(), value: value.clone(), revision, lease }))
            })
            .await
    }

    /// The first key at or after `from` and before `end`.
    async fn first_key(&self, from: Vec<u8>, end: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let answer = self
            .connection
            .call(async |client, _| {
                let options = GetOptions::new().with_range(end).with_keys_only().with_limit(1);
                client.kv_client().get(from.clone(), Some(options)).await
            })
            .await?;
        Ok(answer.kvs().first().map(|kv| kv.key().to_vec()))
    }

    /// Revokes loose leases in the time that is left of this call.
    async fn tidy(&self, started: Instant) {
        let until = started + self.connection.timeout();
        if tokio::time::timeout_at(until, self.loose.revoke(&self.connection)).await.is_err() {
            tracing::debug!("no time left to revoke unused etcd leases; the next write does it");
        }
    }
}

impl Registry for V3 {
    type Watch = V3Watch;

    async fn config(&self) -> Result<String, Error> {
        let key = self.keys.config();
        let answer =
            self.connection.call(async |client, _| client.kv_client().get(key.clone(), None).await).await?;
        self.config_read_at.set(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        let Some(kv) = answer.kvs().first() else { return Err(Error::NotFound(key)) };
        // Go's encoding/json, by which flannel reads it, puts U+FFFD in the place of what is not UTF-8.
        Ok(String::from_utf8_lossy(kv.value()).into_owned())
    }

    async fn config_changed(&self) -> Result<(), Error> {
        watch::wait_for_change(&self.connection, &self.keys.config(), self.config_read_at.get()).await
    }

    fn generation(&self) -> Generation {
        Generation::V3
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        let root = self.keys.root();
        // `0` is the character after `/`. etcd takes a zero byte for the end of all keys.
        let end = root.strip_suffix('/').map_or("\0".to_owned(), |prefix| format!("{prefix}0"));
        let mut names = Vec::new();
        let mut from = if root.is_empty() { vec![0] } else { root.as_bytes().to_vec() };
        // There may be thousands of leases below a child, so this hops from child to child.
        while let Some(key) = self.first_key(from, end.as_bytes()).await? {
            let below = &key[root.len().min(key.len())..];
            let Some(slash) = below.iter().position(|byte| *byte == b'/') else {
                from = [key.as_slice(), b"\0"].concat();
                continue;
            };
            // This is the first key after all those below the child.
            from = [root.as_bytes(), &below[..slash], b"0"].concat();
            let Ok(name) = std::str::from_utf8(&below[..slash]) else { continue };
            let config = self.keys.config_of(name).into_bytes();
            let past = [config.as_slice(), b"\0"].concat();
            if !name.is_empty() && self.first_key(config, &past).await?.is_some() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    async fn list(&self) -> Result<Listing, Error> {
        let directory = format!("{}/", self.keys.leases());
        let answer = self
            .connection
            .call(async |client, _| {
                let mut kv = client.kv_client().max_decoding_message_size(MOST_BYTES);
                kv.get(directory.clone(), Some(GetOptions::new().with_prefix())).await
            })
            .await?;
        let revision = answer.header().map_or(0, |header| unsigned(header.revision()));
        let mut listing = Listing { revision, ..Listing::default() };
        for kv in answer.kvs() {
            match decoded(&self.keys, kv) {
                Ok(entry) => listing.entries.push(entry),
                Err(skipped) => listing.skipped.push(skipped),
            }
        }
        Ok(listing)
    }

    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        let started = Instant::now();
        let absent = |name: &str| vec![Compare::version(name, CompareOp::Equal, 0)];
        let made = self.put(key, attrs, Some(ttl), absent).await;
        // A write that was refused leaves an etcd lease behind, too.
        self.tidy(started).await;
        made?.ok_or(Error::Exists)
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        let started = Instant::now();
        let same = |name: &str| unchanged(name, held);
        let made = self.put(held.key, attrs, held.lease.map(|_| ttl), same).await;
        // The old lease was replaced, or may have been: perhaps only the answer was lost.
        if matches!(made, Ok(Some(_)) | Err(Error::Unavailable(_))) {
            self.loose.push(held.lease.map(signed));
        }
        self.tidy(started).await;
        made?.ok_or(Error::Conflict)
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        let started = Instant::now();
        let name = self.keys.lease(&held.key);
        let answer = self
            .connection
            .call(async |client, attempt| {
                let txn =
                    Txn::new().when(unchanged(&name, held)).and_then([TxnOp::delete(name.clone(), None)]);
                attempt.write_leaves();
                client.txn(txn).await
            })
            .await?;
        if !answer.succeeded() {
            return Err(Error::Conflict);
        }
        self.loose.push(held.lease.map(signed));
        self.tidy(started).await;
        Ok(())
    }

    fn reconnect(&self) {
        self.connection.renew();
    }

    async fn admission(&self) {
        self.connection.admission().await;
    }

    async fn watch(&self, revision: Revision) -> Result<V3Watch, Error> {
        V3Watch::open(Rc::clone(&self.connection), self.keys.clone(), revision).await
    }

    async fn resume(&self, seen: &Seen) -> Result<V3Watch, Error> {
        V3Watch::resume(Rc::clone(&self.connection), self.keys.clone(), seen).await
    }
}

/// The comparisons that hold while the key is still as we know it.
fn unchanged(name: &str, held: &Entry) -> Vec<Compare> {
    vec![
        Compare::mod_revision(name, CompareOp::Equal, signed(held.revision)),
        Compare::value(name, CompareOp::Equal, held.value.as_str()),
    ]
}

/// The lease that a key-value pair of etcd describes.
fn decoded(keys: &Keyspace, kv: &KeyValue) -> Result<Entry, Skipped> {
    let key = String::from_utf8_lossy(kv.key());
    let name = keys.name(&key).unwrap_or(&key);
    let Ok(value) = kv.value_str() else {
        return Err(Skipped { key: name.to_owned(), reason: "the value is not UTF-8".to_owned() });
    };
    let lease = (kv.lease() != 0).then(|| unsigned(kv.lease()));
    keyspace::entry(name, value, unsigned(kv.mod_revision()), lease)
}

/// A revision or lease id from etcd. They are never negative, but protobuf has them as `int64`.
fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

/// A revision or lease id in the type that etcd takes.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}
