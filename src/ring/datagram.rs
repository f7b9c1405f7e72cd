//! What multishot `recvmsg` puts into a buffer.

use super::pool::{Filled, Pool};
use io_uring::types::RecvMsgOut;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A datagram, or a run of equal ones joined by `UDP_GRO`, in a buffer lent to us until the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// The buffer's number.
    pub buffer: u16,
    /// Where the payload starts in it.
    pub start: usize,
    /// Bytes of payload.
    pub len: usize,
    /// The sender.
    pub from: SocketAddrV4,
    /// Whether the buffer was too small for the payload.
    pub truncated: bool,
    pub(super) control: (usize, usize),
}

/// Reads the header that multishot `recvmsg` puts in front of the payload (`struct io_uring_recvmsg_out`).
pub(super) fn parse(pool: &Pool, filled: &Filled, receive: &libc::msghdr) -> Option<Datagram> {
    let bytes = pool.bytes(filled);
    let message = RecvMsgOut::parse(bytes, receive).ok()?;
    let name = message.name_data();
    let (Some(port), Some(address)) = (name.get(2..4), name.get(4..8)) else { return None };
    let port = u16::from_be_bytes([port[0], port[1]]);
    let address = Ipv4Addr::new(address[0], address[1], address[2], address[3]);
    let start_of = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    Some(Datagram {
        buffer: filled.index,
        start: start_of(message.payload_data()),
        len: message.payload_data().len(),
        from: SocketAddrV4::new(address, port),
        truncated: message.is_payload_truncated(),
        control: (start_of(message.control_data()), message.control_data().len()),
    })
}
