//! etcd leases that may hold no key any more.
//!
//! Every renewal attaches a new etcd lease to the key. The old lease would live on for its TTL, usually a day, as it does
//! with flannel. A lease comes here when it was replaced, when its key was deleted, and when its own write failed. It
//! is revoked only after etcd has said that no key hangs on it: a write whose answer was lost may have attached it, and
//! revoking it would then delete the key of a subnet that is in use.

use super::connection::Connection;
use std::cell::RefCell;
use std::collections::VecDeque;

/// The most leases that are kept here, more than one daemon can lose in a row. Beyond it the oldest are forgotten and
/// end with their TTL.
const MOST: usize = 32;

/// The etcd leases to revoke as soon as no key hangs on them.
#[derive(Debug, Default)]
pub(super) struct LooseLeases(RefCell<VecDeque<i64>>);

/// A lease that was granted and is not attached to its key yet. If it is dropped like that, it becomes a loose one.
#[derive(Debug)]
pub(super) struct Granted<'a> {
    id: i64,
    loose: &'a LooseLeases,
    attached: bool,
}

impl Granted<'_> {
    /// The id of the etcd lease.
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// Notes that the lease is attached to its key now, and returns its id.
    pub(super) fn attached(mut self) -> i64 {
        self.attached = true;
        self.id
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        if !self.attached {
            self.loose.push(Some(self.id));
        }
    }
}

impl LooseLeases {
    /// Guards a lease that etcd has just granted.
    pub(super) fn guard(&self, id: i64) -> Granted<'_> {
        Granted { id, loose: self, attached: false }
    }

    /// Takes a lease that may hold no key any more.
    pub(super) fn push(&self, id: Option<i64>) {
        let mut leases = self.0.borrow_mut();
        if leases.len() == MOST {
            leases.pop_front();
        }
        leases.extend(id);
        debug_assert!(leases.len() <= MOST);
    }

    /// Revokes the leases that hold no key and forgets those that do. When etcd does not answer, or refuses, the
    /// rest stays.
    pub(super) async fn revoke(&self, connection: &Connection) {
        let count = self.0.borrow().len();
        for _ in 0..count {
            let Some(id) = self.0.borrow().front().copied() else { return };
            if let Err(error) = connection.revoke_if_unused(id).await {
                tracing::debug!(lease = id, %error, "unused etcd lease not revoked");
                if matches!(error, crate::etcd::Error::Unavailable(_) | crate::etcd::Error::Denied(_)) {
                    return;
                }
            }
            self.0.borrow_mut().retain(|other| *other != id);
        }
    }
}
