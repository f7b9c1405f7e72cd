//! What the daemon tells monitors over HTTP: is it alive, is it ready, what has it counted.
//!
//! Theory of operation. The server has a thread of its own (`fl-status`) with a runtime of its own, so that
//! no request costs the control loop or a worker anything but one answer. For every request to `/healthz`,
//! `/readyz` or `/metrics` it sends the control loop an [`Ask`], and waits [`PATIENCE`] for the [`Network`]s
//! that come back: an answer is itself the proof that the loop runs. Nothing is polled between requests.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 as long as the control loop answers and no worker has ended; 503 with the reason else |
//! | `/readyz` | 200 once every network has its subnet and its subnet file; 503 before |
//! | `/metrics` | the counters in the Prometheus text format |
//!
//! Health never means etcd: an outage of the store is no reason to restart a daemon that forwards. The first
//! two paths and their texts are flannel's (v0.8.0 and v0.28.9), any method included; the third is ours.
//!
//! Counters come as the lines that the daemon prints on SIGUSR1 (`count NAME N`, `drop REASON N`, …), so that
//! this room knows nothing of engines and backends.

mod metrics;
mod server;

pub use server::serve;

use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// How long the control loop may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// One network of this daemon, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name; empty in the usual mode of one network, whose metrics then have no such label.
    pub name: String,
    /// No worker has ended by itself.
    pub alive: bool,
    /// It has a subnet, and the subnet file says so.
    pub ready: bool,
    /// The backend's type; empty before the network config is known.
    pub backend: String,
    /// Whether we hold a lease at this moment.
    pub leased: bool,
    /// When the lease ends, unless renewed; `None` without a lease and for a reservation.
    pub lease_expiry: Option<SystemTime>,
    /// Whether the store answered last time.
    pub etcd_up: bool,
    /// The lines of the daemon's report; unknown ones are skipped.
    pub report: String,
}

/// A question to the control loop.
#[derive(Debug)]
pub struct Ask(oneshot::Sender<Vec<Network>>);

impl Ask {
    /// A question, and where its answer arrives.
    #[must_use]
    pub fn new() -> (Ask, oneshot::Receiver<Vec<Network>>) {
        let (sender, receiver) = oneshot::channel();
        (Ask(sender), receiver)
    }

    /// Answers it.
    pub fn answer(self, networks: Vec<Network>) {
        // Whoever asked may have gone meanwhile.
        let _ = self.0.send(networks);
    }
}
