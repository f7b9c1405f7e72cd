//! The store does not answer, and answers again.

use super::{Kind, Manager};
use crate::lease::health::Way;
use crate::store::{Error, Revision};
use std::time::Duration;

impl Manager {
    /// A call or the watch got no answer, or a refusal.
    pub(super) fn failed(&mut self, now: Duration, way: Way, error: &Error) {
        self.feed.doubt();
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
        let was_out = self.health.is_out();
        let said = self.health.answered(now);
        self.say(said);
        if was_out {
            self.feed.hurry(now);
            let soon = now + self.delays.soon();
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

    /// Decides when to try again after a call that got no answer.
    pub(super) fn retry(&mut self, now: Duration, kind: Kind) {
        let again_at = now + self.delays.after_failure();
        // The draw is made even where nobody renews, so that the sequence of draws is the same in every phase.
        let pace = self.delays.pace();
        let listed = kind == Kind::List;
        if listed {
            self.feed.list_failed(again_at);
        }
        match &mut self.own {
            None => self.seek.failed(again_at),
            Some(own) if listed => own.list_failed(again_at),
            Some(own) => own.write_failed(now, again_at, pace),
        }
    }
}
