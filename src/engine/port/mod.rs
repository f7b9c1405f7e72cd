//! Where packets cross between a worker and the kernel: one trait, and its io_uring, poll and in-memory forms.
//!
//! A port reads frames from one TUN queue and datagrams from one socket, and once a turn carries out what the
//! worker has gathered in [`Outgoing`]. When [`Port::turn`] returns, all of that is done: the worker may reuse
//! every byte.

mod frame_buffer;
mod memory;
mod poll;
mod uring;

pub use memory::{Arrival, MemoryPort, Sent};
pub use poll::{PollPort, PollSizes};
pub use uring::UringPort;

use crate::offload::batch::Trains;
use crate::offload::coalesce::Coalescer;
use crate::tun::Queue;
use crate::udp::Socket;
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

/// What one worker reads and writes.
#[derive(Debug)]
pub struct Link {
    /// A queue of the TUN device.
    pub queue: Queue,
    /// The socket it receives on, bound to the network's port.
    pub receiver: Socket,
    /// The socket it sends from: the same one for worker 0, one with a port of its own for the others.
    pub sender: Socket,
}

/// What a worker has gathered for the next turn: trains for peers, frames for the TUN.
#[derive(Debug)]
pub struct Outgoing {
    /// Packets to peers, by the peer's address.
    pub batcher: Trains<SocketAddrV4>,
    /// Packets for the TUN; their pieces lie in the port's receive buffers.
    pub coalescer: Coalescer,
}

impl Outgoing {
    /// How many trains and frames there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.batcher.open() + self.coalescer.len()
    }

    /// Whether `failure` speaks of a train or a frame that is here.
    #[must_use]
    pub fn holds(&self, failure: Failure) -> bool {
        match failure {
            Failure::Send(train, _) => train < self.batcher.open(),
            Failure::Write(frame, _) => frame < self.coalescer.len(),
        }
    }

    /// Forgets all, ready for the next turn.
    pub fn clear(&mut self) {
        self.batcher.clear();
        self.coalescer.clear();
    }
}

/// A datagram, or several equal ones joined by the kernel, in one of the port's buffers. The buffer stays as it
/// is until the next turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The buffer's number.
    pub buffer: u16,
    /// Where the payload starts in it.
    pub start: usize,
    /// Bytes of payload.
    pub len: usize,
    /// The sender.
    pub from: SocketAddrV4,
    /// Length of each datagram but the last, when the kernel joined several.
    pub stride: Option<u16>,
    /// Some of it is lost for want of room.
    pub truncated: bool,
}

/// Which part of [`Outgoing`] failed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The n-th train.
    Send(usize, i32),
    /// The n-th frame.
    Write(usize, i32),
}

/// Packet input and output of one worker.
pub trait Port {
    /// Sends every train and writes every frame of `out`, in order. A port that then has nothing to handle lets packets
    /// gather for as long as `pause` says and waits for a frame, a datagram or a wake-up. A port that has something to
    /// handle does not wait, and may leave the pause out.
    ///
    /// # Errors
    /// Only what makes the port useless.
    fn turn(&mut self, out: &mut Outgoing, pause: Duration) -> io::Result<()>;

    /// What failed in the last turn, oldest first.
    fn failures(&self) -> &[Failure];

    /// The frame to handle now, vnet header first; the same one until [`Port::advance`].
    fn frame(&mut self) -> Option<&mut [u8]>;

    /// Done with the current frame.
    fn advance(&mut self);

    /// The next datagram.
    fn datagram(&mut self) -> Option<Received>;

    /// The bytes of a datagram that was given out since the last turn.
    fn payload(&self, received: &Received) -> &[u8];

    /// Sends one packet now, unsegmented, outside the turn.
    ///
    /// # Errors
    /// What the kernel says.
    fn resend(&mut self, packet: &[u8], to: SocketAddrV4) -> io::Result<()>;

    /// Whether the control thread called since the last time.
    fn take_woken(&mut self) -> bool;

    /// How many errors of reading and receiving there were since the last time.
    fn take_receive_errors(&mut self) -> usize;

    /// How often the kernel found no buffer, since the last time.
    fn take_starved(&mut self) -> usize;
}
