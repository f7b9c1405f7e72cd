//! The watch, and the lists beside it: how the two become one view without gap or step back.
//!
//! A failure puts the store in doubt: it may have been restored meanwhile. Either a list ends the doubt, or, which is
//! far cheaper, a watch for which the store tells again what the last watch has brought: see [`Seen`].

mod resync;

use super::Notice;
use super::delays::{Delays, RETRY_LIMIT};
use crate::store::{Backoff, Change, Error, Listing, Revision, Seen};
use resync::Resync;
use std::time::Duration;

/// A watch that has run this long did work: its next failure counts as a first one.
const WATCH_PROVEN: Duration = Duration::from_secs(10);
/// A watch that starts longer than this after its list was sent may be one of another store: the store may have
/// been restored meanwhile and have come past the list's revision already, which nothing would show. No restore
/// is faster than this.
const LIST_FRESH: Duration = Duration::from_secs(5);
/// A store that answers calls has this long to bring a watch back that proves it the same. Then it is listed.
const PROVE_WITHIN: Duration = Duration::from_secs(5);

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
    /// When a list is due for a reason of its own.
    list_at: Duration,
    /// When a list is due, unless the watch has ended the doubt by then.
    look_at: Duration,
    /// When a list is due without any reason.
    resync: Resync,
    /// What the watch has brought last. `None`: our view does not stand on what it has brought.
    seen: Option<Seen>,
    /// Something failed since the last list was sent: the store that answers now may not hold what it held.
    in_doubt: bool,
    /// How many lists were sent since the start.
    lists: u64,
    /// How many watches have ended a doubt since the start.
    proofs: u64,
}

#[derive(Debug, PartialEq)]
enum Watch {
    Off,
    Starting {
        /// The store has to tell first what we have seen.
        proves: bool,
    },
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
    /// Start a watch in place of any that runs; it follows all changes after `from`, and those that were seen.
    Watch { from: Revision, seen: Option<Seen> },
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
            look_at: Duration::MAX,
            resync: Resync::default(),
            seen: None,
            in_doubt: false,
            lists: 0,
            proofs: 0,
        }
    }

    /// How many lists were sent since the start.
    pub(super) fn lists(&self) -> u64 {
        self.lists
    }

    /// How many watches have ended a doubt since the start.
    pub(super) fn proofs(&self) -> u64 {
        self.proofs
    }

    /// When to start the watch again, if it is over.
    pub(super) fn retry_at(&self) -> Option<Duration> {
        match self.watch {
            Watch::Retry { at } => Some(at),
            Watch::Off | Watch::Starting { .. } | Watch::Running { .. } | Watch::Compacted => None,
        }
    }

    /// When the next list is due, if there are so many peers.
    pub(super) fn list_due(&self, peers: usize) -> Duration {
        self.list_at.min(self.look_at).min(self.resync.due(peers))
    }

    /// The watch that is due again, if one is. It starts where the last one ended. `own`: the revision of the key that
    /// we hold.
    pub(super) fn watch_due(&mut self, now: Duration, own: Option<Revision>) -> Option<Step> {
        if self.retry_at().is_none_or(|at| at > now) {
            return None;
        }
        if !self.in_doubt || !self.can_prove(own) {
            return Some(self.start_watch(self.cursor));
        }
        let seen = self.seen.clone()?;
        // Whatever fails from now on is a new doubt.
        self.in_doubt = false;
        self.floor = seen.to();
        self.watch = Watch::Starting { proves: true };
        self.check();
        Some(Step::Watch { from: self.floor, seen: Some(seen) })
    }

    /// Whether the store can show by a watch that nothing of what we know is void: neither our own key nor a peer. A list
    /// that is under way may be of the time before the doubt.
    fn can_prove(&self, own: Option<Revision>) -> bool {
        let newest = self.seen.as_ref().map(Seen::to);
        !self.is_listing() && own.is_some() && own <= newest
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

    /// The store answers. It may have come back without what it knew (restored, wiped): it has to prove that it has not,
    /// or we look at everything. `own`: the revision of the key that we hold.
    pub(super) fn look_if_in_doubt(&mut self, now: Duration, own: Option<Revision>, delays: &mut Delays) {
        if !self.in_doubt {
            return;
        }
        let soon = now + delays.soon();
        if !self.can_prove(own) {
            return self.list_by(soon);
        }
        self.look_at = self.look_at.min(now + PROVE_WITHIN);
        match &mut self.watch {
            Watch::Retry { at } => *at = soon.min(*at),
            Watch::Running { .. } => self.watch = Watch::Retry { at: soon },
            Watch::Off | Watch::Starting { .. } | Watch::Compacted => {}
        }
    }

    /// The next list is sent at this time or before.
    pub(super) fn list_by(&mut self, at: Duration) {
        self.list_at = self.list_at.min(at);
    }

    /// A list is on its way. There are so many peers.
    pub(super) fn list_sent(&mut self, now: Duration, peers: usize) {
        self.in_doubt = false;
        self.lists += 1;
        if self.list_due(peers) <= now {
            self.list_at = now;
        }
        self.look_at = Duration::MAX;
        self.list_sent = now;
        self.since_list = Some(Vec::new());
        self.cursor_at_list = self.cursor;
    }

    /// The list that was under way got no answer; the next is not sent before `at`.
    pub(super) fn list_failed(&mut self, at: Duration) {
        self.since_list = None;
        self.list_at = self.list_at.max(at);
        self.resync.postpone();
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
        let needs_watch = matches!(self.watch, Watch::Compacted | Watch::Starting { proves: true });
        if reset || needs_watch {
            steps.push(self.start_watch(revision));
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
        [Step::Compare { repair: false }, self.start_watch(revision)]
    }

    fn schedule_list(&mut self, now: Duration, delays: &mut Delays) {
        self.resync = Resync::after(now, delays.rng());
        self.look_at = Duration::MAX;
        // In doubt, the list that has just come was sent before something failed.
        self.list_at = if self.in_doubt { now + delays.soon() } else { Duration::MAX };
        debug_assert!(self.list_at > now, "a list would follow on this one without a pause");
    }

    fn start_watch(&mut self, from: Revision) -> Step {
        debug_assert!(from >= self.floor, "a watch from {from} repeats what the list of {} has", self.floor);
        self.watch = Watch::Starting { proves: false };
        self.seen = None;
        Step::Watch { from, seen: None }
    }

    /// A list made a difference, or was not believed: our view is not what the watch has brought.
    pub(super) fn forget_seen(&mut self) {
        self.seen = None;
    }

    /// A watch runs. Returns whether it is one that we asked for.
    pub(super) fn watch_started(&mut self, now: Duration) -> bool {
        let Watch::Starting { proves } = self.watch else { return false };
        self.watch = Watch::Running { since: now };
        self.proofs += u64::from(proves);
        self.in_doubt |= !proves && now > self.list_sent + LIST_FRESH;
        if !self.in_doubt {
            self.look_at = Duration::MAX;
        }
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
        let is_other = self.watch == Watch::Starting { proves: true } && *error == Error::Compacted;
        let at = now + self.backoff.next(delays.rng());
        if *error == Error::Compacted {
            self.watch = Watch::Compacted;
            self.seen = None;
            // A store that is another one is looked at soon, however long it was away.
            self.list_by(if is_other { at.min(now + delays.soon()) } else { at });
        } else {
            self.watch = Watch::Retry { at };
        }
        self.check();
    }

    /// The connections were given up: a watch that runs or starts is over, and begins anew at once.
    pub(super) fn reconnect(&mut self, now: Duration) {
        self.in_doubt = true;
        if matches!(self.watch, Watch::Starting { .. } | Watch::Running { .. } | Watch::Retry { .. }) {
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
        if let Some(since) = &mut self.since_list {
            since.push(change.clone());
        }
        self.seen = match (self.seen.take(), change) {
            (Some(seen), _) => seen.with(change),
            // In doubt, this may be of another history than the view that it is added to.
            (None, Change::Set(entry)) if !self.in_doubt => Seen::new(entry),
            (None, _) => None,
        };
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
