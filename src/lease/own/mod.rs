//! A subnet: renew it, adopt what others did to its key, lose it, regain it.
//!
//! | file | |
//! |---|---|
//! | `mod` | what comes in: answers, changes, lists, the time |
//! | `held` | the key is there and ours: renew, adopt |
//! | `gone` | the key is gone or somebody else's: lose, regain |

mod gone;
mod held;

use super::delays::Delays;
use super::identity::Identity;
use super::{Notice, OnLost, Settings};
use crate::store::{Change, Entry, Listing, Revision};
use crate::subnet::{LeaseAttrs, NodeId, SubnetKey};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The subnet that we hold, or held and want back.
#[derive(Debug)]
pub(super) struct Own {
    /// The key as the store last had it. Once it was deleted or taken, `revision` is that of the loss.
    entry: Entry,
    /// The end of the lease by our own clock. It is never later than the store's if the last write was ours. A
    /// reservation has no end.
    deadline: Option<Duration>,
    /// Whether we hold the subnet at this instant.
    live: bool,
    phase: Phase,
    /// Whether a creation of the key is under way.
    creating: bool,
    /// The newest change of the key that the watch saw while its creation was under way.
    news: Option<Change>,
    /// Whether the key does not say yet what we publish now.
    outdated: bool,
    /// When we last wrote the key because somebody else had, with the value that we would write.
    echoed_at: Option<Duration>,
    /// When, and at which revision, another host last wrote the key under our NodeID.
    namesake: Option<(Duration, Revision)>,
    settings: Settings,
}

/// What we do about the key.
#[derive(Debug)]
enum Phase {
    /// The key is there and ours. A reservation has no `renew_at`.
    Held { renew_at: Option<Duration> },
    /// The key is gone or may be, and we want it back. Without `at` it is taken, and we wait until it is free.
    /// `create` says that nobody has it, so a creation needs no list before it.
    Regain { at: Option<Duration>, create: bool, conflict_said: bool },
}

/// What the manager is to do, in this order.
#[derive(Debug)]
pub(super) enum Step {
    /// Tell the daemon something.
    Say(Notice),
    /// Create this key.
    Create(SubnetKey),
    /// Write this key anew, if it is as we know it.
    Update(Entry),
    /// Another host asks in the value of our key whether we live. The key is written anew soon.
    Asked(NodeId),
    /// Another host has written our key as its own, with this value. The key is written anew soon.
    Overwritten(Box<LeaseAttrs>),
    /// Send a list as soon as no call is under way: the key is not what we thought.
    Look,
    /// Seek another subnet: this one is somebody else's.
    GiveUp,
    /// Do nothing any more: this subnet is somebody else's.
    Stop,
}

impl Own {
    /// A subnet that the store has just given us in answer to a request that was sent at that time.
    pub(super) fn new(entry: Entry, sent: Duration, settings: Settings, delays: &mut Delays) -> Self {
        let deadline = entry.lease.map(|_| sent + settings.ttl());
        let mut own = Self {
            entry,
            deadline,
            live: true,
            phase: Phase::Held { renew_at: None },
            creating: false,
            news: None,
            outdated: false,
            echoed_at: None,
            namesake: None,
            settings,
        };
        own.phase = Phase::Held { renew_at: own.renew_at(delays) };
        own.check();
        own
    }

    /// A subnet that an earlier run held, until `deadline` at least; a reservation has none. The store is to be asked at
    /// the time `at` and not before.
    pub(super) fn resume(
        entry: Entry,
        deadline: Option<Duration>,
        at: Duration,
        settings: Settings,
        delays: &mut Delays,
    ) -> Self {
        let mut own = Self::new(entry, Duration::ZERO, settings, delays);
        own.deadline = deadline;
        own.phase = Phase::Held { renew_at: own.renew_at(delays).map(|due| due.max(at)) };
        own.check();
        own
    }

    /// The subnet that we hold or want back.
    pub(super) fn subnet(&self) -> Ipv4Net {
        self.entry.key.ipv4
    }

    /// The key of that subnet.
    pub(super) fn key(&self) -> SubnetKey {
        self.entry.key
    }

    /// The key as the store last had it.
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The address that peers send to, as the key has it.
    pub(super) fn public_ip(&self) -> Ipv4Addr {
        self.entry.attrs.public_ip
    }

    /// We publish something else from now on: the key is written at once, and again until a write goes through. One that
    /// we do not hold is written when we get it back.
    pub(super) fn republish(&mut self, now: Duration) {
        self.outdated = true;
        if let Phase::Held { renew_at } = &mut self.phase {
            *renew_at = Some(now);
        }
        self.check();
    }

    /// A write went through that says what we publish now.
    pub(super) fn published(&mut self) {
        self.outdated = false;
    }

    /// Whether we hold the subnet at this instant.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether packets of the subnet may flow after a lapse: we hold it, or the operator wants to keep it although it is
    /// somebody else's.
    pub(super) fn may_forward(&self) -> bool {
        let is_kept = matches!(self.phase, Phase::Regain { conflict_said: true, .. });
        self.live || (is_kept && self.settings.on_lost == OnLost::Keep)
    }

    /// The end of the lease by our own clock; a reservation has none.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Whether the lease has reached its end.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// When a subnet that we hold will be lost, unless renewed.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.deadline.filter(|_| self.live)
    }

    /// Whether a creation of the key is under way.
    pub(super) fn is_creating(&self) -> bool {
        self.creating
    }

    /// What holds after every change of the subnet.
    fn check(&self) {
        let is_reserved = self.entry.lease.is_none();
        let has_end = self.deadline.is_some();
        debug_assert!(
            !self.live || has_end != is_reserved,
            "held without an end, or reserved with one: {self:?}"
        );
        debug_assert!(
            self.creating || self.news.is_none(),
            "news for a creation that nobody waits for: {self:?}"
        );
        match self.phase {
            Phase::Held { renew_at } => {
                debug_assert!(renew_at.is_some() || is_reserved, "nobody will renew it: {self:?}");
                debug_assert!(!self.creating, "a key that is there is being created: {self:?}");
            }
            Phase::Regain { at, create, .. } => {
                debug_assert!(!self.live, "held and lost at once: {self:?}");
                debug_assert!(!create || at.is_some(), "nobody will create it: {self:?}");
            }
        }
    }

    /// When the next call for this subnet is due.
    pub(super) fn due(&self) -> Option<Duration> {
        match self.phase {
            Phase::Held { renew_at } => renew_at,
            Phase::Regain { at, .. } => at,
        }
    }

    /// Loses the subnet if its deadline has passed.
    pub(super) fn tick(&mut self, now: Duration) -> Option<Step> {
        let lost = (self.live && self.is_over(now)).then(|| self.lost(now));
        debug_assert!(self.ends_at().is_none_or(|end| end > now), "held beyond its end: {self:?}");
        self.check();
        lost
    }

    /// The write that is due, if one is. Anything else that is due begins with a list.
    pub(super) fn write_due(&mut self, now: Duration) -> Option<Step> {
        if self.due().is_none_or(|at| at > now) {
            return None;
        }
        match self.phase {
            Phase::Regain { create: true, .. } => Some(self.create()),
            Phase::Regain { create: false, .. } => None,
            Phase::Held { .. } => Some(Step::Update(self.entry.clone())),
        }
    }

    /// The store is back: an attempt that waits for later takes place at this time. A renewal that is not due for
    /// long is not hurried.
    pub(super) fn hurry(&mut self, at: Duration) {
        match &mut self.phase {
            Phase::Held { renew_at: Some(due) } if self.outdated => *due = at.min(*due),
            Phase::Held { renew_at: Some(due) } => {
                let margin = self.settings.renew_margin();
                if self.deadline.is_some_and(|deadline| at + margin >= deadline) {
                    *due = at.min(*due);
                }
            }
            Phase::Regain { at: Some(due), .. } => *due = at.min(*due),
            Phase::Held { renew_at: None } | Phase::Regain { at: None, .. } => {}
        }
    }

    /// A key that is there and has a TTL is renewed at this time or before.
    pub(super) fn renew_by(&mut self, at: Duration) {
        if let Phase::Held { renew_at: Some(due) } = &mut self.phase {
            *due = at.min(*due);
        }
    }

    /// A list got no answer.
    pub(super) fn list_failed(&mut self, again_at: Duration) {
        if let Phase::Regain { at, create, .. } = &mut self.phase {
            *create = false;
            if at.is_some() {
                *at = Some(again_at);
            }
        }
    }

    /// A write was `refused`, or got no answer, so that it is open whether it happened. A renewal can simply be repeated,
    /// since it fails if it has happened; `pace` shortens the wait for that, but one that was refused waits until
    /// `again_at`. A creation is followed by a list at that time.
    pub(super) fn write_failed(&mut self, now: Duration, again_at: Duration, pace: f64, refused: bool) {
        self.creating = false;
        // What came during a creation without an answer may be of a store before a restore.
        self.news = None;
        let renew_at = now + self.renew_delay(now, pace);
        let renew_at = if refused { renew_at.max(again_at) } else { renew_at };
        match &mut self.phase {
            Phase::Held { renew_at: None } => {}
            Phase::Held { renew_at: Some(at) } if self.outdated => *at = again_at.min(renew_at),
            Phase::Held { renew_at: Some(at) } => *at = renew_at,
            Phase::Regain { at, create, .. } => {
                *create = false;
                *at = Some(again_at);
            }
        }
        self.check();
    }

    /// The answer to [`Step::Create`]; `None`: the key is there already. `overlapped`: another key holds part of
    /// the subnet.
    pub(super) fn created(
        &mut self,
        now: Duration,
        sent: Duration,
        created: Option<Entry>,
        us: &Identity,
        overlapped: bool,
        delays: &mut Delays,
    ) -> Vec<Step> {
        self.creating = false;
        let news = self.news.take();
        let mut steps = Vec::new();
        match created {
            Some(entry) => steps.extend(self.confirmed(now, sent, entry, delays)),
            // The key is there: it is ours, somebody's, or unreadable. We look, but not in a tight loop.
            None => {
                let at = Some(now + delays.before_look());
                self.phase = Phase::Regain { at, create: false, conflict_said: false };
            }
        }
        if let Some(news) = news {
            steps.extend(self.changed(now, &news, us, overlapped, delays));
        }
        self.check();
        steps
    }

    /// The answer to [`Step::Update`]; `None`: the key is not as we knew it.
    pub(super) fn updated(
        &mut self,
        now: Duration,
        sent: Duration,
        updated: Option<Entry>,
        delays: &mut Delays,
    ) -> Option<Step> {
        if let Some(entry) = updated {
            return self.confirmed(now, sent, entry, delays);
        }
        match &mut self.phase {
            Phase::Held { renew_at } => {
                // We look, and then renew, unless the look shows otherwise.
                *renew_at = Some(now + delays.before_look());
                Some(Step::Look)
            }
            Phase::Regain { at, create, .. } => {
                // A deletion that the watch told meanwhile (`create`) is known already.
                if !*create && at.is_some() {
                    *at = Some(now + delays.after_failure());
                }
                None
            }
        }
    }

    /// Whether this change writes or ends our key. A value that nobody can read is for the watcher to refuse.
    pub(super) fn concerns(&self, change: &Change) -> bool {
        match change {
            Change::Set(entry) => entry.key == self.entry.key,
            Change::Gone { key, .. } => *key == self.entry.key,
            Change::Skipped(_) => false,
        }
    }

    /// The watch saw a change of our key. `overlapped`: another key holds part of the subnet.
    pub(super) fn changed(
        &mut self,
        now: Duration,
        change: &Change,
        us: &Identity,
        overlapped: bool,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let (revision, entry) = match change {
            Change::Set(entry) => (entry.revision, Some(entry)),
            Change::Gone { revision, .. } => (*revision, None),
            Change::Skipped(_) => return Vec::new(),
        };
        if revision <= self.entry.revision {
            return Vec::new();
        }
        if self.creating {
            // Whether this came before or after the creation, the answer to that will tell.
            self.news = Some(change.clone());
            return Vec::new();
        }
        let steps = match entry {
            Some(entry) if self.may_adopt(now, entry, us) => self.adopt(now, entry.clone(), us, delays),
            Some(entry) => self.taken(revision, &entry.attrs, us),
            None => self.revoked(now, revision, overlapped).into_iter().collect(),
        };
        debug_assert!(self.entry.revision >= revision, "the same change would be taken twice: {self:?}");
        self.check();
        steps
    }

    /// A list has come. `overlapped`: another key holds part of the subnet.
    pub(super) fn listed(
        &mut self,
        now: Duration,
        listing: &Listing,
        us: &Identity,
        overlapped: bool,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let found = listing.entries.iter().find(|entry| entry.key == self.entry.key);
        let held = matches!(self.phase, Phase::Held { .. });
        // A reservation has no end, so an older copy of ours is as good as the newest.
        let is_reserved = |entry: &Entry| entry.lease.is_none() && !us.is_foreign(entry);
        let mut steps = Vec::new();
        match found {
            Some(entry) if !self.may_adopt(now, entry, us) => {
                steps = self.taken(entry.revision, &entry.attrs, us);
            }
            Some(entry) if held && *entry == self.entry => {}
            Some(entry) if held && (entry.revision > self.entry.revision || is_reserved(entry)) => {
                steps.extend(self.adopt(now, entry.clone(), us, delays));
                if let (Phase::Held { renew_at }, Some(_)) = (&mut self.phase, entry.lease) {
                    // A call whose answer was lost wrote it, or it is an older copy after all (a store can be
                    // restored twice). Only a write of our own tells how long it lives.
                    *renew_at = Some(now);
                }
            }
            Some(entry) if entry.lease.is_none() && entry.attrs == *us.attrs() => {
                self.entry.revision = entry.revision;
                steps.extend(self.confirmed(now, now, entry.clone(), delays));
            }
            Some(entry) => {
                steps.extend(self.namesake(now, entry, us));
                self.entry = entry.clone();
                if held {
                    // The store was restored: our renewals since this copy are void, and it may end any moment.
                    steps.push(self.lost(now));
                }
                steps.push(Step::Update(entry.clone()));
            }
            None if listing.skipped.iter().any(|skip| skip.key == self.entry.key.to_string()) => {
                // The key is there and nobody can read it. It keeps others away as long as it stands, so
                // there is nothing to do but to look again.
                if let Phase::Regain { at, .. } = &mut self.phase {
                    *at = Some(now + delays.before_look());
                }
            }
            None => {
                if held {
                    steps.extend(self.revoked(now, listing.revision, overlapped));
                }
                steps.extend(self.create_if_free(listing, us));
            }
        }
        self.check();
        steps
    }
}
