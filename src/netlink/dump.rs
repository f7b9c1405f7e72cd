//! Lists of the kernel's tables (`NLM_F_DUMP`).
//!
//! Each list is read from a socket of its own, message by message, and only what the caller keeps stays in memory: a
//! table may hold hundreds of thousands of entries that are not ours. Two answers of the kernel are easily missed, and
//! both would look like a complete list:
//!
//! - `NLM_F_DUMP_INTR` says that the table changed while it was read, so that entries may be absent or twice there.
//!   The list is then read again.
//! - A refusal of a list that has begun, and every refusal of a filter, comes as an errno in `NLMSG_DONE` and not as
//!   `NLMSG_ERROR`.
//!
//! `NETLINK_GET_STRICT_CHK` (Linux 4.20) makes the kernel apply the filter in the request. Older kernels and unknown
//! filters give the whole table, so callers check every entry again.

use super::{Error, Netlink};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::io;
use std::time::Duration;

/// How often a list is read at most while the table keeps changing.
const ATTEMPTS: u32 = 20;
/// The pause before the second attempt; each further one is longer by the same.
const PAUSE: Duration = Duration::from_millis(1);
/// The kernel sends at most 32 kB at a time (Linux net/netlink/af_netlink.c, `netlink_recvmsg`).
const BUFFER: usize = 64 * 1024;

/// How one reading of a table ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The list is complete.
    Complete,
    /// The table has changed meanwhile.
    Interrupted,
}

/// What a message of a list means for the list.
#[derive(Debug)]
enum Part {
    /// An entry of the table.
    Entry(Box<RouteNetlinkMessage>),
    /// The list has ended.
    Done,
    /// The message tells nothing.
    Nothing,
}

impl Netlink {
    /// Lists the table that `request` names: all entries of which `keep` makes something, in the order of the kernel.
    /// `operation` is for errors, such as `list links`.
    ///
    /// # Errors
    /// The kernel refuses (also after it has sent a part), or the table changed during each of 20 attempts.
    pub(super) async fn dump<T>(
        &self,
        operation: &str,
        request: RouteNetlinkMessage,
        keep: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for attempt in 1..=ATTEMPTS {
            let mut list = Vec::new();
            let end = match read(&request, true, &mut list, &keep).await {
                // The kernel knows strict requests, but not this one's filter.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    list.clear();
                    read(&request, false, &mut list, &keep).await
                }
                end => end,
            };
            if end.map_err(|source| Error::new(operation, source))? == End::Complete {
                return Ok(list);
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
        let reason = format!("{operation}: the table changed during each of {ATTEMPTS} attempts");
        Err(Error::new(reason, io::Error::from_raw_os_error(libc::EINTR)))
    }
}

/// Reads the table once, into `list`.
async fn read<T>(
    request: &RouteNetlinkMessage,
    strict: bool,
    list: &mut Vec<T>,
    keep: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<End> {
    let socket = TokioSocket::new(NETLINK_ROUTE)?;
    // A kernel without this option gives whole tables.
    let _ = strict && socket.socket_ref().set_netlink_get_strict_chk(true).is_ok();
    socket.send_to(&encode(request.clone()), &SocketAddr::new(0, 0)).await?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut end = End::Complete;
    loop {
        buffer.clear();
        socket.recv(&mut buffer).await?;
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let (bytes, after) = first(rest)?;
            rest = after;
            // An entry that cannot be read is of a kind that we never set.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else { continue };
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                end = End::Interrupted;
            }
            match part(message)? {
                Part::Entry(entry) => list.extend(keep(*entry)),
                Part::Done => return Ok(end),
                Part::Nothing => {}
            }
        }
    }
}

fn encode(request: RouteNetlinkMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The bytes of the first message, and those after it. Messages are aligned to four bytes.
fn first(bytes: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length));
    let length = usize::try_from(length).map_err(io::Error::other)?;
    if length < 16 || length > bytes.len() {
        return Err(io::Error::other(format!("a message of {length} bytes in {}", bytes.len())));
    }
    let (message, _) = bytes.split_at(length);
    Ok((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// What a message means for the list.
fn part(message: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<Part> {
    match message.payload {
        NetlinkPayload::InnerMessage(entry) => Ok(Part::Entry(Box::new(entry))),
        NetlinkPayload::Done(done) if done.code < 0 => Err(io::Error::from_raw_os_error(-done.code)),
        NetlinkPayload::Done(_) => Ok(Part::Done),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::Overrun(_) => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        _ => Ok(Part::Nothing),
    }
}

#[cfg(test)]
mod tests;
