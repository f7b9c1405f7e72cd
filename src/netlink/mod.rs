//! The kernel's links, IPv4 addresses, routes and neighbours, over rtnetlink.
//!
//! Theory of operation: a caller states what it wants (`ensure_link`, `ensure_address`, `ensure_route`,
//! `ensure_blackhole`). The call reads the present state and writes only the difference. So a second call writes
//! nothing, and the returned [`Changes`] says what the first one did. Nothing that another program installed is touched:
//! our routes carry [`ROUTE_PROTOCOL`], and addresses, ARP and forwarding entries are removed only if they lie in the
//! overlay's network, from the device that the caller names as its own.
//!
//! What the overlay would swallow of the underlay goes past it (`survey_ground`, `set_detour`).
//!
//! Sets of thousands (routes, ARP and forwarding entries of peers) are compared with one list (`survey_*`), and the
//! caller then writes what is missing, as many entries at a time as it likes ([`write_all`]). Lists are filtered by the
//! kernel, and one that is incomplete is an error (`dump.rs`).
//!
//! [`Monitor`] tells of changes that others make, so that a caller can repair them. It has a socket of its own, so that
//! a flood of events can overrun it without disturbing requests.

mod addr;
mod blackhole;
mod bulk;
mod detour;
mod dump;
mod former;
mod link;
mod monitor;
mod neigh;
mod route;
mod route_set;
#[cfg(test)]
mod tests;
mod tun;
mod vxlan;

pub use addr::{Address, Scope};
pub use bulk::write_all;
pub use detour::{DETOUR_PROTOCOL, Ground, Past, Swallowed, Way};
pub use link::{Link, Mtu, OVERLAY_DEVICES};
pub use monitor::{Change, Monitor};
pub use neigh::{FdbSurvey, Mac, MacError, NeighbourSurvey};
pub use route::{ROUTE_PROTOCOL, Route, RouteTo};
pub use route_set::{Placed, RouteSurvey, StaleRoute, Territory};
pub use vxlan::{DEFAULT_VXLAN_PORT, Vxlan};

#[cfg(test)]
pub(crate) use tests::namespace;

use rtnetlink::sys::AsyncSocket;
use std::fmt;
use std::io;
use tokio::task::AbortHandle;

/// A connection to the kernel's routing tables. It belongs to the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: AbortHandle,
    port: Port,
}

/// The number by which the kernel knows a netlink socket. Announcements of changes carry that of the socket that asked
/// for the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(u32);

impl Netlink {
    /// Opens a netlink socket and starts the task that serves it; call it inside a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let open = |e| Error::new("open a netlink socket", e);
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(open)?;
        let port = connection.socket_mut().socket_mut().bind_auto().map_err(open)?.port_number();
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, connection, port: Port(port) })
    }

    /// The socket by which this makes its changes. A [`Monitor`] for it does not tell of them.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
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
        self.sentences.push(what.into());
        self.writes += 1;
    }

    /// Adds a sentence about writes that are counted already.
    pub fn remark(&mut self, what: String) {
        debug_assert!(self.writes > 0, "a remark is about writes");
        self.sentences.push(what);
    }

    /// Adds a sentence that tells of so many writes; none if there were none.
    pub fn note(&mut self, writes: usize, what: &str) {
        if writes > 0 {
            self.sentences.push(what.to_owned());
            self.writes += writes;
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentences.join("; "))
    }
}
