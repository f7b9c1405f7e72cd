//! The daemon tells monitors over HTTP whether it is alive, whether it is ready, and what it has counted.
//!
//! Theory of operation. The server has a thread of its own (`fl-status`) with a runtime of its own, so that
//! no request costs the control loop or a worker anything but one answer. For every request to `/healthz`,
//! `/readyz` or `/metrics` it sends the control loop an [`Ask`], and waits [`PATIENCE`] for the [`State`]s
//! that come back: an answer proves that the loop runs. Between requests the server asks for nothing.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 as long as the control loop answers and no worker has ended; 503 with the reason else |
//! | `/readyz` | 200 once every network has its subnet and its subnet file; 503 before, and while something hinders one, with the reason |
//! | `/metrics` | the counters in the Prometheus text format |
//!
//! Health says nothing of etcd: an outage of the store is no reason to restart a daemon that forwards. The first
//! two paths and their texts are flannel's (v0.8.0 and v0.28.9), any method included; the third is ours.

mod metrics;
mod server;

pub use server::serve;

use crate::report::State;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the control loop may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A question to the control loop.
#[derive(Debug)]
pub struct Ask(oneshot::Sender<Vec<State>>);

impl Ask {
    /// Makes a question, and the receiver at which its answer arrives.
    #[must_use]
    pub fn new() -> (Ask, oneshot::Receiver<Vec<State>>) {
        let (sender, receiver) = oneshot::channel();
        (Ask(sender), receiver)
    }

    /// Answers the question with the state of each network.
    pub fn answer(self, networks: Vec<State>) {
        // The monitor that asked may have gone meanwhile.
        let _ = self.0.send(networks);
    }
}
