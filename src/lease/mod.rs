//! The life of this host's lease, and its view of the peers, without I/O.
//!
//! # Theory of operation
//!
//! [`Manager`] is a state machine. [`Manager::handle`] takes the time and an [`Input`] (the answer to a call, a
//! change that the watch saw, or just the passing of time) and returns [`Output`]s: calls to make, a watch to
//! start, notices for the daemon. [`Manager::wake_at`] says when it wants to be called next if nothing happens.
//! The clock and the seed are arguments, so a simulation (`tests::sim`) can run a network of machines for days in
//! a second and repeat any run exactly.
//!
//! - **One call at a time.** The machine never asks for a second call before it has the answer to the first. The
//!   watch runs beside the calls.
//! - **One owner.** A subnet is created only if its key is absent. It is renewed only if the key still has the
//!   revision and the value that we last saw; the revision alone does not do, since a restored store hands out a
//!   revision twice. Our own deadline is the clock from *before* the request was sent plus the TTL, so it is never
//!   later than the store's.
//! - **A lost answer** leaves open whether the write happened. A renewal is repeated as it was, since it fails if it
//!   has happened; before any other write the machine looks (list).
//! - **No gap between list and watch.** A watch starts at the revision of a list. While a later list is on its way,
//!   the changes that the watch sees are kept, and those that are newer than the list are replayed over it.
//!   Changes that a list has included already are dropped.
//! - **A restored store** goes back to an older state and counts on from there, so what we know of it may be of a
//!   history that is no more. Therefore every failure is followed by a proof or by a list. The proof is a watch for
//!   which the store tells again what the last one has brought ([`Seen`]): a restart of etcd costs no list. If our key
//!   is absent from the list, the lease was revoked; if the list has an older copy of our key, the lease is lost until
//!   a renewal has gone through.
//! - **Many nodes** are one load on the store. The lists on the timer become rarer as the network grows, and renewals
//!   of nodes that started together come at times of their own.
//! - **Our address may change** while we hold a subnet. The key is overwritten under the same condition as a renewal,
//!   at once and until it goes through; what we published before is still ours to find.
//! - **Who is who.** An entry is ours by its NodeID, or by our PublicIP if it has none (`identity`). One that looks like
//!   ours and may be another living host's is taken only if that host gives no sign of life (`challenge`).
//! - **We lose the lease** in two steps. `Lost` or `Revoked`: we do not hold it for now, and try to create or renew
//!   the same key; packets flow on. `Conflict`: somebody else owns it, and [`OnLost`] decides: with `Exit` the source
//!   of membership ends its run, and the daemon ends with code 1. An outage of the store is neither:
//!   peers stay as they are, and so does the subnet until its deadline.
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
//! | `cached` | what an earlier run knew, for a start while the store does not answer |
//! | `drift` | the network config in the store against the one that runs |
//! | `manager` | the machine: routes inputs, carries out steps, has the one call under way |
//! | `seek` | no subnet yet: which one to ask for |
//! | `challenge` | a lease that looks like ours: whether its owner lives |
//! | `own` | a subnet: renew, adopt, lose, regain |
//! | `identity` | who we are, and which entries are ours |
//! | `feed` | the watch and the lists beside it; `feed/resync` the list on the timer |
//! | `watcher` | the peers: snapshot, deltas, what is refused |
//! | `health` | is the store there, and when to say so |
//! | `delays` | how long to wait, with the randomness in it |
//! | `settings` | TTL, margin and what happens to a lost lease |

mod cached;
mod challenge;
mod delays;
mod drift;
mod feed;
mod health;
mod identity;
mod manager;
mod own;
mod seek;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod watcher;

use crate::store::{Change, Entry, Error, Listing, Revision, Seen};
use crate::subnet::allocate::OutOfSubnets;
use crate::subnet::{Config, Event, LeaseAttrs, NodeId, SubnetKey, Underlay};
pub use cached::{Basis, Cached};
pub use challenge::{Rival, Sign};
pub use identity::{Claim, Identity};
use ipnet::Ipv4Net;
pub use manager::{Manager, Status};
pub use settings::{DEFAULT_RENEW_MARGIN, DEFAULT_TTL, OnLost, Settings, SettingsError};
use std::net::Ipv4Addr;
use std::time::Duration;
pub use watcher::Counters;

/// What has happened since the last call of [`Manager::handle`].
#[derive(Debug, Clone)]
pub enum Input {
    /// Nothing but that time has passed.
    Tick,
    /// The call that was under way has its answer.
    Reply(Reply),
    /// The watch that was asked for last is running, and the store has shown what it was to show.
    WatchStarted,
    /// The watch could not be started, or is over.
    WatchFailed(Error),
    /// The watch saw these changes, in the store's order.
    Changes(Vec<Change>),
    /// The host has another address, and this is what we publish from now on; our subnet stays. Its key is overwritten at
    /// once, if it is as we hold it. The driver has given up the connections, which came from the old address: the call
    /// under way gets no answer, and the watch is over.
    Publish(LeaseAttrs),
    /// The host has other addresses, gateways or a store elsewhere: no subnet that is taken from now on holds them.
    Underlay(Underlay),
    /// The network config in the store is another one now, or cannot be used for this reason.
    Config(Result<Config, String>),
    /// The store may take now what it has refused: it knows us by another password, certificate or user.
    Admission,
    /// The answer to [`Output::Probe`].
    Probed {
        /// The address that was asked about.
        address: Ipv4Addr,
        /// Who has it besides us; `None` if nobody answers, and if nobody could be asked.
        mac: Option<String>,
    },
}

/// The answer to a [`Call`].
#[derive(Debug, Clone)]
pub enum Reply {
    /// The answer to [`Call::List`].
    Listed(Result<Listing, Error>),
    /// The answer to [`Call::Create`]: the key as it was created.
    Created(Result<Entry, Error>),
    /// The answer to a [`Call::Create`] of a subnet that we had: nothing was created, since this newest config has no
    /// place for it.
    Outgrown(Config),
    /// The answer to [`Call::Update`]: the key as it was written.
    Updated(Result<Entry, Error>),
    /// The answer to [`Call::Delete`].
    Deleted(Result<(), Error>),
}

/// A call to [`crate::store::Registry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// List all leases.
    List,
    /// Create a key if it is absent.
    Create {
        /// The key to create.
        key: SubnetKey,
        /// The value of the new key.
        attrs: LeaseAttrs,
        /// How long the key lives without a renewal.
        ttl: Duration,
        /// Whether we held this subnet before, and must not if the network config has no place for it any more.
        again: bool,
    },
    /// Overwrite the value of a key and refresh its TTL, if the key is as held.
    Update {
        /// The key as we know it.
        held: Entry,
        /// The new value.
        attrs: LeaseAttrs,
        /// How long the key lives from now on; a reservation stays without a TTL.
        ttl: Duration,
    },
    /// Delete a key if it is as held.
    Delete {
        /// The key as we know it.
        held: Entry,
    },
}

/// What the driver of the machine is to do.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "an input leads to a few of them, which live for an instant")]
pub enum Output {
    /// Make this call and bring back the [`Reply`]. There is never more than one under way.
    Call(Call),
    /// Drop the running watch, if there is one, and start one that follows all changes after `from`.
    Watch {
        /// The watch need not repeat the change of this revision, nor any older one.
        from: Revision,
        /// The store has to show first that it has made these changes, the last of which is at `from`.
        seen: Option<Seen>,
    },
    /// Ask the link whether another host has this address, and bring back [`Input::Probed`].
    Probe(Ipv4Addr),
    /// Tell the daemon something.
    Notice(Notice),
}

/// How a subnet became ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The store had a lease of our PublicIP.
    Reused,
    /// It is the one that we had before, by `subnet.env`.
    Previous,
    /// It was picked at random.
    Fresh,
    /// An earlier run held it, and the store has not answered since the start.
    Cached,
    /// We had lost it since the last `Acquired`, and got the same one back.
    Regained,
}

/// How the network config in the store stands to the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigNews {
    /// These fields, as flannel spells them, have changed, and count from now on for the next subnet.
    Applied(Vec<&'static str>),
    /// These fields, as flannel spells them, differ from what runs, and only a restart takes them over.
    Drifted(Vec<&'static str>),
    /// It cannot be used, for this reason; what runs goes on.
    Unusable(String),
    /// It says again what runs.
    Restored,
}

/// What the daemon should know.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// We hold a subnet. Its address is the one that its key spells (see [`SubnetKey`]). With [`How::Regained`] it is the same as before, and the peers stay. Otherwise it is the
    /// first one, or (only with [`OnLost::Reacquire`]) a new one: all peers were removed after the `Conflict`. In
    /// both cases the peers follow as `Peers`.
    Acquired {
        /// The subnet that we hold.
        subnet: Ipv4Net,
        /// How we came by it.
        how: How,
        /// When it ends unless renewed; `None` for a reservation.
        deadline: Option<Duration>,
    },
    /// The lease was renewed.
    Renewed {
        /// The subnet that we go on to hold.
        subnet: Ipv4Net,
        /// When it ends unless renewed again; `None` for a reservation.
        deadline: Option<Duration>,
    },
    /// The store gives peers another address of ours now, as [`Input::Publish`] asked for.
    Readdressed {
        /// The subnet that we go on to hold.
        subnet: Ipv4Net,
        /// The address that peers send to.
        public_ip: Ipv4Addr,
    },
    /// An operator wrote our key again without a TTL, so it is ours until deleted.
    Reserved {
        /// The subnet that is reserved.
        subnet: Ipv4Net,
    },
    /// Our key was deleted. We try to create it again; keep forwarding.
    Revoked {
        /// The subnet whose key was deleted.
        subnet: Ipv4Net,
    },
    /// Our deadline passed without a renewal, or the store was restored and knows an older copy of our lease,
    /// which may end any moment. We try to get it back; keep forwarding.
    Lost {
        /// The subnet that we do not hold for now.
        subnet: Ipv4Net,
    },
    /// The deadline of a lease with [`How::Cached`] passed before the store answered. All peers go with the next notice:
    /// another host may own the subnet, and nobody has told us otherwise since the start. We try to get it back.
    Lapsed {
        /// The subnet that we do not hold for now.
        subnet: Ipv4Net,
    },
    /// No subnet is held, and the store has not the lease that an earlier run wrote down: it must not be used again.
    Forgotten {
        /// The subnet that is not ours any more.
        subnet: Ipv4Net,
    },
    /// Somebody else has our key, or part of our subnet while our key is gone. As long as our key stands, a
    /// lease of another prefix length that overlaps it is [`Notice::Refused`]: who was first stays.
    Conflict {
        /// The subnet that was ours.
        subnet: Ipv4Net,
        /// The PublicIP of the host that has it now.
        owner: Ipv4Addr,
        /// The NodeID of that host; flannel has none.
        node: Option<NodeId>,
        /// What the machine does next. After [`OnLost::Exit`] it does nothing any more.
        then: OnLost,
    },
    /// Our key is gone, and the newest network config has no place for the subnet.
    Outgrown {
        /// The subnet that was ours.
        subnet: Ipv4Net,
        /// What the machine does next. After [`OnLost::Exit`] it does nothing any more.
        then: OnLost,
    },
    /// The network config in the store has changed.
    Config(ConfigNews),
    /// A lease looks like ours and may be another living host's. We ask, and take it if nobody answers.
    Doubted {
        /// The lease, its owner, and who we are.
        rival: Box<Rival>,
        /// How long its owner has for an answer.
        patience: Duration,
    },
    /// A lease that looks like ours is another living host's. The machine does nothing any more.
    Claimed {
        /// The lease, its owner, and who we are.
        rival: Box<Rival>,
        /// How we know that the owner lives.
        sign: Sign,
    },
    /// We have taken a lease that looked like ours: its owner gave no sign of life, or [`Settings::force_takeover`] says
    /// so. `Acquired` follows.
    TakenOver {
        /// The subnet that is ours now.
        subnet: Ipv4Net,
        /// What its owner had published.
        from: Box<LeaseAttrs>,
    },
    /// Another host asks in the value of our lease whether we live, since it is who we are. We write the lease anew.
    Asked {
        /// The subnet that we hold.
        subnet: Ipv4Net,
        /// The NodeID of the other host.
        by: NodeId,
    },
    /// Another host has written our lease as its own: a flannel with our PublicIP, or one with our NodeID. We write the
    /// lease anew. This is said at most once a minute.
    Overwritten {
        /// The subnet that we hold.
        subnet: Ipv4Net,
        /// What the other host has published.
        by: Box<LeaseAttrs>,
    },
    /// Another host has our NodeID: it has a copy of our state directory, or was given the same name. It is a peer, or
    /// has written our own lease again and again; then `Conflict` follows.
    Namesake {
        /// The subnet of that lease.
        subnet: Ipv4Net,
        /// What the other host publishes.
        by: Box<LeaseAttrs>,
    },
    /// A peer's subnet is another node's now, or has another PublicIP.
    ChangedHands {
        /// The subnet of the peer.
        subnet: Ipv4Net,
        /// What the last owner had published.
        from: Box<LeaseAttrs>,
        /// What the new owner publishes.
        to: Box<LeaseAttrs>,
    },
    /// No subnet is free, and we try again. This is said at most once a minute.
    OutOfSubnets(OutOfSubnets),
    /// A lease of our PublicIP cannot be used and is being deleted. Another subnet follows.
    Discarded {
        /// The key of the lease.
        key: SubnetKey,
        /// Why it cannot be used.
        reason: String,
    },
    /// Peers came, changed or went. The events are to be applied in this order.
    Peers(Vec<Event>),
    /// A key or value is unreadable or a lease unusable; it is left alone. This is said once for each reason.
    Refused {
        /// The last element of the key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More keys than each deserves a line were refused at once: the last element of each, and what is wrong with it.
    ManyRefused(Vec<(String, String)>),
    /// A list lacks more than half of the peers: they stay until a second list lacks them too.
    Withheld {
        /// How many peers the list lacks.
        count: usize,
    },
    /// The store's revision went back: the store was restored or made anew. This is not said if the revision has
    /// come past what we knew before we looked.
    StoreReset,
    /// The store does not answer, or takes no write. This is the first word of an outage. If the last word about an outage is less
    /// than a minute old, this one waits, and an outage that is over by then is passed over in silence.
    StoreLost {
        /// Why the last attempt failed.
        reason: String,
    },
    /// The store still does not answer. This is said once a minute.
    StoreStillLost {
        /// Why the last attempt failed.
        reason: String,
        /// How long the outage has lasted.
        since: Duration,
    },
    /// The store answers again, and takes writes.
    StoreBack {
        /// How long the outage lasted.
        after: Duration,
    },
}
