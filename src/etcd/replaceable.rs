//! A store that can be replaced while calls are under way, so that endpoints, user and TLS files change without a
//! restart.
//!
//! A call that has begun ends at the store where it began. A watch ends with an error, as if its connection had
//! broken, and the next one begins at the new store where the old one stopped.

use super::files::Files;
use super::{Api, Settings, Store, StoreWatch, connect};
use crate::store::{Change, Entry, Error, Listing, Registry, Revision, Seen, Watch};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// A [`Store`] behind a door that [`Replaceable::replace`] opens.
#[derive(Debug)]
pub struct Replaceable {
    prefix: String,
    api: Api,
    store: watch::Sender<Rc<Store>>,
    /// What the present store was made of, if its files could be read.
    made_of: RefCell<Option<(Settings, Files)>>,
    /// The number of watches that run.
    watches: Rc<Cell<usize>>,
    /// Whether the store has refused the last write.
    is_read_only: Cell<bool>,
}

impl Replaceable {
    /// Makes the store that the settings describe; see [`connect`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let store = watch::Sender::new(Rc::new(connect(settings)?));
        let made_of = RefCell::new(made_of(settings));
        let (watches, is_read_only) = (Rc::default(), Cell::new(false));
        Ok(Self { prefix: settings.prefix.clone(), api: settings.api, store, made_of, watches, is_read_only })
    }

    /// Puts the store of these settings in place of the present one. All files are read again. The prefix stays, and so
    /// does the API, also one that was chosen: the leases are there. If nothing has changed and the present store serves
    /// us, it stays, and its connections with it: many nodes may be told to read their settings at once.
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
        let now = made_of(&settings);
        // The system's own certificates may have changed where they count.
        let by_system =
            settings.ca_file.is_none() && settings.endpoints.iter().any(|url| url.contains("https://"));
        let before = self.made_of.replace(now.clone());
        let is_same = |before: &(Settings, Files)| {
            now.as_ref().is_some_and(|now| before.1 == now.1 && before.0.reaches_as(&now.0))
        };
        let serves = self.watches.get() > 0 && !self.is_read_only.get();
        if serves && !by_system && before.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        self.store.send_replace(Rc::new(connect(&settings)?));
        Ok(())
    }

    fn current(&self) -> Rc<Store> {
        Rc::clone(&self.store.borrow())
    }

    /// Notes whether the store takes writes.
    fn written<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        match &result {
            Err(Error::Denied(_)) => self.is_read_only.set(true),
            Err(_) => {}
            Ok(_) => self.is_read_only.set(false),
        }
        result
    }

    fn running(&self, watch: StoreWatch, store: watch::Receiver<Rc<Store>>) -> ReplaceableWatch {
        self.watches.set(self.watches.get() + 1);
        ReplaceableWatch { watch, store, count: Rc::clone(&self.watches) }
    }
}

/// The settings and what their files hold at this moment; `None` if they cannot be read.
fn made_of(settings: &Settings) -> Option<(Settings, Files)> {
    Some((settings.clone(), Files::read(settings).ok()?))
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
        self.written(self.current().create(key, attrs, ttl).await)
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        self.written(self.current().update(held, attrs, ttl).await)
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        self.written(self.current().delete(held).await)
    }

    async fn watch(&self, revision: Revision) -> Result<ReplaceableWatch, Error> {
        let store = self.store.subscribe();
        let watch = self.current().watch(revision).await?;
        Ok(self.running(watch, store))
    }

    async fn resume(&self, seen: &Seen) -> Result<ReplaceableWatch, Error> {
        let store = self.store.subscribe();
        let watch = self.current().resume(seen).await?;
        Ok(self.running(watch, store))
    }
}

/// A watch that ends when the store is replaced.
#[derive(Debug)]
pub struct ReplaceableWatch {
    watch: StoreWatch,
    store: watch::Receiver<Rc<Store>>,
    /// The number of watches that run.
    count: Rc<Cell<usize>>,
}

impl Drop for ReplaceableWatch {
    fn drop(&mut self) {
        debug_assert!(self.count.get() > 0, "this one is counted");
        self.count.set(self.count.get().saturating_sub(1));
    }
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
