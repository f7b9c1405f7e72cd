//! The poll carrier: `read` and `writev` on the TUN, `recvmmsg` and `sendmmsg` on the socket, `poll` to wait.
//!
//! It serves hosts that forbid io_uring. It reads until a descriptor runs dry and asks `poll` only then. One buffer
//! serves all frames, so that it stays in the cache.

use super::frame_buffer::FrameBuffer;
use super::{Failure, Link, Outgoing, Port, Received};
use crate::offload::batch::{TRAIN_BYTES, Trains};
use crate::offload::coalesce::{Coalescer, MAX_PIECES};
use crate::ring::Wake;
use crate::tun::is_gone;
use crate::udp::{ReceiveMany, SendMany};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// One `recvmmsg` gathers at most so many receives.
const RECEIVES: usize = 8;
/// The time limit of a look that does not wait.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// The largest payload of a datagram.
const DATAGRAM_BYTES: usize = 65_507;
// What a peer sends as one train may come as one receive.
const _: () = assert!(DATAGRAM_BYTES >= TRAIN_BYTES);

/// How much a poll port can hold.
#[derive(Debug, Clone, Copy)]
pub struct PollSizes {
    /// How many receive buffers there are.
    pub buffers: u16,
    /// Most receives gathered by one call.
    pub receives: usize,
    /// Most sends in one turn.
    pub sends: usize,
    /// Most TUN writes in one turn.
    pub writes: usize,
    /// How long to look for packets before sleeping for them.
    pub spin: Duration,
}

/// A worker's packet input and output by plain system calls.
pub struct PollPort {
    link: Link,
    wake: Wake,
    frame: FrameBuffer,
    buffers: Vec<Box<[u8]>>,
    /// Buffers below this one hold datagrams given out since the last turn.
    given: usize,
    /// Buffers below this one hold datagrams.
    filled: usize,
    /// What `receive_many` tells is about the buffers from this one on.
    first_received: usize,
    receive_many: ReceiveMany,
    send_many: SendMany,
    failures: Vec<Failure>,
    /// The TUN may have a frame for us.
    tun_ready: bool,
    /// The socket may have a datagram for us.
    udp_ready: bool,
    woken: bool,
    /// Somebody deleted the device.
    tun_gone: bool,
    receive_errors: usize,
    spin: Duration,
}

impl PollPort {
    /// Allocates all that the port will ever need.
    #[must_use]
    pub fn new(link: Link, wake: Wake, sizes: PollSizes) -> PollPort {
        let PollSizes { buffers, receives, sends, writes, .. } = sizes;
        PollPort {
            link,
            wake,
            frame: FrameBuffer::new(),
            buffers: (0..buffers).map(|_| vec![0; DATAGRAM_BYTES].into_boxed_slice()).collect(),
            given: 0,
            filled: 0,
            first_received: 0,
            receive_many: ReceiveMany::new(receives.min(RECEIVES)),
            send_many: SendMany::new(sends),
            failures: Vec::with_capacity(sends + writes),
            tun_ready: true,
            udp_ready: true,
            woken: false,
            tun_gone: false,
            receive_errors: 0,
            spin: sizes.spin,
        }
    }

    fn send_all(&mut self, trains: &Trains<SocketAddrV4>) {
        let mut done = 0;
        while done < trains.open() {
            let unsent = trains.iter().skip(done).map(|(to, train)| {
                let segment_size = (train.count() > 1).then(|| train.segment_size());
                (train.bytes(), to, segment_size)
            });
            match self.link.sender.send_many(&mut self.send_many, unsent) {
                Ok(sent) => done += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failures.push(Failure::Send(done, error.raw_os_error().unwrap_or(0)));
                    done += 1;
                }
            }
            debug_assert!(done <= trains.open(), "the kernel took more than there was");
        }
    }

    fn write_all(&mut self, coalescer: &mut Coalescer) {
        let mut parts = [IoSlice::new(&[]); MAX_PIECES + 1];
        for (index, frame) in coalescer.frames().enumerate() {
            parts[0] = IoSlice::new(frame.head);
            for (part, piece) in parts[1..].iter_mut().zip(frame.pieces) {
                let start = piece.start as usize;
                let bytes = &self.buffers[usize::from(piece.buffer)][start..start + piece.len as usize];
                *part = IoSlice::new(bytes);
            }
            if let Err(error) = self.link.queue.write_vectored(&parts[..=frame.pieces.len()]) {
                self.failures.push(Failure::Write(index, error.raw_os_error().unwrap_or(0)));
            }
        }
    }

    fn read_frame(&mut self) {
        if let Err(error) = self.frame.read(&self.link.queue) {
            self.tun_ready = error.kind() == io::ErrorKind::Interrupted;
            self.tun_gone |= is_gone(&error);
            let expected = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            self.receive_errors += usize::from(!expected && !self.tun_gone);
        }
    }

    fn receive_datagrams(&mut self) {
        let offered = (self.buffers.len() - self.filled).min(self.receive_many.capacity());
        let free = self.buffers[self.filled..].iter_mut().map(|buffer| &mut buffer[..]);
        match self.link.receiver.receive_many(&mut self.receive_many, free) {
            Ok(0) => {}
            Ok(count) => {
                self.first_received = self.filled;
                self.filled += count;
                self.udp_ready = count == offered;
                debug_assert!(self.filled <= self.buffers.len(), "more datagrams than buffers");
            }
            Err(error) => {
                self.udp_ready = false;
                let expected = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                self.receive_errors += usize::from(!expected);
            }
        }
    }

    fn nothing_to_handle(&self) -> bool {
        let no_packet = self.frame.is_empty() && self.given == self.filled;
        let both_dry = (self.tun_gone || !self.tun_ready) && !self.udp_ready;
        no_packet && both_dry && self.failures.is_empty()
    }

    fn wait(&mut self, pause: Duration) -> io::Result<()> {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        // A deleted device would report an error for ever, so `poll` does not watch it.
        let tun_events = if self.tun_gone { PollFlags::empty() } else { PollFlags::IN };
        let (tun, udp, wake) = {
            let mut fds = [
                PollFd::new(&self.link.receiver, PollFlags::IN),
                PollFd::new(&self.wake, PollFlags::IN),
                PollFd::new(&self.link.queue, tun_events),
            ];
            let watched = if self.tun_gone { 2 } else { 3 };
            let start = Instant::now();
            while start.elapsed() < self.spin && poll(&mut fds[..watched], Some(&AT_ONCE)) == Ok(0) {}
            match poll(&mut fds[..watched], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            (ready(&fds[2]), ready(&fds[0]), ready(&fds[1]))
        };
        self.tun_ready = tun;
        self.udp_ready = udp;
        if wake {
            self.wake.drain();
            self.woken = true;
        }
        Ok(())
    }
}

impl Port for PollPort {
    fn turn(&mut self, out: &mut Outgoing, pause: Duration) -> io::Result<()> {
        self.failures.clear();
        self.send_all(&out.trains);
        self.write_all(&mut out.coalescer);
        if self.given == self.filled {
            self.given = 0;
            self.filled = 0;
        }
        if self.nothing_to_handle() {
            self.wait(pause)?;
        } else {
            // The side that had run dry may have more by now. Without another look, a busy side would starve it.
            self.tun_ready = true;
            self.udp_ready = true;
        }
        Ok(())
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }

    fn frame(&mut self) -> Option<&mut [u8]> {
        let can_read = self.tun_ready && !self.tun_gone;
        if self.frame.is_empty() && can_read {
            self.read_frame();
        }
        self.frame.frame()
    }

    fn advance(&mut self) {
        self.frame.clear();
    }

    fn datagram(&mut self) -> Option<Received> {
        let can_receive = self.udp_ready && self.filled < self.buffers.len();
        if self.given == self.filled && can_receive {
            self.receive_datagrams();
        }
        if self.given == self.filled {
            return None;
        }
        debug_assert!(self.first_received <= self.given, "`received` tells of later buffers");
        let received = self.receive_many.received().get(self.given - self.first_received)?;
        let buffer = u16::try_from(self.given).ok()?;
        self.given += 1;
        Some(Received {
            buffer,
            start: 0,
            len: received.len,
            from: received.from,
            stride: received.stride,
            truncated: received.truncated,
        })
    }

    fn payload(&self, received: &Received) -> &[u8] {
        let end = received.start + received.len;
        self.buffers[usize::from(received.buffer)].get(received.start..end).unwrap_or_default()
    }

    fn resend(&mut self, packet: &[u8], to: SocketAddrV4) -> io::Result<()> {
        self.link.sender.send(packet, to, None).map(drop)
    }

    fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    fn take_receive_errors(&mut self) -> usize {
        std::mem::take(&mut self.receive_errors)
    }

    fn take_starved(&mut self) -> usize {
        // The kernel never asks for a buffer here: what is not read stays in its queues.
        0
    }
}
