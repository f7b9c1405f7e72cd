//! The store of the daemon: the API that the settings name, or the one that holds the config.

use super::files::Files;
use super::tls::{Protocol, TlsCache};
use super::{Api, Settings, V2, V2Watch, V3, V3Watch};
use crate::store::{Change, Entry, Error, Listing, Registry, Revision, Seen, Watch};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::cell::Cell;
use std::time::Duration;

/// A store over either API of etcd.
#[derive(Debug)]
pub enum Store {
    /// The keys API of etcd v2.
    V2(V2),
    /// The gRPC API of etcd v3.
    V3(V3),
    /// Undecided between the two until one of them shows a config.
    Auto(Auto),
}

/// Checks the settings and makes the store that they describe. No server is contacted before the first call.
///
/// # Errors
/// [`Error::Invalid`] for settings that can never work: no endpoint or a bad one, a certificate without a key, or
/// certificate files that cannot be read.
pub fn connect(settings: &Settings) -> Result<Store, Error> {
    let tls = TlsCache::default();
    tls.get(settings, &Files::read(settings)?, Protocol::Http2)?;
    Ok(match settings.api {
        Api::V2 => Store::V2(V2::new(settings, tls)?),
        Api::V3 => Store::V3(V3::new(settings, tls)?),
        Api::Auto => Store::Auto(Auto::new(settings, tls)?),
    })
}

/// Both APIs of one etcd. Each has keys of its own: what is written through one API is not seen through the other.
/// The API that holds `<prefix>/config` is taken and then kept. If both hold one, the API that holds leases is taken,
/// since the other nodes are there; if both or neither hold leases, it is v3.
///
/// Until an API is taken, every call asks again. v2 is taken only when v3 has said for certain that it holds no config,
/// or when the server is older than etcd 3, or every endpoint answers and none in HTTP/2, as behind a proxy for HTTP/1.1:
/// two nodes that guess differently would not see each other's leases. When v3 holds no config and v2 refuses to tell,
/// that is an error; it does not mean that there is no config. Endpoints that answer over v3 and speak no HTTP/1.1 have
/// no v2.
#[derive(Debug)]
pub struct Auto {
    v2: V2,
    v3: V3,
    chosen: Cell<Option<Api>>,
}

/// The API that a call goes to.
#[derive(Debug, Clone, Copy)]
enum Chosen<'a> {
    V2(&'a V2),
    V3(&'a V3),
}

impl Auto {
    fn new(settings: &Settings, tls: TlsCache) -> Result<Self, Error> {
        let (v2, v3) = (V2::new(settings, tls.clone())?, V3::new(settings, tls)?);
        Ok(Self { v2, v3, chosen: Cell::new(None) })
    }

    /// The API that was taken, if the choice has been made.
    pub fn chosen(&self) -> Option<Api> {
        self.chosen.get()
    }

    /// The API for the next call. The first call that finds a config makes the choice.
    async fn store(&self) -> Result<Chosen<'_>, Error> {
        let api = match self.chosen.get() {
            Some(api) => api,
            None => self.choose().await?,
        };
        debug_assert_ne!(api, Api::Auto, "a choice is one of the two");
        Ok(match api {
            Api::V2 => Chosen::V2(&self.v2),
            Api::V3 | Api::Auto => Chosen::V3(&self.v3),
        })
    }

    /// Asks both APIs for the config and takes one of them.
    async fn choose(&self) -> Result<Api, Error> {
        let api = match self.v3.config().await {
            Ok(_) => self.choose_with_v3_config().await?,
            Err(Error::NotFound(key)) => match self.v2_has_config().await {
                Ok(true) => Api::V2,
                Ok(false) => return Err(Error::NotFound(key)),
                Err(error) => return Err(unsure(error, "v3 holds no network config, and v2 does not tell")),
            },
            Err(error @ Error::Unavailable(_)) => {
                if !self.has_no_v3().await {
                    let open = "an endpoint without v3 answers, and the others may have it";
                    return Err(if self.v3.lacks_http2() { unsure(error, open) } else { error });
                }
                self.v2.config().await?;
                Api::V2
            }
            Err(error) => return Err(unsure(error, "v3 does not tell whether it holds a network config")),
        };
        tracing::info!(?api, "the network config is here; this etcd API is used from now on");
        self.chosen.set(Some(api));
        Ok(api)
    }

    /// Whether v3 does not answer because it does not exist: what answers speaks no HTTP/2, or says that it is older
    /// than etcd 3, or hangs up on HTTP/2 both before and after it has answered in HTTP/1.1.
    async fn has_no_v3(&self) -> bool {
        let hung_up = self.v3.hung_up();
        if self.v3.has_no_http2() || self.v2.server_major().await.is_ok_and(|major| major < 3) {
            return true;
        }
        hung_up
            && self.v2.has_config().await.is_ok()
            && matches!(self.v3.config().await, Err(Error::Unavailable(_)))
            && self.v3.hung_up()
    }

    /// Whether v2 does not answer because it does not exist: what answers closes or breaks every connection in HTTP/1.1,
    /// both before and after it has answered over v3.
    async fn has_no_v2(&self) -> bool {
        self.v2.has_no_http1()
            && !matches!(self.v3.config().await, Err(Error::Unavailable(_)))
            && matches!(self.v2.has_config().await, Err(Error::Unavailable(_)))
            && self.v2.has_no_http1()
    }

    /// Whether v2 holds a config, where v3 answers.
    async fn v2_has_config(&self) -> Result<bool, Error> {
        match self.v2.has_config().await {
            Err(Error::Unavailable(_)) if self.has_no_v2().await => Ok(false),
            other => other,
        }
    }

    /// The choice when v3 holds a config. If v2 holds one too, the other nodes are where the leases are.
    async fn choose_with_v3_config(&self) -> Result<Api, Error> {
        match self.v2_has_config().await {
            Ok(true) => {}
            Ok(false) => return Ok(Api::V3),
            // v2 will go on refusing this host, and a host that v2 refuses has no leases there.
            Err(error @ (Error::Invalid(_) | Error::Denied(_))) => {
                tracing::warn!("v2 does not tell whether it holds a network config too: {error}; v3 has one");
                return Ok(Api::V3);
            }
            Err(error) => return Err(unsure(error, "v3 holds a network config, and v2 does not tell")),
        }
        let only_v2 = self.v3.list().await?.entries.is_empty() && !self.v2.list().await?.entries.is_empty();
        Ok(if only_v2 { Api::V2 } else { Api::V3 })
    }

    /// The networks in both APIs, since every network is a store of its own and makes its own choice. If one API does
    /// not tell, that is an error: a list with fewer names would end networks that run.
    async fn networks(&self) -> Result<Vec<String>, Error> {
        let mut names = match self.v3.networks().await {
            Ok(names) => names,
            Err(error @ Error::Unavailable(_)) => {
                if !self.has_no_v3().await {
                    return Err(error);
                }
                Vec::new()
            }
            Err(error) => return Err(unsure(error, "v3 does not tell which networks it holds")),
        };
        match self.v2.networks_if_served().await {
            Err(Error::Unavailable(_)) if self.has_no_v2().await => {}
            Ok(more) => names.extend(more.unwrap_or_default()),
            Err(error) => return Err(unsure(error, "v2 does not tell which networks it holds")),
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// The error of one API, together with the question that it leaves open and the flag that settles it.
fn unsure(error: Error, open: &str) -> Error {
    let hint = |reason| format!("{reason}; {open} (--etcd-api names the one to use)");
    match error {
        Error::Unavailable(reason) => Error::Unavailable(hint(reason)),
        Error::Denied(reason) => Error::Denied(hint(reason)),
        Error::Invalid(reason) => Error::Invalid(hint(reason)),
        other => other,
    }
}

/// Makes the same call on the store that `$self` is.
macro_rules! each {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Store::V2($store) => $call,
            Store::V3($store) => $call,
            Store::Auto(auto) => match auto.store().await? {
                Chosen::V2($store) => $call,
                Chosen::V3($store) => $call,
            },
        }
    };
}

impl Registry for Store {
    type Watch = StoreWatch;

    async fn config(&self) -> Result<String, Error> {
        each!(self, store => store.config().await)
    }

    async fn config_changed(&self) -> Result<(), Error> {
        each!(self, store => store.config_changed().await)
    }

    fn generation(&self) -> Generation {
        match self {
            Store::V2(store) => store.generation(),
            Store::V3(store) => store.generation(),
            Store::Auto(auto) if auto.chosen() == Some(Api::V2) => Generation::V2,
            Store::Auto(_) => Generation::V3,
        }
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        match self {
            Store::V2(store) => store.networks().await,
            Store::V3(store) => store.networks().await,
            Store::Auto(auto) => auto.networks().await,
        }
    }

    async fn list(&self) -> Result<Listing, Error> {
        each!(self, store => store.list().await)
    }

    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        each!(self, store => store.create(key, attrs, ttl).await)
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        each!(self, store => store.update(held, attrs, ttl).await)
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        each!(self, store => store.delete(held).await)
    }

    fn reconnect(&self) {
        match self {
            Store::V2(store) => store.reconnect(),
            Store::V3(store) => store.reconnect(),
            Store::Auto(auto) => {
                auto.v2.reconnect();
                auto.v3.reconnect();
            }
        }
    }

    async fn admission(&self) {
        match self {
            Store::V2(store) => store.admission().await,
            Store::V3(store) => store.admission().await,
            // Nothing is written before the choice.
            Store::Auto(auto) => match auto.chosen() {
                Some(Api::V2) => auto.v2.admission().await,
                _ => auto.v3.admission().await,
            },
        }
    }

    async fn watch(&self, revision: Revision) -> Result<StoreWatch, Error> {
        each!(self, store => store.watch(revision).await.map(StoreWatch::from))
    }

    async fn resume(&self, seen: &Seen) -> Result<StoreWatch, Error> {
        each!(self, store => store.resume(seen).await.map(StoreWatch::from))
    }
}

/// A running watch over either API of etcd.
#[derive(Debug)]
pub enum StoreWatch {
    /// A watch over the keys API.
    V2(V2Watch),
    /// A watch over gRPC.
    V3(V3Watch),
}

impl From<V2Watch> for StoreWatch {
    fn from(watch: V2Watch) -> Self {
        Self::V2(watch)
    }
}

impl From<V3Watch> for StoreWatch {
    fn from(watch: V3Watch) -> Self {
        Self::V3(watch)
    }
}

impl Watch for StoreWatch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        match self {
            Self::V2(watch) => watch.next().await,
            Self::V3(watch) => watch.next().await,
        }
    }
}
