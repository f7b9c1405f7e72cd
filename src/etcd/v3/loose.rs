//! etcd leases that may hold no key any more.
//!
//! Every renewal attaches a new etcd lease to the key, and the old one would otherwise live on for its
//! TTL, a day as a rule (flannel leaves it so). A lease comes here when it was replaced, when its key
//! was deleted, and when its own write failed. It is revoked only after etcd has said that no key hangs
//! on it: a write whose answer was lost may have attached it, and revoking it then would delete the key
//! of a subnet that is in use.

use super::connection::Connection;
use std::cell::RefCell;
use std::collections::VecDeque;

/// More than one daemon can lose in a row; beyond it the oldest are left to their TTL.
const MOST: usize = 32;

/// Leases to revoke once they hold nothing.
#[derive(Debug, Default)]
pub(super) struct LooseLeases(RefCell<VecDeque<i64>>);

/// A lease that was granted and is not attached to its key yet. Dropped so, it becomes a loose one.
#[derive(Debug)]
pub(super) struct Granted<'a> {
    id: i64,
    loose: &'a LooseLeases,
    attached: bool,
}

impl Granted<'_> {
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// The key holds it now.
    pub(super) fn attached(mut self) -> i64 {
        debug_assert!(!self.attached, "a lease is attached once");
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
    pub(super) fn guard(&self, id: i64) -> Granted<'_> {
        Granted { id, loose: self, attached: false }
    }

    pub(super) fn push(&self, id: Option<i64>) {
        let mut leases = self.0.borrow_mut();
        if leases.len() == MOST {
            leases.pop_front();
        }
        leases.extend(id);
        debug_assert!(leases.len() <= MOST);
    }

    /// Revokes those that hold no key and forgets those that do. What etcd does not answer stays.
    pub(super) async fn revoke(&self, connection: &Connection) {
        let count = self.0.borrow().len();
        for _ in 0..count {
            let Some(id) = self.0.borrow().front().copied() else { return };
            if let Err(error) = connection.revoke_if_unused(id).await {
                tracing::debug!(lease = id, %error, "unused etcd lease not revoked");
                if matches!(error, crate::etcd::Error::Unavailable(_)) {
                    return;
                }
            }
            self.0.borrow_mut().retain(|other| *other != id);
        }
    }
}
