//! The life of this host's lease, and the peers, without I/O.
//!
//! Theory of operation. [`Manager`] is a state machine. [`Manager::handle`] takes an [`Input`] (the answer
//! to a call, a change that the watch saw, or just the passing of time) and the time, and returns
//! [`Output`]s: calls to make, a watch to start, notices for the daemon. [`Manager::wake_at`] says when it
//! wants to be called next if nothing happens. The clock and the seed are arguments, so a simulation can
//! run a network of these for days in a second and repeat any run exactly (`tests::sim`).
//!
//! - **One call at a time.** The driver makes the calls in the order of the outputs; the machine never
//!   asks for a second before it has the answer to the first. The watch runs beside them.
//! - **One owner.** A subnet is created only if its key is absent and renewed only if the key still has the
//!   revision and the value that we last saw (a restored store hands out a revision twice). Our own deadline
//!   is the clock from *before* the request was sent plus the TTL, so it is never later than the store's.
//! - **A lost answer** leaves open whether the write happened, so the machine looks (list) before it
//!   writes again.
//! - **No gap between list and watch.** A watch starts at the revision of a list. While a later list is on
//!   its way the changes that the watch sees are kept and replayed over it, as far as they are newer.
//!   Changes that a list has included already are dropped.
//! - **A restored store** goes back to an older state and counts on from there; what we know of it may be of
//!   a history that is no more. So whatever fails is followed by a list that is sent after it. If our key is
//!   absent then, it was revoked; if it is an older copy of ours, it is lost until a renewal has gone through.
//! - **Losing the lease** is in two steps. `Lost` or `Revoked`: we do not hold it for now, and try to
//!   create the same key again. `Conflict`: somebody else owns it, and [`OnLost`] decides. An outage of
//!   the store is neither: peers and subnet stay as they are.
//!
//! The parts know neither the manager nor each other. Each keeps its own state and returns the steps that it has
//! decided on; the manager carries them out:
//!
//! ```text
//!   Input ──► manager ──► feed, own, seek ──► Step ──► manager ──► Output
//!                │                                        │
//!                └── watcher (the peers), health, delays ─┘
//! ```
//!
//! | file | |
//! |---|---|
//! | `manager` | the machine: routes inputs, carries out steps, has the one call under way |
//! | `seek` | no subnet yet: which one to ask for |
//! | `own` | a subnet: renew, adopt, lose, regain |
//! | `feed` | the watch and the lists beside it |
//! | `watcher` | the peers: snapshot, deltas, what is refused |
//! | `health` | is the store there, and when to say so |
//! | `delays` | how long to wait, with the randomness in it |
//! | `settings` | TTL, margin and what happens to a lost lease |

mod delays;
mod feed;
mod health;
mod manager;
mod own;
mod seek;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod watcher;

use crate::store::{Change, Entry, Error, Listing, Revision};
use crate::subnet::allocate::OutOfSubnets;
use crate::subnet::{Event, LeaseAttrs, SubnetKey};
use ipnet::Ipv4Net;
pub use manager::{Manager, Status};
pub use settings::{DEFAULT_RENEW_MARGIN, DEFAULT_TTL, OnLost, Settings, SettingsError};
use std::net::Ipv4Addr;
use std::time::Duration;
pub use watcher::Counters;

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Nothing, but time has passed.
    Tick,
    /// The answer to the call that is under way.
    Reply(Reply),
    /// The watch that was asked for last is running.
    WatchStarted,
    /// It could not be started, or is over.
    WatchFailed(Error),
    /// What it saw.
    Changes(Vec<Change>),
}

/// The answer to a [`Call`].
#[derive(Debug, Clone)]
pub enum Reply {
    /// To [`Call::List`].
    Listed(Result<Listing, Error>),
    /// To [`Call::Create`].
    Created(Result<Entry, Error>),
    /// To [`Call::Update`].
    Updated(Result<Entry, Error>),
    /// To [`Call::Delete`].
    Deleted(Result<(), Error>),
}

/// A call to [`crate::store::Registry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// All leases.
    List,
    /// Create the key if absent.
    Create {
        /// The key.
        key: SubnetKey,
        /// Its value.
        attrs: LeaseAttrs,
        /// How long it lives.
        ttl: Duration,
    },
    /// Overwrite the value and refresh the TTL if the key is as held.
    Update {
        /// The key as we know it.
        held: Entry,
        /// Its new value.
        attrs: LeaseAttrs,
        /// How long it lives from now on.
        ttl: Duration,
    },
    /// Delete the key if it is as held.
    Delete {
        /// The key as we know it.
        held: Entry,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Make this call and bring back the [`Reply`]. There is never more than one under way.
    Call(Call),
    /// Drop the running watch, if any, and start one that follows all changes after `from`.
    Watch {
        /// The revision of the last change that needs no repetition.
        from: Revision,
    },
    /// Tell the daemon.
    Notice(Notice),
}

/// How a subnet became ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The store had a lease of our PublicIP.
    Reused,
    /// It is the one that we had before, by `subnet.env`.
    Previous,
    /// Picked at random.
    Fresh,
    /// We had lost it since the last `Acquired`, and got the same one back.
    Regained,
}

/// What the daemon should know.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// We hold a subnet. With [`How::Regained`] it is the same as before. Otherwise it is the first, or
    /// (only with [`OnLost::Reacquire`]) a new one after a `Conflict`, before which all peers were
    /// removed; in both cases the peers follow as `Peers`.
    Acquired {
        /// Which.
        subnet: Ipv4Net,
        /// How we came by it.
        how: How,
        /// Until when, unless renewed; `None` for a reservation.
        deadline: Option<Duration>,
    },
    /// The lease was renewed.
    Renewed {
        /// Which.
        subnet: Ipv4Net,
        /// Until when; `None` for a reservation.
        deadline: Option<Duration>,
    },
    /// An operator wrote our key again without a TTL: ours until deleted.
    Reserved {
        /// Which.
        subnet: Ipv4Net,
    },
    /// Our key was deleted. We try to create it again; keep forwarding.
    Revoked {
        /// Which.
        subnet: Ipv4Net,
    },
    /// Our deadline passed without a renewal, or the store was restored and knows an older copy of our lease,
    /// which may end any moment. We try to get it back; keep forwarding.
    Lost {
        /// Which.
        subnet: Ipv4Net,
    },
    /// Somebody else has our key, or part of our subnet while our key is gone. As long as our key stands, a
    /// lease of another prefix length that overlaps it is [`Notice::Refused`]: who was first stays.
    Conflict {
        /// Which.
        subnet: Ipv4Net,
        /// Who.
        owner: Ipv4Addr,
        /// What follows. After [`OnLost::Exit`] the machine is at its end.
        then: OnLost,
    },
    /// No subnet is free; we try again. At most once a minute.
    OutOfSubnets(OutOfSubnets),
    /// Peers that came, changed or went; to be applied in this order.
    Peers(Vec<Event>),
    /// A key or value is unreadable or a lease unusable; it is left alone. Once for each.
    Refused {
        /// The last element of its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A list lacks more than half of the peers: they stay until a second list lacks them too.
    Withheld {
        /// How many.
        count: usize,
    },
    /// The store's revision went back: it was restored or made anew. Not said if
    /// it has come past what we knew before we looked.
    StoreReset,
    /// The store does not answer. The first time, and not more than once a minute.
    StoreLost {
        /// Why.
        reason: String,
    },
    /// It still does not; once a minute.
    StoreStillLost {
        /// Why.
        reason: String,
        /// For how long.
        since: Duration,
    },
    /// It answers again.
    StoreBack {
        /// For how long it did not.
        after: Duration,
    },
}
