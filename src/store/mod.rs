//! flannel's contract with a store, whichever store keeps it.
//!
//! # Theory of operation
//!
//! The contract is small: one config, one key for every lease, a TTL on each, and a feed of changes. [`Registry`]
//! is that contract. etcd's two APIs (the room `etcd`) and [`Memory`] (a store inside this process) keep it, and one
//! set of tests holds all of them to it.
//!
//! - **All writes are conditional**: a create needs an absent key, an update or a delete an unchanged one. flannel
//!   overwrites instead, and so takes back a subnet that has long belonged to another host.
//! - **A write whose answer was lost** is not repeated by the store: the call ends in [`Error::Unavailable`], and
//!   a new list tells whether the write happened.
//! - **A watch never repairs itself.** It ends with an error, and its caller goes on from the last revision seen or
//!   from a new list. So one place alone decides about [`Backoff`].
//! - **No text is trusted.** A key or value that cannot be read is reported ([`Skipped`]) and left alone.
//! - **One task calls the store**, on one runtime. So nothing here has to be `Send`, and the store starts no tasks.
//!
//! | file | |
//! |---|---|
//! | `mod` | the contract |
//! | `keyspace` | where things lie in the store, and what a key and its value mean |
//! | `memory` | a store inside this process |
//! | `seen` | what a store has to show to prove that it is still the same |
//! | `backoff` | how long to wait before the next attempt |

mod backoff;
pub mod keyspace;
mod memory;
mod seen;

pub use backoff::{Backoff, chance, jitter};
pub use memory::{Memory, MemoryWatch};
pub use seen::{Seen, Shown};

use crate::subnet::{Generation, LeaseAttrs, SubnetKey};
use std::time::Duration;

/// A number that grows with every write to the store. In etcd v2 it is a `modifiedIndex` or `X-Etcd-Index`, in v3 a
/// revision or mod revision.
pub type Revision = u64;

/// One lease as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The subnet that the key names.
    pub key: SubnetKey,
    /// What the owner of the subnet published.
    pub attrs: LeaseAttrs,
    /// The value as it stands in the store. A conditional write compares with it too, because the same revision
    /// can come twice: a store that was restored from an older state goes on counting from there.
    pub value: String,
    /// The revision of the last write to this key. A conditional write compares with it.
    pub revision: Revision,
    /// The id of the etcd lease in v3, and always 0 in v2. `None` means that the key has no TTL: it is a reservation.
    pub lease: Option<u64>,
}

/// A key or value under `subnets/` that could not be read. It is counted and left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The last element of the key, as it stands in the store.
    pub key: String,
    /// What is wrong with the key or its value.
    pub reason: String,
}

/// Every lease at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The leases that could be read.
    pub entries: Vec<Entry>,
    /// The keys and values that could not be read.
    pub skipped: Vec<Skipped>,
    /// The revision of the store at the time of the list. A watch from here misses nothing.
    pub revision: Revision,
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Set(Entry),
    /// A key was deleted or expired.
    Gone {
        /// The subnet that the key named.
        key: SubnetKey,
        /// The revision of the deletion or expiry.
        revision: Revision,
    },
    /// A key was written that cannot be read. If it had a good value before, that value stays in force.
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
    /// The store no longer remembers the revision that the watch asks for (v2: error 401, v3: compaction).
    #[error("the store no longer remembers that revision")]
    Compacted,
    /// No endpoint answered in time. The write may or may not have happened.
    #[error("etcd does not answer: {0}")]
    Unavailable(String),
    /// The store does not accept the user, the password, the certificate or the role.
    #[error("etcd refuses: {0}")]
    Denied(String),
    /// The answer makes no sense, or the settings can never work.
    #[error("{0}")]
    Invalid(String),
}

/// How often the config is looked at where the store tells of no change.
pub const CONFIG_LOOK: Duration = Duration::from_secs(15);

/// A store as flannel's contract needs it. Every write is conditional.
///
/// One task calls it, on a current-thread runtime, so there are no `Send` bounds. Every call asks each address of each
/// endpoint at most once, and so ends within the deadline of a request times the number of addresses, and usually much
/// earlier, because addresses are tried beside each other. There are two exceptions: [`Registry::networks`] makes at least one such round for each child of the prefix, and a store that has
/// still to choose its API makes at most four other calls first. When the store is silent, these end after two rounds
/// at most; only a store that answers slowly takes longer.
#[allow(async_fn_in_trait)]
pub trait Registry {
    /// The type of a running watch.
    type Watch: Watch;
    /// Reads the text of `<prefix>/config`.
    async fn config(&self) -> Result<String, Error>;
    /// Waits until the text may be another than [`Registry::config`] has read last. A store that cannot tell returns
    /// after [`CONFIG_LOOK`].
    async fn config_changed(&self) -> Result<(), Error> {
        tokio::time::sleep(CONFIG_LOOK).await;
        Ok(())
    }
    /// The generation of flannel whose defaults count for the text that [`Registry::config`] has read last.
    fn generation(&self) -> Generation;
    /// Lists the names of the networks below this prefix, sorted. A network is a child that owns a `config` key. In the
    /// mode of several networks the prefix itself has no config.
    async fn networks(&self) -> Result<Vec<String>, Error>;
    /// Lists all leases.
    async fn list(&self) -> Result<Listing, Error>;
    /// Creates a lease if the key is absent; otherwise fails with [`Error::Exists`].
    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error>;
    /// Overwrites the value and refreshes the TTL if the key still has the revision and the value of `held`;
    /// otherwise fails with [`Error::Conflict`]. A reservation (`held.lease == None`) stays one and ignores `ttl`.
    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error>;
    /// Deletes the key if it still has the revision and the value of `held`; otherwise fails with
    /// [`Error::Conflict`].
    async fn delete(&self, held: &Entry) -> Result<(), Error>;
    /// Gives up the connections, since this host has another address: the next call makes new ones.
    fn reconnect(&self) {}
    /// Waits until a store that has refused us may let us in, since it knows us by something else now: another password,
    /// certificate or user.
    async fn admission(&self) {
        std::future::pending::<()>().await;
    }
    /// Starts a watch that tells of all changes after `revision`.
    async fn watch(&self, revision: Revision) -> Result<Self::Watch, Error>;
    /// Starts a watch that tells of all changes after those that were seen, if the store shows that it has made those.
    /// [`Error::Compacted`]: it has forgotten them, it has made others, or it cannot tell.
    async fn resume(&self, _seen: &Seen) -> Result<Self::Watch, Error> {
        Err(Error::Compacted)
    }
}

/// A running watch over all leases.
#[allow(async_fn_in_trait)]
pub trait Watch {
    /// Waits for the next changes and returns them in the order of the store. After an error the watch is over:
    /// [`Error::Compacted`] asks for a new list, any other error for a new watch from the last revision seen. The call
    /// is cancel-safe: dropping its future loses no event.
    async fn next(&mut self) -> Result<Vec<Change>, Error>;
}
