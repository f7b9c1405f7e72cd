//! The peers that routes point at, each held as long as a route refers to it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A peer in one [`RouteTable`](super::RouteTable): two routes to the same address and port give equal ids.
///
/// An id stays valid while a route refers to its peer; after that it may be given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerId(pub(super) u32);

impl PeerId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// One peer, found by its id.
#[derive(Debug, Clone)]
struct Entry {
    address: SocketAddrV4,
    /// How many rules point here; 0 means that the entry is on the free list.
    rules: usize,
}

/// All peers of one table, found by id, by address and by host.
#[derive(Debug, Clone, Default)]
pub(super) struct Peers {
    entries: Vec<Entry>,
    free: Vec<PeerId>,
    by_address: HashMap<SocketAddrV4, PeerId>,
    /// How many live entries have this outer address (they differ in port).
    hosts: HashMap<Ipv4Addr, usize>,
}

impl Peers {
    /// Counts one more rule on `address` and gives its id; `None` if an id above `last` would be needed.
    pub(super) fn acquire(&mut self, address: SocketAddrV4, last: u32) -> Option<PeerId> {
        if let Some(&id) = self.by_address.get(&address) {
            self.entries[id.index()].rules += 1;
            return Some(id);
        }
        let entry = Entry { address, rules: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id.index()] = entry;
                id
            }
            None => {
                let id = u32::try_from(self.entries.len()).ok().filter(|&n| n <= last).map(PeerId)?;
                self.entries.push(entry);
                id
            }
        };
        self.by_address.insert(address, id);
        *self.hosts.entry(*address.ip()).or_insert(0) += 1;
        debug_assert!(self.adds_up());
        Some(id)
    }

    /// Counts one rule less on `id`, which is free once no rule is left.
    pub(super) fn release(&mut self, id: PeerId) {
        let entry = &mut self.entries[id.index()];
        entry.rules -= 1;
        if entry.rules > 0 {
            return;
        }
        let address = entry.address;
        self.free.push(id);
        self.by_address.remove(&address);
        if let Some(count) = self.hosts.get_mut(address.ip()) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(address.ip());
            }
        }
        debug_assert!(self.adds_up());
    }

    /// True if each entry is either free or found by its address, and no host is counted without one.
    fn adds_up(&self) -> bool {
        let live = self.by_address.len();
        live + self.free.len() == self.entries.len() && self.hosts.len() <= live
    }

    /// Where the packets of a peer go that some rule points at.
    pub(super) fn address(&self, id: PeerId) -> SocketAddrV4 {
        let entry = &self.entries[id.index()];
        debug_assert!(entry.rules > 0, "peer {} is no route's any more", id.0);
        entry.address
    }

    /// True if some peer has this outer address, on any port.
    pub(super) fn has_host(&self, address: Ipv4Addr) -> bool {
        self.hosts.contains_key(&address)
    }
}
