//! The machine while the store has not spoken since the start: it goes on with what an earlier run knew.

use super::{Manager, Own};
use crate::lease::cached::{Basis, Cached, Fallback};
use crate::lease::{How, Notice};
use crate::store::{Entry, Listing};
use crate::subnet::{Event, Lease, LeaseAttrs, SubnetKey};
use std::time::Duration;

impl Manager {
    /// Gives the machine what an earlier run knew. It is used at the time `at`, or earlier if the store fails, unless the
    /// store has spoken by then.
    #[must_use]
    pub fn with_cached(mut self, cached: Cached, at: Duration) -> Self {
        self.fallback = Fallback::new(cached, at);
        self
    }

    /// The lease that we hold at this instant, and its end; a reservation has none.
    pub fn held(&self) -> Option<(&Entry, Option<Duration>)> {
        let own = self.own.as_ref().filter(|own| own.is_live())?;
        Some((own.entry(), own.deadline()))
    }

    /// The leases of all peers, in order of their subnets.
    pub fn leases(&self) -> impl ExactSizeIterator<Item = (SubnetKey, &LeaseAttrs)> {
        self.watcher.leases()
    }

    /// Begins with what an earlier run knew, if it is time to.
    pub(super) fn begin_from_cache(&mut self, now: Duration) {
        if self.own.is_some() {
            return;
        }
        let Some(Cached { entry, deadline, peers }) = self.fallback.take_due(now) else { return };
        let (key, revision) = (entry.key, entry.revision);
        // The search has failed to list, and this is when it would do so again.
        let again_at = self.seek.due().max(now);
        let own = Own::resume(entry, deadline, again_at, self.settings, &mut self.delays);
        let subnet = own.subnet();
        self.say([Notice::Acquired { subnet, how: How::Cached, deadline }]);
        self.own = Some(own);
        self.seek.settled(subnet);
        self.watcher.restart(Some(key));
        let events = self.watcher.snapshot(&self.us, now, &peers, &[], false);
        self.peers_changed(events);
        self.feed.resume(again_at, revision);
    }

    /// Whether what an earlier run held may be another living host's: it was held under another address, and a copy of
    /// this host may be there. Nothing is written before the store has shown the lease.
    pub(super) fn is_unsure(&self) -> bool {
        let own = self.own.as_ref().filter(|_| self.fallback.basis() != Basis::Store);
        own.is_some_and(|own| !self.us.is_surely(own.entry()))
    }

    /// The store speaks: a subnet that may be another host's is sought like any other, which begins with a question to
    /// that host.
    pub(super) fn doubt_cached(&mut self, now: Duration) {
        if let Some(own) = self.own.as_ref().filter(|_| self.is_unsure()) {
            let subnet = own.subnet();
            self.give_up(now);
            self.seek.prefer(subnet);
        }
    }

    /// A list has come, so the store's word counts from now on. Only a write of ours tells how long the lease lives, so
    /// one follows.
    pub(super) fn list_spoke(&mut self, now: Duration) {
        if self.fallback.store_spoke()
            && let Some(own) = &mut self.own
        {
            own.renew_by(now);
        }
    }

    /// A list has come while a subnet is sought: what an earlier run wrote down must agree with it, or be forgotten.
    /// Otherwise the next start without the store would take up what nobody gives us any more.
    pub(super) fn check_written(&mut self, listing: &Listing) {
        let ours = listing.entries.iter().filter(|entry| self.us.owns(entry));
        if let Some(key) = self.fallback.forget(ours) {
            self.say([Notice::Forgotten { subnet: key.ipv4 }]);
        }
    }

    /// The deadline has passed. If it was one of an earlier run, nothing is forwarded any more: all peers go, until the
    /// store has given us the subnet again. Returns whether that is so.
    pub(super) fn lapse(&mut self) -> bool {
        let Some(own) = self.own.as_ref().filter(|_| self.fallback.lapse()) else { return false };
        let subnet = own.subnet();
        let gone = self.watcher.leases().map(|(key, attrs)| Event::Removed(lease(key, attrs))).collect();
        self.say([Notice::Lapsed { subnet }, Notice::Peers(gone)]);
        true
    }

    /// Whether peers are kept from the daemon: see [`Manager::lapse`].
    pub(super) fn withholds_peers(&self) -> bool {
        self.fallback.basis() == Basis::Lapsed
    }

    /// The peers are back if the subnet is ours again after a lapse, or if the operator wants to keep it in any case.
    pub(super) fn recover(&mut self) {
        if self.withholds_peers() && self.own.as_ref().is_some_and(Own::may_forward) {
            self.fallback.recover();
            let back = self.watcher.leases().map(|(key, attrs)| Event::Added(lease(key, attrs))).collect();
            self.peers_changed(back);
        }
    }
}

fn lease(key: SubnetKey, attrs: &LeaseAttrs) -> Lease {
    Lease { subnet: key.ipv4, attrs: attrs.clone() }
}
