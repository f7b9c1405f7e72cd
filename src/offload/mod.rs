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
//! | batch, train | a run in one buffer: one `UDP_SEGMENT` send, at most 65 507 bytes |
//! | super-packet | one TCP or UDP packet of up to 65 535 bytes that stands for many: a TSO or USO frame of the TUN |
//!
//! The size of a run's packets is its `segment_size` going out and its `stride` coming in, never the other way
//! round.
//!
//! # Theory of operation
//!
//! ```text
//! TUN ── frame ──► segment::plan ──► Plan::write × n ──► batch::Batcher ── Train ──► UDP_SEGMENT send
//! TUN ◄─ frames ── coalesce::Coalescer ◄── one packet × n ◄── batch::split(stride) ◄── UDP_GRO receive
//! ```
//!
//! Going out, [`segment`] plans one frame (sums that all its segments share are computed once) and writes each
//! segment, finished, straight into the room that [`batch`] reserved for it: one pass copies and sums the payload.
//!
//! Coming in, the datagrams of one receive lie `stride` bytes apart. [`coalesce`] merges neighbours of one flow
//! into super-packets again without touching the payload: a frame is a small header of our own and a list of pieces of
//! the receive buffers, ready for one `writev`.
//!
//! Order is a promise of both directions. A packet joins only the *newest* train of its peer and the newest frame of
//! its flow; what cannot join closes it. Trains and frames leave in the order in which they were opened. No timer
//! waits for more packets.
//!
//! All memory is allocated at construction.

pub mod batch;
pub mod coalesce;
pub mod segment;

#[cfg(test)]
pub(crate) mod tests;
