//! Which frame is the newest of a flow: an open-addressed hash table of frame numbers, emptied by a generation
//! number. It never holds more flows than frames and has twice as many slots, so a search ends soon.

use super::flow::Flow;
use super::item::{Item, low32};
use std::hash::BuildHasher;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    item: u32,
}

/// The newest frame of each flow of this flush.
#[derive(Debug)]
pub(super) struct FlowIndex {
    slots: Box<[Slot]>,
    /// A slot of another generation is empty. The number starts at 1, so that zeroed slots are empty too.
    generation: u32,
    /// The seed of the hash is secret, so that no peer can choose flows that collide.
    seed: u64,
}

impl FlowIndex {
    pub(super) fn new(frames: usize) -> FlowIndex {
        let slots = vec![Slot::default(); (frames * 2).next_power_of_two().max(2)];
        let seed = std::hash::RandomState::new().hash_one(0u8);
        FlowIndex { slots: slots.into_boxed_slice(), generation: 1, seed }
    }

    pub(super) fn clear(&mut self) {
        self.generation = match self.generation.checked_add(1) {
            Some(generation) => generation,
            None => {
                self.slots.fill(Slot::default());
                1
            }
        };
    }

    /// The item last set for `flow`.
    #[inline]
    pub(super) fn get(&self, flow: Flow, items: &[Item]) -> Option<usize> {
        let slot = self.slots[self.find(flow, items)];
        (slot.generation == self.generation).then_some(slot.item as usize)
    }

    /// Makes `item` the newest of `flow`.
    #[inline]
    pub(super) fn set(&mut self, flow: Flow, item: usize, items: &[Item]) {
        debug_assert!(items.len() * 2 <= self.slots.len(), "a search would be long, or without end");
        let at = self.find(flow, items);
        self.slots[at] = Slot { generation: self.generation, item: low32(item) };
    }

    /// The slot of `flow`, or the empty slot where it belongs.
    #[inline]
    fn find(&self, flow: Flow, items: &[Item]) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.hash(flow) & mask;
        while self.slots[at].generation == self.generation && items[self.slots[at].item as usize].flow != flow
        {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline]
    fn hash(&self, flow: Flow) -> usize {
        let hash = fold_multiply(fold_multiply(self.seed ^ flow.addresses) ^ flow.ports_and_protocol);
        usize::try_from(hash & 0xffff_ffff).unwrap_or(0)
    }
}

/// Multiplies and folds 128 bits to 64: the core of wyhash.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the product are used")]
fn fold_multiply(value: u64) -> u64 {
    let product = u128::from(value) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}
