//! The kernel's queues for one worker: an io_uring that reads one TUN queue, receives on one UDP socket, and
//! carries the worker's sends and writes.
//!
//! Two multishot requests stay armed all the time: `READ_MULTISHOT` on the TUN and multishot `RECVMSG` on the
//! socket. Each takes buffers from a pool of its own (`pool`) and posts one completion per frame or
//! datagram, in the order in which the kernel queued them. A third, on the event descriptor of [`Wake`],
//! lets the control thread interrupt the wait.
//!
//! [`Ring::turn`] is the only way into the kernel. It submits what was staged ([`Staging`]) and goes on only when every
//! send and write of that turn is complete. So the kernel holds nothing of the caller's between turns: what it
//! reads is borrowed for the turn, and what it fills are the pools' buffers, which are out of reach until it lends
//! them (`pool::Filled`). Waiting for completion costs nothing, because neither a TUN write nor a `MSG_DONTWAIT`
//! send ever blocks: both are done when the `enter` that submits them returns.
//!
//! A turn drains the completion queue fully and sorts it into frames, datagrams and failures before anything is
//! handled. Reads that are handled in queue order, while sends behind them are waited for, would deadlock.

mod close;
mod datagram;
mod pool;
mod setup;
mod sizes;
mod staging;
#[cfg(test)]
pub(crate) mod tests;
mod token;
mod wake;

pub use datagram::Datagram;
pub use pool::BUFFER_BYTES;
pub use setup::{RingError, probe};
pub use sizes::Sizes;
pub use staging::{MOST_CONTROL, Staging};
pub use wake::Wake;

use datagram::parse;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use pool::{Filled, Pool};
use staging::Store;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};
use token::Token;

/// The TUN's place in the table of registered files; the other descriptors follow.
const TUN_SLOT: u32 = 0;
const RECEIVE_SLOT: u32 = 1;
const SEND_SLOT: u32 = 2;
const WAKE_SLOT: u32 = 3;
/// The two groups of provided buffers.
const FRAMES: u16 = 0;
const DATAGRAMS: u16 = 1;
/// Room for the sender's address in front of every received payload.
const NAME_BYTES: u8 = 16;
const _: () = assert!(size_of::<libc::sockaddr_in>() == NAME_BYTES as usize);
/// Room for control messages, which follows it.
const CONTROL_BYTES: usize = 32;
// The `UDP_GRO` message fits: a header and a number that is padded to a word.
const _: () = assert!(CONTROL_BYTES >= size_of::<libc::cmsghdr>() + size_of::<usize>());
/// Most buffers in a ring of provided buffers (`io_uring_register_buf_ring(3)`).
pub const MOST_BUFFERS: u16 = 32_768;
// A ring of entries has the next power of two as its size. So it is never larger than that either.
const _: () = assert!(MOST_BUFFERS.is_power_of_two());

/// The descriptors that a ring works on.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors<'fd> {
    /// The TUN queue to read from and write to.
    pub tun: BorrowedFd<'fd>,
    /// The UDP socket to receive on.
    pub receive: BorrowedFd<'fd>,
    /// The UDP socket to send from; it may be the same one.
    pub send: BorrowedFd<'fd>,
    /// The event descriptor of a [`Wake`].
    pub wake: BorrowedFd<'fd>,
}

/// A staged operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The operation that failed.
    pub operation: Operation,
    /// The reason, as a positive errno.
    pub errno: i32,
}

/// A staged operation, by its number within the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The [`Staging::send`] of this number.
    Send(usize),
    /// The [`Staging::write`] of this number.
    Write(usize),
}

/// Standing requests that the kernel has ended and that must be made again.
#[derive(Debug, Clone, Copy)]
struct Disarmed {
    frames: bool,
    datagrams: bool,
    wake: bool,
}

impl Disarmed {
    fn all(self) -> bool {
        self.frames && self.datagrams && self.wake
    }
}

/// One worker's io_uring. It is not `Send`, since the kernel takes submissions only from the thread that made it.
pub struct Ring {
    /// The drop closes this by hand, before all that the kernel may still write to.
    io: ManuallyDrop<IoUring>,
    frames: ManuallyDrop<Pool>,
    datagrams: ManuallyDrop<Pool>,
    store: ManuallyDrop<Store>,
    /// How much room the standing receive has for name and control messages. The kernel reads it when that is armed.
    receive: ManuallyDrop<Box<libc::msghdr>>,
    disarmed: Disarmed,
    ready_frames: VecDeque<Filled>,
    ready_datagrams: VecDeque<Filled>,
    /// Datagrams given out since the last turn; the kernel gets their buffers back in the next one.
    consumed_datagrams: Vec<Filled>,
    failures: Vec<Failure>,
    woken: bool,
    spin: Duration,
    starved: u64,
    /// The errno that ended reading from the TUN for good, if any (`EBADFD`: the device was deleted).
    tun_error: Option<i32>,
    receive_error: Option<i32>,
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Makes the ring, probes it, and registers descriptors and buffers.
    ///
    /// # Errors
    /// [`RingError`] names what is missing and the remedy.
    pub fn new(descriptors: Descriptors<'_>, sizes: Sizes) -> Result<Ring, RingError> {
        let countable = 1..=MOST_BUFFERS;
        let counted = countable.contains(&sizes.frames) && countable.contains(&sizes.datagrams);
        if !counted || !sizes.fit_the_kernel() {
            let what = format!("between 1 and {MOST_BUFFERS} buffers a direction, not {sizes:?}");
            return Err(RingError::Other(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let (entries, completions) = sizes.queues();
        let io = setup::build(entries, completions)?;
        debug_assert!(io.params().sq_entries() >= entries && io.params().cq_entries() >= completions);
        let Descriptors { tun, receive, send, wake } = descriptors;
        let files = [tun, receive, send, wake].map(|fd| fd.as_raw_fd());
        io.submitter().register_files(&files).map_err(setup::classify)?;
        // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
        let mut receive: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive.msg_namelen = libc::socklen_t::from(NAME_BYTES);
        receive.msg_controllen = CONTROL_BYTES;
        let mut ring = Ring {
            io: ManuallyDrop::new(io),
            frames: ManuallyDrop::new(Pool::new(FRAMES, sizes.frames)),
            datagrams: ManuallyDrop::new(Pool::new(DATAGRAMS, sizes.datagrams)),
            store: ManuallyDrop::new(Store::new(sizes.sends, sizes.writes, sizes.vectors)),
            receive: ManuallyDrop::new(receive),
            disarmed: Disarmed { frames: true, datagrams: true, wake: true },
            ready_frames: VecDeque::with_capacity(usize::from(sizes.frames)),
            ready_datagrams: VecDeque::with_capacity(usize::from(sizes.datagrams)),
            consumed_datagrams: Vec::with_capacity(usize::from(sizes.datagrams)),
            failures: Vec::with_capacity(sizes.sends + sizes.writes),
            woken: false,
            spin: sizes.spin,
            starved: 0,
            tun_error: None,
            receive_error: None,
            not_send: PhantomData,
        };
        ring.frames.register(&ring.io.submitter()).map_err(setup::classify)?;
        ring.datagrams.register(&ring.io.submitter()).map_err(setup::classify)?;
        Ok(ring)
    }

    /// Carries out what `stage` stages and gives the buffers of the datagrams handled since the last turn back to the
    /// kernel. Then it lets packets gather for the time in `wait`. If there is still nothing to handle (no frame, no
    /// datagram, no wake-up, no failure), it sleeps until there is. With `None` it does neither.
    ///
    /// # Errors
    /// Only an error that makes the ring useless, so that the caller must give it up.
    pub fn turn<'a>(
        &mut self,
        wait: Option<Duration>,
        stage: impl FnOnce(&mut Staging<'_, 'a>),
    ) -> io::Result<()> {
        self.store.clear();
        self.failures.clear();
        stage(&mut Staging { store: &mut self.store, datagrams: &self.datagrams, borrowed: PhantomData });
        self.submit_staged()?;
        let mut outstanding = self.store.entries().len();
        while outstanding > 0 {
            self.enter(outstanding)?;
            let finished = self.harvest();
            debug_assert!(finished <= outstanding, "more completions than operations in flight");
            outstanding = outstanding.saturating_sub(finished);
        }
        self.store.clear();
        // The writes that read from these buffers are done, and the wait that follows needs them.
        while let Some(filled) = self.consumed_datagrams.pop() {
            self.datagrams.release(filled);
        }
        self.arm()?;
        match wait {
            Some(pause) => self.wait(pause),
            None => Ok(()),
        }
    }

    /// The frame to handle now as the TUN gave it, vnet header first. It stays the same until [`Ring::advance`].
    pub fn frame(&mut self) -> Option<&mut [u8]> {
        let filled = self.ready_frames.front()?;
        Some(self.frames.bytes_mut(filled))
    }

    /// Whether there is a frame to handle.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        !self.ready_frames.is_empty()
    }

    /// Gives the buffer of the current frame, which is handled, back to the kernel.
    pub fn advance(&mut self) {
        if let Some(filled) = self.ready_frames.pop_front() {
            self.frames.release(filled);
        }
    }

    /// The next datagram. Its bytes stay until the end of the next turn.
    pub fn datagram(&mut self) -> Option<Datagram> {
        loop {
            let filled = self.ready_datagrams.pop_front()?;
            let parsed = parse(&self.datagrams, &filled, &self.receive);
            self.consumed_datagrams.push(filled);
            match parsed {
                // Datagrams over IPv4 always have a sender, so this would be the kernel's mistake.
                None => self.receive_error = Some(libc::EBADMSG),
                datagram => return datagram,
            }
        }
    }

    /// A range of a datagram that was given out since the last turn. For an earlier datagram it is empty.
    #[must_use]
    pub fn payload(&self, buffer: u16, start: usize, len: usize) -> &[u8] {
        let filled = self.consumed_datagrams.iter().find(|filled| filled.index == buffer);
        let bytes = filled.map(|filled| self.datagrams.bytes(filled));
        bytes.and_then(|bytes| bytes.get(start..start + len)).unwrap_or_default()
    }

    /// The control messages of a datagram that was given out since the last turn.
    #[must_use]
    pub fn control(&self, datagram: &Datagram) -> &[u8] {
        let (start, len) = datagram.control;
        self.payload(datagram.buffer, start, len)
    }

    /// How many operations one turn can stage.
    #[must_use]
    pub fn most_staged(&self) -> usize {
        self.failures.capacity()
    }

    /// The staged operations of the last turn that failed, in order of completion.
    #[must_use]
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Whether the control thread has woken the worker since the last call.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// The last errno of a standing read or receive since the last call, if one failed. The request is made again.
    pub fn take_receive_error(&mut self) -> Option<i32> {
        self.receive_error.take()
    }

    /// How often the kernel had something for us and no buffer to put it in.
    #[must_use]
    pub fn starved(&self) -> u64 {
        self.starved
    }

    fn wait(&mut self, pause: Duration) -> io::Result<()> {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        } else if self.nothing_to_handle() {
            self.spin()?;
        } else {
            return Ok(());
        }
        // Where something is left to handle, what gathered in the pause joins it and nobody waits for more.
        self.enter(usize::from(self.nothing_to_handle()))?;
        let finished = self.harvest();
        debug_assert_eq!(finished, 0, "a staged operation outlived its turn");
        Ok(())
    }

    /// Looks whether the kernel has work for us, without a system call and for as long as the operator allows.
    fn spin(&mut self) -> io::Result<()> {
        if self.spin.is_zero() {
            return Ok(());
        }
        self.io.submit()?;
        let start = Instant::now();
        while !self.io.submission().taskrun() && start.elapsed() < self.spin {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn nothing_to_handle(&self) -> bool {
        let no_packet = self.ready_frames.is_empty() && self.ready_datagrams.is_empty();
        let no_error = self.failures.is_empty() && self.receive_error.is_none();
        no_packet && no_error && !self.woken
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.io.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue has overflowed into the kernel's list. The caller drains it and comes again.
                    Some(libc::EBUSY) => return Ok(()),
                    // The kernel is short of memory. It gets a moment, and the caller drains the queue.
                    Some(libc::EAGAIN) => {
                        std::thread::sleep(Duration::from_millis(1));
                        return Ok(());
                    }
                    // Staged memory may still be in the kernel's hands, and there is no way to get it back. A
                    // return would end its borrow, so the process ends instead.
                    _ if !self.store.entries().is_empty() => std::process::abort(),
                    _ => return Err(error),
                },
            }
        }
    }

    fn submit_staged(&mut self) -> io::Result<()> {
        let mut queue = self.io.submission();
        // SAFETY: every entry points into `store` (boxed and unmoving), into buffers lent to us, or into memory
        // borrowed for the turn. `turn` neither reuses nor gives back any of them, nor does it return, before each
        // entry has completed.
        unsafe { queue.push_multiple(self.store.entries()) }.map_err(|_| full())
    }

    /// Makes those standing requests again that have ended.
    fn arm(&mut self) -> io::Result<()> {
        // Counting free buffers takes time, so it is asked only of a request that has ended.
        let can_read = |ring: &Ring| ring.tun_error.is_none() && ring.frames.free() > 0;
        if self.disarmed.frames && can_read(self) {
            // For this one operation io-uring 0.7.15 overwrites the fixed-file flag, so it is set again.
            let entry = opcode::ReadMulti::new(types::Fixed(TUN_SLOT), 0, FRAMES)
                .build()
                .flags(squeue::Flags::FIXED_FILE);
            self.push(&entry.user_data(Token::Frame.pack()))?;
            self.disarmed.frames = false;
        }
        if self.disarmed.datagrams && self.datagrams.free() > 0 {
            let header: *const libc::msghdr = &raw const **self.receive;
            let entry = opcode::RecvMsgMulti::new(types::Fixed(RECEIVE_SLOT), header, DATAGRAMS).build();
            self.push(&entry.user_data(Token::Datagram.pack()))?;
            self.disarmed.datagrams = false;
        }
        if self.disarmed.wake {
            let entry =
                opcode::PollAdd::new(types::Fixed(WAKE_SLOT), libc::POLLIN as u32).multi(true).build();
            self.push(&entry.user_data(Token::Wake.pack()))?;
            self.disarmed.wake = false;
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the standing requests point at nothing but `receive`, which lives until the ring is closed.
        unsafe { self.io.submission().push(entry) }.map_err(|_| full())
    }

    /// Sorts all completions and returns how many staged operations are among them.
    fn harvest(&mut self) -> usize {
        let mut finished = 0;
        while let Some(completion) = { self.io.completion().next() } {
            match Token::unpack(completion.user_data()) {
                Some(Token::Frame) => self.frame_completed(&completion),
                Some(Token::Datagram) => self.datagram_completed(&completion),
                Some(Token::Wake) => {
                    self.woken = true;
                    self.disarmed.wake = !cqueue::more(completion.flags());
                }
                Some(Token::Send(index)) => {
                    finished += 1;
                    self.staged_completed(Operation::Send(index), completion.result());
                }
                Some(Token::Write(index)) => {
                    finished += 1;
                    self.staged_completed(Operation::Write(index), completion.result());
                }
                None => debug_assert!(false, "a completion that nobody asked for"),
            }
        }
        debug_assert!(self.buffers_add_up(), "a buffer is lost, or in two places");
        finished
    }

    /// Whether every buffer that the kernel does not hold lies in exactly one of our queues.
    fn buffers_add_up(&self) -> bool {
        let datagrams = self.ready_datagrams.len() + self.consumed_datagrams.len();
        self.frames.lent() == self.ready_frames.len() && self.datagrams.lent() == datagrams
    }

    fn staged_completed(&mut self, operation: Operation, result: i32) {
        debug_assert!(self.store.holds(operation), "{operation:?} was not staged in this turn");
        if result < 0 {
            self.failures.push(Failure { operation, errno: -result });
        }
    }

    fn frame_completed(&mut self, completion: &cqueue::Entry) {
        self.disarmed.frames = !cqueue::more(completion.flags());
        match filled(&mut self.frames, completion) {
            Ok(Some(filled)) => self.ready_frames.push_back(filled),
            Ok(None) => {}
            Err(libc::ENOBUFS) => self.starved += 1,
            Err(errno @ libc::EBADFD) => self.tun_error = Some(errno),
            Err(errno) => self.receive_error = Some(errno),
        }
    }

    fn datagram_completed(&mut self, completion: &cqueue::Entry) {
        self.disarmed.datagrams = !cqueue::more(completion.flags());
        match filled(&mut self.datagrams, completion) {
            Ok(Some(filled)) => self.ready_datagrams.push_back(filled),
            Ok(None) => {}
            Err(libc::ENOBUFS) => self.starved += 1,
            Err(errno) => self.receive_error = Some(errno),
        }
    }
}

fn full() -> io::Error {
    io::Error::other("the submission queue is smaller than the stage")
}

/// The buffer that a completion filled. A standing request that ended quietly has none: `Ok(None)`.
fn filled(pool: &mut Pool, completion: &cqueue::Entry) -> Result<Option<Filled>, i32> {
    let len = usize::try_from(completion.result()).map_err(|_| -completion.result())?;
    let Some(index) = cqueue::buffer_select(completion.flags()) else { return Ok(None) };
    Ok(pool.take(index, len))
}
