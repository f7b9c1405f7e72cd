//! What an earlier run knew of the store, for a start while the store does not answer.
//!
//! It is used only if the store says nothing, and only until it speaks. Nobody but the store can say that the subnet is
//! ours, so beyond the deadline that the earlier run had, nothing is forwarded on its word: another host may own the
//! subnet by then.

use crate::store::Entry;
use crate::subnet::SubnetKey;
use std::time::Duration;

/// What an earlier run knew, on the machine's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Our key as the store had it.
    pub entry: Entry,
    /// When the lease ends, unless it is renewed; `None` for a reservation.
    pub deadline: Option<Duration>,
    /// The leases of the peers.
    pub peers: Vec<Entry>,
}

/// On whose word the subnet is held and the peers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The store has spoken since the start, or nothing is held yet.
    Store,
    /// An earlier run wrote it down, and the store has not spoken yet.
    Cache,
    /// What the earlier run wrote down has ended, and the store has not spoken yet: nothing is forwarded.
    Lapsed,
}

/// What is left to do without the store.
#[derive(Debug)]
pub(super) struct Fallback {
    /// What may be used, and from when on. It is there as long as the store has said nothing.
    ready: Option<(Cached, Duration)>,
    /// Our key as an earlier run wrote it down. It is there until we hold a subnet, or until the store has shown that the
    /// key is not ours any more.
    written: Option<Entry>,
    basis: Basis,
}

impl Fallback {
    /// Nothing is there to fall back on.
    pub(super) fn none() -> Self {
        Self { ready: None, written: None, basis: Basis::Store }
    }

    /// `cached` is used at the time `at`, or earlier if the store fails, unless the store has spoken by then.
    pub(super) fn new(cached: Cached, at: Duration) -> Self {
        let written = Some(cached.entry.clone());
        Self { ready: Some((cached, at)), written, basis: Basis::Store }
    }

    /// When what is there will be used.
    pub(super) fn at(&self) -> Option<Duration> {
        self.ready.as_ref().map(|(_, at)| *at)
    }

    /// The store does not answer, so there is nothing to wait for.
    pub(super) fn hurry(&mut self, now: Duration) {
        if let Some((_, at)) = &mut self.ready {
            *at = now.min(*at);
        }
    }

    /// Hands out what is to be used now.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Cached> {
        let (cached, _) = self.ready.take_if(|(_, at)| *at <= now)?;
        if cached.deadline.is_some_and(|deadline| deadline <= now) {
            return None;
        }
        self.basis = Basis::Cache;
        self.written = None;
        Some(cached)
    }

    /// While a subnet is sought, the store has listed these entries of ours. Returns the key that an earlier run wrote
    /// down, once, if it must not be used any more: it is gone, somebody else's, an older copy from before a restore, or
    /// a reservation no longer.
    pub(super) fn forget<'a>(&mut self, mut ours: impl Iterator<Item = &'a Entry>) -> Option<SubnetKey> {
        let written = self.written.as_ref()?;
        let stands = ours.any(|entry| {
            let has_end = |one: &Entry| one.lease.is_some();
            let lives_on = has_end(written) || !has_end(entry);
            entry.key == written.key && entry.revision >= written.revision && lives_on
        });
        if stands {
            return None;
        }
        self.written.take().map(|entry| entry.key)
    }

    /// A subnet is ours on the store's word, so what an earlier run wrote down is written anew.
    pub(super) fn settled(&mut self) {
        self.written = None;
        self.recover();
    }

    /// The store has spoken. Returns whether that ends the use of what was there.
    pub(super) fn store_spoke(&mut self) -> bool {
        self.ready = None;
        let ends = self.basis == Basis::Cache;
        if ends {
            self.basis = Basis::Store;
        }
        ends
    }

    /// The deadline has passed. Returns whether it was one of an earlier run.
    pub(super) fn lapse(&mut self) -> bool {
        let lapses = self.basis == Basis::Cache;
        if lapses {
            self.basis = Basis::Lapsed;
        }
        lapses
    }

    /// Forwarding may go on after a lapse.
    pub(super) fn recover(&mut self) {
        self.basis = Basis::Store;
    }

    pub(super) fn basis(&self) -> Basis {
        self.basis
    }
}
