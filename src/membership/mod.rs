//! Who is in the network, whoever keeps the list: this host's lease and its peers.
//!
//! Theory of operation. A [`Source`] waits for the network config, then runs this host's lease and follows those of
//! the peers, and tells the daemon with [`Notice`]s. Everything behind the notices (backends, rules, `subnet.env`) is
//! the same, whoever keeps the leases.
//!
//! Another store under flannel's contract is another [`Registry`](crate::store::Registry): `etcd.rs` runs the lease
//! machine over any. Another *kind* of source (a cluster that allocates the subnets itself) is another variant of
//! [`Source`]. The compiler then asks for it in [`Source::config`] and [`Source::run`]; besides, `daemon/settings.rs`
//! gets its settings, `daemon/control.rs` makes it, and `daemon/networks.rs` lists networks from etcd alone.
//!
//! | file | |
//! |---|---|
//! | `etcd` | leases in a store: the lease machine and its calls |
//! | [`cache`] | what a network knew of its store, kept for a start without the store |
//! | `config` | the network config after the start |
//! | `clock` | the clock by which a lease ends |
//! | `link` | whether another host on the link has our address |
//! | `node_id` | which NodeID this host has |
//! | `state_dir` | what must outlive this process |
//! | `told` | what the log is told |

pub mod cache;
mod clock;
mod config;
mod etcd;
mod link;
mod node_id;
mod state_dir;
mod told;

pub use clock::Clock;
pub use node_id::NodeNames;
pub use state_dir::StateDir;

use crate::etcd::{Replaceable, Settings};
use crate::lease::{Manager, Notice, Status};
use crate::store::Error;
use crate::subnet::{Config, LeaseAttrs, Underlay};
use cache::{Keep, Keeper};
use tokio::sync::{mpsc, watch};

/// Why [`Source::run`] came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The caller asked for it. The lease stays in the store.
    Stopped,
    /// Somebody else owns our subnet and the policy is [`crate::lease::OnLost::Exit`]: the daemon exits non-zero, or, with
    /// several networks, starts this one again.
    LeaseLost,
    /// Our lease is gone, the network config has no place for the subnet any more, and the policy is not to take another:
    /// the daemon exits non-zero, and the next start takes the new config.
    Outgrown,
    /// The network config is not the one that the network runs with: it is to be started anew.
    ConfigChanged,
    /// Another living host is who we are. The text names both, and says how we know.
    Claimed(String),
}

/// What the lease is to say of this host, and where this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The value of the lease. Its NodeID is left to the machine, which has one.
    pub attrs: LeaseAttrs,
    /// The number of the interface that is asked whether another host has our address.
    pub link: u32,
}

/// What passes between the daemon and the one who runs its lease.
#[derive(Debug)]
pub struct Exchange {
    /// What the lease is to publish. Whenever a change is told, the store is asked over new connections, and another value
    /// is written at once.
    pub publish: watch::Receiver<Published>,
    /// What lies under the overlay. Whenever it changes, the peers are judged anew.
    pub underlay: watch::Receiver<Underlay>,
    /// Every notice, in order.
    pub notices: mpsc::UnboundedSender<Notice>,
    /// The last state of the lease, at any time.
    pub status: watch::Sender<Option<Status>>,
}

/// Where the config, the lease and the peers come from.
#[derive(Debug)]
pub enum Source {
    /// Config, lease and peers come from etcd, over either of its APIs.
    Etcd(Replaceable),
}

impl Source {
    /// Checks the settings of etcd. It is not contacted before the first call.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work.
    pub fn etcd(settings: &Settings) -> Result<Source, Error> {
        Ok(Source::Etcd(Replaceable::new(settings)?))
    }

    /// Takes over endpoints, user and files while calls may be under way; see [`Replaceable::replace`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that can never work. Then all goes on as it was.
    pub fn reload(&self, settings: &Settings) -> Result<(), Error> {
        match self {
            Source::Etcd(store) => store.replace(settings),
        }
    }

    /// Waits for the network config: for the source, for the config, for a text that makes sense. It never gives
    /// up; it says why it waits at once, on every new reason and once a minute. `seed` decides the random pauses.
    /// Returns the config and its text.
    pub async fn config(&self, seed: u64) -> (Config, String) {
        match self {
            Source::Etcd(store) => etcd::fetch_config(store, seed).await,
        }
    }

    /// Runs `manager` until `stop` is ready or the lease is lost for good. With `keep`, what the source has said is kept
    /// for the next start.
    pub async fn run(
        &self,
        manager: Manager,
        clock: &Clock,
        exchange: Exchange,
        stop: impl Future<Output = ()>,
        keep: Option<Keep>,
    ) -> Ending {
        let keeper = keep.map(Keeper::new);
        match self {
            Source::Etcd(store) => etcd::run(store, manager, clock, exchange, stop, keeper).await,
        }
    }
}
