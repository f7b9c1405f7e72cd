//! Many writes to one table: the part that all `ensure_*` calls over sets of thousands have in common.
//!
//! The present entries come from one dump, and only differences are written. The kernel acts on one request at a time
//! and answers each. Several requests are under way at once, so that no request waits for the answer to another; they
//! are few enough for all answers to fit into the receive buffer of the socket. One refused entry does not stop the
//! rest.

use super::{Changes, Error};
use futures_util::StreamExt;
use std::future::Future;

/// How many requests are under way at a time. An answer takes less than 1 kB of a buffer of 208 kB
/// (`net.core.rmem_default`).
const UNDER_WAY: usize = 32;
const _: () = assert!(UNDER_WAY * 1024 <= 208 * 1024 / 2, "the answers fit with room to spare");

/// What to do with entries of ours that are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Such entries stay, and [`Outcome::stale`] counts them.
    Keep,
    /// Such entries are removed.
    Remove,
}

/// The result of a call over a set of entries.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The writes, in a sentence for each kind.
    pub changes: Changes,
    /// The errors of entries that the kernel refused, or whose place a foreign entry holds.
    pub failures: Vec<Error>,
    /// How many entries are not wanted and stayed, because of [`Stale::Keep`].
    pub stale: usize,
    /// How many entries were not wanted and are gone now.
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

    /// Makes the writes: first all of `set`, then all of `remove`, unless `stale` keeps those. `what` names the entries,
    /// for instance `routes into 10.1.0.0/16`.
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

    /// Makes the writes and returns how many succeeded. With `gone_is_fine`, an entry that is already gone is neither a
    /// success nor a failure.
    async fn run<W>(&mut self, writes: Vec<W>, gone_is_fine: bool) -> usize
    where
        W: Future<Output = Result<(), Error>>,
    {
        let mut results = futures_util::stream::iter(writes).buffer_unordered(UNDER_WAY);
        let mut succeeded = 0;
        while let Some(result) = results.next().await {
            match result {
                Ok(()) => succeeded += 1,
                Err(error) if gone_is_fine && error.is_not_found() => {}
                Err(error) => self.failures.push(error),
            }
        }
        succeeded
    }
}
