//! The key is there and ours: renew it, and adopt what others did to it.

use super::{Own, Phase, Step};
use crate::lease::delays::Delays;
use crate::lease::identity::{Claim, Identity};
use crate::lease::{How, Notice};
use crate::store::Entry;
use std::time::Duration;

/// Two attempts to renew come no nearer together than this.
const RENEW_RETRY_MIN: Duration = Duration::from_millis(100);
/// Two attempts to renew come no farther apart than this, as in flannel.
const RENEW_RETRY_MAX: Duration = Duration::from_secs(60);
// `clamp` panics if the two are not in this order.
const _: () = assert!(RENEW_RETRY_MIN.as_nanos() < RENEW_RETRY_MAX.as_nanos());
/// A key of ours that was written, but not in answer to a call, is written anew within this time. It is not
/// done at once, since two hosts with one PublicIP must not outbid each other as fast as they can.
const OUTBID_AFTER: Duration = Duration::from_secs(5);

/// A write of our key that says what we would say is followed by one of our own, but not more often than this.
const ECHO_PAUSE: Duration = Duration::from_secs(60);

/// A host that writes our key under our NodeID twice within this time lives, and wants to keep it.
const NAMESAKE_MEMORY: Duration = Duration::from_secs(600);

impl Own {
    /// The store took our write: the key is ours.
    pub(super) fn confirmed(
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
        if entry.revision == self.entry.revision {
            // The watch was faster than the answer, and what it told was our own write.
            self.echoed_at = None;
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
        self.phase = Phase::Held { renew_at: self.renew_at(delays) };
        delays.settled();
        self.check();
        let (subnet, deadline) = (self.subnet(), self.deadline);
        Some(Step::Say(if was_live {
            Notice::Renewed { subnet, deadline }
        } else {
            Notice::Acquired { subnet, how: How::Regained, deadline }
        }))
    }

    /// Our key was written as ours, but not in answer to a call: by an operator, or by a call whose
    /// answer was lost. Its revision counts from now on. Our deadline does not move, since we cannot know when it
    /// was written.
    pub(super) fn adopt(
        &mut self,
        now: Duration,
        entry: Entry,
        us: &Identity,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let subnet = entry.key.ipv4;
        let was_reserved = self.entry.lease.is_none();
        let is_reserved = entry.lease.is_none();
        let same = entry.attrs == *us.attrs();
        let asked_by = entry.attrs.asked_by.clone();
        let foreign = us.is_foreign(&entry).then(|| Box::new(entry.attrs.clone()));
        let namesake = self.namesake(now, &entry, us);
        self.entry = entry;
        if namesake.is_some() {
            // The other host may hold it. We do not until a write of ours has gone through.
            self.live = false;
            let at = Some(now + delays.upper_half(OUTBID_AFTER));
            self.phase = Phase::Regain { at, create: false, conflict_said: false };
            return namesake.into_iter().collect();
        }
        let Phase::Held { renew_at } = &mut self.phase else {
            // It is not ours until a write of ours has gone through.
            self.regain(now, false);
            return Vec::new();
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
            let soon = match asked_by {
                Some(_) => now + delays.soon(),
                None => now + delays.upper_half(OUTBID_AFTER),
            };
            *renew_at = Some(renew_at.map_or(soon, |at| at.min(soon)));
        } else if let Some(at) = renew_at {
            // Only a write of our own tells how long it lives. Two hosts that are alike to the last byte must not
            // answer each other for ever.
            let soon = self.echoed_at.map_or(now, |last| now.max(last + ECHO_PAUSE)) + delays.soon();
            *at = soon.min(*at);
            self.echoed_at = Some(soon);
        }
        let mut steps = Vec::new();
        // An operator who makes a reservation writes what flannel's documentation says, without a NodeID.
        if let Some(by) = foreign.filter(|_| !is_reserved) {
            steps.push(Step::Overwritten(by));
        }
        steps.extend(asked_by.map(Step::Asked));
        if is_reserved && !was_reserved {
            steps.push(Step::Say(Notice::Reserved { subnet }));
        }
        steps
    }

    /// Whether this entry of our key is ours to write over. One that another host has written under our NodeID is taken
    /// back once: a store that was restored may show what we wrote at an earlier address. If the other host writes it
    /// again, it lives, and the two of us would write for ever.
    pub(super) fn may_adopt(&self, now: Duration, entry: &Entry, us: &Identity) -> bool {
        let is_given_up = matches!(self.phase, Phase::Regain { conflict_said: true, .. });
        let is_again = |(at, revision)| now < at + NAMESAKE_MEMORY && revision != entry.revision;
        let is_theirs = is_given_up || self.namesake.is_some_and(is_again);
        us.owns(entry) && !(is_theirs && us.claim(entry) == Some(Claim::Name))
    }

    /// Takes note of an entry that another host may have written under our NodeID, and tells of it once.
    pub(super) fn namesake(&mut self, now: Duration, entry: &Entry, us: &Identity) -> Option<Step> {
        let is_known = self.namesake.is_some_and(|(_, revision)| revision == entry.revision);
        if is_known || us.claim(entry) != Some(Claim::Name) {
            return None;
        }
        self.namesake = Some((now, entry.revision));
        Some(Step::Overwritten(Box::new(entry.attrs.clone())))
    }

    /// When a lease that was just written is to be renewed: never later than the margin says, and earlier by a random
    /// time, since hosts that started together should not renew together.
    pub(super) fn renew_at(&self, delays: &mut Delays) -> Option<Duration> {
        let early = delays.up_to(self.settings.renew_spread());
        self.deadline.map(|deadline| deadline.saturating_sub(self.settings.renew_margin() + early))
    }

    /// The wait before the next attempt to renew: the nearer the end, the shorter.
    pub(super) fn renew_delay(&self, now: Duration, pace: f64) -> Duration {
        let left = self.deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_sub(now));
        (left / 8).clamp(RENEW_RETRY_MIN, RENEW_RETRY_MAX).mul_f64(pace)
    }
}
