//! How much a ring can hold.

use std::time::Duration;

/// The longest queue of submissions that the kernel makes (`IORING_MAX_ENTRIES`, Linux `io_uring/io_uring.h`).
const MOST_SUBMISSIONS: usize = 32_768;
/// The longest queue of completions that it makes (`IORING_MAX_CQ_ENTRIES`).
const MOST_COMPLETIONS: usize = 2 * MOST_SUBMISSIONS;
/// The three standing requests, which are submitted besides the staged operations.
const STANDING: usize = 3;

/// How much a ring can hold.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Buffers for frames read from the TUN, at least 1. Each has 68 KiB.
    pub frames: u16,
    /// Buffers for datagrams received, at least 1. Each has 68 KiB.
    pub datagrams: u16,
    /// Most sends in one turn.
    pub sends: usize,
    /// Most TUN writes in one turn.
    pub writes: usize,
    /// Most parts that all writes of one turn have together.
    pub vectors: usize,
    /// How long to look for completions before sleeping for them.
    pub spin: Duration,
}

impl Sizes {
    /// Submissions of one turn: the staged operations and the standing requests.
    pub(super) const fn submissions(&self) -> usize {
        self.sends + self.writes + STANDING
    }

    /// Completions that can wait at once: one for each submission and one for each buffer.
    pub(super) const fn in_flight(&self) -> usize {
        self.submissions() + self.frames as usize + self.datagrams as usize
    }

    /// Whether the kernel makes queues that large, with the completions doubled as [`Ring::new`](super::Ring::new) asks for them.
    #[must_use]
    pub const fn fit_the_kernel(&self) -> bool {
        self.submissions() <= MOST_SUBMISSIONS && 2 * self.in_flight() <= MOST_COMPLETIONS
    }

    /// The lengths of the queues to ask for: submissions, and completions with room to spare.
    pub(super) fn queues(&self) -> (u32, u32) {
        let entries = u32::try_from(self.submissions()).unwrap_or(u32::MAX);
        (entries, u32::try_from(2 * self.in_flight()).unwrap_or(u32::MAX))
    }
}
