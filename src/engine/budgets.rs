//! What one turn of a worker may hold: constants that compile only if they fit each other and the kernel.

use super::settings::BUFFERS_RANGE;
use crate::offload::batch::TRAIN_BYTES;
use crate::offload::coalesce::{HEAD_ROOM, MAX_PIECES};
use crate::packet::icmp::MAX_REPLY;
use crate::packet::vnet::VNET_LEN;
use crate::ring::{self, Sizes};
use crate::tun::READ_SIZE;
use std::time::Duration;

/// A turn gathers about this many bytes a direction. Its end also ends trains and frames that more packets could have
/// joined, so long turns make longer ones (`perf/EXPERIMENTS.md`).
pub(super) const TURN_BYTES: usize = 1 << 20;
/// Trains of one turn, 64 KiB each.
pub(super) const TRAINS: usize = 32;
/// Frames that one turn writes to the TUN.
pub(super) const FRAMES: usize = 512;
/// Pieces of received datagrams that those frames are made of.
pub(super) const PIECES: usize = 2048;
/// Memory for the heads of those frames.
pub(super) const HEAD_BYTES: usize = FRAMES * HEAD_ROOM;
/// Most packets that the kernel joins in one receive (`UDP_MAX_SEGMENTS`, Linux 6.9; older ones join 64).
pub(super) const PACKETS_PER_RECEIVE: usize = 128;

/// Most receive buffers of one direction.
#[allow(clippy::cast_possible_truncation, reason = "the assertion below compares it with its origin")]
const MOST_BUFFERS: u16 = *BUFFERS_RANGE.end() as u16;

// Full trains hold all that a turn gathers, and one frame more, since that may begin just below the limit. With many
// peers or small packets the trains run out earlier; the frame then waits for the next turn (`Taken::InPart`).
const _: () = assert!(TRAINS * TRAIN_BYTES >= TURN_BYTES + READ_SIZE);
// An empty coalescer has room for any receive. Otherwise the worker would wait for that room for ever.
const _: () = assert!(FRAMES >= PACKETS_PER_RECEIVE && PIECES >= PACKETS_PER_RECEIVE);
// A receive of TCP segments that all belong together is one frame.
const _: () = assert!(MAX_PIECES >= PACKETS_PER_RECEIVE);
// An ICMP error takes no more of the heads' memory than any other frame may take.
const _: () = assert!(VNET_LEN + MAX_REPLY <= HEAD_ROOM);
// One `writev` takes a whole frame: its head and its pieces.
const _: () = assert!(MAX_PIECES < libc::UIO_MAXIOV as usize);
// Buffers are numbered in 16 bits, and the ring of provided buffers takes as many as the operator may ask for.
const _: () = assert!(MOST_BUFFERS as usize == *BUFFERS_RANGE.end() && MOST_BUFFERS <= ring::MOST_BUFFERS);
// Without a single buffer nothing would ever be read.
const _: () = assert!(*BUFFERS_RANGE.start() >= 1);
// All that can be in flight has a place in the kernel's queues.
const _: () = assert!(ring_sizes(MOST_BUFFERS, Duration::ZERO).fit_the_kernel());

/// What a worker's ring must hold.
pub(super) const fn ring_sizes(buffers: u16, spin: Duration) -> Sizes {
    Sizes {
        frames: buffers,
        datagrams: buffers,
        sends: TRAINS,
        writes: FRAMES,
        vectors: FRAMES + PIECES,
        spin,
    }
}
