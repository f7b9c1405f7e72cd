//! A subnet: renew it, adopt what others did to its key, lose it, regain it.

use super::delays::Delays;
use super::{How, Notice, OnLost, Settings};
use crate::store::{Change, Entry, Listing, Revision};
use crate::subnet::{LeaseAttrs, SubnetKey, overlap};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Two attempts to renew come no nearer together than this.
const RENEW_RETRY_MIN: Duration = Duration::from_millis(100);
/// Two attempts to renew come no farther apart than this, as in flannel.
const RENEW_RETRY_MAX: Duration = Duration::from_secs(60);
// `clamp` panics if the two are not in this order.
const _: () = assert!(RENEW_RETRY_MIN.as_nanos() < RENEW_RETRY_MAX.as_nanos());
/// A key of ours whose value another host wrote with our PublicIP is written anew within this time. It is not
/// done at once, since two hosts with one PublicIP must not outbid each other as fast as they can.
const OUTBID_AFTER: Duration = Duration::from_secs(5);

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
    /// What we publish; its PublicIP is our identity.
    attrs: LeaseAttrs,
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
    /// Send a list as soon as no call is under way: the key is not what we thought.
    Look,
    /// Seek another subnet: this one is somebody else's.
    GiveUp,
    /// Do nothing any more: this subnet is somebody else's.
    Stop,
}

impl Own {
    /// A subnet that the store has just given us in answer to a request that was sent at that time.
    pub(super) fn new(entry: Entry, sent: Duration, attrs: LeaseAttrs, settings: Settings) -> Self {
        let deadline = entry.lease.map(|_| sent + settings.ttl());
        let mut own = Self {
            entry,
            deadline,
            live: true,
            phase: Phase::Held { renew_at: None },
            creating: false,
            news: None,
            attrs,
            settings,
        };
        own.phase = Phase::Held { renew_at: own.renew_at() };
        own.check();
        own
    }

    /// The subnet that we hold or want back.
    pub(super) fn subnet(&self) -> Ipv4Net {
        self.entry.key.ipv4
    }

    /// The key as the store last had it.
    #[cfg(test)]
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether we hold the subnet at this instant.
    pub(super) fn is_live(&self) -> bool {
        self.live
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

    /// A list got no answer.
    pub(super) fn list_failed(&mut self, again_at: Duration) {
        if let Phase::Regain { at, create, .. } = &mut self.phase {
            *create = false;
            if at.is_some() {
                *at = Some(again_at);
            }
        }
    }

    /// A write got no answer, so whether it happened is open. A renewal can simply be repeated, since it fails if
    /// it has happened; `pace` shortens the wait for that. A creation is followed by a list at `again_at`.
    pub(super) fn write_failed(&mut self, now: Duration, again_at: Duration, pace: f64) {
        self.creating = false;
        // What came during a creation without an answer may be of a store before a restore.
        self.news = None;
        let renew_at = now + self.renew_delay(now, pace);
        match &mut self.phase {
            Phase::Held { renew_at: None } => {}
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
            steps.extend(self.changed(now, &news, overlapped, delays));
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

    /// The store took our write: the key is ours.
    fn confirmed(
        &mut self,
        now: Duration,
        sent: Duration,
        entry: Entry,
        delays: &mut Delays,
    ) -> Option<Step> {
        if entry.revision < self.entry.revision {
            // The key was deleted or taken since; the watch was faster than the answer.
            return None;
        }
        self.deadline = entry.lease.map(|_| sent + self.settings.ttl());
        self.entry = entry;
        if self.is_over(now) {
            // The answer took longer than the lease lives. If we held the subnet before, `tick` will lose it.
            let delay = self.renew_delay(now, delays.pace());
            self.phase = Phase::Held { renew_at: Some(now + delay) };
            return None;
        }
        let was_live = std::mem::replace(&mut self.live, true);
        self.phase = Phase::Held { renew_at: self.renew_at() };
        delays.settled();
        self.check();
        let (subnet, deadline) = (self.subnet(), self.deadline);
        Some(Step::Say(if was_live {
            Notice::Renewed { subnet, deadline }
        } else {
            Notice::Acquired { subnet, how: How::Regained, deadline }
        }))
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
            Some(entry) if entry.attrs.public_ip == self.attrs.public_ip => {
                self.adopt(now, entry.clone(), delays).into_iter().collect()
            }
            Some(entry) => self.taken(revision, entry.attrs.public_ip),
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
        overlapped: bool,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let found = listing.entries.iter().find(|entry| entry.key == self.entry.key);
        let held = matches!(self.phase, Phase::Held { .. });
        let mut steps = Vec::new();
        match found {
            Some(entry) if entry.attrs.public_ip != self.attrs.public_ip => {
                steps = self.taken(entry.revision, entry.attrs.public_ip);
            }
            Some(entry) if held && *entry == self.entry => {}
            Some(entry) if held && (entry.revision > self.entry.revision || entry.lease.is_none()) => {
                steps.extend(self.adopt(now, entry.clone(), delays));
                if let (Phase::Held { renew_at }, Some(_)) = (&mut self.phase, entry.lease) {
                    // A call whose answer was lost wrote it, or it is an older copy after all (a store can be
                    // restored twice). Only a write of our own tells how long it lives.
                    *renew_at = Some(now);
                }
            }
            Some(entry) if entry.lease.is_none() && entry.attrs == self.attrs => {
                self.entry.revision = entry.revision;
                steps.extend(self.confirmed(now, now, entry.clone(), delays));
            }
            Some(entry) => {
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
                steps.extend(self.create_if_free(listing));
            }
        }
        self.check();
        steps
    }

    /// Our key is absent: creates it if no other key holds part of its subnet.
    fn create_if_free(&mut self, listing: &Listing) -> Vec<Step> {
        self.entry.revision = listing.revision;
        let subnet = self.subnet();
        match listing.entries.iter().find(|entry| overlap(entry.key.ipv4, subnet)) {
            Some(entry) => self.taken(listing.revision, entry.attrs.public_ip),
            None => vec![self.create()],
        }
    }

    fn create(&mut self) -> Step {
        self.creating = true;
        Step::Create(self.entry.key)
    }

    /// Our key was written with our PublicIP, but not in answer to a call: by an operator, or by a call whose
    /// answer was lost. Its revision counts from now on. Our deadline does not move, since we cannot know when it
    /// was written.
    fn adopt(&mut self, now: Duration, entry: Entry, delays: &mut Delays) -> Option<Step> {
        let subnet = entry.key.ipv4;
        let was_reserved = self.entry.lease.is_none();
        let is_reserved = entry.lease.is_none();
        let same = entry.attrs == self.attrs;
        self.entry = entry;
        let Phase::Held { renew_at } = &mut self.phase else {
            // It is not ours until a write of ours has gone through.
            self.regain(now, false);
            return None;
        };
        if is_reserved {
            self.deadline = None;
            *renew_at = None;
        } else if was_reserved {
            // The key has a TTL now, and we do not know how much of it is left.
            self.deadline = Some(now + self.settings.renew_margin());
            *renew_at = Some(now);
        }
        if !same {
            let soon = now + delays.upper_half(OUTBID_AFTER);
            *renew_at = Some(renew_at.map_or(soon, |at| at.min(soon)));
        }
        (is_reserved && !was_reserved).then_some(Step::Say(Notice::Reserved { subnet }))
    }

    /// Our lease may have ended, so the subnet may be somebody else's by now.
    fn lost(&mut self, now: Duration) -> Step {
        self.live = false;
        self.regain(now, false);
        Step::Say(Notice::Lost { subnet: self.subnet() })
    }

    /// Our key was deleted, or has expired.
    fn revoked(&mut self, now: Duration, revision: Revision, overlapped: bool) -> Option<Step> {
        self.entry.revision = revision;
        self.deadline = None;
        let was_live = std::mem::take(&mut self.live);
        // A key of another prefix length may hold part of the subnet; then a list has to tell whose it is.
        self.regain(now, !overlapped);
        was_live.then(|| Step::Say(Notice::Revoked { subnet: self.subnet() }))
    }

    /// Somebody else has our subnet. The operator has decided what follows.
    fn taken(&mut self, revision: Revision, owner: Ipv4Addr) -> Vec<Step> {
        self.entry.revision = revision;
        self.live = false;
        let then = self.settings.on_lost;
        let said = matches!(self.phase, Phase::Regain { conflict_said: true, .. });
        self.phase = Phase::Regain { at: None, create: false, conflict_said: true };
        let mut steps = Vec::new();
        if !said {
            steps.push(Step::Say(Notice::Conflict { subnet: self.subnet(), owner, then }));
        }
        match then {
            OnLost::Exit => steps.push(Step::Stop),
            OnLost::Keep => {}
            OnLost::Reacquire => steps.push(Step::GiveUp),
        }
        steps
    }

    fn regain(&mut self, now: Duration, create: bool) {
        self.phase = Phase::Regain { at: Some(now), create, conflict_said: false };
    }

    /// When a lease that was just written is to be renewed.
    fn renew_at(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(self.settings.renew_margin()))
    }

    /// The wait before the next attempt to renew: the nearer the end, the shorter.
    fn renew_delay(&self, now: Duration, pace: f64) -> Duration {
        let left = self.deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_sub(now));
        (left / 8).clamp(RENEW_RETRY_MIN, RENEW_RETRY_MAX).mul_f64(pace)
    }
}
