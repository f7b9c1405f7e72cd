//! The key is gone, may be gone, or is somebody else's: lose the subnet, and get it back.

use super::{Own, Phase, Step};
use crate::lease::identity::Identity;
use crate::lease::{Notice, OnLost};
use crate::store::{Listing, Revision};
use crate::subnet::{LeaseAttrs, overlap};
use ipnet::Ipv4Net;
use std::time::Duration;

impl Own {
    /// Our lease may have ended, so the subnet may be somebody else's by now.
    pub(super) fn lost(&mut self, now: Duration) -> Step {
        self.live = false;
        self.regain(now, false);
        Step::Say(Notice::Lost { subnet: self.subnet() })
    }

    /// Our key was deleted, or has expired.
    pub(super) fn revoked(&mut self, now: Duration, revision: Revision, overlapped: bool) -> Option<Step> {
        self.entry.revision = revision;
        self.deadline = None;
        let was_live = std::mem::take(&mut self.live);
        // A key of another prefix length may hold part of the subnet; then a list has to tell whose it is.
        self.regain(now, !overlapped);
        was_live.then(|| Step::Say(Notice::Revoked { subnet: self.subnet() }))
    }

    /// Somebody else has our subnet. The operator has decided what follows.
    pub(super) fn taken(&mut self, revision: Revision, owner: &LeaseAttrs, us: &Identity) -> Vec<Step> {
        self.entry.revision = revision;
        self.live = false;
        let then = self.settings.on_lost;
        let node = owner.node_id.clone();
        let said = matches!(self.phase, Phase::Regain { conflict_said: true, .. });
        self.phase = Phase::Regain { at: None, create: false, conflict_said: true };
        let mut steps = Vec::new();
        if !said && us.has_name(owner) {
            let by = Box::new(owner.clone());
            steps.push(Step::Say(Notice::Namesake { subnet: self.subnet(), by }));
        }
        if !said {
            steps.push(Step::Say(Notice::Conflict {
                subnet: self.subnet(),
                owner: owner.public_ip,
                node,
                then,
            }));
        }
        match then {
            OnLost::Exit => steps.push(Step::Stop),
            OnLost::Keep => {}
            OnLost::Reacquire => steps.push(Step::GiveUp),
        }
        steps
    }

    pub(super) fn regain(&mut self, now: Duration, create: bool) {
        self.phase = Phase::Regain { at: Some(now), create, conflict_said: false };
    }

    /// Our key is absent: creates it if no other key holds part of its subnet.
    pub(super) fn create_if_free(&mut self, listing: &Listing, us: &Identity) -> Vec<Step> {
        self.entry.revision = listing.revision;
        let subnet = self.subnet();
        match listing.entries.iter().find(|entry| overlap(entry.key.ipv4, subnet)) {
            Some(entry) => self.taken(listing.revision, &entry.attrs, us),
            None => vec![self.create()],
        }
    }

    /// The network config has no place for our subnet any more, so it was not created again.
    pub(in crate::lease) fn outgrown(&mut self) -> Ipv4Net {
        self.creating = false;
        self.news = None;
        self.phase = Phase::Regain { at: None, create: false, conflict_said: true };
        self.subnet()
    }

    pub(super) fn create(&mut self) -> Step {
        self.creating = true;
        Step::Create(self.entry.key)
    }
}
