//! Who we are in the store, and whether an entry is ours. All parts of the machine ask here and nowhere else.

use crate::store::Entry;
use crate::subnet::LeaseAttrs;
use std::net::Ipv4Addr;

/// What we publish, and by it what is ours. The manager alone holds it; its parts get it with each call, so that
/// they all know of a change at once.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    attrs: LeaseAttrs,
}

impl Identity {
    /// The identity of the node that publishes `attrs`.
    pub(super) fn new(attrs: LeaseAttrs) -> Self {
        Self { attrs }
    }

    /// What we publish in the store.
    pub(super) fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    /// Whether this entry is ours.
    pub(super) fn owns(&self, entry: &Entry) -> bool {
        self.has_address(entry.attrs.public_ip)
    }

    /// Whether a packet to this address comes to us.
    pub(super) fn has_address(&self, address: Ipv4Addr) -> bool {
        address == self.attrs.public_ip
    }
}
