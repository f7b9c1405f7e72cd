//! Where packets cross between a worker and the kernel: one trait, and its io_uring, poll and in-memory forms.
//!
//! A port reads frames from one TUN queue and datagrams from one socket. Once a turn it carries out what the worker
//! has gathered in [`Outgoing`]. When [`Port::turn`] returns, all of that is done, and the worker may reuse every byte.

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
    /// The socket that the worker receives on, bound to the network's port.
    pub receiver: Socket,
    /// The socket that the worker sends from. Worker 0 shares the receiver's; the others may have a port of their own.
    pub sender: Socket,
}

/// What a worker has gathered for the next turn: trains for peers, frames for the TUN.
#[derive(Debug)]
pub struct Outgoing {
    /// Trains for peers, by the peer's address.
    pub trains: Trains<SocketAddrV4>,
    /// Frames for the TUN; their pieces lie in the port's receive buffers.
    pub coalescer: Coalescer,
}

impl Outgoing {
    /// How many trains and frames there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.trains.open() + self.coalescer.len()
    }

    /// Whether `failure` speaks of a train or a frame that is here.
    #[must_use]
    pub fn holds(&self, failure: Failure) -> bool {
        match failure {
            Failure::Send(train, _) => train < self.trains.open(),
            Failure::Write(frame, _) => frame < self.coalescer.len(),
        }
    }

    /// Forgets all trains and frames, ready for the next turn.
    pub fn clear(&mut self) {
        self.trains.clear();
        self.coalescer.clear();
    }
}

/// A datagram in one of the port's buffers, or several of one size that the kernel joined. The buffer stays as it is
/// until the next turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The buffer's number.
    pub buffer: u16,
    /// Where the payload starts in it.
    pub start: usize,
    /// How many bytes the payload has.
    pub len: usize,
    /// The sender's address.
    pub from: SocketAddrV4,
    /// The length of each datagram but the last, if the kernel joined several.
    pub stride: Option<u16>,
    /// Whether the buffer was too small and some of the payload is lost.
    pub truncated: bool,
}

/// Which part of [`Outgoing`] failed, and with which errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The train of this number was not sent.
    Send(usize, i32),
    /// The frame of this number was not written.
    Write(usize, i32),
}

/// Packet input and output of one worker.
pub trait Port {
    /// Sends every train and writes every frame of `out`, in order. A port that then has nothing to handle lets packets
    /// gather for as long as `pause` says and waits for a frame, a datagram or a wake-up. A port that has something to
    /// handle does not wait, and may leave the pause out.
    ///
    /// # Errors
    /// Only an error that makes the port useless.
    fn turn(&mut self, out: &mut Outgoing, pause: Duration) -> io::Result<()>;

    /// What failed in the last turn, oldest first.
    fn failures(&self) -> &[Failure];

    /// The frame to handle now, vnet header first. It stays the same until [`Port::advance`].
    fn frame(&mut self) -> Option<&mut [u8]>;

    /// Lets go of the current frame, which is handled.
    fn advance(&mut self);

    /// The next datagram to handle.
    fn datagram(&mut self) -> Option<Received>;

    /// The bytes of a datagram that was given out since the last turn.
    fn payload(&self, received: &Received) -> &[u8];

    /// Sends one packet now, unsegmented, outside the turn.
    ///
    /// # Errors
    /// The kernel's refusal of this packet.
    fn resend(&mut self, packet: &[u8], to: SocketAddrV4) -> io::Result<()>;

    /// Whether the control thread has woken the worker since the last call.
    fn take_woken(&mut self) -> bool;

    /// How many errors of reading and receiving there were since the last call.
    fn take_receive_errors(&mut self) -> usize;

    /// How often the kernel found no buffer since the last call.
    fn take_starved(&mut self) -> usize;
}
