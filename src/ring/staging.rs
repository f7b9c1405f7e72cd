//! What the next turn sends and writes. Message headers and vectors lie in arrays that are made once and never move.

use super::pool::Pool;
use super::{NAME_BYTES, Operation, SEND_SLOT, TUN_SLOT, Token};
use io_uring::{opcode, squeue, types};
use std::marker::PhantomData;
use std::net::SocketAddrV4;

/// Words of room for one control message (`UDP_SEGMENT` needs 24 bytes). Words are aligned as `cmsghdr` wants it.
const CONTROL_WORDS: usize = 4;
/// Most bytes that a control message may have.
pub const MOST_CONTROL: usize = CONTROL_WORDS * 8;

/// The address family `AF_INET` (2) in the width of `sin_family`.
#[allow(clippy::cast_possible_truncation)]
const INET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

/// All that one `sendmsg` points at: the header points at its three neighbours.
struct Message {
    header: libc::msghdr,
    name: libc::sockaddr_in,
    control: [u64; CONTROL_WORDS],
    vector: libc::iovec,
}

/// The arrays that system calls point into. They are boxed slices, which are built once and never move or grow.
pub(super) struct Store {
    messages: Box<[Message]>,
    vectors: Box<[libc::iovec]>,
    entries: Vec<squeue::Entry>,
    sends: usize,
    writes: usize,
    most_writes: usize,
    used_vectors: usize,
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl Store {
    pub(super) fn new(sends: usize, writes: usize, vectors: usize) -> Store {
        Store {
            messages: (0..sends).map(|_| Message::new()).collect(),
            vectors: vec![EMPTY; vectors].into_boxed_slice(),
            entries: Vec::with_capacity(sends + writes),
            sends: 0,
            writes: 0,
            most_writes: writes,
            used_vectors: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.sends = 0;
        self.writes = 0;
        self.used_vectors = 0;
    }

    pub(super) fn entries(&self) -> &[squeue::Entry] {
        debug_assert_eq!(self.entries.len(), self.sends + self.writes, "an entry for each operation");
        &self.entries
    }

    /// Whether this turn staged `operation`.
    pub(super) fn holds(&self, operation: Operation) -> bool {
        match operation {
            Operation::Send(index) => index < self.sends,
            Operation::Write(index) => index < self.writes,
        }
    }
}

impl Message {
    fn new() -> Message {
        // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
        let header = unsafe { std::mem::zeroed() };
        // SAFETY: all-zero bytes are a valid sockaddr_in.
        let name = unsafe { std::mem::zeroed() };
        Message { header, name, control: [0; CONTROL_WORDS], vector: EMPTY }
    }

    fn fill(&mut self, bytes: &[u8], to: SocketAddrV4, control: &[u8]) {
        self.name.sin_family = INET;
        self.name.sin_port = to.port().to_be();
        self.name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        self.vector.iov_base = bytes.as_ptr().cast_mut().cast();
        self.vector.iov_len = bytes.len();
        let mut words = self.control.iter_mut();
        for (chunk, word) in control.chunks(8).zip(&mut words) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(eight);
        }
        let header = &mut self.header;
        header.msg_name = (&raw mut self.name).cast();
        header.msg_namelen = libc::socklen_t::from(NAME_BYTES);
        header.msg_iov = &raw mut self.vector;
        header.msg_iovlen = 1;
        header.msg_control =
            if control.is_empty() { std::ptr::null_mut() } else { self.control.as_mut_ptr().cast() };
        header.msg_controllen = control.len();
    }
}

/// Where a turn's sends and writes are staged. All that is borrowed for `'a` outlives the turn, and the kernel is done
/// with it when the turn ends.
pub struct Staging<'t, 'a> {
    pub(super) store: &'t mut Store,
    pub(super) datagrams: &'t Pool,
    pub(super) borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Staging<'_, 'a> {
    /// Stages one `sendmsg` of `bytes`, with a control message of at most [`MOST_CONTROL`] bytes or none. Returns false
    /// if the control message is longer or the stage is full.
    pub fn send(&mut self, bytes: &'a [u8], to: SocketAddrV4, control: &[u8]) -> bool {
        if control.len() > MOST_CONTROL {
            return false;
        }
        let Some(message) = self.store.messages.get_mut(self.store.sends) else { return false };
        message.fill(bytes, to, control);
        // A send never waits for room in the socket: a later one could overtake it.
        let flags = libc::MSG_DONTWAIT as u32;
        let entry = opcode::SendMsg::new(types::Fixed(SEND_SLOT), &raw const message.header)
            .flags(flags)
            .build()
            .user_data(Token::Send(self.store.sends).pack());
        self.store.entries.push(entry);
        self.store.sends += 1;
        true
    }

    /// Stages one `writev` to the TUN: `head`, then pieces of received datagrams, each as (buffer, offset, length).
    /// Returns false if the stage is full or a piece lies outside what is lent to us.
    pub fn write(&mut self, head: &'a [u8], pieces: impl Iterator<Item = (u16, usize, usize)>) -> bool {
        if self.store.writes == self.store.most_writes {
            return false;
        }
        let first = self.store.used_vectors;
        let mut next = first;
        if !push(&mut self.store.vectors, &mut next, head.as_ptr(), head.len()) {
            return false;
        }
        for (buffer, offset, len) in pieces {
            let Some(start) = self.datagrams.piece(buffer, offset, len) else { return false };
            if !push(&mut self.store.vectors, &mut next, start, len) {
                return false;
            }
        }
        debug_assert!(next - first <= libc::UIO_MAXIOV as usize, "the kernel refuses so many vectors");
        let vectors = self.store.vectors[first..next].as_ptr();
        // The array bounds `next - first`, far below 4 GiB.
        #[allow(clippy::cast_possible_truncation)]
        let entry = opcode::Writev::new(types::Fixed(TUN_SLOT), vectors, (next - first) as u32)
            .build()
            .user_data(Token::Write(self.store.writes).pack());
        self.store.entries.push(entry);
        self.store.used_vectors = next;
        self.store.writes += 1;
        true
    }
}

fn push(vectors: &mut [libc::iovec], next: &mut usize, start: *const u8, len: usize) -> bool {
    let Some(vector) = vectors.get_mut(*next) else { return false };
    *vector = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
    *next += 1;
    true
}
