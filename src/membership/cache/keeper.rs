//! When the file is written: soon after something has changed, and not more often than every few seconds.
//!
//! The text is made on the control thread, since the lease machine is there; the disk, which may take its time, is
//! waited for by a thread of the runtime's own. One write is under way at most.

use super::{Cache, Moment, encode};
use crate::lease::{Basis, Manager, Notice};
use crate::log::Complaint;
use crate::subnet::{FileError, Generation};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// The least time between two writes.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// What is to be kept, and where.
#[derive(Debug)]
pub struct Keep {
    /// The file that is kept up to date.
    pub cache: Cache,
    /// The endpoints at which the store is reached, whenever they change.
    pub endpoints: watch::Receiver<Vec<String>>,
    /// The text of the network config.
    pub config: String,
    /// The generation by whose rules the config was read.
    pub generation: Generation,
    /// The count of the writes that have failed.
    pub failures: Rc<Cell<u64>>,
}

/// Keeps the file of one network up to date.
#[derive(Debug)]
pub(crate) struct Keeper {
    keep: Keep,
    /// Whether the file does not say what is.
    changed: bool,
    /// The earliest time of the next write.
    at: Instant,
    writing: Option<JoinHandle<Result<(), FileError>>>,
    complaint: Complaint<Instant>,
}

impl Keeper {
    pub(crate) fn new(mut keep: Keep) -> Keeper {
        // They may have changed since the file was read.
        keep.endpoints.mark_changed();
        Keeper { keep, changed: false, at: Instant::now(), writing: None, complaint: Complaint::default() }
    }

    /// Takes note of what the lease machine has said on the store's word. What is lost is forgotten at once.
    pub(crate) fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::Acquired { .. }
            | Notice::Renewed { .. }
            | Notice::Readdressed { .. }
            | Notice::Reserved { .. }
            | Notice::Peers(_) => self.changed = true,
            Notice::Revoked { .. }
            | Notice::Lost { .. }
            | Notice::Lapsed { .. }
            | Notice::Forgotten { .. }
            | Notice::Outgrown { .. }
            | Notice::Claimed { .. }
            | Notice::Conflict { .. } => {
                self.changed = true;
                self.at = Instant::now();
            }
            Notice::Config(_)
            | Notice::OutOfSubnets(_)
            | Notice::Discarded { .. }
            | Notice::Doubted { .. }
            | Notice::TakenOver { .. }
            | Notice::Asked { .. }
            | Notice::Overwritten { .. }
            | Notice::Namesake { .. }
            | Notice::ChangedHands { .. }
            | Notice::Refused { .. }
            | Notice::ManyRefused(_)
            | Notice::Withheld { .. }
            | Notice::StoreReset
            | Notice::StoreLost { .. }
            | Notice::StoreStillLost { .. }
            | Notice::StoreBack { .. } => {}
        }
    }

    /// Waits until a write is due; [`Keeper::save`] makes it. Cancel-safe.
    pub(crate) async fn due(&mut self) {
        self.written().await;
        loop {
            tokio::select! {
                Ok(()) = self.keep.endpoints.changed() => {
                    self.changed |= self.keep.cache.reached_at(&self.keep.endpoints.borrow_and_update());
                }
                () = sleep_until(self.at), if self.changed => return,
                else => return std::future::pending().await,
            }
        }
    }

    /// Waits for the write that is under way.
    async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        let result = writing.await;
        self.writing = None;
        match result {
            Ok(Ok(())) if self.complaint.settle() => {
                info!("the state directory takes what it is given again");
            }
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.keep.failures.set(self.keep.failures.get() + 1);
                self.changed = true;
                let text = error.to_string();
                if self.complaint.is_news(Instant::now(), &text) {
                    warn!("{text}; a start without etcd would not know of this. Trying again");
                }
            }
            // The thread panicked, which is told elsewhere.
            Err(_) => self.changed = true,
        }
    }

    /// Begins to write what `manager` knows, or to remove the file if this host holds no lease. `now` is the time on
    /// the machine's clock.
    pub(crate) fn save(&mut self, manager: &Manager, now: Duration) {
        debug_assert!(self.writing.is_none(), "one write at a time");
        (self.changed, self.at) = (false, Instant::now() + WRITE_EVERY);
        if manager.status().basis != Basis::Store {
            // What stands in the file is not written again on its own word.
            return;
        }
        let Keep { cache, config, generation, .. } = &self.keep;
        let cache = cache.clone();
        self.writing = Some(match manager.held() {
            Some((entry, deadline)) => {
                let left = deadline.map(|at| at.saturating_sub(now));
                let bytes = encode(
                    Moment::now(),
                    &cache.origin,
                    (config, *generation),
                    (entry, left),
                    manager.leases(),
                );
                spawn_blocking(move || cache.write(&bytes))
            }
            None => spawn_blocking(move || cache.remove()),
        });
    }

    /// Writes what is not written yet, and waits for it.
    pub(crate) async fn finish(&mut self, manager: &Manager, now: Duration) {
        self.written().await;
        if self.changed {
            self.save(manager, now);
            self.written().await;
        }
    }
}
