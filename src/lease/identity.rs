//! Who we are in the store, and whether an entry is ours. All parts of the machine ask here and nowhere else.

use crate::store::Entry;
use crate::subnet::{LeaseAttrs, Underlay};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// How many earlier values we know again. An answer or a change that speaks of an older one is long past.
const MOST_FORMER: usize = 8;

/// What we publish, and by it what is ours. The manager alone holds it; its parts get it with each call, so that
/// they all know of a change at once.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    attrs: LeaseAttrs,
    underlay: Underlay,
    /// What we published before, the oldest first. A late write of our own may still bring it.
    former: Vec<LeaseAttrs>,
}

impl Identity {
    /// The identity of the node that publishes `attrs`.
    pub(super) fn new(attrs: LeaseAttrs) -> Self {
        Self { attrs, underlay: Underlay::default(), former: Vec::new() }
    }

    /// What we publish in the store.
    pub(super) fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    /// Publishes `attrs` from now on. False if that is nothing new.
    pub(super) fn publish(&mut self, attrs: LeaseAttrs) -> bool {
        if attrs == self.attrs {
            return false;
        }
        let old = std::mem::replace(&mut self.attrs, attrs);
        self.former.retain(|former| *former != old && *former != self.attrs);
        self.former.push(old);
        if self.former.len() > MOST_FORMER {
            self.former.remove(0);
        }
        true
    }

    /// Whether this entry is ours.
    pub(super) fn owns(&self, entry: &Entry) -> bool {
        self.has_address(entry.attrs.public_ip) || self.former.contains(&entry.attrs)
    }

    /// Whether a packet to this address comes to us.
    pub(super) fn has_address(&self, address: Ipv4Addr) -> bool {
        address == self.attrs.public_ip
    }

    /// Takes note of what lies under the overlay.
    pub(super) fn set_underlay(&mut self, underlay: Underlay) {
        self.underlay = underlay;
    }

    /// What lies under the overlay.
    pub(super) fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Why nobody may use `subnet`, for the sake of this host; `None` if all is well.
    pub(super) fn objection(&self, subnet: Ipv4Net) -> Option<String> {
        let own = self.underlay.taken_by(subnet)?;
        Some(format!("it holds this host's own address {own}, which would no longer be reached"))
    }
}
