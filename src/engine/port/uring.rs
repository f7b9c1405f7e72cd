//! The io_uring carrier: see [`crate::ring`] for how a turn works.

use super::{Failure, Link, Outgoing, Port, Received};
use crate::ring::{Operation, Ring, Wake};
use crate::udp::control::{self, SegmentControl};
use std::io;
use std::net::SocketAddrV4;

/// A worker's packet input and output on one io_uring.
pub struct UringPort {
    /// Closed before the descriptors it works on.
    ring: Ring,
    link: Link,
    wake: Wake,
    failures: Vec<Failure>,
    receive_errors: usize,
    starved: u64,
}

impl UringPort {
    /// `ring` must have been made on the current thread, on these very descriptors.
    #[must_use]
    pub fn new(ring: Ring, link: Link, wake: Wake) -> UringPort {
        let failures = Vec::with_capacity(ring.most_staged());
        UringPort { ring, link, wake, failures, receive_errors: 0, starved: 0 }
    }
}

impl Port for UringPort {
    fn turn(&mut self, out: &mut Outgoing) -> io::Result<()> {
        let Outgoing { batcher, coalescer } = out;
        let mut control = SegmentControl::new(1);
        let (trains, frames) = (batcher.open(), coalescer.len());
        let (mut sends, mut writes) = (0, 0);
        self.ring.turn(|stage| {
            for (to, train) in batcher.trains() {
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
        self.failures.clear();
        self.failures.extend(self.ring.failures().iter().map(|failure| match failure.operation {
            Operation::Send(index) => Failure::Send(index, failure.errno),
            Operation::Write(index) => Failure::Write(index, failure.errno),
        }));
        // The stage is as large as batcher and coalescer, so nothing should be left over; if it is, it is lost.
        self.failures.extend((sends..trains).map(|index| Failure::Send(index, libc::ENOBUFS)));
        self.failures.extend((writes..frames).map(|index| Failure::Write(index, libc::ENOBUFS)));
        if self.ring.take_receive_error().is_some() {
            self.receive_errors += 1;
        }
        Ok(())
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }

    fn frame(&mut self) -> Option<&mut [u8]> {
        self.ring.frame()
    }

    fn advance(&mut self) {
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
