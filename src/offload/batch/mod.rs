//! Packets to one peer → trains: runs of equal size that one `UDP_SEGMENT` send carries; and back, one receive with
//! `UDP_GRO` → packets.
//!
//! The kernel cuts a send into datagrams of `segment_size` bytes, of which the last may be shorter (udp(7),
//! `UDP_SEGMENT`). It takes at most 65 507 bytes and `UDP_MAX_SEGMENTS` datagrams, each within the path MTU. That limit
//! is 64, and 128 since Linux 6.9 and in newer stable kernels before it; kernels before 5.16 count the UDP header as
//! payload, so that a train as large as the limit is one packet too long for them. The `udp` room tries how many pass.

#[cfg(test)]
mod tests;

use crate::packet::ipv4::{MAX_PACKET, MIN_HEADER};
use crate::packet::transport::UDP_HEADER;
use std::ops::Range;

/// The largest UDP payload over IPv4.
pub const TRAIN_BYTES: usize = 65_507;

const _: () = assert!(TRAIN_BYTES == MAX_PACKET - MIN_HEADER - UDP_HEADER);

/// Room in a train's buffer. It is more than [`TRAIN_BYTES`], so that any IPv4 packet has a place; the send of a lone
/// packet above that limit fails with `EMSGSIZE`.
const TRAIN_ROOM: usize = MAX_PACKET;

const _: () = assert!(TRAIN_ROOM <= u16::MAX as usize, "a packet's length fits the segment size");

/// What the kernel and the path take in one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most packets in a train, which takes one in any case. 63 suits every kernel with `UDP_SEGMENT`, 127
    /// needs a limit of 128 (Linux 6.9).
    pub max_segments: u16,
    /// The largest packet, in bytes, that may be part of a train (path MTU − 28). A larger one travels alone and the
    /// kernel fragments it.
    pub max_segment_size: u16,
    /// If false, every packet is a train of its own.
    pub enabled: bool,
}

/// One send: packets of one size, back to back in one buffer; only the last may be shorter.
#[derive(Debug)]
pub struct Train {
    buffer: Box<[u8]>,
    len: usize,
    segment_size: u16,
    count: u16,
    /// True if nothing may join any more.
    sealed: bool,
    limits: Limits,
}

impl Train {
    /// An empty train with its buffer.
    fn new(limits: Limits) -> Train {
        let buffer = vec![0; TRAIN_ROOM].into_boxed_slice();
        Train { buffer, len: 0, segment_size: 0, count: 0, sealed: false, limits }
    }

    /// Empties the train; its limits are `limits` from now on.
    fn reset(&mut self, limits: Limits) {
        self.limits = limits;
        self.clear();
    }

    /// Empties the train and keeps its limits.
    fn clear(&mut self) {
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
    fn accepts(&self, len: usize) -> bool {
        if self.is_empty() {
            return len <= TRAIN_ROOM;
        }
        let is_no_longer = len <= usize::from(self.segment_size);
        let fits = self.count < self.limits.max_segments && self.len + len <= TRAIN_BYTES;
        !self.sealed && is_no_longer && fits
    }

    /// The room for the next packet, of `len` bytes; [`Train::commit`] makes it count.
    #[cfg(test)]
    fn reserve(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer[self.len..self.len + len]
    }

    /// Counts a packet of `len` bytes behind the others. A packet shorter than the first seals the train, and so does
    /// a first one that must travel alone.
    #[inline]
    fn commit(&mut self, len: usize) {
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
        debug_assert!(self.is_run(), "{} packets of {size}, {} bytes: no run", self.count, self.len);
    }

    /// True if the kernel, told the segment size, would cut the train into the packets that were placed.
    fn is_run(&self) -> bool {
        let size = usize::from(self.segment_size);
        let before_last = self.count().saturating_sub(1) * size;
        let last = self.len.saturating_sub(before_last);
        let only_last_is_shorter = (1..=size).contains(&last) && (last == size || self.sealed);
        let within_limits = self.count <= self.limits.max_segments
            && self.segment_size <= self.limits.max_segment_size
            && self.len <= TRAIN_BYTES;
        only_last_is_shorter && (self.count == 1 || (self.limits.enabled && within_limits))
    }
}

/// The open trains of one flush, in the order in which they were opened.
///
/// `K` names the peer. A packet joins only the newest train of its key, so packets of one key keep their order as
/// long as the trains are sent in order.
#[derive(Debug)]
pub struct Trains<K> {
    limits: Limits,
    /// The keys lie apart from the trains, so that the search reads a few cache lines only.
    keys: Vec<K>,
    open: Vec<Train>,
    pool: Vec<Train>,
    /// The train that took the last packet.
    last: usize,
}

impl<K: Copy + Eq> Trains<K> {
    /// Allocates `trains` trains (64 KiB each). The search for a key is linear in the open trains, so some dozens are
    /// a good number.
    #[must_use]
    pub fn new(trains: usize, limits: Limits) -> Trains<K> {
        Trains {
            limits,
            keys: Vec::with_capacity(trains),
            open: Vec::with_capacity(trains),
            pool: (0..trains).map(|_| Train::new(limits)).collect(),
            last: 0,
        }
    }

    /// Sets the limits of trains that are opened from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Gives room for a packet of `len` bytes to `key` and counts that packet, so the caller must fill all of the room.
    /// `None` if the packet needs a new train and none is left: flush, then try again. `len` is an IPv4 packet's
    /// length, 20 to 65 535; a longer one is refused in any case.
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

    /// Gives room as [`Trains::place`] does, but in a train of its own that nothing can join.
    pub fn place_alone(&mut self, key: K, len: usize) -> Option<&mut [u8]> {
        let index = self.open_train(key, len)?;
        self.last = index;
        let train = &mut self.open[index];
        train.commit(len);
        train.sealed = true;
        Some(&mut train.buffer[..len])
    }

    /// The newest open train of `key`.
    #[inline]
    fn newest(&self, key: K) -> Option<usize> {
        // `last` is where the last packet went, so it is the newest train of its own key.
        let newest = || self.keys.iter().rposition(|open| *open == key);
        if self.keys.get(self.last) == Some(&key) {
            debug_assert_eq!(Some(self.last), newest(), "a packet would overtake those of a newer train");
            return Some(self.last);
        }
        newest()
    }

    fn open_train(&mut self, key: K, len: usize) -> Option<usize> {
        if len > TRAIN_ROOM {
            return None;
        }
        let mut train = self.pool.pop()?;
        train.reset(self.limits);
        debug_assert!(self.open.len() < self.open.capacity(), "opening a train would allocate");
        self.open.push(train);
        self.keys.push(key);
        debug_assert_eq!(self.keys.len(), self.open.len(), "each train has its key");
        Some(self.open.len() - 1)
    }

    /// The open trains with their keys, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (K, &Train)> {
        self.keys.iter().copied().zip(&self.open)
    }

    /// Forgets all trains. Their buffers are free again, and the one used last is used next, since its memory is warm.
    pub fn clear(&mut self) {
        self.last = 0;
        self.keys.clear();
        debug_assert!(self.pool.len() + self.open.len() <= self.pool.capacity(), "the pool would allocate");
        self.pool.append(&mut self.open);
    }

    /// How many trains are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many trains wait in the pool.
    #[cfg(test)]
    fn available(&self) -> usize {
        self.pool.len()
    }

    /// True if no train is open.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Gives where the packets of one receive of `len` bytes lie: one begins every `stride` bytes (which the `UDP_GRO`
/// control message tells), and the last may be shorter. Without a stride, or with 0, all bytes are one packet, even if
/// there are none.
pub fn split(len: usize, stride: Option<u16>) -> impl Iterator<Item = Range<usize>> {
    let stride = match stride {
        Some(stride) if stride > 0 => usize::from(stride),
        _ => len.max(1),
    };
    (0..len.max(1)).step_by(stride).map(move |start| start..(start + stride).min(len))
}
