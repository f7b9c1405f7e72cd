//! What the kernel's `UDP_SEGMENT` can do, found by trying.

use super::socket::option;
use super::{Socket, SocketOptions, is_segmentation_refused};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Datagrams in one send that every kernel with `UDP_SEGMENT` takes (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const MAX_SEGMENTS_SAFE: usize = 64;
/// The same since Linux 6.9.
const MAX_SEGMENTS: usize = 128;

/// How many datagrams one send may carry: 128, 64, or `None` where the kernel has no `UDP_SEGMENT`.
///
/// The number is tried on a throw-away pair of loopback sockets. Where loopback is down nothing can be tried,
/// and it is taken to be [`MAX_SEGMENTS_SAFE`].
pub fn max_segments() -> Option<usize> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let sender = Socket::bind(any, SocketOptions::default()).ok()?;
    // A kernel that lacks the feature passes over the control message, so ask for the option, whose value
    // (0 by default) is of no interest.
    option(&sender, libc::SOL_UDP, libc::UDP_SEGMENT).ok()?;
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let Ok(receiver) = Socket::bind(loopback, SocketOptions::default()) else {
        return Some(MAX_SEGMENTS_SAFE);
    };
    let takes = |n: usize| {
        let to = receiver.local_addr()?;
        sender.send(&[0; MAX_SEGMENTS][..n], to, Some(1))
    };
    if takes(MAX_SEGMENTS).is_ok() {
        return Some(MAX_SEGMENTS);
    }
    match takes(MAX_SEGMENTS_SAFE) {
        Err(error) if is_segmentation_refused(&error) => None,
        _ => Some(MAX_SEGMENTS_SAFE),
    }
}
