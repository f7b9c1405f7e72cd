//! Packets to one peer → trains: runs of equal size that one `UDP_SEGMENT` send carries; and back, one receive with
//! `UDP_GRO` → packets.
//!
//! The kernel cuts a send into datagrams of `segment_size` bytes, of which the last may be shorter (udp(7),
//! `UDP_SEGMENT`). It takes at most 65 507 bytes and `UDP_MAX_SEGMENTS` datagrams (64; 128 since Linux 6.9), each
//! within the path MTU.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;

/// The largest UDP payload over IPv4: 65 535 − 20 − 8.
pub const TRAIN_BYTES: usize = 65_507;

/// Room in a train's buffer. More than [`TRAIN_BYTES`], so that any IPv4 packet has a place; a lone packet above that
/// limit fails in the send, with `EMSGSIZE`.
const TRAIN_ROOM: usize = 65_535;

/// What the kernel and the path take in one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most packets in a train; at least 1 is used. 64 suits every kernel, 128 needs Linux 6.9.
    pub max_segments: u16,
    /// The largest packet, in bytes, that may be part of a train (path MTU − 28). A larger one travels alone and the
    /// kernel fragments it.
    pub max_segment_size: u16,
    /// False: every packet is a train of its own.
    pub enabled: bool,
}

/// One send: packets of one size, back to back in one buffer; only the last may be shorter.
#[derive(Debug)]
pub struct Train {
    buffer: Box<[u8]>,
    len: usize,
    segment_size: u16,
    count: u16,
    sealed: bool,
    limits: Limits,
}

impl Train {
    /// An empty train with its buffer.
    #[must_use]
    pub fn new(limits: Limits) -> Train {
        let buffer = vec![0; TRAIN_ROOM].into_boxed_slice();
        Train { buffer, len: 0, segment_size: 0, count: 0, sealed: false, limits }
    }

    /// Empties the train; its limits are `limits` from now on.
    pub fn reset(&mut self, limits: Limits) {
        self.limits = limits;
        self.clear();
    }

    /// Empties the train.
    pub fn clear(&mut self) {
        self.len = 0;
        self.segment_size = 0;
        self.count = 0;
        self.sealed = false;
    }

    /// The packets, back to back.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Size in bytes of each packet but the last, for the control message; the only packet's size in a train of one.
    #[must_use]
    pub fn segment_size(&self) -> u16 {
        self.segment_size
    }

    /// How many packets there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// True if there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The packets one by one, for a send that has to do without `UDP_SEGMENT`.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks(usize::from(self.segment_size).max(1))
    }

    /// True if a packet of `len` bytes may join. An empty train takes any packet.
    #[inline]
    #[must_use]
    pub fn accepts(&self, len: usize) -> bool {
        if self.is_empty() {
            return len <= TRAIN_ROOM;
        }
        !self.sealed
            && len <= usize::from(self.segment_size)
            && self.count < self.limits.max_segments
            && self.len + len <= TRAIN_BYTES
    }

    /// The room for the next packet, of `len` bytes; [`Train::commit`] makes it count.
    ///
    /// # Panics
    /// If the buffer has no such room: ask [`Train::accepts`] first.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer[self.len..self.len + len]
    }

    /// Counts the packet of `len` bytes that was written into the reserved room. A packet shorter than the first
    /// seals the train, and so does a first one that must travel alone.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        debug_assert!(self.accepts(len), "a packet of {len} bytes does not fit");
        let size = u16::try_from(len).unwrap_or(u16::MAX);
        if self.is_empty() {
            self.segment_size = size;
            self.sealed = !self.limits.enabled || size > self.limits.max_segment_size;
        } else if size < self.segment_size {
            self.sealed = true;
        }
        self.len += len;
        self.count += 1;
    }
}

/// The open trains of one flush, in the order in which they were opened.
///
/// `K` names the peer. A packet joins only the newest train of its key, so packets of one key keep their order as
/// long as the trains are sent in order.
#[derive(Debug)]
pub struct Batcher<K> {
    limits: Limits,
    /// Keys apart from the trains: the search reads a few cache lines only.
    keys: VecDeque<K>,
    open: VecDeque<Train>,
    pool: Vec<Train>,
    /// The train that took the last packet, so the newest of its key; out of range if there is none.
    last: usize,
}

impl<K: Copy + Eq> Batcher<K> {
    /// Allocates `trains` trains (64 KiB each). The search for a key is linear in the open trains: keep it to some
    /// dozens.
    #[must_use]
    pub fn new(trains: usize, limits: Limits) -> Batcher<K> {
        Batcher {
            limits,
            keys: VecDeque::with_capacity(trains),
            open: VecDeque::with_capacity(trains),
            pool: (0..trains).map(|_| Train::new(limits)).collect(),
            last: usize::MAX,
        }
    }

    /// The limits of trains that are opened from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Room for a packet of `len` bytes to `key`, already counted: the caller fills all of it. `None` if it needs a
    /// new train and none is left: flush (and, where trains are in flight, wait for one), then try again. `len` is an
    /// IPv4 packet's length, 20 to 65 535; a longer one is refused in any case.
    #[inline]
    pub fn place(&mut self, key: K, len: usize) -> Option<&mut [u8]> {
        let index = match self.newest(key) {
            Some(index) if self.open[index].accepts(len) => index,
            _ => self.open_train(key, len)?,
        };
        self.last = index;
        let train = &mut self.open[index];
        let start = train.len;
        train.commit(len);
        Some(&mut train.buffer[start..start + len])
    }

    /// The newest open train of `key`.
    #[inline]
    fn newest(&self, key: K) -> Option<usize> {
        if self.keys.get(self.last) == Some(&key) {
            return Some(self.last);
        }
        self.keys.iter().rposition(|open| *open == key)
    }

    fn open_train(&mut self, key: K, len: usize) -> Option<usize> {
        if len > TRAIN_ROOM {
            return None;
        }
        let mut train = self.pool.pop()?;
        train.reset(self.limits);
        self.open.push_back(train);
        self.keys.push_back(key);
        Some(self.open.len() - 1)
    }

    /// Takes the oldest open train. It must come home through [`Batcher::give_back`] once it is sent.
    pub fn take(&mut self) -> Option<(K, Train)> {
        let oldest = self.keys.pop_front().zip(self.open.pop_front());
        self.last = self.last.wrapping_sub(1);
        oldest
    }

    /// Takes all open trains, oldest first. Each must come home through [`Batcher::give_back`]; those that the caller
    /// does not take out of the iterator are lost with it.
    pub fn flush(&mut self) -> impl Iterator<Item = (K, Train)> {
        self.last = usize::MAX;
        self.keys.drain(..).zip(self.open.drain(..))
    }

    /// The open trains, oldest first, for a carrier that sends while it waits; then [`Batcher::recycle`].
    pub fn iter(&self) -> impl Iterator<Item = (K, &Train)> {
        self.keys.iter().copied().zip(&self.open)
    }

    /// Returns all open trains to the pool.
    pub fn recycle(&mut self) {
        while let Some((_, train)) = self.take() {
            self.give_back(train);
        }
    }

    /// Returns a train to the pool, the most recently used first in line (its memory is warm).
    pub fn give_back(&mut self, train: Train) {
        self.pool.push(train);
    }

    /// How many trains are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many trains wait in the pool.
    #[must_use]
    pub fn available(&self) -> usize {
        self.pool.len()
    }

    /// True if no train is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// The packets of one receive of `len` bytes: every `stride` bytes (the `UDP_GRO` control message) one, the last
/// perhaps shorter. Without a stride, or with 0, the whole is one packet, also an empty one.
pub fn split(len: usize, stride: Option<u16>) -> impl Iterator<Item = Range<usize>> {
    let stride = match stride {
        Some(stride) if stride > 0 => usize::from(stride),
        _ => len.max(1),
    };
    (0..len.max(1)).step_by(stride).map(move |start| start..(start + stride).min(len))
}
