//! The loop of one worker: control → datagrams → frames → turn → failures.

use super::budgets::{PACKETS_PER_RECEIVE, TURN_BYTES};
use super::counters::{Count, Counters, DropReason};
use super::moderation::Moderation;
use super::port::{Failure, Outgoing, Port};
use super::refusals::{Cause, Refusals};
use super::settings::PeerFilter;
use super::tun_to_udp::{Taken, TunToUdp};
use super::udp_to_tun::UdpToTun;
use crate::route::{RouteCommand, RouteTable};
use crate::tun::{is_down, is_gone};
use crate::udp::is_segmentation_refused;
use crossbeam::channel::{Receiver, TryRecvError};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the control thread may ask of a worker.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Route(RouteCommand),
    Filter(PeerFilter),
    Stop,
}

/// After so many receive errors in a row the worker backs off, so that they do not take the whole core.
const PATIENCE: usize = 16;
/// How long it backs off.
pub(super) const BACK_OFF: Duration = Duration::from_millis(10);

/// One worker with its port `P`.
pub(super) struct Worker<P> {
    pub(super) port: P,
    pub(super) out: Outgoing,
    pub(super) tun_to_udp: TunToUdp,
    pub(super) udp_to_tun: UdpToTun,
    pub(super) routes: RouteTable,
    pub(super) commands: Receiver<Command>,
    pub(super) counters: Arc<Counters>,
    /// Most frames, and most receives, of one turn.
    pub(super) reads_per_turn: usize,
    /// Receive errors since the last packet from either side.
    pub(super) receive_errors: usize,
    /// What the kernel refused, and what trains may be because of it.
    pub(super) refusals: Refusals,
    pub(super) moderation: Moderation,
}

impl<P: Port> Worker<P> {
    /// Works until it is told to stop.
    ///
    /// # Errors
    /// An error of the port that makes it useless.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.obey() {
            let dry = self.gather();
            let pause = if dry { self.moderation.pause(Instant::now()) } else { Duration::ZERO };
            self.turn(pause)?;
        }
        Ok(())
    }

    /// Carries out what the control thread has asked; false if the worker is to stop.
    pub(super) fn obey(&mut self) -> bool {
        self.port.take_woken();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Route(command)) => {
                    let applied = self.routes.apply(&command).is_ok();
                    self.counters.add(if applied { Count::RouteChanges } else { Count::RouteErrors }, 1);
                }
                Ok(Command::Filter(filter)) => self.udp_to_tun.filter = filter,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Takes what the port has in both directions, until a turn is full. True if the port ran dry in both before that.
    pub(super) fn gather(&mut self) -> bool {
        debug_assert_eq!(self.out.count(), 0, "the last turn carried everything out");
        let dry = self.gather_datagrams();
        self.gather_frames() && dry
    }

    fn gather_datagrams(&mut self) -> bool {
        let mut bytes = 0;
        for _ in 0..self.reads_per_turn {
            if bytes >= TURN_BYTES || !self.out.coalescer.has_room_for(PACKETS_PER_RECEIVE) {
                return false;
            }
            let Some(received) = self.port.datagram() else { return true };
            self.receive_errors = 0;
            bytes += received.len;
            self.moderation.receive(received.len);
            let payload = self.port.payload(&received);
            debug_assert_eq!(
                payload.len(),
                received.len,
                "the port keeps a datagram until the turn has ended"
            );
            self.udp_to_tun.take(&received, payload, &self.routes, &mut self.out, &self.counters);
        }
        false
    }

    fn gather_frames(&mut self) -> bool {
        let mut bytes = 0;
        for _ in 0..self.reads_per_turn {
            if bytes >= TURN_BYTES {
                return false;
            }
            let Some(frame) = self.port.frame() else { return true };
            let len = frame.len();
            bytes += len;
            self.receive_errors = 0;
            match self.tun_to_udp.take(frame, &self.routes, &self.refusals, &mut self.out, &self.counters) {
                Taken::Whole => self.port.advance(),
                Taken::InPart => {
                    debug_assert!(self.out.trains.open() > 0, "a turn without a train would make no room");
                    return false;
                }
            }
            self.moderation.frame(len);
        }
        false
    }

    /// Sends and writes what was gathered, waits as [`Port::turn`] does with `pause`, and deals with what failed.
    pub(super) fn turn(&mut self, pause: Duration) -> io::Result<()> {
        self.counters.add(Count::Turns, 1);
        self.counters.add(Count::Pauses, usize::from(!pause.is_zero()));
        self.counters.add(Count::UdpSends, self.out.trains.open());
        self.counters.add(Count::TunWrites, self.out.coalescer.len());
        self.port.turn(&mut self.out, pause)?;
        debug_assert!(
            self.port.failures().len() <= self.out.count(),
            "each train and frame fails once at most"
        );
        debug_assert!(self.port.failures().iter().all(|failure| self.out.holds(*failure)));
        for index in 0..self.port.failures().len() {
            match self.port.failures()[index] {
                Failure::Send(train, errno) => self.send_failed(train, errno),
                Failure::Write(frame, errno) => self.write_failed(frame, errno),
            }
        }
        self.out.clear();
        self.forget_refusals();
        self.counters.add(Count::Starved, self.port.take_starved());
        self.back_off_after_errors();
        Ok(())
    }

    fn send_failed(&mut self, train: usize, errno: i32) {
        let Some((to, train)) = self.out.trains.iter().nth(train) else { return };
        let refused = is_segmentation_refused(&io::Error::from_raw_os_error(errno));
        if train.count() < 2 || !refused {
            self.counters.dropped(send_reason(errno), train.count());
            return;
        }
        self.counters.add(Count::Resent, 1);
        debug_assert_eq!(train.packets().count(), train.count(), "every packet is sent again");
        for packet in train.packets() {
            if let Err(error) = self.port.resend(packet, to) {
                self.counters.dropped(send_reason(error.raw_os_error().unwrap_or(0)), 1);
            }
        }
        if self.refusals.learn(to, train.segment_size(), errno, Instant::now()) == Cause::Segmentation {
            self.counters.add(Count::SegmentationOff, 1);
        }
        self.out.trains.set_limits(self.refusals.limits());
    }

    fn forget_refusals(&mut self) {
        if !self.refusals.is_empty() {
            self.refusals.forget(Instant::now());
            self.out.trains.set_limits(self.refusals.limits());
        }
    }

    fn write_failed(&mut self, frame: usize, errno: i32) {
        let packets = self.out.coalescer.packets_of(frame);
        let reason = match io::Error::from_raw_os_error(errno) {
            error if is_down(&error) => DropReason::TunDown,
            error if is_gone(&error) => DropReason::TunGone,
            _ => DropReason::TunWrite,
        };
        self.counters.dropped(reason, packets as usize);
    }

    fn back_off_after_errors(&mut self) {
        let errors = self.port.take_receive_errors();
        self.counters.add(Count::ReceiveErrors, errors);
        self.receive_errors += errors;
        if errors > 0 && self.receive_errors > PATIENCE {
            std::thread::sleep(BACK_OFF);
        }
    }
}

fn send_reason(errno: i32) -> DropReason {
    match errno {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => DropReason::SendBuffer,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENODEV | libc::EADDRNOTAVAIL => {
            DropReason::SendUnreachable
        }
        libc::EMSGSIZE => DropReason::SendTooBig,
        _ => DropReason::SendFailed,
    }
}
