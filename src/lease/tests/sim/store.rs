//! A store with revisions, TTLs, history and compaction, and nothing else.

use crate::store::{Change, Entry, Error, Listing, Revision, Seen, Shown, Skipped};
use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone)]
struct Stored {
    /// The entry, or the complaint about a value that is garbage.
    entry: Result<Entry, Skipped>,
    expires: Option<Duration>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Store {
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    keys: BTreeMap<SubnetKey, Stored>,
    log: Vec<(Revision, Change)>,
    leases: u64,
}

impl Store {
    /// Expires what is due. It is to be called before anything else at a new time.
    pub(crate) fn tick(&mut self, now: Duration) {
        let due = |stored: &Stored| stored.expires.is_some_and(|at| at <= now);
        let gone: Vec<SubnetKey> = self.keys.iter().filter(|(_, s)| due(s)).map(|(key, _)| *key).collect();
        for key in gone {
            self.remove(key);
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.keys.values().filter_map(|stored| stored.expires).min()
    }

    pub(crate) fn remove(&mut self, key: SubnetKey) {
        if self.keys.remove(&key).is_some() {
            self.revision += 1;
            self.log.push((self.revision, Change::Gone { key, revision: self.revision }));
        }
    }

    /// Writes without a condition. Without `expires` the key has no TTL.
    pub(crate) fn put(&mut self, key: SubnetKey, attrs: &LeaseAttrs, expires: Option<Duration>) -> Entry {
        self.revision += 1;
        self.leases += 1;
        let lease = expires.map(|_| self.leases);
        let value = attrs.encode(Generation::V3);
        let entry = Entry { key, attrs: attrs.clone(), value, revision: self.revision, lease };
        self.keys.insert(key, Stored { entry: Ok(entry.clone()), expires });
        self.log.push((self.revision, Change::Set(entry.clone())));
        entry
    }

    pub(crate) fn put_garbage(&mut self, key: SubnetKey, expires: Option<Duration>) {
        self.revision += 1;
        let skipped = Skipped { key: key.to_string(), reason: "garbage".to_owned() };
        self.keys.insert(key, Stored { entry: Err(skipped.clone()), expires });
        self.log.push((self.revision, Change::Skipped(skipped)));
    }

    pub(crate) fn list(&self) -> Listing {
        let mut listing = Listing { revision: self.revision, ..Listing::default() };
        for stored in self.keys.values() {
            match &stored.entry {
                Ok(entry) => listing.entries.push(entry.clone()),
                Err(skipped) => listing.skipped.push(skipped.clone()),
            }
        }
        listing
    }

    pub(crate) fn get(&self, key: SubnetKey) -> Option<&Entry> {
        self.keys.get(&key)?.entry.as_ref().ok()
    }

    pub(crate) fn is_garbage(&self, key: SubnetKey) -> bool {
        self.keys.get(&key).is_some_and(|stored| stored.entry.is_err())
    }

    pub(crate) fn create(
        &mut self,
        now: Duration,
        key: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Entry, Error> {
        if self.keys.contains_key(&key) {
            return Err(Error::Exists);
        }
        Ok(self.put(key, attrs, Some(now + ttl)))
    }

    pub(crate) fn update(
        &mut self,
        now: Duration,
        held: &Entry,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Entry, Error> {
        self.check(held)?;
        let lease = held.lease.map(|_| now + ttl);
        Ok(self.put(held.key, attrs, lease))
    }

    pub(crate) fn delete(&mut self, held: &Entry) -> Result<(), Error> {
        self.check(held)?;
        self.remove(held.key);
        Ok(())
    }

    fn check(&self, held: &Entry) -> Result<(), Error> {
        match self.get(held.key) {
            Some(entry) if entry.revision == held.revision && entry.value == held.value => Ok(()),
            _ => Err(Error::Conflict),
        }
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
    }

    /// Whether it has made all of these changes, and still knows.
    pub(crate) fn shows(&self, seen: &Seen) -> bool {
        let told = self.changes(seen.from().saturating_sub(1)).unwrap_or_default();
        let told: Vec<Change> = told.into_iter().map(|(_, change)| change).collect();
        matches!(seen.compare(&told), Shown::All(_))
    }

    /// Goes on with the ids of leases after those of another store: etcd makes no id twice, not even after a restore.
    pub(crate) fn leases_after(&mut self, other: &Self) {
        self.leases = other.leases;
    }

    /// All changes after `from`, each with its revision.
    pub(crate) fn changes(&self, from: Revision) -> Result<Vec<(Revision, Change)>, Error> {
        if from < self.compacted || from > self.revision {
            return Err(Error::Compacted);
        }
        Ok(self.log.iter().filter(|(revision, _)| *revision > from).cloned().collect())
    }
}
