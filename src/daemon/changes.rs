//! The kernel's announcements of changes, with a new subscription whenever one ends.

use crate::log::Complaint;
use crate::netlink::{Change, Error, Monitor, Port};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// The wait between two attempts to subscribe.
const RETRY: Duration = Duration::from_secs(1);

/// A subscription to the kernel's announcements. When it ends, a new one is made.
#[derive(Debug)]
pub(super) struct Changes {
    /// Whose changes are ours, and not announced.
    own: Port,
    monitor: Option<Monitor>,
    retry_at: Instant,
    complaint: Complaint<Instant>,
}

impl Changes {
    /// Subscribes to the kernel's announcements of all changes but those that `own` makes.
    ///
    /// # Errors
    /// The errors of [`Monitor::new`]. They end the start, since there is nothing yet to keep alive.
    pub(super) fn new(own: Port) -> Result<Changes, Error> {
        Ok(Changes {
            own,
            monitor: Some(Monitor::new(own)?),
            retry_at: Instant::now(),
            complaint: Complaint::default(),
        })
    }

    /// Waits for the next change. After a gap it is [`Change::Overrun`], and the caller reads everything again.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Change {
        loop {
            let result = match &mut self.monitor {
                Some(monitor) => monitor.next().await,
                None => {
                    sleep_until(self.retry_at).await;
                    Monitor::new(self.own).map(|monitor| {
                        self.monitor = Some(monitor);
                        Change::Overrun
                    })
                }
            };
            match result {
                Ok(change) => {
                    debug_assert!(self.monitor.is_some(), "a change comes from a subscription");
                    if self.complaint.settle() {
                        info!("following the kernel's tables again");
                    }
                    return change;
                }
                Err(error) => {
                    self.monitor = None;
                    self.retry_at = Instant::now() + RETRY;
                    let text = error.to_string();
                    if self.complaint.is_news(Instant::now(), &text) {
                        warn!("{text}; trying again");
                    }
                }
            }
        }
    }
}
