//! The table: rules, and the slots painted from them.

use super::PeerId;
use super::peers::Peers;
use super::slots::{LAST_PEER, Slots};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Where the packets of a subnet go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The lease's `PublicIP` with the backend's port.
    pub address: SocketAddrV4,
}

/// A change that the control path asks of a worker's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteCommand {
    /// Adds a route, or replaces the one of exactly this subnet.
    Set {
        /// The inner addresses that the route covers.
        subnet: Ipv4Net,
        /// The peer that owns them.
        peer: Peer,
    },
    /// Removes the route of exactly this subnet.
    Del {
        /// The inner addresses that the route covers.
        subnet: Ipv4Net,
    },
}

/// Why a table refused a change; the table is then as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The subnet is not inside the overlay network.
    #[error("subnet {subnet} lies outside the network {network}")]
    OutsideNetwork {
        /// The subnet asked for.
        subnet: Ipv4Net,
        /// The network that the table covers.
        network: Ipv4Net,
    },
    /// There is no route of exactly this subnet to remove.
    #[error("no route to {subnet} is set")]
    NoRoute {
        /// The subnet asked for.
        subnet: Ipv4Net,
    },
    /// The table's numbers (2^31 peers or chunks) are used up.
    #[error("no room for a route to {subnet}")]
    Full {
        /// The subnet asked for.
        subnet: Ipv4Net,
    },
}

/// A longest-prefix table over one overlay network; see the room's theory of operation.
#[derive(Debug, Clone)]
pub struct RouteTable {
    network: Ipv4Net,
    /// Keyed by `(first address, prefix length)`: a rule comes before the longer rules inside it.
    rules: BTreeMap<(Ipv4Addr, u8), PeerId>,
    slots: Slots,
    peers: Peers,
}

impl RouteTable {
    /// An empty table for the addresses of `network` (host bits are ignored).
    ///
    /// Asks for 4 bytes per /24 of the network: 256 KiB for a /8, of which only touched pages become resident.
    pub fn new(network: Ipv4Net) -> Self {
        let network = network.trunc();
        Self { network, rules: BTreeMap::new(), slots: Slots::new(network), peers: Peers::default() }
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// Those of [`set`](Self::set) and [`del`](Self::del).
    pub fn apply(&mut self, command: &RouteCommand) -> Result<(), RouteError> {
        match *command {
            RouteCommand::Set { subnet, peer } => self.set(subnet, peer),
            RouteCommand::Del { subnet } => self.del(subnet),
        }
    }

    /// Routes `subnet` (host bits are ignored) to `peer`, replacing the route of exactly that subnet.
    ///
    /// # Errors
    /// [`RouteError::OutsideNetwork`] unless the subnet is the network or part of it; [`RouteError::Full`].
    pub fn set(&mut self, subnet: Ipv4Net, peer: Peer) -> Result<(), RouteError> {
        let subnet = subnet.trunc();
        let network = self.network;
        if !network.contains(&subnet) {
            return Err(RouteError::OutsideNetwork { subnet, network });
        }
        // The new peer is acquired before the old one is released, so that a route that is set anew to the same peer
        // keeps its id.
        let id = self.peers.acquire(peer.address, LAST_PEER).ok_or(RouteError::Full { subnet })?;
        if let Some(old) = self.rules.insert(key(subnet), id) {
            self.peers.release(old);
            if old == id {
                return Ok(());
            }
        } else if self.slots.open(subnet).is_none() {
            self.rules.remove(&key(subnet));
            self.peers.release(id);
            return Err(RouteError::Full { subnet });
        }
        self.repaint(subnet, Some(id));
        debug_assert!(self.slots_follow_rules(subnet), "{subnet} was set");
        Ok(())
    }

    /// Removes the route of exactly `subnet` (host bits are ignored); a shorter route that covers it shows again.
    ///
    /// # Errors
    /// [`RouteError::NoRoute`] if there is none.
    pub fn del(&mut self, subnet: Ipv4Net) -> Result<(), RouteError> {
        let subnet = subnet.trunc();
        let id = self.rules.remove(&key(subnet)).ok_or(RouteError::NoRoute { subnet })?;
        self.repaint(subnet, self.covering(subnet));
        self.slots.close(subnet);
        self.peers.release(id);
        debug_assert!(self.slots_follow_rules(subnet), "{subnet} was removed");
        Ok(())
    }

    /// The peer that owns `address` by the longest matching route.
    #[inline]
    pub fn lookup(&self, address: Ipv4Addr) -> Option<PeerId> {
        self.slots.lookup(address)
    }

    /// Where a peer's packets go. The id must come from this table and a route must still refer to it: a stale id gives
    /// some other peer's address or, as a foreign one, panics.
    #[inline]
    pub fn address(&self, id: PeerId) -> SocketAddrV4 {
        self.peers.address(id)
    }

    /// Whether any route's peer has this outer address, on any port.
    #[inline]
    pub fn is_peer(&self, outer: Ipv4Addr) -> bool {
        self.peers.has_host(outer)
    }

    /// The number of routes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no routes.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    #[cfg(test)]
    pub(super) fn level2_slots(&self) -> usize {
        self.slots.level2_slots()
    }

    /// Paints a changed rule's range, then the longer rules inside it, of which the shorter come first.
    fn repaint(&mut self, subnet: Ipv4Net, peer: Option<PeerId>) {
        self.slots.paint(subnet, peer);
        let first = (subnet.network(), subnet.prefix_len() + 1);
        let last = (subnet.broadcast(), 32);
        if first > last {
            return;
        }
        for (&(address, prefix), &id) in self.rules.range(first..=last) {
            self.slots.paint(Ipv4Net::new_assert(address, prefix), Some(id));
        }
    }

    /// True if a look-up at both ends of `subnet` gives what the longest matching rule says.
    fn slots_follow_rules(&self, subnet: Ipv4Net) -> bool {
        let ruled = |address: Ipv4Addr| {
            let host = Ipv4Net::from(address);
            self.rules.get(&key(host)).copied().or_else(|| self.covering(host))
        };
        [subnet.network(), subnet.broadcast()].into_iter().all(|end| self.lookup(end) == ruled(end))
    }

    /// The owner of the longest rule that covers `subnet` and is shorter than it.
    fn covering(&self, subnet: Ipv4Net) -> Option<PeerId> {
        let shorter = std::iter::successors(subnet.supernet(), Ipv4Net::supernet);
        shorter
            .take_while(|net| net.prefix_len() >= self.network.prefix_len())
            .find_map(|net| self.rules.get(&key(net)).copied())
    }
}

fn key(subnet: Ipv4Net) -> (Ipv4Addr, u8) {
    (subnet.network(), subnet.prefix_len())
}
