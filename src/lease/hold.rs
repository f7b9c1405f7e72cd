//! A subnet: renew it, adopt what others did to its key, lose it, regain it.

use super::manager::{Kind, Manager, Phase};
use super::{How, Notice, OnLost, Settings};
use crate::store::jitter;
use crate::store::{Change, Entry, Listing, Revision};
use crate::subnet::overlap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The nearest that two attempts to renew come together.
const RENEW_RETRY_MIN: Duration = Duration::from_millis(100);
/// The farthest, as in flannel.
const RENEW_RETRY_MAX: Duration = Duration::from_secs(60);

/// The subnet that we hold, or held and want back.
#[derive(Debug)]
pub(super) struct Own {
    /// As the store last had it. After the key was deleted or taken, `revision` is when.
    pub(super) entry: Entry,
    /// The end of the lease by our own clock, never later than the store's; a reservation has none.
    pub(super) deadline: Option<Duration>,
    /// Whether we hold it at this instant.
    pub(super) live: bool,
    /// The newest change of the key that came while its creation was under way.
    news: Option<Change>,
}

impl Own {
    pub(super) fn new(entry: Entry, sent: Duration, settings: &Settings) -> Self {
        let deadline = entry.lease.map(|_| sent + settings.ttl());
        Self { entry, deadline, live: true, news: None }
    }

    /// A creation begins: what came before it counts no more.
    pub(super) fn forget_news(&mut self) {
        self.news = None;
    }

    pub(super) fn renew_at(&self, settings: &Settings) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(settings.renew_margin()))
    }
}

impl Manager {
    pub(super) fn check_deadline(&mut self, now: Duration) {
        let Some(own) = &self.own else { return };
        if own.live && own.deadline.is_some_and(|deadline| deadline <= now) {
            self.lost(now);
        }
    }

    /// It may be somebody else's by now.
    fn lost(&mut self, now: Duration) {
        let Some(own) = self.own.as_mut() else { return };
        own.live = false;
        let subnet = own.entry.key.ipv4;
        self.regain(now, false);
        self.notice(Notice::Lost { subnet });
    }

    fn regain(&mut self, now: Duration, create: bool) {
        self.phase = Phase::Regain { at: Some(now), create, conflict_said: false };
    }

    /// The wait before the next attempt to renew: the nearer the end, the shorter.
    pub(super) fn renew_delay(&mut self, now: Duration) -> Duration {
        let deadline = self.own.as_ref().and_then(|own| own.deadline).unwrap_or(now);
        let full = (deadline.saturating_sub(now) / 8).clamp(RENEW_RETRY_MIN, RENEW_RETRY_MAX);
        jitter(full, &mut self.rng)
    }

    /// The store is back: an attempt that waits for later takes place `at`.
    pub(super) fn hurry(&mut self, at: Duration) {
        match &mut self.phase {
            Phase::Held { renew_at: Some(due) } => {
                let margin = self.settings.renew_margin();
                let deadline = self.own.as_ref().and_then(|own| own.deadline);
                if deadline.is_some_and(|deadline| at + margin >= deadline) {
                    *due = at.min(*due);
                }
            }
            Phase::Regain { at: Some(due), .. } | Phase::Seek { at: due, cache: None } => *due = at.min(*due),
            _ => {}
        }
    }

    pub(super) fn on_created(&mut self, now: Duration, sent: Duration, created: Option<Entry>) {
        if let Phase::Seek { cache, .. } = &mut self.phase {
            match (cache.take(), created) {
                (Some(cache), Some(entry)) => {
                    let previous = Some(entry.key.ipv4) == self.previous;
                    let how = if previous { How::Previous } else { How::Fresh };
                    self.acquired(now, sent, entry, how, cache);
                }
                _ => self.lost_race(now),
            }
            return;
        }
        match created {
            Some(entry) => self.confirmed(now, sent, entry),
            // It is there: ours, somebody's, or unreadable. Look, but not in a tight loop.
            None => {
                let at = Some(now + self.seek_backoff.next(&mut self.rng));
                self.phase = Phase::Regain { at, create: false, conflict_said: false };
            }
        }
        if let Some(news) = self.own.as_mut().and_then(|own| own.news.take()) {
            self.own_changed(now, &news);
        }
    }

    pub(super) fn on_updated(&mut self, now: Duration, sent: Duration, updated: Option<Entry>) {
        match (&mut self.phase, updated) {
            (Phase::Seek { cache, .. }, updated) => match (cache.take(), updated) {
                (Some(cache), Some(entry)) => self.acquired(now, sent, entry, How::Reused, cache),
                _ => self.lost_race(now),
            },
            (_, Some(entry)) => self.confirmed(now, sent, entry),
            (Phase::Held { renew_at }, None) => {
                // The key is not what we thought. Look; then renew, unless the look shows otherwise.
                *renew_at = Some(now + self.seek_backoff.next(&mut self.rng));
                self.resync_at = now;
            }
            (Phase::Regain { at, create, .. }, None) => {
                // A deletion that the watch told meanwhile (`create`) is known already.
                if !*create && at.is_some() {
                    *at = Some(now + self.backoff.next(&mut self.rng));
                }
            }
            (Phase::Stopped, None) => {}
        }
    }

    /// The store took our write: the key is ours.
    fn confirmed(&mut self, now: Duration, sent: Duration, entry: Entry) {
        let Some(own) = self.own.as_mut() else { return };
        if entry.revision < own.entry.revision {
            // Deleted or taken since; the watch was faster than the answer.
            return;
        }
        let was_live = own.live;
        let news = own.news.take();
        *own = Own { news, ..Own::new(entry, sent, &self.settings) };
        let subnet = own.entry.key.ipv4;
        let (deadline, renew_at) = (own.deadline, own.renew_at(&self.settings));
        if deadline.is_some_and(|deadline| deadline <= now) {
            own.live = was_live;
            self.phase = Phase::Held { renew_at: Some(now + self.renew_delay(now)) };
            return;
        }
        self.phase = Phase::Held { renew_at };
        self.seek_backoff.reset();
        self.notice(if was_live {
            Notice::Renewed { subnet, deadline }
        } else {
            Notice::Acquired { subnet, how: How::Regained, deadline }
        });
    }

    pub(super) fn is_own(&self, change: &Change) -> bool {
        let Some(own) = &self.own else { return false };
        match change {
            Change::Set(entry) => entry.key == own.entry.key,
            Change::Gone { key, .. } => *key == own.entry.key,
            Change::Skipped(_) => false,
        }
    }

    /// The watch saw a change of our key.
    pub(super) fn own_changed(&mut self, now: Duration, change: &Change) {
        let creating = self.kind_in_flight() == Some(Kind::Create);
        let Some(own) = self.own.as_mut() else { return };
        let (revision, entry) = match change {
            Change::Set(entry) => (entry.revision, Some(entry)),
            Change::Gone { revision, .. } => (*revision, None),
            Change::Skipped(_) => return,
        };
        if revision <= own.entry.revision {
            return;
        }
        if creating {
            // Before or after the creation? Its answer will tell.
            own.news = Some(change.clone());
            return;
        }
        match entry {
            Some(entry) if entry.attrs.public_ip == self.attrs.public_ip => self.adopt(now, entry.clone()),
            Some(entry) => self.taken(now, revision, entry.attrs.public_ip),
            None => self.revoked(now, revision),
        }
    }

    /// A list has come while we hold a subnet or want one back.
    pub(super) fn check_own(&mut self, now: Duration, listing: &Listing) {
        let Some(own) = self.own.as_mut() else { return };
        let found = listing.entries.iter().find(|entry| entry.key == own.entry.key);
        let held = matches!(self.phase, Phase::Held { .. });
        match found {
            Some(entry) if entry.attrs.public_ip != self.attrs.public_ip => {
                self.taken(now, entry.revision, entry.attrs.public_ip);
            }
            Some(entry) if held && *entry == own.entry => {}
            Some(entry) if held && (entry.revision > own.entry.revision || entry.lease.is_none()) => {
                self.adopt(now, entry.clone());
                if let (Phase::Held { renew_at }, Some(_)) = (&mut self.phase, entry.lease) {
                    // Written by a call whose answer was lost, or an older copy after all (a store can be
                    // restored twice): only a write of our own tells until when it lives.
                    *renew_at = Some(now);
                }
            }
            Some(entry) if entry.lease.is_none() && entry.attrs == self.attrs => {
                own.entry.revision = entry.revision;
                self.confirmed(now, now, entry.clone());
            }
            Some(entry) => {
                own.entry = entry.clone();
                if held {
                    // A restored store: the renewals since this one are void, and it may end any moment.
                    self.lost(now);
                }
                self.update(now, entry.clone());
            }
            None if listing.skipped.iter().any(|skip| skip.key == own.entry.key.to_string()) => {
                // The key is there and nobody can read it. It keeps others away as long as it stands, so
                // there is nothing to do but to look again.
                if let Phase::Regain { at, .. } = &mut self.phase {
                    *at = Some(now + self.seek_backoff.next(&mut self.rng));
                }
            }
            None => {
                if held {
                    self.revoked(now, listing.revision);
                }
                self.create_if_free(now, listing);
            }
        }
    }

    /// Our key is absent; is its subnet free?
    fn create_if_free(&mut self, now: Duration, listing: &Listing) {
        let Some(own) = self.own.as_mut() else { return };
        own.entry.revision = listing.revision;
        let key = own.entry.key;
        match listing.entries.iter().find(|entry| overlap(entry.key.ipv4, key.ipv4)) {
            Some(entry) => self.taken(now, listing.revision, entry.attrs.public_ip),
            None => self.create(now, key),
        }
    }

    /// Our key was written with our PublicIP, but not in answer to a call: an operator, or a call whose
    /// answer was lost. Its revision counts from now on. Our deadline does not move: whoever wrote it,
    /// we cannot know when.
    fn adopt(&mut self, now: Duration, entry: Entry) {
        let Some(own) = self.own.as_mut() else { return };
        let subnet = entry.key.ipv4;
        let was_reserved = own.entry.lease.is_none();
        let is_reserved = entry.lease.is_none();
        let same = entry.attrs == self.attrs;
        own.entry = entry;
        let Phase::Held { renew_at } = &mut self.phase else {
            // Not ours until a write of ours has gone through.
            self.regain(now, false);
            return;
        };
        if is_reserved {
            own.deadline = None;
            *renew_at = None;
        } else if was_reserved {
            // It has a TTL now, and we don't know how much is left.
            own.deadline = Some(now + self.settings.renew_margin());
            *renew_at = Some(now);
        }
        if !same {
            // Not at once: two hosts with one PublicIP must not outbid each other as fast as they can.
            let soon = now + jitter(Duration::from_secs(5), &mut self.rng);
            *renew_at = Some(renew_at.map_or(soon, |at| at.min(soon)));
        }
        if is_reserved && !was_reserved {
            self.notice(Notice::Reserved { subnet });
        }
    }

    /// Our key was deleted.
    fn revoked(&mut self, now: Duration, revision: Revision) {
        let Some(own) = self.own.as_mut() else { return };
        own.entry.revision = revision;
        own.deadline = None;
        let was_live = std::mem::take(&mut own.live);
        let subnet = own.entry.key.ipv4;
        // A key of another prefix length may hold part of it; then a list has to tell whose it is.
        self.regain(now, !self.watcher.is_overlapped());
        if was_live {
            self.notice(Notice::Revoked { subnet });
        }
    }

    /// Somebody else has our subnet.
    fn taken(&mut self, now: Duration, revision: Revision, owner: Ipv4Addr) {
        let Some(own) = self.own.as_mut() else { return };
        own.entry.revision = revision;
        own.live = false;
        let subnet = own.entry.key.ipv4;
        let then = self.settings.on_lost;
        let said = matches!(self.phase, Phase::Regain { conflict_said: true, .. });
        if !said {
            self.notice(Notice::Conflict { subnet, owner, then });
        }
        match then {
            OnLost::Exit => self.phase = Phase::Stopped,
            OnLost::Keep => self.phase = Phase::Regain { at: None, create: false, conflict_said: true },
            OnLost::Reacquire => {
                self.own = None;
                self.previous = None;
                let removed = self.watcher.restart(None);
                self.peers_changed(removed);
                self.phase = Phase::Seek { at: now, cache: None };
            }
        }
    }
}
