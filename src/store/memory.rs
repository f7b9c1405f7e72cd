//! A store inside this process, for tests.
//!
//! It keeps the whole contract that the other stores keep: revisions, conditional writes, TTLs, and a bounded history
//! that a watch can fall out of. Its clock stands still until [`Memory::advance`] moves it.

use super::keyspace::{self, Keyspace};
use super::{Change, Entry, Error, Listing, Registry, Revision, Seen, Shown, Watch};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How many events the store remembers. etcd v2 remembers as many.
const HISTORY: usize = 1000;

/// A store inside this process. All clones of it share one state.
#[derive(Debug, Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// What the store holds. A key here is the part that follows `<prefix>/subnets/`.
#[derive(Debug, Default)]
struct State {
    now: Duration,
    revision: Revision,
    /// The newest revision whose event is forgotten.
    forgotten: Revision,
    next_lease: u64,
    config: Option<String>,
    networks: BTreeSet<String>,
    keys: BTreeMap<String, Stored>,
    history: VecDeque<Event>,
}

/// The value of a key.
#[derive(Debug, Clone)]
struct Stored {
    value: String,
    revision: Revision,
    /// The id of the lease and the time at which it expires; `None` for a reservation.
    lease: Option<(u64, Duration)>,
}

/// One write to a key. Without a value it is a deletion or an expiry.
#[derive(Debug, Clone)]
struct Event {
    revision: Revision,
    name: String,
    stored: Option<Stored>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// A store without any key.
    pub fn new() -> Self {
        Self { state: Arc::default(), changed: Arc::new(Notify::new()) }
    }

    /// Moves the clock forward. Leases whose time has come expire in the order of their times.
    pub fn advance(&self, by: Duration) {
        let mut state = self.lock();
        state.now = state.now.saturating_add(by);
        state.expire();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Writes the network config.
    pub fn put_config(&self, text: &str) {
        let mut state = self.lock();
        state.revision += 1;
        state.config = Some(text.to_owned());
    }

    /// Adds or removes the config of a network below the prefix. This store holds only the names of such networks,
    /// not their leases.
    pub fn set_network(&self, name: &str, present: bool) {
        let mut state = self.lock();
        state.revision += 1;
        if present {
            state.networks.insert(name.to_owned());
        } else {
            state.networks.remove(name);
        }
    }

    /// Writes any key below `subnets/`, whatever was there before. Without a TTL it is a reservation.
    pub fn put_raw(&self, name: &str, value: &str, ttl: Option<Duration>) -> Revision {
        let revision = self.lock().put(name, value.to_owned(), ttl).revision;
        self.changed.notify_waiters();
        revision
    }

    /// Deletes a key below `subnets/` if it exists.
    pub fn delete_raw(&self, name: &str) {
        self.lock().remove(name);
        self.changed.notify_waiters();
    }

    /// Forgets all events up to and including `revision`.
    pub fn compact(&self, revision: Revision) {
        self.lock().forget(revision);
        self.changed.notify_waiters();
    }

    /// Locks the state. A poisoned lock means that a test has failed elsewhere; the state is still sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, name: &str, value: String, ttl: Option<Duration>) -> Stored {
        self.revision += 1;
        let lease = ttl.map(|ttl| {
            self.next_lease += 1;
            (self.next_lease, self.now.saturating_add(ttl))
        });
        let stored = Stored { value, revision: self.revision, lease };
        self.keys.insert(name.to_owned(), stored.clone());
        self.remember(name, Some(stored.clone()));
        stored
    }

    fn remove(&mut self, name: &str) {
        if self.keys.remove(name).is_some() {
            self.revision += 1;
            self.remember(name, None);
        }
    }

    fn remember(&mut self, name: &str, stored: Option<Stored>) {
        let newest = self.history.back().map_or(self.forgotten, |event| event.revision);
        debug_assert!(newest < self.revision, "every write has a revision of its own");
        self.history.push_back(Event { revision: self.revision, name: name.to_owned(), stored });
        if let Some(oldest) = self.history.front().filter(|_| self.history.len() > HISTORY) {
            self.forget(oldest.revision);
        }
        debug_assert!(self.history.len() <= HISTORY);
    }

    fn forget(&mut self, revision: Revision) {
        self.forgotten = self.forgotten.max(revision.min(self.revision));
        let forgotten = self.forgotten;
        self.history.retain(|event| event.revision > forgotten);
    }

    fn expire(&mut self) {
        let mut due: Vec<(Duration, String)> = self
            .keys
            .iter()
            .filter_map(|(name, stored)| stored.lease.map(|(_, at)| (at, name.clone())))
            .filter(|(at, _)| *at <= self.now)
            .collect();
        due.sort();
        for (_, name) in due {
            self.remove(&name);
        }
        let is_due = |stored: &Stored| stored.lease.is_some_and(|(_, at)| at <= self.now);
        debug_assert!(!self.keys.values().any(is_due));
    }

    /// The name of the key, if it still has the revision and the value that the caller holds.
    fn held(&self, held: &Entry) -> Result<String, Error> {
        let name = held.key.to_string();
        match self.keys.get(&name) {
            Some(stored) if stored.revision == held.revision && stored.value == held.value => Ok(name),
            _ => Err(Error::Conflict),
        }
    }
}

fn lease_id(stored: &Stored) -> Option<u64> {
    stored.lease.map(|(id, _)| id)
}

/// The entry for the lease that was just written.
fn written(key: SubnetKey, attrs: &LeaseAttrs, stored: Stored) -> Entry {
    let lease = lease_id(&stored);
    Entry { key, attrs: attrs.clone(), value: stored.value, revision: stored.revision, lease }
}

impl Registry for Memory {
    type Watch = MemoryWatch;

    async fn config(&self) -> Result<String, Error> {
        self.lock().config.clone().ok_or_else(|| Error::NotFound(Keyspace::in_tree("").config()))
    }

    fn generation(&self) -> Generation {
        Generation::V3
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        Ok(self.lock().networks.iter().cloned().collect())
    }

    async fn list(&self) -> Result<Listing, Error> {
        let state = self.lock();
        let mut listing = Listing { revision: state.revision, ..Listing::default() };
        for (name, stored) in &state.keys {
            match keyspace::entry(name, &stored.value, stored.revision, lease_id(stored)) {
                Ok(entry) => listing.entries.push(entry),
                Err(skipped) => listing.skipped.push(skipped),
            }
        }
        debug_assert!(listing.entries.iter().all(|entry| entry.revision <= listing.revision));
        Ok(listing)
    }

    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        let name = key.to_string();
        let mut state = self.lock();
        if state.keys.contains_key(&name) {
            return Err(Error::Exists);
        }
        let stored = state.put(&name, attrs.encode(Generation::V3), Some(ttl));
        self.changed.notify_waiters();
        Ok(written(key, attrs, stored))
    }

    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        let mut state = self.lock();
        let name = state.held(held)?;
        let stored = state.put(&name, attrs.encode(Generation::V3), held.lease.map(|_| ttl));
        self.changed.notify_waiters();
        Ok(written(held.key, attrs, stored))
    }

    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        let mut state = self.lock();
        let name = state.held(held)?;
        state.remove(&name);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn watch(&self, revision: Revision) -> Result<MemoryWatch, Error> {
        if revision < self.lock().forgotten {
            return Err(Error::Compacted);
        }
        Ok(MemoryWatch { store: self.clone(), seen: revision })
    }

    async fn resume(&self, seen: &Seen) -> Result<MemoryWatch, Error> {
        let mut before = self.watch(seen.from().saturating_sub(1)).await?;
        match seen.compare(&before.changes()?) {
            Shown::All(_) => self.watch(seen.to()).await,
            Shown::Part | Shown::Other => Err(Error::Compacted),
        }
    }
}

/// A running watch over a [`Memory`].
#[derive(Debug)]
pub struct MemoryWatch {
    store: Memory,
    seen: Revision,
}

impl MemoryWatch {
    fn changes(&mut self) -> Result<Vec<Change>, Error> {
        let state = self.store.lock();
        if self.seen < state.forgotten {
            return Err(Error::Compacted);
        }
        let changes = state
            .history
            .iter()
            .filter(|event| event.revision > self.seen)
            .filter_map(|event| match &event.stored {
                Some(stored) => Some(
                    keyspace::entry(&event.name, &stored.value, stored.revision, lease_id(stored))
                        .map_or_else(Change::Skipped, Change::Set),
                ),
                None => keyspace::subnet(&event.name)
                    .ok()
                    .map(|key| Change::Gone { key, revision: event.revision }),
            })
            .collect();
        debug_assert!(state.forgotten <= state.revision);
        // A watch may begin at a revision that this store has not reached; it then waits until the store is past it.
        self.seen = self.seen.max(state.revision);
        Ok(changes)
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        let changed = Arc::clone(&self.store.changed);
        loop {
            // The watch registers before it looks: otherwise it would sleep through a change in between.
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            let changes = self.changes()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            notified.await;
        }
    }
}
