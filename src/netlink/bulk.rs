//! Many writes to one table: what each `ensure_*` over a set of thousands has in common.
//!
//! The present entries come from one dump; only differences are written. The kernel acts on one request at a
//! time and answers each; several are kept under way so that the answers are not waited for one by one. Few
//! enough, so that the answers fit into the socket's receive buffer. One refused entry does not stop the rest.

use super::{Changes, Error};
use futures_util::StreamExt;
use std::future::Future;

/// Requests under way at a time. An answer takes less than 1 kB of a buffer of 208 kB
/// (`net.core.rmem_default`).
const UNDER_WAY: usize = 32;
const _: () = assert!(UNDER_WAY * 1024 <= 208 * 1024 / 2, "the answers fit with room to spare");

/// What to do with entries of ours that are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Leave them; [`Outcome::stale`] counts them.
    Keep,
    /// Remove them.
    Remove,
}

/// What a call over a set did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was written, in one sentence.
    pub changes: Changes,
    /// Entries that the kernel refused, or that are in a foreign entry's place.
    pub failures: Vec<Error>,
    /// Entries that are not wanted and were left, with [`Stale::Keep`].
    pub stale: usize,
    /// Entries that were not wanted and are gone now.
    pub removed: usize,
}

impl Outcome {
    /// Adds the outcome of another call.
    pub fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.failures.extend(other.failures);
        self.stale += other.stale;
        self.removed += other.removed;
    }

    /// Makes the writes: first all of `set`, then, if so wished, all of `remove`. `what` names the entries, for
    /// instance `routes in 10.1.0.0/16`.
    pub(super) async fn write<S, R>(&mut self, what: &str, set: Vec<S>, remove: Vec<R>, stale: Stale)
    where
        S: Future<Output = Result<(), Error>>,
        R: Future<Output = Result<(), Error>>,
    {
        let written = self.run(set, false).await;
        if written > 0 {
            self.changes.push_many(format!("set {written} {what}"), written);
        }
        if stale == Stale::Keep {
            self.stale += remove.len();
            return;
        }
        let removed = self.run(remove, true).await;
        if removed > 0 {
            self.changes.push_many(format!("remove {removed} {what}"), removed);
            self.removed += removed;
        }
    }

    /// How many succeeded. An entry that is to be removed and is gone already is no failure.
    async fn run<W>(&mut self, writes: Vec<W>, gone_is_fine: bool) -> usize
    where
        W: Future<Output = Result<(), Error>>,
    {
        let all = writes.len();
        let mut results = futures_util::stream::iter(writes).buffer_unordered(UNDER_WAY);
        let mut succeeded = 0;
        while let Some(result) = results.next().await {
            match result {
                Ok(()) => succeeded += 1,
                Err(error) if gone_is_fine && error.is_not_found() => {}
                Err(error) => self.failures.push(error),
            }
        }
        debug_assert!(succeeded <= all);
        succeeded
    }
}
