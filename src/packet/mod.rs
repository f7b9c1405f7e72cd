//! What the bytes of one packet mean: IPv4, TCP, UDP and ICMP headers, the Internet checksum, and the
//! virtio-net header that a TUN device puts before a packet.
//!
//! # Theory of operation
//!
//! Everything here is a function of a byte slice. Nothing allocates, nothing keeps state, nothing does I/O,
//! and no function panics on bytes that came from outside: a `parse` function checks every length that it
//! later relies on and returns plain values ([`ipv4::Ipv4`], [`transport::Tcp`], [`transport::Udp`],
//! [`vnet::VnetHeader`]). Code that edits a packet takes a slice that was parsed before and says so.
//!
//! The overlay's wire format is the IPv4 packet itself, so these headers are the only "protocol" that the data
//! path has. Each end takes one hop from the TTL ([`ipv4::decrement_ttl`]), as flannel does.
//!
//! Offsets are those of RFC 791, RFC 9293, RFC 768 and RFC 792; virtio's header is the legacy 10-byte form of
//! `include/uapi/linux/virtio_net.h`.

pub mod checksum;
pub mod field;
pub mod icmp;
pub mod ipv4;
pub mod transport;
pub mod vnet;
