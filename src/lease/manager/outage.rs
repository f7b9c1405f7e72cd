//! The store does not answer, or takes no write; and it answers again.

use super::{Kind, Manager, Own};
use crate::lease::health::Way;
use crate::store::{Error, Revision};
use std::time::Duration;

impl Manager {
    /// A call or the watch got no answer, or a refusal.
    pub(super) fn failed(&mut self, now: Duration, way: Way, error: &Error) {
        // A store that refuses a write is there, and holds what it held.
        if way != Way::Write || matches!(error, Error::Unavailable(_)) {
            self.feed.doubt();
        }
        self.fallback.hurry(now);
        let said = self.health.failed(now, way, error.to_string());
        self.say(said);
    }

    /// The store is there. What was waiting for it need not wait longer.
    pub(super) fn answered(&mut self, now: Duration, way: Way) {
        if !self.health.is_proof(way) {
            return;
        }
        self.delays.answered();
        let was_silent = self.health.is_silent();
        let said = self.health.answered(now);
        self.say(said);
        if was_silent {
            self.feed.hurry(now);
            // What it takes no write of is not written the sooner for its answers.
            let soon = (now + self.delays.soon()).max(self.writes_from);
            match &mut self.own {
                Some(own) => own.hurry(soon),
                None => self.seek.hurry(soon),
            }
        }
        // A search begins with a list anyway.
        if self.own.is_some() {
            self.feed.look_if_in_doubt(now, self.held_revision(), &mut self.delays);
        }
    }

    /// The revision of the key that we hold at this instant.
    pub(super) fn held_revision(&self) -> Option<Revision> {
        self.own.as_ref().filter(|own| own.is_live()).map(|own| own.entry().revision)
    }

    /// The store has taken a write, or none is wanted any more.
    pub(super) fn written(&mut self, now: Duration) {
        self.delays.written();
        self.writes_from = Duration::ZERO;
        let said = self.health.written(now);
        self.say(said);
    }

    /// A store that takes no write is no outage for a subnet that needs none: it is reserved, or somebody else's.
    pub(super) fn rest(&mut self, now: Duration) {
        let rests = |own: &Own| own.due().is_none() && !own.is_creating();
        if self.health.is_read_only() && self.own.as_ref().is_some_and(rests) {
            self.written(now);
        }
    }

    /// What the store refused may be taken now: the next attempt is made soon.
    pub(super) fn on_admission(&mut self, now: Duration) {
        if !self.health.is_read_only() {
            return;
        }
        self.delays.written();
        let soon = now + self.delays.soon();
        self.writes_from = soon;
        match &mut self.own {
            Some(own) => own.hurry(soon),
            None => self.seek.hurry(soon),
        }
    }

    /// A call was refused, or got no answer.
    pub(super) fn call_failed(&mut self, now: Duration, kind: Kind, error: &Error) {
        let refused = !matches!(error, Error::Unavailable(_));
        let way = if kind == Kind::List { Way::Call } else { self.health.write_failed(refused) };
        self.failed(now, way, error);
        self.retry(now, kind, refused);
    }

    /// Decides when to try again after a call that was `refused`, or got no answer.
    pub(super) fn retry(&mut self, now: Duration, kind: Kind, refused: bool) {
        let listed = kind == Kind::List;
        let delay =
            if listed { self.delays.after_failure() } else { self.delays.after_failed_write(refused) };
        let again_at = now + delay;
        // The draw is made even where nobody renews, so that the sequence of draws is the same in every phase.
        let pace = self.delays.pace();
        if listed {
            self.feed.list_failed(again_at);
        } else {
            self.writes_from = again_at;
        }
        match &mut self.own {
            None => self.seek.failed(again_at),
            Some(own) if listed => own.list_failed(again_at),
            Some(own) => own.write_failed(now, again_at, pace, refused),
        }
    }
}
