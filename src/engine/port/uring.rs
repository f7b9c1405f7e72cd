//! The io_uring carrier: see [`crate::ring`] for how a turn works.
//!
//! Small frames are read beside the ring. A request that the ring completes costs more than the `read` of a small
//! packet and takes a 68 KiB buffer, of which there are few. So once frames turn out to be small, the port reads the
//! TUN directly until the turn ends, always into the same buffer. Frames keep their order: the ring posts completions
//! only while a turn is in the kernel, and the port gives out all that it has posted by then first.

use super::frame_buffer::FrameBuffer;
use super::{Failure, Link, Outgoing, Port, Received};
use crate::ring::{self, Operation, Ring, Wake};
use crate::tun::READ_SIZE;
use crate::udp::control::{self, SegmentControl};
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

/// Below this many bytes a frame is small.
const SMALL: usize = 4 << 10;
/// So many small frames in a turn show that more are likely. A lone one is not worth a `read` that finds nothing.
const TELLING: usize = 2;

// A frame that the ring reads is as long as one that is read beside it may be.
const _: () = assert!(ring::BUFFER_BYTES >= READ_SIZE);
// The ring has room for the control message of a send.
const _: () = assert!(ring::MOST_CONTROL >= size_of::<SegmentControl>());

/// A worker's packet input and output on one io_uring.
pub struct UringPort {
    /// Field order is drop order: the ring ends before the descriptors that it works on.
    ring: Ring,
    link: Link,
    wake: Wake,
    failures: Vec<Failure>,
    receive_errors: usize,
    /// What the ring had counted at the last call.
    starved: u64,
    /// Small frames handled in a row since the last turn.
    small_frames: usize,
    /// The frame that was read beside the ring.
    direct: FrameBuffer,
}

impl UringPort {
    /// Takes a ring that was made on the current thread, on these very descriptors.
    #[must_use]
    pub fn new(ring: Ring, link: Link, wake: Wake) -> UringPort {
        let failures = Vec::with_capacity(ring.most_staged());
        UringPort {
            ring,
            link,
            wake,
            failures,
            receive_errors: 0,
            starved: 0,
            small_frames: 0,
            direct: FrameBuffer::new(),
        }
    }

    /// Reads a frame beside the ring. Errors are passed over: the ring's own read meets them too and reports them.
    fn read_directly(&mut self) {
        let _ = self.direct.read(&self.link.queue);
        if self.direct.frame().is_none_or(|frame| frame.len() >= SMALL) {
            self.small_frames = 0;
        }
    }
}

impl Port for UringPort {
    fn turn(&mut self, out: &mut Outgoing, pause: Duration) -> io::Result<()> {
        let Outgoing { trains, coalescer } = out;
        let mut control = SegmentControl::new(1);
        let (open, frames) = (trains.open(), coalescer.len());
        let (mut sends, mut writes) = (0, 0);
        self.small_frames = 0;
        let wait = self.direct.is_empty().then_some(pause);
        self.ring.turn(wait, |stage| {
            for (to, train) in trains.iter() {
                let message: &[u8] = match train.count() {
                    0 | 1 => &[],
                    _ => {
                        control.set(train.segment_size());
                        control.as_bytes()
                    }
                };
                if !stage.send(train.bytes(), to, message) {
                    break;
                }
                sends += 1;
            }
            for frame in coalescer.frames() {
                let pieces = frame.pieces.iter().map(|p| (p.buffer, p.start as usize, p.len as usize));
                if !stage.write(frame.head, pieces) {
                    break;
                }
                writes += 1;
            }
        })?;
        debug_assert_eq!((sends, writes), (open, frames), "the stage takes all that was gathered");
        self.failures.clear();
        self.failures.extend(self.ring.failures().iter().map(|failure| match failure.operation {
            Operation::Send(index) => Failure::Send(index, failure.errno),
            Operation::Write(index) => Failure::Write(index, failure.errno),
        }));
        // The stage has room for all that trains and coalescer hold. If some is left over all the same, it is lost.
        self.failures.extend((sends..open).map(|index| Failure::Send(index, libc::ENOBUFS)));
        self.failures.extend((writes..frames).map(|index| Failure::Write(index, libc::ENOBUFS)));
        debug_assert!(self.failures.len() <= self.ring.most_staged(), "this allocated");
        if self.ring.take_receive_error().is_some() {
            self.receive_errors += 1;
        }
        Ok(())
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }

    fn frame(&mut self) -> Option<&mut [u8]> {
        let more_are_likely = self.small_frames >= TELLING && self.direct.is_empty();
        if more_are_likely && !self.ring.has_frame() {
            self.read_directly();
        }
        self.direct.frame().or_else(|| self.ring.frame())
    }

    fn advance(&mut self) {
        if !self.direct.is_empty() {
            self.direct.clear();
            return;
        }
        let small = self.ring.frame().is_some_and(|frame| frame.len() < SMALL);
        self.small_frames = if small { self.small_frames + 1 } else { 0 };
        self.ring.advance();
    }

    fn datagram(&mut self) -> Option<Received> {
        let datagram = self.ring.datagram()?;
        Some(Received {
            buffer: datagram.buffer,
            start: datagram.start,
            len: datagram.len,
            from: datagram.from,
            stride: control::stride(self.ring.control(&datagram)),
            truncated: datagram.truncated,
        })
    }

    fn payload(&self, received: &Received) -> &[u8] {
        self.ring.payload(received.buffer, received.start, received.len)
    }

    fn resend(&mut self, packet: &[u8], to: SocketAddrV4) -> io::Result<()> {
        self.link.sender.send(packet, to, None).map(drop)
    }

    fn take_woken(&mut self) -> bool {
        let woken = self.ring.take_woken();
        if woken {
            self.wake.drain();
        }
        woken
    }

    fn take_receive_errors(&mut self) -> usize {
        std::mem::take(&mut self.receive_errors)
    }

    fn take_starved(&mut self) -> usize {
        let total = self.ring.starved();
        let new = total - self.starved;
        self.starved = total;
        usize::try_from(new).unwrap_or(usize::MAX)
    }
}
