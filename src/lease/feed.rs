//! The watch, and the lists beside it: how the two become one view without gap or step back.

use super::Notice;
use super::delays::{Delays, RETRY_LIMIT};
use crate::store::{Backoff, Change, Error, Listing, Revision};
use rand::RngExt;
use std::time::Duration;

/// A list finds the events that the watch has lost. One is sent every so often, give or take a fifth.
const RESYNC_EVERY: Duration = Duration::from_secs(5 * 60);
/// A watch that has run this long did work: its next failure counts as a first one.
const WATCH_PROVEN: Duration = Duration::from_secs(10);
/// A watch that starts longer than this after its list was sent may be one of another store: the store may have
/// been restored meanwhile and have come past the list's revision already, which nothing would show. No restore
/// is faster than this.
const LIST_FRESH: Duration = Duration::from_secs(5);

/// The watch, the lists, and the revisions that join them.
#[derive(Debug)]
pub(super) struct Feed {
    watch: Watch,
    /// The revision of the list that we stand on. Changes up to it are in that list.
    floor: Revision,
    /// The newest revision that a list or the watch has shown.
    cursor: Revision,
    /// The back-off of the watch alone; calls have another.
    backoff: Backoff,
    /// While a list is under way: what the watch has seen since it was sent.
    since_list: Option<Vec<Change>>,
    /// The cursor when the last list was sent. An answer below it comes from another store.
    cursor_at_list: Revision,
    /// When the last list was sent.
    list_sent: Duration,
    /// When the next list is due.
    list_at: Duration,
    /// Something failed since the last list was sent: the store that answers now may not hold what it held.
    in_doubt: bool,
}

#[derive(Debug, PartialEq)]
enum Watch {
    Off,
    Starting,
    Running {
        since: Duration,
    },
    Retry {
        at: Duration,
    },
    /// The store has forgotten the changes since our cursor, or we have never seen it: a list has to come first.
    Compacted,
}

/// What the manager is to do, in this order.
#[derive(Debug)]
pub(super) enum Step {
    /// Tell the daemon something.
    Say(Notice),
    /// Start a watch in place of any that runs; it follows all changes after `from`.
    Watch { from: Revision },
    /// Make the peers what the list says. `repair`: only events that the watch has lost can make a difference.
    Compare { repair: bool },
}

/// A list that was brought up to what the watch saw while it was on its way.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) listing: Listing,
    /// The list is older than what we knew when we asked for it: it comes from a restored store.
    pub(super) reset: bool,
}

impl Feed {
    /// No watch, and no list sent yet.
    pub(super) fn new() -> Self {
        Self {
            watch: Watch::Off,
            floor: 0,
            cursor: 0,
            backoff: Backoff::new(RETRY_LIMIT),
            since_list: None,
            cursor_at_list: 0,
            list_sent: Duration::ZERO,
            list_at: Duration::MAX,
            in_doubt: false,
        }
    }

    /// When to start the watch again, if it is over.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        match self.watch {
            Watch::Retry { at } => Some(at),
            Watch::Off | Watch::Starting | Watch::Running { .. } | Watch::Compacted => None,
        }
    }

    /// When the next list is due.
    pub(super) fn list_due(&self) -> Duration {
        self.list_at
    }

    /// Where a watch that is due again starts: the last one ended there.
    pub(super) fn watch_due(&mut self, now: Duration) -> Option<Revision> {
        let due = self.retry_at().is_some_and(|at| at <= now);
        due.then(|| self.start_watch(self.cursor))
    }

    /// The store is back: a watch that waits for its next attempt need not wait longer.
    pub(super) fn hurry(&mut self, now: Duration) {
        if let Watch::Retry { at } = &mut self.watch {
            *at = now;
        }
    }

    /// Something failed: what the store held before may be gone.
    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// The store answers. It may have come back without what it knew (restored, wiped), so look at everything.
    pub(super) fn look_if_in_doubt(&mut self, now: Duration, delays: &mut Delays) {
        if self.in_doubt {
            self.list_by(now + delays.soon());
        }
    }

    /// The next list is sent at this time or before.
    pub(super) fn list_by(&mut self, at: Duration) {
        self.list_at = self.list_at.min(at);
    }

    /// A list is on its way.
    pub(super) fn list_sent(&mut self, now: Duration) {
        self.in_doubt = false;
        self.list_sent = now;
        self.since_list = Some(Vec::new());
        self.cursor_at_list = self.cursor;
    }

    /// The list that was under way got no answer; the next is not sent before `at`.
    pub(super) fn list_failed(&mut self, at: Duration) {
        self.since_list = None;
        self.list_at = self.list_at.max(at);
    }

    /// Takes the answer to the list that was under way.
    pub(super) fn merge(&mut self, mut listing: Listing) -> Merged {
        let reset = listing.revision < self.cursor_at_list;
        let seen = self.since_list.take().unwrap_or_default();
        // What the watch saw of another store's history says nothing about this one.
        if !reset {
            for change in seen {
                replay(&mut listing, change);
            }
        }
        debug_assert!(!self.is_listing(), "what the watch sees from now on is newer than this list");
        Merged { listing, reset }
    }

    /// Stands on a list that came beside the watch of the subnet that we have.
    pub(super) fn listed(
        &mut self,
        now: Duration,
        revision: Revision,
        reset: bool,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        if reset {
            steps.push(Step::Say(Notice::StoreReset));
        }
        let repair = !reset && matches!(self.watch, Watch::Running { .. });
        self.floor = revision;
        self.cursor = if reset { revision } else { self.cursor.max(revision) };
        if reset || self.watch == Watch::Compacted {
            steps.push(Step::Watch { from: self.start_watch(revision) });
        }
        self.schedule_list(now, delays);
        steps.push(Step::Compare { repair });
        debug_assert!(self.watch != Watch::Compacted, "this list is what the watch has waited for");
        self.check();
        steps
    }

    /// With the subnet and the peers of an earlier run, which knew the store at `revision`: a list is due at the time
    /// `at`, and a watch after it. A list that is older than that comes from a restored store.
    pub(super) fn resume(&mut self, at: Duration, revision: Revision) {
        self.watch = Watch::Compacted;
        self.cursor = self.cursor.max(revision);
        self.list_by(at);
        self.check();
    }

    /// With a new subnet: forgets what was seen for the last one, and follows everything from a list on.
    pub(super) fn follow(&mut self, now: Duration, revision: Revision, delays: &mut Delays) -> [Step; 2] {
        self.floor = revision;
        self.cursor = revision;
        self.schedule_list(now, delays);
        [Step::Compare { repair: false }, Step::Watch { from: self.start_watch(revision) }]
    }

    fn schedule_list(&mut self, now: Duration, delays: &mut Delays) {
        self.list_at = if self.in_doubt {
            // The list that has just come was sent before something failed.
            now + delays.soon()
        } else {
            now + RESYNC_EVERY.mul_f64(delays.rng().random_range(0.8..=1.2))
        };
        debug_assert!(self.list_at > now, "a list would follow on this one without a pause");
    }

    fn start_watch(&mut self, from: Revision) -> Revision {
        debug_assert!(from >= self.floor, "a watch from {from} repeats what the list of {} has", self.floor);
        self.watch = Watch::Starting;
        from
    }

    /// A watch runs. Returns whether it is one that we asked for.
    pub(super) fn watch_started(&mut self, now: Duration) -> bool {
        if self.watch != Watch::Starting {
            return false;
        }
        self.watch = Watch::Running { since: now };
        self.in_doubt |= now > self.list_sent + LIST_FRESH;
        true
    }

    /// The watch could not be started, or is over.
    pub(super) fn watch_failed(&mut self, now: Duration, error: &Error, delays: &mut Delays) {
        if let Watch::Running { since } = self.watch
            && now >= since + WATCH_PROVEN
        {
            self.backoff.reset();
        }
        self.in_doubt = true;
        let at = now + self.backoff.next(delays.rng());
        if *error == Error::Compacted {
            self.watch = Watch::Compacted;
            self.list_by(at);
        } else {
            self.watch = Watch::Retry { at };
        }
        self.check();
    }

    /// The connections were given up: a watch that runs or starts is over, and begins anew at once.
    pub(super) fn reconnect(&mut self, now: Duration) {
        self.in_doubt = true;
        if matches!(self.watch, Watch::Starting | Watch::Running { .. } | Watch::Retry { .. }) {
            self.watch = Watch::Retry { at: now };
        }
    }

    /// The watch has brought changes, so it works.
    pub(super) fn watch_works(&mut self) {
        self.backoff.reset();
    }

    /// Whether a list is under way.
    pub(super) fn is_listing(&self) -> bool {
        self.since_list.is_some()
    }

    /// What holds after every change of the feed.
    fn check(&self) {
        debug_assert!(
            self.cursor >= self.floor,
            "the view is older than the list that it stands on: {self:?}"
        );
        let needs_list = self.watch == Watch::Compacted;
        debug_assert!(!needs_list || self.list_at < Duration::MAX, "no list will come: {self:?}");
    }

    /// Takes note of a change that the watch saw. Returns whether it is one that our list does not have.
    pub(super) fn is_news(&mut self, change: &Change) -> bool {
        if let Some(revision) = revision(change) {
            if revision <= self.floor {
                return false;
            }
            self.cursor = self.cursor.max(revision);
        }
        if let Some(seen) = &mut self.since_list {
            seen.push(change.clone());
        }
        self.check();
        true
    }
}

fn revision(change: &Change) -> Option<Revision> {
    match change {
        Change::Set(entry) => Some(entry.revision),
        Change::Gone { revision, .. } => Some(*revision),
        Change::Skipped(_) => None,
    }
}

/// Brings a list up to a change, if the change is newer.
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
