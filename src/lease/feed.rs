//! The watch, and the lists beside it: how the two become one view without gap or step back.

use super::manager::{Cache, Kind, Manager, Phase, RETRY_LIMIT};
use super::{Notice, Output};
use crate::store::Backoff;
use crate::store::{Change, Error, Listing, Revision};
use rand::RngExt;
use std::time::Duration;

/// Lists against lost events: every so often, give or take a fifth.
const RESYNC_EVERY: Duration = Duration::from_secs(5 * 60);
/// A watch that has run so long did work: its next failure is a first one.
const WATCH_PROVEN: Duration = Duration::from_secs(10);
/// A watch that starts longer after its list was sent may be one of another store: restored meanwhile, and past
/// the list's revision already, which nothing would show. No restore is faster than this.
const LIST_FRESH: Duration = Duration::from_secs(5);

/// The watch.
#[derive(Debug)]
pub(super) struct Feed {
    state: FeedState,
    /// What a list has told already.
    floor: Revision,
    /// The newest revision that a list or the watch has shown.
    cursor: Revision,
    backoff: Backoff,
    /// What the watch has seen since the list under way was sent.
    since_list: Vec<Change>,
    /// The cursor when it was sent: an answer below that comes from another store.
    sent_at: Revision,
    /// When the last list was sent.
    listed_at: Duration,
}

#[derive(Debug, PartialEq)]
enum FeedState {
    Off,
    Starting,
    Running {
        since: Duration,
    },
    Retry {
        at: Duration,
    },
    /// Needs a list first.
    Compacted,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self {
            state: FeedState::Off,
            floor: 0,
            cursor: 0,
            backoff: Backoff::new(RETRY_LIMIT),
            since_list: Vec::new(),
            sent_at: 0,
            listed_at: Duration::ZERO,
        }
    }

    /// When to start the watch again, if it is over.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        match self.state {
            FeedState::Retry { at } => Some(at),
            _ => None,
        }
    }

    /// The store is back: no need to wait longer.
    pub(super) fn hurry(&mut self, now: Duration) {
        if let FeedState::Retry { at } = &mut self.state {
            *at = now;
        }
    }

    pub(super) fn list_sent(&mut self, now: Duration) {
        self.listed_at = now;
        self.since_list.clear();
        self.sent_at = self.cursor;
    }
}

impl Manager {
    pub(super) fn on_listing(&mut self, now: Duration, mut listing: Listing) {
        let reset = listing.revision < self.feed.sent_at;
        let seen = std::mem::take(&mut self.feed.since_list);
        // What the watch saw of another store's history says nothing about this one.
        if !reset {
            for change in seen {
                replay(&mut listing, change);
            }
        }
        if matches!(self.phase, Phase::Seek { .. }) {
            self.choose(
                now,
                Cache { entries: listing.entries, skipped: listing.skipped, revision: listing.revision },
            );
            return;
        }
        if reset {
            self.notice(Notice::StoreReset);
        }
        let on_timer = !reset && matches!(self.feed.state, FeedState::Running { .. });
        self.feed.floor = listing.revision;
        self.feed.cursor = if reset { listing.revision } else { self.feed.cursor.max(listing.revision) };
        if reset || self.feed.state == FeedState::Compacted {
            self.start_watch(listing.revision);
        }
        self.schedule_resync(now);
        let events = self.watcher.snapshot(now, &listing.entries, &listing.skipped, on_timer);
        self.peers_changed(events);
        self.resync_at = self.watcher.confirm_at().unwrap_or(Duration::MAX).min(self.resync_at);
        self.check_own(now, &listing);
    }

    fn schedule_resync(&mut self, now: Duration) {
        self.resync_at = if self.in_doubt {
            // The list that has just come was sent before something failed.
            self.soon(now)
        } else {
            now + RESYNC_EVERY.mul_f64(self.rng.random_range(0.8..=1.2))
        };
    }

    /// With a new subnet: everything from `cache` on.
    pub(super) fn follow(&mut self, now: Duration, cache: Cache) {
        self.feed.floor = cache.revision;
        self.feed.cursor = cache.revision;
        self.schedule_resync(now);
        let events = self.watcher.snapshot(now, &cache.entries, &cache.skipped, false);
        self.peers_changed(events);
        self.start_watch(cache.revision);
    }

    /// From where the last one ended.
    pub(super) fn resume_watch(&mut self) {
        let from = self.feed.cursor.max(self.feed.floor);
        self.start_watch(from);
    }

    fn start_watch(&mut self, from: Revision) {
        self.feed.state = FeedState::Starting;
        self.out.push(Output::Watch { from });
    }

    pub(super) fn on_watch_started(&mut self, now: Duration) {
        if self.feed.state == FeedState::Starting {
            self.feed.state = FeedState::Running { since: now };
            self.in_doubt |= now > self.feed.listed_at + LIST_FRESH;
            self.answered(now);
        }
    }

    pub(super) fn on_watch_failed(&mut self, now: Duration, error: Error) {
        if let FeedState::Running { since } = self.feed.state
            && now >= since + WATCH_PROVEN
        {
            self.feed.backoff.reset();
        }
        let at = now + self.feed.backoff.next(&mut self.rng);
        if error == Error::Compacted {
            self.in_doubt = true;
            self.feed.state = FeedState::Compacted;
            self.resync_at = self.resync_at.min(at);
            return;
        }
        self.failed(now, &error);
        self.feed.state = FeedState::Retry { at };
    }

    pub(super) fn on_changes(&mut self, now: Duration, changes: &[Change]) {
        if matches!(self.phase, Phase::Seek { .. }) {
            // The watch of the subnet that we had. The next one begins anew.
            return;
        }
        self.feed.backoff.reset();
        self.answered(now);
        let mut events = Vec::new();
        for change in changes {
            if let Some(revision) = revision(change) {
                if revision <= self.feed.floor {
                    continue;
                }
                self.feed.cursor = self.feed.cursor.max(revision);
            }
            if self.kind_in_flight() == Some(Kind::List) {
                self.feed.since_list.push(change.clone());
            }
            if !self.is_own(change) {
                events.extend(self.watcher.apply(change));
                continue;
            }
            self.peers_changed(std::mem::take(&mut events));
            self.own_changed(now, change);
            if matches!(self.phase, Phase::Stopped | Phase::Seek { .. }) {
                return;
            }
        }
        self.peers_changed(events);
    }
}

fn revision(change: &Change) -> Option<Revision> {
    match change {
        Change::Set(entry) => Some(entry.revision),
        Change::Gone { revision, .. } => Some(*revision),
        Change::Skipped(_) => None,
    }
}

/// Brings a list up to a change that is newer.
fn replay(listing: &mut Listing, change: Change) {
    if revision(&change).is_none_or(|revision| revision <= listing.revision) {
        return;
    }
    match change {
        Change::Set(entry) => {
            listing.entries.retain(|known| known.key != entry.key);
            listing.entries.push(entry);
        }
        Change::Gone { key, .. } => listing.entries.retain(|known| known.key != key),
        Change::Skipped(_) => {}
    }
}
