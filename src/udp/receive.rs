//! Plain receives: one buffer, or many by `recvmmsg`.

use super::Socket;
use super::control::{ControlBuffer, stride};
use super::send::{ADDRESS_LEN, empty_address, empty_header};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::ptr;

/// What a receive put into a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Address and port of the sender.
    pub from: SocketAddrV4,
    /// If the buffer holds joined datagrams: the length of each but the last, which may be shorter.
    pub stride: Option<u16>,
    /// True if the buffer, or the room for the control message, was too small: bytes or the stride were lost.
    pub truncated: bool,
}

impl Received {
    const NOTHING: Self =
        Self { len: 0, from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), stride: None, truncated: false };
}

impl Socket {
    /// Receives one datagram, or with `UDP_GRO` several joined ones, into `buffer`; 64 KiB hold any.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, otherwise what `recvmsg` says.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut slot = Slot::new();
        let mut header = slot.offer(buffer);
        // SAFETY: `header` points at `slot`'s address, iovec and control room and its iovec at `buffer`; all are
        // live, exclusively ours and of the lengths stated for the whole call.
        let len = unsafe { libc::recvmsg(self.inner.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        Ok(slot.take(&header, len))
    }

    /// Receives into `buffers`, one message each, as many as `many` holds and the queue has; gives how many.
    /// [`ReceiveMany::received`] then tells of each, in the order of the buffers.
    ///
    /// # Errors
    /// Those of [`receive`](Self::receive), if nothing was received.
    pub fn receive_many<'a, I>(&self, many: &mut ReceiveMany, buffers: I) -> io::Result<usize>
    where
        I: IntoIterator<Item = &'a mut [u8]>,
    {
        many.received.clear();
        let mut offered = 0usize;
        for (buffer, slot) in buffers.into_iter().zip(&mut many.slots) {
            many.headers[offered].msg_hdr = slot.offer(buffer);
            offered += 1;
        }
        if offered == 0 {
            return Ok(0);
        }
        debug_assert!(offered <= many.headers.len(), "each slot has its header");
        let count = libc::c_uint::try_from(offered).unwrap_or(libc::c_uint::MAX);
        let headers = many.headers.as_mut_ptr();
        // SAFETY: `headers` has at least `offered` entries, all set above in this call. Each points at its slot's
        // address, iovec and control room in `many.slots` (exclusively borrowed, not moved since), and its iovec
        // at a buffer borrowed exclusively for 'a, which outlives this call. No timeout is passed.
        let filled = unsafe {
            libc::recvmmsg(self.inner.as_raw_fd(), headers, count, libc::MSG_DONTWAIT as _, ptr::null_mut())
        };
        let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
        debug_assert!(filled <= offered && filled <= many.received.capacity(), "{filled} of {offered}");
        for (header, slot) in many.headers.iter().zip(&many.slots).take(filled) {
            many.received.push(slot.take(&header.msg_hdr, header.msg_len as usize));
        }
        Ok(filled)
    }
}

/// Preallocated arrays for [`Socket::receive_many`].
pub struct ReceiveMany {
    /// Each call sets them anew: between calls nobody follows their pointers.
    headers: Vec<libc::mmsghdr>,
    slots: Vec<Slot>,
    received: Vec<Received>,
}

// SAFETY: the raw pointers in headers and iovecs are written and followed only within one `receive_many` call, which
// holds the exclusive borrow; elsewhere they are plain numbers, so another thread may own or drop them.
unsafe impl Send for ReceiveMany {}

impl ReceiveMany {
    /// Room for `capacity` messages to a call; the kernel takes at most 1024 (`UIO_MAXIOV`).
    pub fn new(capacity: usize) -> Self {
        let empty = libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 };
        let slots = std::iter::repeat_with(Slot::new).take(capacity).collect();
        Self { headers: vec![empty; capacity], slots, received: Vec::with_capacity(capacity) }
    }

    /// How many messages one call can take.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// What the last call received, in the order of its buffers; empty if it failed.
    pub fn received(&self) -> &[Received] {
        &self.received
    }
}

impl fmt::Debug for ReceiveMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveMany").field("received", &self.received).finish_non_exhaustive()
    }
}

/// What one message header points at.
struct Slot {
    address: libc::sockaddr_in,
    part: libc::iovec,
    control: ControlBuffer,
}

impl Slot {
    fn new() -> Self {
        let part = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self { address: empty_address(), part, control: ControlBuffer::new() }
    }

    /// The header that asks for one message into `buffer`.
    fn offer(&mut self, buffer: &mut [u8]) -> libc::msghdr {
        self.part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut header = empty_header();
        header.msg_name = (&raw mut self.address).cast();
        header.msg_namelen = ADDRESS_LEN;
        header.msg_iov = &raw mut self.part;
        header.msg_iovlen = 1;
        header.msg_control = self.control.bytes.as_mut_ptr().cast();
        header.msg_controllen = self.control.bytes.len() as _;
        header
    }

    /// Reads what the kernel wrote into this slot and its `header`.
    fn take(&self, header: &libc::msghdr, len: usize) -> Received {
        debug_assert!(len <= self.part.iov_len, "the kernel counts only what it stored, not {len} bytes");
        let known = header.msg_namelen == ADDRESS_LEN;
        let ip = Ipv4Addr::from_bits(u32::from_be(self.address.sin_addr.s_addr));
        let from = SocketAddrV4::new(ip, u16::from_be(self.address.sin_port));
        #[allow(clippy::unnecessary_cast, reason = "u32 on musl")]
        let controllen = header.msg_controllen as usize;
        let control = self.control.bytes.get(..controllen).unwrap_or_default();
        Received {
            len,
            from: if known { from } else { Received::NOTHING.from },
            stride: stride(control),
            truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        }
    }
}
