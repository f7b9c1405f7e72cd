//! The store of the daemon: whichever API the settings name, or whichever holds the config.

use super::{Api, Settings, V2, V2Watch, V3, V3Watch};
use crate::store::{Change, Entry, Error, Listing, Registry, Revision, Watch};
use crate::subnet::{LeaseAttrs, SubnetKey};
use std::cell::Cell;
use std::time::Duration;

/// A store over any API.
#[derive(Debug)]
pub enum Store {
    /// The keys API.
    V2(V2),
    /// gRPC.
    V3(V3),
    /// Undecided between the two until one of them shows a config.
    Auto(Auto),
}

/// Checks the settings and makes the store they describe. Nobody is contacted before the first call.
///
/// # Errors
/// [`Error::Invalid`] for settings that can never work: no or bad endpoints, a certificate without a
/// key, certificate files that cannot be read.
pub fn connect(settings: &Settings) -> Result<Store, Error> {
    super::tls::Pem::read(settings).map_err(|error| match error {
        Error::Unavailable(reason) => Error::Invalid(reason),
        other => other,
    })?;
    Ok(match settings.api {
        Api::V2 => Store::V2(V2::new(settings)?),
        Api::V3 => Store::V3(V3::new(settings)?),
        Api::Auto => Store::Auto(Auto::new(settings)?),
    })
}

/// Both APIs of one etcd, whose keys are two worlds: what is written through one is not seen through
/// the other. The one that holds `<prefix>/config` is taken and then kept; if both do, the one that holds
/// leases, since that is where the other nodes are; v3 if that decides nothing.
///
/// Until then every call asks anew. v2 is taken only when v3 has said for certain that it holds no
/// config, or when the server is older than etcd 3: two nodes that guess differently would not see each
/// other's leases. No config in v3 and a refusal from v2 is an error, not the absence of a config.
#[derive(Debug)]
pub struct Auto {
    v2: V2,
    v3: V3,
    chosen: Cell<Option<Api>>,
}

/// One of the two.
#[derive(Debug, Clone, Copy)]
enum Chosen<'a> {
    V2(&'a V2),
    V3(&'a V3),
}

impl Auto {
    fn new(settings: &Settings) -> Result<Self, Error> {
        Ok(Self { v2: V2::new(settings)?, v3: V3::new(settings)?, chosen: Cell::new(None) })
    }

    /// Which API was taken, if one was.
    pub fn chosen(&self) -> Option<Api> {
        self.chosen.get()
    }

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

    async fn choose(&self) -> Result<Api, Error> {
        let api = match self.v3.config().await {
            Ok(_) => self.choose_with_v3_config().await?,
            Err(Error::NotFound(key)) => match self.v2.has_config().await {
                Ok(true) => Api::V2,
                Ok(false) => return Err(Error::NotFound(key)),
                Err(error) => return Err(unsure(error, "v3 holds no network config, and v2 does not tell")),
            },
            Err(error @ Error::Unavailable(_)) => {
                if !self.is_before_v3().await {
                    return Err(error);
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

    /// Whether the server says that it is older than etcd 3, so that v3's silence is its absence.
    async fn is_before_v3(&self) -> bool {
        self.v2.server_major().await.is_ok_and(|major| major < 3)
    }

    /// v3 has a config. If v2 has one too, the nodes are where the leases are.
    async fn choose_with_v3_config(&self) -> Result<Api, Error> {
        match self.v2.has_config().await {
            Ok(true) => {}
            Ok(false) => return Ok(Api::V3),
            // A refusal lasts, and who is refused has no leases there.
            Err(error @ (Error::Invalid(_) | Error::Denied(_))) => {
                tracing::warn!("v2 does not tell whether it holds a network config too: {error}; v3 has one");
                return Ok(Api::V3);
            }
            Err(error) => return Err(unsure(error, "v3 holds a network config, and v2 does not tell")),
        }
        let only_v2 = self.v3.list().await?.entries.is_empty() && !self.v2.list().await?.entries.is_empty();
        Ok(if only_v2 { Api::V2 } else { Api::V3 })
    }

    /// Of both APIs: every network is a store of its own and chooses for itself. If one does not tell, that is an
    /// error: fewer names would end networks that run.
    async fn networks(&self) -> Result<Vec<String>, Error> {
        let mut names = match self.v3.networks().await {
            Ok(names) => names,
            Err(error @ Error::Unavailable(_)) => {
                if !self.is_before_v3().await {
                    return Err(error);
                }
                Vec::new()
            }
            Err(error) => return Err(unsure(error, "v3 does not tell which networks it holds")),
        };
        match self.v2.networks_if_served().await {
            Ok(more) => names.extend(more.unwrap_or_default()),
            Err(error) => return Err(unsure(error, "v2 does not tell which networks it holds")),
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// The error of one API, with what that leaves open and who can settle it.
fn unsure(error: Error, open: &str) -> Error {
    let hint = |reason| format!("{reason}; {open} (--etcd-api names the one to use)");
    match error {
        Error::Unavailable(reason) => Error::Unavailable(hint(reason)),
        Error::Denied(reason) => Error::Denied(hint(reason)),
        Error::Invalid(reason) => Error::Invalid(hint(reason)),
        other => other,
    }
}

/// The same call on whichever store it is.
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

    async fn watch(&self, revision: Revision) -> Result<StoreWatch, Error> {
        each!(self, store => store.watch(revision).await.map(StoreWatch::from))
    }
}

/// A running watch over any API.
#[derive(Debug)]
pub enum StoreWatch {
    /// The keys API.
    V2(V2Watch),
    /// gRPC.
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
