//! A store that can be replaced while calls are under way, so that endpoints, user and TLS files change without a
//! restart.
//!
//! A call that has begun ends at the store where it began. A watch ends with an error, as if its connection had
//! broken, and the next one begins at the new store where the old one stopped.

use super::{Api, Settings, Store, StoreWatch, connect};
use crate::store::{Change, Entry, Error, Listing, Registry, Revision, Seen, Watch};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// A [`Store`] behind a door that [`Replaceable::replace`] opens.
#[derive(Debug)]
pub struct Replaceable {
    prefix: String,
    api: Api,
    store: watch::Sender<Rc<Store>>,
}

impl Replaceable {
    /// Makes the store that the settings describe; see [`connect`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let store = watch::Sender::new(Rc::new(connect(settings)?));
        Ok(Self { prefix: settings.prefix.clone(), api: settings.api, store })
    }

    /// Puts the store of these settings in place of the present one. All files are read again. The prefix stays, and so
    /// does the API, also one that was chosen: the leases are there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work. Then the present store stays.
    pub fn replace(&self, settings: &Settings) -> Result<(), Error> {
        let api = match &*self.current() {
            Store::Auto(auto) => auto.chosen().unwrap_or(self.api),
            Store::V2(_) => Api::V2,
            Store::V3(_) => Api::V3,
        };
        let settings = Settings { prefix: self.prefix.clone(), api, ..settings.clone() };
        self.store.send_replace(Rc::new(connect(&settings)?));
        Ok(())
    }

    fn current(&self) -> Rc<Store> {
        Rc::clone(&self.store.borrow())
    }
}

impl Registry for Replaceable {
    type Watch = ReplaceableWatch;

    async fn config(&self) -> Result<String, Error> {
        self.current().config().await
    }

    /// A replaced store may hold another text, so the wait ends with the store.
    async fn config_changed(&self) -> Result<(), Error> {
        let mut replaced = self.store.subscribe();
        let store = self.current();
        tokio::select! {
            result = store.config_changed() => result,
            _ = replaced.changed() => Ok(()),
        }
    }

    /// A store that takes another's place knows us by its own settings.
    async fn admission(&self) {
        let mut replaced = self.store.subscribe();
        let store = self.current();
        tokio::select! {
            () = store.admission() => {}
            _ = replaced.changed() => {}
        }
    }

    fn reconnect(&self) {
        self.current().reconnect();
    }

    fn generation(&self) -> Generation {
        self.current().generation()
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        self.current().networks().await
    }

    async fn list(&self) -> Result<Listing, Error> {
        self.current().list().await
    }

    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        self.current().create(key, attrs, ttl).await
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        self.current().update(held, attrs, ttl).await
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        self.current().delete(held).await
    }

    async fn watch(&self, revision: Revision) -> Result<ReplaceableWatch, Error> {
        let store = self.store.subscribe();
        let watch = self.current().watch(revision).await?;
        Ok(ReplaceableWatch { watch, store })
    }

    async fn resume(&self, seen: &Seen) -> Result<ReplaceableWatch, Error> {
        let store = self.store.subscribe();
        let watch = self.current().resume(seen).await?;
        Ok(ReplaceableWatch { watch, store })
    }
}

/// A watch that ends when the store is replaced.
#[derive(Debug)]
pub struct ReplaceableWatch {
    watch: StoreWatch,
    store: watch::Receiver<Rc<Store>>,
}

impl Watch for ReplaceableWatch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        tokio::select! {
            biased;
            Ok(()) = self.store.changed() => Err(Error::Unavailable("the settings of etcd have changed".to_owned())),
            changes = self.watch.next() => changes,
        }
    }
}
