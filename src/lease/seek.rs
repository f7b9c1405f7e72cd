//! No subnet yet: which one to ask for.
//!
//! In flannel's order: a lease of our PublicIP, the subnet of the last run, a random free one. A lost
//! race is no error: list again, pick again.

use super::hold::Own;
use super::manager::{Cache, Manager, Phase};
use super::{Call, How, Notice};
use crate::store::Entry;
use crate::subnet::allocate::{self, OutOfSubnets};
use crate::subnet::{SubnetKey, overlap};
use ipnet::Ipv4Net;
use rand::RngExt;
use std::time::Duration;

impl Manager {
    /// Takes the next step with a list.
    pub(super) fn choose(&mut self, now: Duration, cache: Cache) {
        let mine: Vec<&Entry> =
            cache.entries.iter().filter(|entry| entry.attrs.public_ip == self.attrs.public_ip).collect();
        let usable = |entry: &&&Entry| entry.key.ipv6.is_none() && self.config.fits(entry.key.ipv4);
        let previous = |entry: &&&Entry| Some(entry.key.ipv4) == self.previous;
        let reuse = mine.iter().filter(usable).find(previous).or_else(|| mine.iter().find(usable));
        // A reservation that does not fit is the operator's, not ours to delete.
        let misfit = mine.iter().find(|entry| entry.lease.is_some()).copied().cloned();
        if let Some(entry) = reuse {
            let entry = (*entry).clone();
            if entry.lease.is_none() && entry.attrs == self.attrs {
                // A reservation that says what we would write: there is nothing to write.
                return self.acquired(now, now, entry, How::Reused, cache);
            }
            self.update(now, entry);
        } else if let Some(held) = misfit {
            self.call(now, Call::Delete { held });
        } else {
            let readable = cache.entries.iter().map(|entry| entry.key);
            // A key with a bad value cannot be created either.
            let keys = readable.chain(cache.skipped.iter().filter_map(|skip| skip.key.parse().ok()));
            let taken: Vec<Ipv4Net> = keys.map(|key| key.ipv4).collect();
            match self.free_subnet(&taken) {
                Ok(subnet) => self.create(now, SubnetKey::v4(subnet)),
                Err(full) => return self.out_of_subnets(now, full),
            }
        }
        self.phase = Phase::Seek { at: Duration::MAX, cache: Some(cache) };
    }

    fn free_subnet(&mut self, taken: &[Ipv4Net]) -> Result<Ipv4Net, OutOfSubnets> {
        match self.previous {
            Some(subnet) if self.config.fits(subnet) && !taken.iter().any(|net| overlap(*net, subnet)) => {
                Ok(subnet)
            }
            _ => allocate::pick(&self.config, taken, &mut self.rng),
        }
    }

    fn out_of_subnets(&mut self, now: Duration, full: OutOfSubnets) {
        if self.out_of_subnets.is_news(now, "") {
            self.notice(Notice::OutOfSubnets(full));
        }
        self.phase = Phase::Seek { at: now + self.seek_backoff.next(&mut self.rng), cache: None };
    }

    /// Somebody was faster. A short random pause that grows keeps many hosts that start at once from
    /// listing in step.
    pub(super) fn lost_race(&mut self, now: Duration) {
        self.races += 1;
        let longest = Duration::from_millis(10 << self.races.min(5));
        let pause = longest.mul_f64(self.rng.random_range(0.0..=1.0));
        self.phase = Phase::Seek { at: now + pause, cache: None };
    }

    /// `entry` is ours. `sent`: when we asked for it.
    pub(super) fn acquired(&mut self, now: Duration, sent: Duration, entry: Entry, how: How, cache: Cache) {
        let own = Own::new(entry, sent, &self.settings);
        if own.deadline.is_some_and(|deadline| deadline <= now) {
            // The answer took longer than the lease lives. A list will show whether it is still there.
            self.phase = Phase::Seek { at: now + self.seek_backoff.next(&mut self.rng), cache: None };
            return;
        }
        let subnet = own.entry.key.ipv4;
        self.phase = Phase::Held { renew_at: own.renew_at(&self.settings) };
        self.notice(Notice::Acquired { subnet, how, deadline: own.deadline });
        self.own = Some(own);
        self.previous = Some(subnet);
        self.races = 0;
        self.seek_backoff.reset();
        self.out_of_subnets.settle();
        self.watcher.restart(Some(subnet));
        self.follow(now, cache);
    }

    pub(super) fn on_deleted(&mut self, now: Duration, deleted: bool) {
        let Phase::Seek { cache, .. } = &mut self.phase else { return };
        match cache.take() {
            Some(mut cache) if deleted => {
                let own_ip = self.attrs.public_ip;
                // The one that was deleted is the first that `choose` found; see there.
                let gone =
                    cache.entries.iter().position(|e| e.attrs.public_ip == own_ip && e.lease.is_some());
                gone.map(|index| cache.entries.remove(index));
                self.choose(now, cache);
            }
            _ => self.lost_race(now),
        }
    }
}
