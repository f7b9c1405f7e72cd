//! The two levels of slots that a look-up walks.

use super::PeerId;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::ops::Range;

/// Addresses in one level 1 slot, and slots in one level 2 chunk.
const CHUNK: usize = 256;
/// Prefix length of one level 1 slot.
const SLOT_PREFIX: u8 = 24;
/// The bit of a level 1 slot that says that the other bits are a chunk's number.
const IS_CHUNK: u32 = 1 << 31;

/// The greatest peer id that a slot can hold beside the chunk bit and the empty value.
pub(super) const LAST_PEER: u32 = IS_CHUNK - 2;

const _: () =
    assert!(CHUNK == 1 << (32 - SLOT_PREFIX), "a chunk has a slot for each address of a level 1 slot");
const _: () = assert!((LAST_PEER + 1) & IS_CHUNK == 0, "an encoded peer would be taken for a chunk");
const _: () =
    assert!(2 * CHUNK - 2 <= u16::MAX as usize, "rules of /25 to /32 in one /24 are counted in 16 bits");

/// Empty is encoded as zero, so that untouched memory is an empty table, and a peer as its id plus one.
fn encode(peer: Option<PeerId>) -> u32 {
    peer.map_or(0, |id| id.0 + 1)
}

fn decode(slot: u32) -> Option<PeerId> {
    slot.checked_sub(1).map(PeerId)
}

/// Both levels, and which chunks of level 2 are in use.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    network: u32,
    mask: u32,
    level1: Vec<u32>,
    level2: Vec<u32>,
    /// How many rules longer than /24 lie inside each chunk; 0 means that the chunk is on the free list.
    chunk_rules: Vec<u16>,
    free_chunks: Vec<u32>,
}

impl Slots {
    /// Slots for the addresses of `network`, all empty.
    pub(super) fn new(network: Ipv4Net) -> Self {
        let slots = 1usize << SLOT_PREFIX.saturating_sub(network.prefix_len());
        Self {
            network: network.network().to_bits(),
            mask: network.netmask().to_bits(),
            level1: vec![0; slots],
            level2: Vec::new(),
            chunk_rules: Vec::new(),
            free_chunks: Vec::new(),
        }
    }

    /// The peer that `address` was painted with last; `None` also outside of the network.
    #[inline]
    pub(super) fn lookup(&self, address: Ipv4Addr) -> Option<PeerId> {
        let address = address.to_bits();
        if address & self.mask != self.network {
            return None;
        }
        let slot = self.level1[self.slot_of(address)];
        if slot & IS_CHUNK == 0 {
            return decode(slot);
        }
        decode(self.level2[chunk_start(slot) + last_octet(address)])
    }

    /// Makes room for a rule that is new to the table. `None` if there are no chunks left to number.
    pub(super) fn open(&mut self, net: Ipv4Net) -> Option<()> {
        if net.prefix_len() <= SLOT_PREFIX {
            return Some(());
        }
        let index = self.slot_of(net.network().to_bits());
        let slot = self.level1[index];
        if slot & IS_CHUNK != 0 {
            self.chunk_rules[chunk_number(slot)] += 1;
            return Some(());
        }
        let chunk = match self.free_chunks.pop() {
            Some(chunk) => chunk,
            None => {
                let chunk = u32::try_from(self.chunk_rules.len()).ok().filter(|n| n & IS_CHUNK == 0)?;
                self.level2.resize(self.level2.len() + CHUNK, 0);
                self.chunk_rules.push(0);
                chunk
            }
        };
        let entry = chunk | IS_CHUNK;
        self.chunk_rules[chunk_number(entry)] = 1;
        self.level2[chunk_range(entry)].fill(slot);
        self.level1[index] = entry;
        Some(())
    }

    /// Gives back the room of a rule that has left the table and been painted over.
    pub(super) fn close(&mut self, net: Ipv4Net) {
        if net.prefix_len() <= SLOT_PREFIX {
            return;
        }
        let index = self.slot_of(net.network().to_bits());
        let entry = self.level1[index];
        debug_assert!(entry & IS_CHUNK != 0, "{net} was never opened");
        let rules = &mut self.chunk_rules[chunk_number(entry)];
        *rules -= 1;
        if *rules == 0 {
            // No rule cuts this /24 any more, so all its slots are equal.
            debug_assert!(self.level2[chunk_range(entry)].windows(2).all(|pair| pair[0] == pair[1]));
            self.level1[index] = self.level2[chunk_start(entry)];
            self.free_chunks.push(entry & !IS_CHUNK);
        }
    }

    /// Points every address of `net` at `peer`. A net longer than /24 must have been opened.
    pub(super) fn paint(&mut self, net: Ipv4Net, peer: Option<PeerId>) {
        let value = encode(peer);
        let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
        if net.prefix_len() > SLOT_PREFIX {
            debug_assert!(self.level1[self.slot_of(first)] & IS_CHUNK != 0, "{net} was never opened");
            let start = chunk_start(self.level1[self.slot_of(first)]);
            self.level2[start + last_octet(first)..=start + last_octet(last)].fill(value);
            return;
        }
        let start = self.slot_of(first);
        for slot in &mut self.level1[start..start + slots_in(net)] {
            if *slot & IS_CHUNK == 0 {
                *slot = value;
            } else {
                self.level2[chunk_range(*slot)].fill(value);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn level2_slots(&self) -> usize {
        self.level2.len()
    }

    fn slot_of(&self, address: u32) -> usize {
        ((address >> 8) - (self.network >> 8)) as usize
    }
}

/// Level 1 slots under a net of /24 or shorter.
fn slots_in(net: Ipv4Net) -> usize {
    1 << (SLOT_PREFIX - net.prefix_len())
}

fn chunk_number(entry: u32) -> usize {
    (entry & !IS_CHUNK) as usize
}

fn chunk_start(entry: u32) -> usize {
    chunk_number(entry) * CHUNK
}

fn chunk_range(entry: u32) -> Range<usize> {
    chunk_start(entry)..chunk_start(entry) + CHUNK
}

fn last_octet(address: u32) -> usize {
    (address & 0xff) as usize
}
