//! The in-memory port: tests drive the same pipeline without a kernel and order the faults that they want.

use super::{Failure, Outgoing, Port, Received};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

/// A datagram that the worker will receive.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The payload, which may be several packets.
    pub payload: Vec<u8>,
    /// The sender's address.
    pub from: SocketAddrV4,
    /// The stride that `UDP_GRO` would tell.
    pub stride: Option<u16>,
    /// Whether the kernel would say `MSG_TRUNC`.
    pub truncated: bool,
}

/// A train as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// All its packets, back to back.
    pub bytes: Vec<u8>,
    /// The peer's address.
    pub to: SocketAddrV4,
    /// The size at which the kernel would cut it; `None` for a train of one packet.
    pub segment_size: Option<u16>,
}

/// Packet input and output in memory. Its turn never waits.
#[derive(Debug, Default)]
pub struct MemoryPort {
    /// Frames that the worker will read from the TUN, vnet header first.
    pub frames: VecDeque<Vec<u8>>,
    /// Datagrams that the worker will receive.
    pub arrivals: VecDeque<Arrival>,
    /// Trains that were sent.
    pub sent: Vec<Sent>,
    /// Frames that were written to the TUN, vnet header first.
    pub written: Vec<Vec<u8>>,
    /// Packets that were sent again one by one, each with its peer.
    pub resent: Vec<(Vec<u8>, SocketAddrV4)>,
    /// The errno of each coming send, 0 for success. When none is left, sends succeed.
    pub send_faults: VecDeque<i32>,
    /// The errno of each coming resend, in the same way.
    pub resend_faults: VecDeque<i32>,
    /// The errno of each coming write, in the same way.
    pub write_faults: VecDeque<i32>,
    /// Payloads given out since the last turn, by buffer number.
    given: Vec<Vec<u8>>,
    failures: Vec<Failure>,
}

impl MemoryPort {
    fn fault(faults: &mut VecDeque<i32>) -> Option<i32> {
        faults.pop_front().filter(|&errno| errno != 0)
    }
}

impl Port for MemoryPort {
    fn turn(&mut self, out: &mut Outgoing, _pause: Duration) -> io::Result<()> {
        self.failures.clear();
        for (index, (to, train)) in out.trains.iter().enumerate() {
            if let Some(errno) = Self::fault(&mut self.send_faults) {
                self.failures.push(Failure::Send(index, errno));
                continue;
            }
            let segment_size = (train.count() > 1).then(|| train.segment_size());
            self.sent.push(Sent { bytes: train.bytes().to_vec(), to, segment_size });
        }
        for (index, frame) in out.coalescer.frames().enumerate() {
            if let Some(errno) = Self::fault(&mut self.write_faults) {
                self.failures.push(Failure::Write(index, errno));
                continue;
            }
            let mut bytes = frame.head.to_vec();
            for piece in frame.pieces {
                let start = piece.start as usize;
                bytes.extend(&self.given[usize::from(piece.buffer)][start..start + piece.len as usize]);
            }
            self.written.push(bytes);
        }
        self.given.clear();
        Ok(())
    }

    fn failures(&self) -> &[Failure] {
        &self.failures
    }

    fn frame(&mut self) -> Option<&mut [u8]> {
        self.frames.front_mut().map(Vec::as_mut_slice)
    }

    fn advance(&mut self) {
        self.frames.pop_front();
    }

    fn datagram(&mut self) -> Option<Received> {
        let arrival = self.arrivals.pop_front()?;
        let received = Received {
            buffer: u16::try_from(self.given.len()).ok()?,
            start: 0,
            len: arrival.payload.len(),
            from: arrival.from,
            stride: arrival.stride,
            truncated: arrival.truncated,
        };
        self.given.push(arrival.payload);
        Some(received)
    }

    fn payload(&self, received: &Received) -> &[u8] {
        &self.given[usize::from(received.buffer)][received.start..received.start + received.len]
    }

    fn resend(&mut self, packet: &[u8], to: SocketAddrV4) -> io::Result<()> {
        if let Some(errno) = Self::fault(&mut self.resend_faults) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.resent.push((packet.to_vec(), to));
        Ok(())
    }

    fn take_woken(&mut self) -> bool {
        false
    }

    fn take_receive_errors(&mut self) -> usize {
        0
    }

    fn take_starved(&mut self) -> usize {
        0
    }
}
