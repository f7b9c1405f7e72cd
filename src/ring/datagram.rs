//! What multishot `recvmsg` puts into a buffer.

use super::pool::{Filled, Pool};
use io_uring::types::RecvMsgOut;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A datagram in a buffer that is lent to us until the end of the next turn, or several that `UDP_GRO` joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// The buffer's number.
    pub buffer: u16,
    /// Where the payload starts in it.
    pub start: usize,
    /// How many bytes the payload has.
    pub len: usize,
    /// The sender's address.
    pub from: SocketAddrV4,
    /// Whether the buffer was too small for the payload.
    pub truncated: bool,
    /// Where the control messages start in the buffer, and how many bytes they have.
    pub(super) control: (usize, usize),
}

/// Reads what multishot `recvmsg` has put in front of the payload. `None` if that is cut off or
/// names no sender.
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
