//! Which peer owns an overlay address.
//!
//! # Theory of operation
//!
//! The table is DIR-24-8 (Gupta, Lin, McKeown, "Routing lookups in hardware at memory access speeds",
//! INFOCOM 1998) cut down to the overlay network's own range:
//!
//! ```text
//!   address − network ──► level 1: one slot per /24 of the network ──┬─► nothing
//!                                                                    ├─► peer
//!                                                                    └─► chunk ─► level 2: 256 slots, one per address
//! ```
//!
//! A look-up is one index step where all rules of a /24 are /24 or shorter, two otherwise, whatever
//! the number of peers. A /8 needs 256 KiB at level 1, a /16 one KiB; a network of /24 or longer has one
//! slot. The memory is asked for zeroed, so the kernel backs a page only once a rule touches it.
//!
//! The rules stay beside the slots in an ordered map, keyed by (address, prefix length). In that order a
//! rule is followed by every longer rule inside it, parents before children, so a change repaints
//! its own range and then that stretch of the map: `set` does not overwrite a longer rule, and `del`
//! uncovers the next shorter one. For the usual disjoint leases (/20 … /24) that is 1 … 16 slots.
//!
//! Each worker owns a copy; nothing here locks, and a look-up allocates nothing.

mod peers;
mod slots;
mod table;

pub use peers::PeerId;
pub use table::{Peer, RouteCommand, RouteError, RouteTable};

#[cfg(test)]
mod tests;
