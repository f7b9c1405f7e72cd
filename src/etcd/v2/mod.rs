//! The keys API over HTTP (etcd 0.4 to 3.5; since 3.4 only with `--enable-v2=true`).
//!
//! | operation | request |
//! |---|---|
//! | config | `GET …/config?quorum=true` |
//! | networks | `GET <prefix>?recursive=false`, and for each directory in it `GET …/config` |
//! | list | `GET …/subnets?recursive=true&quorum=true`; error 100 means an empty list |
//! | create | `PUT …/subnets/<key>?prevExist=false` with `ttl` and `value` |
//! | update | `PUT …/subnets/<key>?prevIndex=<held>&prevValue=<held>` with `ttl` and `value`; without `ttl` for a reservation |
//! | delete | `DELETE …/subnets/<key>?prevIndex=<held>&prevValue=<held>` |
//! | watch | `GET …/subnets?wait=true&recursive=true&waitIndex=<next>` for each event |
//!
//! flannel makes the same requests, except that here every write is conditional.

mod answer;
mod client;
mod http;
mod watch;

pub use watch::V2Watch;

use super::Settings;
use super::endpoints::seconds;
use super::tls::TlsCache;
use crate::store::keyspace::{self, Keyspace};
use crate::store::{Entry, Error, Listing, Registry, Revision, Skipped};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use answer::{Answer, Fault, Node, Unusable, fault};
use http::{Http, Request};
use std::rc::Rc;
use std::time::Duration;

/// The store over the keys API.
#[derive(Debug)]
pub struct V2 {
    http: Rc<Http>,
    keys: Keyspace,
}

impl V2 {
    /// Checks the settings. No server is contacted yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work.
    pub(in crate::etcd) fn new(settings: &Settings, tls: TlsCache) -> Result<Self, Error> {
        let keys = Keyspace::in_tree(&settings.prefix);
        let http = Rc::new(Http::new(settings.clone(), keys.config(), tls)?);
        Ok(Self { http, keys })
    }

    /// The major version of the server, as `/version` tells it.
    pub(super) async fn server_major(&self) -> Result<u64, Error> {
        self.http.server_major().await
    }

    /// Whether what answers at the endpoints speaks no HTTP/1.1. Then there is no v2 API.
    pub(super) fn has_no_http1(&self) -> bool {
        self.http.has_no_http1()
    }

    /// Whether the network has a config here. A server without the keys API holds none.
    pub(super) async fn has_config(&self) -> Result<bool, Error> {
        match self.http.ask(&Request::get(self.keys.config(), false)).await? {
            Some(Answer::Done { .. }) => Ok(true),
            None | Some(Answer::Failed(Fault { code: fault::NO_KEY, .. })) => Ok(false),
            Some(Answer::Failed(other)) => Err(other.into()),
        }
    }

    /// The networks as [`Registry::networks`] tells them; `None`: the server has no keys API.
    pub(super) async fn networks_if_served(&self) -> Result<Option<Vec<String>>, Error> {
        let children = match self.http.ask(&Request::get(self.keys.root().to_owned(), false)).await? {
            Some(Answer::Done { node, .. }) => node.nodes,
            Some(Answer::Failed(Fault { code: fault::NO_KEY, .. })) => return Ok(Some(Vec::new())),
            Some(Answer::Failed(other)) => return Err(other.into()),
            None => return Ok(None),
        };
        let mut names = Vec::new();
        for child in children.into_iter().filter(|child| child.dir) {
            let name = child.key.rsplit('/').next().unwrap_or_default();
            match self.http.ask(&Request::get(self.keys.config_of(name), false)).await? {
                Some(Answer::Done { node, .. }) if !node.dir => names.push(name.to_owned()),
                Some(Answer::Done { .. } | Answer::Failed(Fault { code: fault::NO_KEY, .. })) => {}
                Some(Answer::Failed(other)) => return Err(other.into()),
                None => return Ok(None),
            }
        }
        names.sort();
        Ok(Some(names))
    }

    /// Writes a lease under `conditions`. The inner error is the refusal of the store.
    async fn put(
        &self,
        key: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Option<Duration>,
        conditions: Vec<(&'static str, String)>,
    ) -> Result<Result<Entry, Fault>, Error> {
        let value = attrs.encode(Generation::V2);
        let mut form = vec![("value", value.clone())];
        form.extend(ttl.map(|ttl| ("ttl", seconds(ttl).to_string())));
        let request = Request::put(self.keys.lease(&key), conditions, form);
        Ok(match self.http.send(&request).await? {
            Answer::Done { node, .. } => {
                let revision = node.modified_index;
                Ok(Entry { key, attrs: attrs.clone(), value, revision, lease: ttl.map(|_| 0) })
            }
            Answer::Failed(fault) => Err(fault),
        })
    }
}

impl Registry for V2 {
    type Watch = V2Watch;

    async fn config(&self) -> Result<String, Error> {
        let key = self.keys.config();
        match self.http.send(&Request::get(key.clone(), false)).await? {
            Answer::Done { node, .. } => Ok(node.value.unwrap_or_default()),
            Answer::Failed(Fault { code: fault::NO_KEY, .. }) => Err(Error::NotFound(key)),
            Answer::Failed(other) => Err(other.into()),
        }
    }

    fn generation(&self) -> Generation {
        Generation::V2
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        self.networks_if_served().await?.ok_or_else(|| Unusable::NoKeysApi.into())
    }

    async fn list(&self) -> Result<Listing, Error> {
        match self.http.send(&Request::get(self.keys.leases(), true)).await? {
            Answer::Done { node, index, .. } => {
                let revision =
                    index.ok_or_else(|| Error::Invalid("an answer without X-Etcd-Index".to_owned()))?;
                Ok(listing(&self.keys, node.nodes, revision))
            }
            Answer::Failed(Fault { code: fault::NO_KEY, index, .. }) => {
                Ok(Listing { revision: index, ..Listing::default() })
            }
            Answer::Failed(other) => Err(other.into()),
        }
    }

    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        let absent = vec![("prevExist", "false".to_owned())];
        self.put(key, attrs, Some(ttl), absent).await?.map_err(|fault| match fault.code {
            fault::EXISTS => Error::Exists,
            _ => fault.into(),
        })
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        self.put(held.key, attrs, held.lease.map(|_| ttl), unchanged(held)).await?.map_err(conflict)
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        match self.http.send(&Request::delete(self.keys.lease(&held.key), unchanged(held))).await? {
            Answer::Done { .. } => Ok(()),
            Answer::Failed(fault) => Err(conflict(fault)),
        }
    }

    fn reconnect(&self) {
        self.http.renew();
    }

    async fn admission(&self) {
        self.http.admission().await;
    }

    async fn watch(&self, revision: Revision) -> Result<V2Watch, Error> {
        V2Watch::open(Rc::clone(&self.http), self.keys.clone(), revision).await
    }
}

/// The conditions under which the key is still as we know it.
fn unchanged(held: &Entry) -> Vec<(&'static str, String)> {
    vec![("prevIndex", held.revision.to_string()), ("prevValue", held.value.clone())]
}

/// The error of a conditional write. A key that has changed or gone is a conflict.
fn conflict(fault: Fault) -> Error {
    match fault.code {
        fault::NO_KEY | fault::COMPARE_FAILED => Error::Conflict,
        _ => fault.into(),
    }
}

/// The children of `subnets`, in the order of their keys. etcd answers with them in no order.
fn listing(keys: &Keyspace, nodes: Vec<Node>, revision: Revision) -> Listing {
    let mut listing = Listing { revision, ..Listing::default() };
    for node in nodes {
        match decoded(keys, &node) {
            Ok(entry) => listing.entries.push(entry),
            Err(skipped) => listing.skipped.push(skipped),
        }
    }
    listing.entries.sort_by_key(|entry| entry.key);
    listing.skipped.sort_by(|a, b| a.key.cmp(&b.key));
    listing
}

/// The lease that a key of the store describes.
fn decoded(keys: &Keyspace, node: &Node) -> Result<Entry, Skipped> {
    let name = keys.name(&node.key).unwrap_or(&node.key);
    if node.dir {
        return Err(Skipped { key: name.to_owned(), reason: "a directory".to_owned() });
    }
    let lease = node.expiration.is_some().then_some(0);
    keyspace::entry(name, node.value.as_deref().unwrap_or_default(), node.modified_index, lease)
}
