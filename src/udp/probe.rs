//! What the kernel's `UDP_SEGMENT` can do, found by trying.

use super::socket::option;
use super::{Socket, SocketOptions, is_segmentation_refused};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Datagrams in one send that every kernel with `UDP_SEGMENT` takes: the old `UDP_MAX_SEGMENTS` of 64 less one, since
/// kernels before 5.16 count the UDP header as payload.
pub(super) const MAX_SEGMENTS_SAFE: u16 = 63;
/// The same number where the limit is 128: since Linux 6.9, and in stable kernels that took the change over (Debian's
/// 6.1.192 has it).
const MAX_SEGMENTS: u16 = 127;
/// Bytes of each datagram of the trial.
const SIZE: usize = 100;
/// [`SIZE`] as the control message carries it.
const SIZE_FIELD: u16 = 100;

const _: () = assert!(SIZE_FIELD as usize == SIZE && MAX_SEGMENTS > MAX_SEGMENTS_SAFE);
const _: () = assert!(MAX_SEGMENTS as usize * SIZE <= 65_507, "the trial fits one send");

/// How many datagrams one send may carry: 127, 63, or `None` where the kernel has no `UDP_SEGMENT`.
///
/// We try the number on a pair of loopback sockets of our own. Where loopback is down the trial says nothing, and the
/// answer is 63.
pub fn max_segments() -> Option<u16> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let sender = Socket::bind(any, SocketOptions::default()).ok()?;
    // A kernel that lacks the feature passes over the control message, so we ask for the option; its value (0 by
    // default) does not matter.
    option(&sender, libc::SOL_UDP, libc::UDP_SEGMENT).ok()?;
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let Ok(receiver) = Socket::bind(loopback, SocketOptions::default()) else {
        return Some(MAX_SEGMENTS_SAFE);
    };
    let takes = |n: u16| {
        let to = receiver.local_addr()?;
        sender.send(&[0; MAX_SEGMENTS as usize * SIZE][..usize::from(n) * SIZE], to, Some(SIZE_FIELD))
    };
    most(takes)
}

/// The larger of the two numbers that `takes` accepts. An error that does not concern the segmentation says nothing.
fn most(takes: impl Fn(u16) -> io::Result<usize>) -> Option<u16> {
    if takes(MAX_SEGMENTS).is_ok() {
        return Some(MAX_SEGMENTS);
    }
    match takes(MAX_SEGMENTS_SAFE) {
        Err(error) if is_segmentation_refused(&error) => None,
        _ => Some(MAX_SEGMENTS_SAFE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that takes up to so many datagrams, and refuses more with this error.
    fn kernel(limit: u16, errno: i32) -> impl Fn(u16) -> io::Result<usize> {
        move |n| if n <= limit { Ok(usize::from(n)) } else { Err(io::Error::from_raw_os_error(errno)) }
    }

    #[test]
    fn the_number_follows_from_what_the_kernel_takes() {
        assert_eq!(most(kernel(128, libc::EINVAL)), Some(127));
        assert_eq!(most(kernel(64, libc::EINVAL)), Some(63), "an old kernel");
        assert_eq!(most(kernel(63, libc::EINVAL)), Some(63), "one that counts the UDP header");
        for errno in [libc::EINVAL, libc::EIO] {
            assert_eq!(most(kernel(0, errno)), None, "no segmentation at all");
        }
        assert_eq!(most(kernel(0, libc::ENETUNREACH)), Some(63), "loopback is down: the trial says nothing");
    }
}
