//! Packets that came from a peer → frames for the TUN: neighbours of one flow become one super-packet again.
//!
//! # Theory of operation
//!
//! Packets lie in numbered receive buffers and are only read. A frame is a *head*, which is bytes of our own (vnet
//! header, IP and transport header of its first packet, with the TTL taken down by one), and *pieces*, which are ranges
//! of the receive buffers. One `writev` writes them together.
//!
//! ```text
//!  the caller's buffers, which are only read
//!             ┌───┬─────────┬───┬─────────┬───┬─────────┬───┬─────────┐
//!   buffer 0  │hdr│ data A1 │hdr│ data A2 │hdr│ data B1 │hdr│ data A3 │
//!             └───┴────▲────┴───┴────▲────┴───┴────▲────┴───┴────▲────┘
//!                      │ buffer,     │             │             │
//!                      │ start, len  │             │             │
//!             ┌────────┴────┬────────┴────┬────────┴────┬────────┴────┐
//!   arrived   │    0, A1    │    0, A2    │    1, B1    │    0, A3    │  (item, piece), in order of arrival
//!             └─────────────┴─────────────┴─────────────┴─────────────┘
//!                   │ sorted by item when the frames are asked for
//!             ┌────┬▼───┬────┬────┐
//!   by_frame  │ A1 │ A2 │ A3 │ B1 │
//!             └─▲──┴────┴────┴─▲──┘
//!               │ first_piece, │ pieces
//!             ┌─┴──────────┬───┴────────┐
//!   items     │ 0: flow A  │ 1: flow B  │  one frame in the making each, in the order of opening
//!             └─┬─▲────────┴─┬─▲────────┘
//!               │ │          │ └── index: hash of flow B ──► its newest item
//!               │ └──────────┼──── index: hash of flow A ──► its newest item
//!               │            │     last: the item that was touched last (by A3)
//!               │ head_start,│ head_len
//!             ┌─▼──────────┬─▼──────────┬───────────────┐
//!   heads     │vnet IP TCP │vnet IP UDP │ free …        │  headers of A1 and B1, copied and edited
//!             └────────────┴────────────▲───────────────┘
//!                                       └── heads_used
//! ```
//!
//! An item owns nothing: it holds offsets and counts, so that all memory is allocated once and a flush is forgotten by
//! setting lengths to zero. The frame that is handed out borrows one range of `heads` and one range of `by_frame`.
//!
//! A packet can merge if it is plain data of TCP or UDP: no IP options, no fragment, for TCP only ACK, PSH and ECE
//! among the flags, and some payload. Before that its IP header checksum and its transport checksum are verified, since
//! a frame written with `NEEDS_CSUM` is believed by the kernel: merging unverified bytes would launder corruption.
//! It joins the newest frame of its flow if the super-packet, cut again by the kernel's rules, gives back the same
//! packets. Their sequence numbers must be contiguous; acknowledgement, window, TOS, TTL, fragment word, header length
//! and options must be the same; no payload may be longer than the first. Where DF is clear, the identifications must
//! count up. (Where DF is set the identification means nothing, RFC 6864, and is not kept.) A PSH or a shorter payload
//! closes the frame.
//!
//! Everything else of a flow passes as a frame of its own and closes the flow's open frame, pure ACKs included, so that
//! a flow's packets leave in the order in which they came. A verified packet that stayed alone is written with
//! `NEEDS_CSUM` too, so that the kernel does not sum it a second time.
//!
//! A look-up asks first the frame that was touched last (a peer's GRO buffer is mostly one flow), then a hash table
//! over the flows of this flush, which a generation number empties at no cost.

mod flow;
mod index;
mod item;

#[cfg(test)]
mod tests;

use crate::packet::ipv4::{Ipv4, MAX_HEADER, decrement_ttl};
use crate::packet::transport::TCP_MAX_HEADER;
use crate::packet::vnet::VNET_LEN;
use flow::Flow;
use index::FlowIndex;
use item::{Arrival, Item, low32};

/// Most pieces in a frame. With the head they stay far below the 1024 of `IOV_MAX`.
pub const MAX_PIECES: usize = 130;

/// A packet up to this length is copied to its frame's head whole, which is cheaper than a piece. It is also the
/// longest header that a head holds (60 bytes of IPv4 and 60 of TCP).
const INLINE: usize = 120;

const _: () = assert!(INLINE >= MAX_HEADER + TCP_MAX_HEADER, "a head may hold more than its room");

/// Header bytes that one more packet can need, so `frames × HEAD_ROOM` of [`Settings::header_bytes`] last for all
/// frames of a flush.
pub const HEAD_ROOM: usize = VNET_LEN + INLINE;

/// What to merge, and how much memory to allocate for one flush.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// True to merge TCP; otherwise TCP packets pass as they are and are not verified.
    pub tcp: bool,
    /// True to merge UDP, for which the kernel must know `VIRTIO_NET_HDR_GSO_UDP_L4` (Linux 6.2); otherwise UDP packets
    /// pass as they are and are not verified.
    pub udp: bool,
    /// Most frames in a flush.
    pub frames: usize,
    /// Most pieces in a flush: each packet takes one at most.
    pub pieces: usize,
    /// Bytes for heads. A new frame needs [`HEAD_ROOM`] of them free; an [owned](Coalescer::push_owned) packet needs 10
    /// and its own length.
    pub header_bytes: usize,
}

/// A range of a receive buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Number of the buffer, as given to [`Coalescer::push`].
    pub buffer: u16,
    /// Where the range starts in that buffer.
    pub start: u32,
    /// How many bytes it has.
    pub len: u32,
}

/// One write to the TUN: `head`, then the bytes of each piece.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The 10-byte vnet header, then the IP header and what follows it as far as it was copied.
    pub head: &'a [u8],
    /// The bytes behind the head, at most [`MAX_PIECES`].
    pub pieces: &'a [Piece],
    /// How many packets the frame stands for.
    pub packets: u32,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// The packet joined a frame.
    Merged,
    /// The packet opened a frame that others may join.
    Opened,
    /// The packet is a frame that no other joins.
    Alone,
    /// There is no [room](Coalescer::has_room_for) for the packet, and nothing was recorded: write the frames, clear,
    /// then push it again.
    NoRoom,
    /// The packet's TTL is 0 or 1, and nothing was recorded.
    Expired,
}

/// Collects the packets of one flush; the module's theory of operation has a picture of its memory.
#[derive(Debug)]
pub struct Coalescer {
    settings: Settings,
    items: Vec<Item>,
    /// Pieces in order of arrival, each with its item.
    arrived: Vec<(u32, Piece)>,
    /// Pieces by frame, filled by [`Coalescer::frames`].
    by_frame: Vec<Piece>,
    heads: Box<[u8]>,
    heads_used: usize,
    index: FlowIndex,
    /// The item that was touched last, which a look-up asks first.
    last: usize,
}

impl Coalescer {
    /// Allocates all memory that it will ever use.
    #[must_use]
    pub fn new(settings: Settings) -> Coalescer {
        Coalescer {
            settings,
            items: Vec::with_capacity(settings.frames),
            arrived: Vec::with_capacity(settings.pieces),
            by_frame: vec![Piece::default(); settings.pieces],
            heads: vec![0; settings.header_bytes].into_boxed_slice(),
            heads_used: 0,
            index: FlowIndex::new(settings.frames),
            last: 0,
        }
    }

    /// Takes the packet that lies at `start` in `buffer`. `packet` is exactly one IPv4 packet and `ip` its header as
    /// [`Ipv4::parse`] gives it. The buffer must stay as it is until the frames are written.
    ///
    /// # Panics
    /// If `packet` is shorter than `ip.header_len`: then `ip` belongs to other bytes. A debug build panics for any length
    /// but `ip.total_len`.
    pub fn push(&mut self, buffer: u16, start: usize, packet: &[u8], ip: &Ipv4) -> Pushed {
        if !self.has_room_for(1) {
            return Pushed::NoRoom;
        }
        if ip.ttl <= 1 {
            return Pushed::Expired;
        }
        debug_assert_eq!(packet.len(), ip.total_len, "`ip` belongs to other bytes");
        let arrival = Arrival::classify(packet, ip, self.settings.tcp, self.settings.udp);
        if let Some(newest) = arrival.flow.and_then(|flow| self.newest_open(flow)) {
            let item = &mut self.items[newest];
            self.last = newest;
            if item.accepts(&arrival, packet, &self.heads) {
                item.append(&arrival, packet, &mut self.heads);
                self.add_piece(newest, buffer, start + arrival.header_len, packet.len() - arrival.header_len);
                debug_assert!(self.holds_together(newest), "{:?}", self.items[newest]);
                return Pushed::Merged;
            }
            item.open = false;
        }
        if arrival.later_fragment {
            self.close_all_between(ip);
        }
        let pushed = self.open(&arrival, buffer, start, packet);
        debug_assert!(self.holds_together(self.items.len() - 1), "{:?}", self.items.last());
        pushed
    }

    /// Takes a whole packet that this daemon made (an ICMP error), copies it and makes it a plain frame as it is, TTL
    /// included. It returns false if there is no room.
    pub fn push_owned(&mut self, packet: &[u8]) -> bool {
        let room = self.items.len() < self.settings.frames
            && self.heads_used + VNET_LEN + packet.len() <= self.heads.len();
        if room {
            let head_start = self.store_head(packet);
            self.items.push(Item::plain(head_start, VNET_LEN + packet.len()));
        }
        room
    }

    /// True if any `packets` further packets of [`Coalescer::push`] find room.
    #[must_use]
    pub fn has_room_for(&self, packets: usize) -> bool {
        let frames_left = self.settings.frames - self.items.len();
        let pieces_left = self.settings.pieces - self.arrived.len();
        let head_bytes_left = self.heads.len() - self.heads_used;
        packets <= frames_left && packets <= pieces_left && packets * HEAD_ROOM <= head_bytes_left
    }

    /// How many packets the frame of that number stands for.
    #[must_use]
    pub fn packets_of(&self, frame: usize) -> u32 {
        self.items.get(frame).map_or(0, |item| item.packets)
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Finishes the frames (sets lengths, checksums and vnet headers, once for each frame) and gives them in the order
    /// in which they were opened.
    pub fn frames(&mut self) -> impl ExactSizeIterator<Item = Frame<'_>> {
        self.order_pieces();
        for item in &self.items {
            item.finish(&mut self.heads);
            debug_assert!(
                item.has_all_bytes(&self.by_frame[item.first_piece..][..item.pieces]),
                "a frame is not as long as its header says: {item:?}"
            );
        }
        let (heads, pieces) = (&self.heads, &self.by_frame);
        self.items.iter().map(move |item| Frame {
            head: &heads[item.head_start..item.head_start + item.head_len],
            pieces: &pieces[item.first_piece..item.first_piece + item.pieces],
            packets: item.packets,
        })
    }

    /// Forgets all frames; the receive buffers may be used again.
    pub fn clear(&mut self) {
        self.items.clear();
        self.arrived.clear();
        self.heads_used = 0;
        self.index.clear();
        self.last = 0;
    }

    /// The frame of `flow` that may still grow.
    #[inline]
    fn newest_open(&self, flow: Flow) -> Option<usize> {
        match self.items.get(self.last) {
            Some(item) if item.open && item.flow == flow => Some(self.last),
            _ => self.index.get(flow, &self.items).filter(|at| self.items[*at].open),
        }
    }

    /// What holds for the frame in the making that has just taken a packet.
    fn holds_together(&self, at: usize) -> bool {
        let item = &self.items[at];
        let within_memory = self.items.len() <= self.settings.frames
            && self.arrived.len() <= self.settings.pieces
            && item.head_start + item.head_len <= self.heads_used
            && self.heads_used <= self.heads.len();
        // A packet joins only the newest frame of its flow, so all older ones are closed.
        let only_newest_is_open = self.newest_open(item.flow) == item.open.then_some(at);
        within_memory && only_newest_is_open && item.is_within_limits()
    }

    /// Opens a new frame with `packet` in it.
    fn open(&mut self, arrival: &Arrival, buffer: u16, start: usize, packet: &[u8]) -> Pushed {
        let copied = item::bytes_to_copy(arrival, packet);
        let head_start = self.store_head(&packet[..copied]);
        // The TTL is at least 2, as `push` checked.
        let _ = decrement_ttl(&mut self.heads[head_start + VNET_LEN..][..copied]);
        let at = self.items.len();
        self.items.push(Item::new(arrival, packet, head_start, VNET_LEN + copied));
        if copied < packet.len() {
            self.add_piece(at, buffer, start + copied, packet.len() - copied);
        }
        match arrival.flow {
            Some(flow) if self.items[at].open => {
                self.index.set(flow, at, &self.items);
                self.last = at;
                Pushed::Opened
            }
            _ => Pushed::Alone,
        }
    }

    /// Copies `bytes` behind room for a vnet header, and gives where that room starts.
    fn store_head(&mut self, bytes: &[u8]) -> usize {
        let start = self.heads_used;
        self.heads_used += VNET_LEN + bytes.len();
        self.heads[start + VNET_LEN..self.heads_used].copy_from_slice(bytes);
        start
    }

    #[inline]
    fn add_piece(&mut self, item: usize, buffer: u16, start: usize, len: usize) {
        self.items[item].pieces += 1;
        let piece = Piece { buffer, start: low32(start), len: low32(len) };
        self.arrived.push((low32(item), piece));
    }

    /// Closes every flow that a later fragment could be part of, since it carries no ports. The walk is linear in the
    /// frames, but fragments are rare inside an overlay.
    fn close_all_between(&mut self, ip: &Ipv4) {
        for item in self.items.iter_mut().filter(|item| item.flow.is_between(ip)) {
            item.open = false;
        }
    }

    /// Sorts the pieces by frame (a counting sort: arrival order stays within a frame).
    fn order_pieces(&mut self) {
        let mut next = 0;
        for item in &mut self.items {
            item.first_piece = next;
            next += item.pieces;
            item.pieces = 0;
        }
        for (item, piece) in &self.arrived {
            let item = &mut self.items[*item as usize];
            self.by_frame[item.first_piece + item.pieces] = *piece;
            item.pieces += 1;
        }
        debug_assert_eq!(next, self.arrived.len(), "each piece belongs to one frame");
    }
}
