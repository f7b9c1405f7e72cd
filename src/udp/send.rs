//! Plain sends: one message, or many by `sendmmsg`.

use super::Socket;
use super::control::SegmentControl;
use socket2::{MsgHdr, SockAddr};
use std::borrow::Borrow;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::ptr;

/// One message to send: bytes, where to, and the segment size if they are several datagrams.
pub type Outgoing<'a> = (&'a [u8], SocketAddrV4, Option<u16>);

/// Whether a segmented send was refused as such: the same bytes may still pass datagram by datagram.
///
/// EIO stands for an xfrm policy, or before Linux 6.11 for an egress device without checksum offload. EINVAL stands
/// for too many segments, for a kernel without the feature, or in older kernels for a segment over the path MTU. That
/// is EMSGSIZE since Linux 6.14, and in stable kernels that took the change over (Debian's 6.1.192 and 6.12.117).
pub fn is_segmentation_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

impl Socket {
    /// Sends `bytes` to `to`, as one datagram or cut into datagrams of `segment_size` bytes.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full, otherwise what `sendmsg` says; [`is_segmentation_refused`] tells
    /// which errors concern the segmentation.
    pub fn send(&self, bytes: &[u8], to: SocketAddrV4, segment_size: Option<u16>) -> io::Result<usize> {
        let to = SockAddr::from(to);
        let parts = [IoSlice::new(bytes)];
        let message = MsgHdr::new().with_addr(&to).with_buffers(&parts);
        match segment_size {
            None => self.inner.sendmsg(&message, libc::MSG_DONTWAIT),
            Some(size) => {
                let control = SegmentControl::new(size);
                self.inner.sendmsg(&message.with_control(control.as_bytes()), libc::MSG_DONTWAIT)
            }
        }
    }

    /// Sends `messages` in order, as many as `many` holds and the kernel takes; gives how many were sent.
    /// Items are [`Outgoing`] or references to it.
    ///
    /// # Errors
    /// The first message's failure, as for [`send`](Self::send). The failure of a later one shows as a lower number;
    /// the next call begins with that message and returns the error.
    pub fn send_many<'a, I>(&self, many: &mut SendMany, messages: I) -> io::Result<usize>
    where
        I: IntoIterator,
        I::Item: Borrow<Outgoing<'a>>,
    {
        let mut filled = 0usize;
        for (message, slot) in messages.into_iter().zip(&mut many.slots) {
            let &(bytes, to, segment_size) = message.borrow();
            many.headers[filled].msg_hdr = slot.fill(bytes, to, segment_size);
            filled += 1;
        }
        if filled == 0 {
            return Ok(0);
        }
        let count = libc::c_uint::try_from(filled).unwrap_or(libc::c_uint::MAX);
        let headers = many.headers.as_mut_ptr();
        // SAFETY: `headers` has at least `filled` entries, all set above in this call. Each points at its slot's
        // address, iovec and control message, which live in `many.slots` (exclusively borrowed, not moved
        // since), and its iovec at bytes borrowed for 'a, which outlives this call. The kernel reads through
        // all of them and writes only `msg_len` of the headers.
        let sent = unsafe { libc::sendmmsg(self.inner.as_raw_fd(), headers, count, libc::MSG_DONTWAIT) };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        debug_assert!((1..=filled).contains(&sent), "{sent} of {filled}: the caller would wait for ever");
        Ok(sent)
    }
}

/// Preallocated arrays for [`Socket::send_many`].
pub struct SendMany {
    /// Each call sets them anew: between calls nobody follows their pointers.
    headers: Vec<libc::mmsghdr>,
    slots: Vec<Slot>,
}

/// What one message header points at.
struct Slot {
    address: libc::sockaddr_in,
    part: libc::iovec,
    control: SegmentControl,
}

// SAFETY: the raw pointers in headers and iovecs are written and followed only within one `send_many` call, which
// holds the exclusive borrow; elsewhere they are plain numbers, so another thread may own or drop them.
unsafe impl Send for SendMany {}

impl SendMany {
    /// Room for `capacity` messages to a call; the kernel takes at most 1024 (`UIO_MAXIOV`).
    pub fn new(capacity: usize) -> Self {
        let empty = libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 };
        let slots = std::iter::repeat_with(Slot::new).take(capacity).collect();
        Self { headers: vec![empty; capacity], slots }
    }
}

impl fmt::Debug for SendMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendMany").field("capacity", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Slot {
    fn new() -> Self {
        let part = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self { address: empty_address(), part, control: SegmentControl::new(1) }
    }

    /// Takes one message in and gives the header that points at it.
    fn fill(&mut self, bytes: &[u8], to: SocketAddrV4, segment_size: Option<u16>) -> libc::msghdr {
        self.address.sin_port = to.port().to_be();
        self.address.sin_addr.s_addr = to.ip().to_bits().to_be();
        // The kernel only reads through a send's iovec, in spite of its type.
        self.part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut header = empty_header();
        header.msg_name = (&raw mut self.address).cast();
        header.msg_namelen = ADDRESS_LEN;
        header.msg_iov = &raw mut self.part;
        header.msg_iovlen = 1;
        if let Some(size) = segment_size {
            self.control.set(size);
            let control = self.control.as_bytes();
            header.msg_control = control.as_ptr().cast_mut().cast();
            header.msg_controllen = control.len() as _;
        }
        header
    }
}

/// Length of an IPv4 socket address.
#[expect(clippy::cast_possible_truncation, reason = "16 bytes")]
pub(super) const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

const _: () = assert!(ADDRESS_LEN == 16, "the kernel's struct sockaddr_in has 16 bytes");

#[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
pub(super) fn empty_address() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    }
}

pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: every field of msghdr (on musl also private padding) is an integer or a raw pointer, for which
    // all zeroes is a valid value.
    unsafe { std::mem::zeroed() }
}
