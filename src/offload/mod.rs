//! Shapes of many packets. Offload makes a system call worth while: one call moves up to 64 KiB, which is many
//! packets in one shape or another, and this room turns the shapes into each other.
//!
//! # Words
//!
//! From small to large:
//!
//! | word | meaning |
//! |---|---|
//! | packet | one IPv4 packet, the payload of one UDP datagram between hosts |
//! | segment | a packet that was cut out of a super-packet |
//! | run | consecutive packets of one size (the last may be shorter) to one peer |
//! | train | a run in one buffer, which one `UDP_SEGMENT` send carries: at most 65 507 bytes |
//! | super-packet | one TCP or UDP packet of up to 65 535 bytes that stands for many |
//!
//! Beside them:
//!
//! | word | meaning |
//! |---|---|
//! | frame | what one read or write of the TUN carries: a vnet header, then a packet or a super-packet |
//! | head | the bytes of a frame that we copied and may edit: its headers, or all of a small packet |
//! | piece | a range of a receive buffer: bytes of a frame that are written from where they lie |
//! | flow | packets with the same addresses, ports and protocol, whose order counts |
//! | flush | all trains and frames that are gathered before they are sent and written together |
//! | `segment_size` | going out: the bytes after which the kernel, or [`segment`], cuts |
//! | `stride` | coming in: the bytes from one datagram of a joined receive to the next |
//!
//! `segment_size` counts what is cut: payload for a super-packet, whole packets for a train. The virtio-net header's
//! field keeps the kernel's name, `gso_size`, since both directions use it.
//!
//! # Theory of operation
//!
//! ```text
//! TUN ── frame ──► segment::plan ──► Plan::write × n ──► batch::Trains ── Train ──► UDP_SEGMENT send
//! TUN ◄─ frames ── coalesce::Coalescer ◄── one packet × n ◄── batch::split(stride) ◄── UDP_GRO receive
//! ```
//!
//! Going out, [`segment`] plans one frame, where it computes once the sums that all segments share, and writes each
//! segment, finished, straight into the room that [`batch`] gives for it: one pass copies and sums the payload.
//!
//! Coming in, the datagrams of one receive lie `stride` bytes apart. [`coalesce`] merges neighbours of one flow
//! into super-packets again without touching the payload: a frame is a small header of our own and a list of pieces of
//! the receive buffers, ready for one `writev`.
//!
//! Order is a promise of both directions. A packet joins only the *newest* train of its peer and the newest frame of
//! its flow, and what cannot join closes it. Trains and frames leave in the order in which they were opened. Nothing in
//! this room waits for more packets.
//!
//! All memory is allocated at construction.

pub mod batch;
pub mod coalesce;
pub mod segment;

#[cfg(test)]
pub(crate) mod tests;
