//! Who is in the network: a peer's lease, and how it comes, changes and goes.

use super::LeaseAttrs;
use ipnet::Ipv4Net;

/// A peer's subnet and what it published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Its owner.
    pub attrs: LeaseAttrs,
}

/// A peer came, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer is new or its attributes have changed; it replaces what was known of that subnet.
    Added(Lease),
    /// The peer is gone; these were its attributes.
    Removed(Lease),
}
