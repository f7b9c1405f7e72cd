//! Who is in the network: a peer's lease, and how it comes, changes and goes.

use super::LeaseAttrs;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// A peer's subnet and what it published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet of the peer.
    pub subnet: Ipv4Net,
    /// What the peer published about itself.
    pub attrs: LeaseAttrs,
}

/// A peer came, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer is new or its attributes have changed. This lease replaces what was known of that subnet.
    Added(Lease),
    /// The peer is gone. The lease holds its last known attributes.
    Removed(Lease),
}

impl Event {
    /// The address of the peer's host, or its last one.
    #[must_use]
    pub fn public_ip(&self) -> Ipv4Addr {
        let (Event::Added(lease) | Event::Removed(lease)) = self;
        lease.attrs.public_ip
    }
}
