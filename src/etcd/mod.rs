//! The store that holds the network config and the leases.
//!
//! # Theory of operation
//!
//! flannel's contract with etcd is small: one config, one key for every lease, a TTL on each, and a feed
//! of changes. [`Registry`] is that contract; [`V2`] (the keys API), [`V3`] (gRPC) and [`Memory`] (this
//! process) keep it, and one set of tests holds all three to it. [`connect`] makes the one that the
//! settings ask for.
//!
//! - **Writes are conditional**, all of them: create if absent, update and delete if unchanged. flannel
//!   overwrites, and so steals back a subnet that has long been another's.
//! - **Deadlines.** Every request has one at each endpoint, and the next endpoint is asked when one is
//!   silent. A write whose answer was lost is *not* repeated elsewhere: it ends in
//!   [`Error::Unavailable`], and a new list tells what came of it.
//! - **A watch never heals itself.** It ends with an error, and who asked for it goes on from the last
//!   revision seen or from a new list; so there is one place that decides about back-off.
//! - **Nothing is believed.** A key or value that cannot be read is reported ([`Skipped`]) and left
//!   alone; answers have a largest size.
//! - **One task, one runtime.** Nothing here is `Send`; nothing is spawned.

mod endpoints;
mod keyspace;
mod memory;
mod store;
mod tls;
mod v2;
mod v3;

pub use memory::{Memory, MemoryWatch};
pub use store::{Auto, Store, StoreWatch, connect};
pub use v2::{V2, V2Watch};
pub use v3::{V3, V3Watch};

use crate::subnet::{LeaseAttrs, SubnetKey};
use std::path::PathBuf;
use std::time::Duration;

/// Which etcd API to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// The keys API over HTTP; etcd up to 3.5, and only with `--enable-v2`.
    V2,
    /// gRPC.
    V3,
    /// Ask both and take the one that holds the config.
    #[default]
    Auto,
}

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http://host:port` or `https://host:port` (a bare `host:port` is `http`); tried in turn.
    pub endpoints: Vec<String>,
    /// Key prefix, normalised to one leading and no trailing slash.
    pub prefix: String,
    /// Which API to speak.
    pub api: Api,
    /// CA bundle (PEM); enough on its own to verify the server.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM), together with [`Settings::key_file`].
    pub cert_file: Option<PathBuf>,
    /// Client key (PEM).
    pub key_file: Option<PathBuf>,
    /// User and password; the password never reaches a log.
    pub credentials: Option<Credentials>,
    /// Deadline of every request but the watch, at each endpoint; see [`Settings::TIMEOUT`].
    pub timeout: Duration,
}

impl Settings {
    /// A deadline that suits most: etcd answers in milliseconds, and gives up on itself after 5 to 7 s.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

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
/// One task calls it (current-thread runtime), hence no `Send` bounds. Every call is one round of the endpoints and
/// ends within [`Settings::timeout`] times their number, but for two: [`Registry::networks`] is a round for each
/// child of the prefix and more, and a call of an undecided [`Auto`] comes after those that it decides by, four at
/// most. Of a store that is silent there are no more than two: only one that answers, slowly, draws these out.
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
