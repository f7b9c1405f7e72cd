//! The key is there and ours: renew it, and adopt what others did to it.

use super::{Own, Phase, Step};
use crate::lease::delays::Delays;
use crate::lease::identity::Identity;
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
    ) -> Option<Step> {
        let subnet = entry.key.ipv4;
        let was_reserved = self.entry.lease.is_none();
        let is_reserved = entry.lease.is_none();
        let same = entry.attrs == *us.attrs();
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
        // It may be an older copy, in a store that was restored: only a write of our own tells how long it lives.
        if !same || !is_reserved {
            let soon = now + delays.upper_half(OUTBID_AFTER);
            *renew_at = Some(renew_at.map_or(soon, |at| at.min(soon)));
        }
        (is_reserved && !was_reserved).then_some(Step::Say(Notice::Reserved { subnet }))
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
