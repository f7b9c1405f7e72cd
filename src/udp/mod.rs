//! The UDP socket: bind, buffer sizes, `UDP_SEGMENT` and `UDP_GRO`.
//!
//! # Theory of operation
//!
//! One unconnected IPv4 socket serves all peers of a worker. Because it is unconnected and has no
//! `IP_RECVERR`, it never sees a peer's ICMP errors; otherwise an error about one peer would fail the next
//! send to another. `IP_MTU_DISCOVER` stays as the kernel sets it, so that a datagram longer than the path MTU
//! is fragmented, as flannel does.
//!
//! Segmentation works on equal datagrams to one peer, of which the last may be shorter:
//!
//! - Going out, a `UDP_SEGMENT` control message gives the *segment size*. It is never set as a socket option:
//!   the option would outlive the decision to stop using it. A refusal ([`is_segmentation_refused`]) may come at
//!   any time, on one route only; the caller then sends the same bytes datagram by datagram.
//! - Coming in, `UDP_GRO` joins datagrams of one source, and a control message gives their *stride*. Without
//!   one, the buffer holds a single datagram.
//!
//! [`control`] knows these two messages as bytes and serves any carrier. Everything else is plain calls:
//! [`Socket::send`] and [`Socket::receive`] for one, [`SendMany`] and [`ReceiveMany`] for many. Each call
//! returns at once (`MSG_DONTWAIT`) and allocates nothing.

pub mod control;
mod probe;
mod receive;
mod send;
mod socket;

pub use probe::max_segments;
pub use receive::{ReceiveMany, Received};
pub use send::{Outgoing, SendMany, is_segmentation_refused};
pub use socket::{Socket, SocketOptions, UdpError};

#[cfg(test)]
mod tests;
