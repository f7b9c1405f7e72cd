//! flannel's contract with a store, whoever keeps it.
//!
//! # Theory of operation
//!
//! The contract is small: one config, one key for every lease, a TTL on each, and a feed of changes. [`Registry`]
//! is that contract. etcd's two APIs (the room `etcd`) and [`Memory`] (this process) keep it, and one set of tests
//! holds all of them to it.
//!
//! - **Writes are conditional**, all of them: create if absent, update and delete if unchanged. flannel
//!   overwrites, and so steals back a subnet that has long been another's.
//! - **A write whose answer was lost** is not repeated by the store: the call ends in [`Error::Unavailable`], and
//!   a new list tells what came of it.
//! - **A watch never heals itself.** It ends with an error, and its caller goes on from the last revision seen or
//!   from a new list; so there is one place that decides about [`Backoff`].
//! - **Nothing is believed.** A key or value that cannot be read is reported ([`Skipped`]) and left alone.
//! - **One task, one runtime.** Nothing here is `Send`; nothing is spawned.
//!
//! | file | |
//! |---|---|
//! | `mod` | the contract |
//! | `keyspace` | where things lie in the store, and what a key and its value mean |
//! | `memory` | a store inside this process |
//! | `backoff` | how long to wait before the next attempt |

mod backoff;
pub mod keyspace;
mod memory;

pub use backoff::{Backoff, jitter};
pub use memory::{Memory, MemoryWatch};

use crate::subnet::{LeaseAttrs, SubnetKey};
use std::time::Duration;

/// v2: a `modifiedIndex` or `X-Etcd-Index`; v3: a (mod) revision. Grows with every write to the store.
pub type Revision = u64;

/// One lease as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The subnet.
    pub key: SubnetKey,
    /// Its owner.
    pub attrs: LeaseAttrs,
    /// The value as it stands in the store. A conditional write compares with it too, since a revision alone
    /// can come twice: a store that was restored from an older state counts on from there.
    pub value: String,
    /// The revision of the last write to this key: what a conditional write compares with.
    pub revision: Revision,
    /// `None`: the key has no TTL, it is a reservation. v3: the etcd lease's id; v2: always 0.
    pub lease: Option<u64>,
}

/// A key or value under `subnets/` that could not be read; it is counted and left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The last element of the key, as it stands in the store.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Every lease at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The readable leases.
    pub entries: Vec<Entry>,
    /// The rest.
    pub skipped: Vec<Skipped>,
    /// The store's revision at the time of the list; a watch from here misses nothing.
    pub revision: Revision,
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Set(Entry),
    /// A key was deleted or expired.
    Gone {
        /// Which.
        key: SubnetKey,
        /// When.
        revision: Revision,
    },
    /// Something unreadable was written; the last good value of that key, if any, stays in force.
    Skipped(Skipped),
}

/// Why a call to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key does not exist.
    #[error("{0}: no such key")]
    NotFound(String),
    /// A create found the key there already.
    #[error("the key exists already")]
    Exists,
    /// A conditional write found another revision or value, or no key at all.
    #[error("the key was changed by someone else")]
    Conflict,
    /// The watch's revision is older than the store remembers (v2: error 401, v3: compaction).
    #[error("the store no longer remembers that revision")]
    Compacted,
    /// No endpoint answered in time. The write may or may not have happened.
    #[error("etcd does not answer: {0}")]
    Unavailable(String),
    /// Wrong user, password, certificate or role.
    #[error("etcd refuses: {0}")]
    Denied(String),
    /// An answer that makes no sense, or settings that can never work.
    #[error("{0}")]
    Invalid(String),
}

/// The store, seen as flannel's contract needs it. Every write is conditional.
///
/// One task calls it (current-thread runtime), hence no `Send` bounds. Every call is one round of the store's
/// endpoints and ends within a request's deadline times their number, with two exceptions:
/// [`Registry::networks`] is a round for each child of the prefix and more, and a store that has still to choose its
/// API makes at most four other calls first. A silent store takes at most two rounds; only one that answers, slowly,
/// takes more.
#[allow(async_fn_in_trait)]
pub trait Registry {
    /// A running watch.
    type Watch: Watch;
    /// The text of `<prefix>/config`.
    async fn config(&self) -> Result<String, Error>;
    /// The names of the networks below this prefix, sorted: its children that own a `config` key. For the mode
    /// of several networks, in which the prefix itself has none.
    async fn networks(&self) -> Result<Vec<String>, Error>;
    /// All leases.
    async fn list(&self) -> Result<Listing, Error>;
    /// Creates a lease if the key is absent, else [`Error::Exists`].
    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error>;
    /// Overwrites the value and refreshes the TTL if the key is still as `held` has it (revision and value),
    /// else [`Error::Conflict`]. A reservation (`held.lease == None`) stays one: `ttl` is then ignored.
    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error>;
    /// Deletes the key if it is still as `held` has it (revision and value), else [`Error::Conflict`].
    async fn delete(&self, held: &Entry) -> Result<(), Error>;
    /// Follows all changes after `revision`.
    async fn watch(&self, revision: Revision) -> Result<Self::Watch, Error>;
}

/// A running watch over all leases.
#[allow(async_fn_in_trait)]
pub trait Watch {
    /// The next changes, in the store's order; waits as long as there are none. After an error the
    /// watch is over: [`Error::Compacted`] asks for a new list, anything else for a new watch from the
    /// last revision seen. Cancel-safe: dropping the future loses no event.
    async fn next(&mut self) -> Result<Vec<Change>, Error>;
}
