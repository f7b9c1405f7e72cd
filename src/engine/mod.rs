//! The engine carries packets: it joins the rooms of the packet path and runs them, with one worker for each link
//! that it is given. The backend `udp` gives it one link up to two cores, then one a core up to four, unless
//! `--workers` says otherwise.
//!
//! A worker owns a TUN queue, a UDP socket to receive on and one to send on (often the same), a [`port`] (io_uring
//! or poll), its buffers and its own copy of the routes. Workers share nothing. `worker` is the loop of each: it
//! obeys the control thread, takes datagrams and frames from the port, pushes them through `udp_to_tun` and
//! `tun_to_udp` into one [`port::Outgoing`], and hands that back to the port in one turn.
//!
//! The control thread holds an [`Engine`]. [`RouteCommand`]s and the stop go down, over a bounded channel with a
//! wake-up. [`counters`], which only the worker writes, come up, and so does the news that a worker has ended
//! ([`Engine::poll_ended`]). Nothing else crosses, and no worker ever waits for the control thread.
//!
//! `budgets` bounds a turn in bytes and in packets, so a worker sees route changes and the stop within one turn
//! even under full load.

mod budgets;
pub mod counters;
mod icmp_limit;
mod moderation;
pub mod port;
mod refusals;
mod settings;
mod start;
#[cfg(test)]
mod tests;
mod tun_to_udp;
mod udp_to_tun;
mod worker;

pub use counters::{Count, Counters, DropReason, Snapshot};
pub use port::Link;
pub use settings::*;
pub use start::{Setup, settle_carrier};

use crate::ring::{RingError, Wake};
use crate::route::RouteCommand;
use crossbeam::channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError};
use futures_util::task::AtomicWaker;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::error;
use worker::{BACK_OFF, Command};

/// How long the control thread waits for a worker to take a command before it gives that worker up. This is long:
/// a turn takes well under a millisecond.
const COMMAND_PATIENCE: Duration = Duration::from_secs(2);
/// How long a stop waits for all workers together. The daemon has 800 ms to end and needs the rest itself.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

// A worker that spins, pauses and backs off in one turn still takes its commands and its stop in time.
const _: () = assert!(
    LONGEST_SPIN.as_millis() + LONGEST_MODERATION.as_millis() + BACK_OFF.as_millis()
        < STOP_PATIENCE.as_millis() / 2
);
const _: () = assert!(STOP_PATIENCE.as_millis() < COMMAND_PATIENCE.as_millis());

/// Why the engine did not start, or why it does not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The operator wants io_uring (`--engine=uring`), and this host cannot.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The host has no thread or no event descriptor left.
    #[error("cannot start worker {0}: {1}")]
    Start(usize, io::Error),
    /// A worker has ended, or hangs.
    #[error("worker {0} does not answer")]
    Worker(usize),
}

/// A running engine. Dropping it stops the workers.
#[derive(Debug)]
pub struct Engine {
    workers: Vec<Handle>,
    carriers: Vec<Carrier>,
    /// Woken whenever a worker's thread ends.
    waiting: Arc<AtomicWaker>,
}

/// What the control thread holds of one worker.
#[derive(Debug)]
struct Handle {
    commands: Sender<Command>,
    wake: Wake,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<io::Result<()>>>,
    /// The channel is disconnected as soon as the thread has ended.
    alive: Receiver<Infallible>,
}

impl Handle {
    fn has_ended(&self) -> bool {
        self.thread.is_none() || self.alive.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// A worker's thread holds this while it works. However the thread ends, the drop tells the control thread.
#[derive(Debug)]
struct Alive {
    /// The drop takes this first, so that whoever it wakes finds the worker ended.
    sender: Option<Sender<Infallible>>,
    waiting: Arc<AtomicWaker>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.sender = None;
        self.waiting.wake();
    }
}

impl Engine {
    /// Starts one worker for each queue of `setup`, with its routes already in place.
    ///
    /// # Errors
    /// [`EngineError`] says why. Workers that have started already are stopped again.
    pub fn start(setup: Setup) -> Result<Engine, EngineError> {
        start::start(setup)
    }

    /// Changes a route in every worker.
    ///
    /// # Errors
    /// [`EngineError::Worker`] if a worker does not take the change.
    pub fn route(&self, command: RouteCommand) -> Result<(), EngineError> {
        self.command(&Command::Route(command))
    }

    /// Changes the peer filter in every worker.
    ///
    /// # Errors
    /// [`EngineError::Worker`] if a worker does not take the change.
    pub fn set_peer_filter(&self, filter: PeerFilter) -> Result<(), EngineError> {
        self.command(&Command::Filter(filter))
    }

    fn command(&self, command: &Command) -> Result<(), EngineError> {
        for (index, worker) in self.workers.iter().enumerate() {
            if worker.commands.is_full() {
                worker.wake.wake();
            }
            match worker.commands.send_timeout(command.clone(), COMMAND_PATIENCE) {
                Ok(()) => worker.wake.wake(),
                Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => {
                    return Err(EngineError::Worker(index));
                }
            }
        }
        Ok(())
    }

    /// The counters of all workers, added up.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for worker in &self.workers {
            sum += worker.counters.snapshot();
        }
        sum
    }

    /// What carries each worker's packets: [`Carrier::Uring`] or [`Carrier::Poll`].
    #[must_use]
    pub fn carriers(&self) -> &[Carrier] {
        &self.carriers
    }

    /// The first worker that has ended by itself; `None` while all work.
    #[must_use]
    pub fn ended(&self) -> Option<usize> {
        self.workers.iter().position(Handle::has_ended)
    }

    /// Ready with the worker's number as soon as one has ended. Only one task may wait at a time.
    pub fn poll_ended(&self, context: &mut Context<'_>) -> Poll<usize> {
        self.waiting.register(context.waker());
        self.ended().map_or(Poll::Pending, Poll::Ready)
    }

    /// Stops all workers and waits for them, half a second at most. Returns their last counters, and the error of the
    /// first worker that ended with one. A worker that does not end in time is left behind with its descriptors.
    pub fn stop(mut self) -> (Snapshot, io::Result<()>) {
        let result = self.join();
        (self.snapshot(), result)
    }

    fn join(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + STOP_PATIENCE;
        // All are told before any is waited for, so that one with a full channel costs the others no time. A worker
        // that has ended takes no command, and needs none.
        let mut full = Vec::new();
        for worker in self.workers.iter().filter(|worker| worker.thread.is_some()) {
            if worker.commands.try_send(Command::Stop).is_err_and(|error| error.is_full()) {
                full.push(worker);
            }
            worker.wake.wake();
        }
        for worker in full {
            let _ = worker.commands.send_deadline(Command::Stop, deadline);
            worker.wake.wake();
        }
        let mut result = Ok(());
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let Some(thread) = worker.thread.take() else { continue };
            if worker.alive.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
                error!(worker = index, "the worker does not stop: leaving it behind");
                result = result.and(Err(io::Error::from(io::ErrorKind::TimedOut)));
                continue;
            }
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")));
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
