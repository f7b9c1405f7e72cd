//! The kernel's links, IPv4 addresses, routes and neighbours, over rtnetlink.
//!
//! Theory of operation: a caller states what it wants (`ensure_link`, `ensure_address`, `ensure_route`,
//! `ensure_blackhole`). The call reads the present state and writes only the difference. So a second call writes
//! nothing, and the returned [`Changes`] says what the first one did. Nothing that another program installed is touched:
//! our routes carry [`ROUTE_PROTOCOL`], and addresses, ARP and forwarding entries are removed only from the device that
//! the caller names as its own.
//!
//! Sets of thousands (`ensure_routes`, `ensure_neighbours`, `ensure_fdb`) are compared with one dump and written in
//! bulk. One entry that the kernel refuses does not stop the others ([`Outcome`]).
//!
//! [`Monitor`] tells of changes that others make, so that a caller can repair them. It has a socket of its own, so that
//! a flood of events can overrun it without disturbing requests.

mod addr;
mod blackhole;
mod bulk;
mod link;
mod monitor;
mod neigh;
mod route;
mod route_set;
#[cfg(test)]
mod tests;
mod vxlan;

pub use addr::{Address, Scope};
pub use bulk::{Outcome, Stale};
pub use link::Link;
pub use monitor::{Change, Monitor};
pub use neigh::{Mac, MacError};
pub use route::{ROUTE_PROTOCOL, Route, RouteTo};
pub use route_set::Territory;
pub use vxlan::{DEFAULT_VXLAN_PORT, Vxlan};

#[cfg(test)]
pub(crate) use tests::namespace;

use std::fmt;
use std::io;
use tokio::task::AbortHandle;

/// A connection to the kernel's routing tables. It belongs to the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: AbortHandle,
}

impl Netlink {
    /// Opens a netlink socket and starts the task that serves it; call it inside a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::new("open a netlink socket", e))?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, connection })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct Error {
    operation: String,
    source: io::Error,
}

impl Error {
    fn new(operation: impl Into<String>, source: io::Error) -> Self {
        Self { operation: operation.into(), source }
    }

    fn request(operation: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Self::new(operation, source)
    }

    /// The errno of the kernel, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the link, address or route does not exist, or not any more.
    fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ENXIO | libc::ESRCH))
    }
}

/// The writes of an `ensure_*` call, in sentences. There are none if all was in place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    sentences: Vec<String>,
    writes: usize,
}

impl Changes {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        debug_assert_eq!(self.writes == 0, self.sentences.is_empty());
        self.writes == 0
    }

    /// The number of requests that changed something.
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// Adds the changes of another call.
    pub fn extend(&mut self, other: Self) {
        self.sentences.extend(other.sentences);
        self.writes += other.writes;
    }

    /// Adds a sentence that tells of one write.
    fn push(&mut self, what: impl Into<String>) {
        self.push_many(what, 1);
    }

    /// Adds a sentence that tells of several writes.
    fn push_many(&mut self, what: impl Into<String>, writes: usize) {
        debug_assert!(writes > 0, "a sentence tells of a write");
        self.sentences.push(what.into());
        self.writes += writes;
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentences.join("; "))
    }
}
