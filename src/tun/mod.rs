//! The TUN device: open, queues, offloads.
//!
//! # Theory of operation
//!
//! A queue is a file of `/dev/net/tun` tied to the device by `TUNSETIFF`; the driver deals packets to queues by a hash
//! of their flow (`steering`). The device lives as long as one of its files is open. We never make it persistent, since
//! a persistent device keeps its route and swallows packets while nobody reads.
//!
//! Every packet, either way, starts with the 10-byte `virtio_net_hdr` (`IFF_VNET_HDR`). The `TUNSETOFFLOAD` bits govern
//! only what the kernel may hand *us*: without them it cuts and checksums each packet before it queues it. They are one
//! setting of the device, and the kernel refuses a set with a bit that it does not know as a whole, so we try sets from
//! the largest down.
//!
//! A read gives one packet of up to [`READ_SIZE`] bytes. The driver silently cuts a packet that is longer than the
//! buffer, so readers offer that much. Writes never wait for room: the receiving stack runs inside the call.

mod device;
mod error;
mod steering;

pub use device::{Device, MAX_QUEUES, Offloads, Queue, READ_SIZE, TunOffload};
pub use error::{TunError, is_down, is_gone};

#[cfg(test)]
mod tests;
