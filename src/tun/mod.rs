//! The TUN device: open, queues, offloads.
//!
//! # Theory of operation
//!
//! A queue is a file of `/dev/net/tun` tied to the device by `TUNSETIFF`; packets are dealt to queues by a
//! hash of their flow (`steering`). The device lives as long as one of its files is open: it is never made persistent, since a persistent one
//! keeps its route and swallows packets while nobody reads.
//!
//! Every packet, either way, starts with the 10-byte `virtio_net_hdr` (`IFF_VNET_HDR`). The `TUNSETOFFLOAD`
//! bits govern only what the kernel may hand *us*: without them it cuts and checksums each packet before
//! queueing. They are one setting of the device, and a set with an unknown bit is refused whole, hence the
//! probing from the largest set down.
//!
//! A read gives one packet of up to [`READ_SIZE`] bytes and cuts the rest off silently, so offer that
//! much. Writes never wait for room: the receiving stack runs inside the call.

mod device;
mod error;
mod steering;

pub use device::{Device, MAX_QUEUES, Offloads, Queue, READ_SIZE, TunOffload};
pub use error::{TunError, is_down, is_gone};

#[cfg(test)]
mod tests;
