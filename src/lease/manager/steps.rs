//! The machine carries out what its parts have decided.

use super::Manager;
use crate::lease::own::{self, Own};
use crate::lease::{Call, How, Notice, Output, feed, seek};
use crate::store::Listing;
use crate::subnet::{LeaseAttrs, NodeId};
use std::time::Duration;

impl Manager {
    /// Carries out what the feed has decided. `listing` is the list that it stands on.
    pub(super) fn do_for_feed(
        &mut self,
        now: Duration,
        steps: impl IntoIterator<Item = feed::Step>,
        listing: &Listing,
    ) {
        for step in steps {
            match step {
                feed::Step::Say(notice) => self.say([notice]),
                feed::Step::Watch { from, seen } => self.out.push(Output::Watch { from, seen }),
                feed::Step::Compare { repair } => {
                    let events =
                        self.watcher.snapshot(&self.us, now, &listing.entries, &listing.skipped, repair);
                    let confirm_at = self.watcher.confirm_at();
                    if !events.is_empty() || confirm_at.is_some() {
                        self.feed.forget_seen();
                    }
                    self.peers_changed(events);
                    self.feed.list_by(confirm_at.unwrap_or(Duration::MAX));
                }
            }
        }
    }

    /// Carries out what the subnet has decided.
    pub(super) fn do_for_own(&mut self, now: Duration, steps: impl IntoIterator<Item = own::Step>) {
        for step in steps {
            match step {
                own::Step::Say(notice) => self.say([notice]),
                own::Step::Create(key) => self.create(now, key, self.must_fit()),
                own::Step::Update(held) => self.update(now, held),
                own::Step::Asked(by) => self.on_asked(now, by),
                own::Step::Overwritten(by) => self.on_overwritten(now, by),
                own::Step::Look => self.feed.list_by(now),
                own::Step::Stop => self.stopped = true,
                own::Step::GiveUp => self.give_up(now),
            }
        }
    }

    /// Carries out what the search has decided on an answer to a call. `sent` is when that call went out.
    pub(super) fn do_for_seek(
        &mut self,
        now: Duration,
        sent: Duration,
        steps: impl IntoIterator<Item = seek::Step>,
    ) {
        for step in steps {
            match step {
                seek::Step::Say(notice) => self.say([notice]),
                seek::Step::Create(key) => self.create(now, key, false),
                seek::Step::Update(held) => self.update(now, held),
                seek::Step::Delete { held, reason } => {
                    self.say([Notice::Discarded { key: held.key, reason }]);
                    self.call(now, Call::Delete { held });
                }
                seek::Step::Probe(address) => self.out.push(Output::Probe(address)),
                seek::Step::Ask(held) => {
                    let (attrs, ttl) = (self.us.ask(&held), self.settings.ttl());
                    self.call(now, Call::Update { held, attrs, ttl });
                }
                seek::Step::Stop => self.stopped = true,
                seek::Step::Take { entry, how, listing } => {
                    let own = Own::new(entry, sent, self.settings, &mut self.delays);
                    if own.is_over(now) {
                        return self.seek.too_late(now, &mut self.delays);
                    }
                    self.take(now, own, how, &listing);
                }
            }
        }
    }

    /// Another host asks whether we live. Our answer is on its way; the operator hears of the question.
    fn on_asked(&mut self, now: Duration, by: NodeId) {
        if let Some(own) = &self.own
            && self.asked.is_news(now, by.as_str())
        {
            let subnet = own.subnet();
            self.say([Notice::Asked { subnet, by }]);
        }
    }

    /// Another host has written our lease as its own.
    fn on_overwritten(&mut self, now: Duration, by: Box<LeaseAttrs>) {
        self.overwrites += 1;
        if let Some(own) = &self.own
            && self.overwritten.is_news(now, "")
        {
            let subnet = own.subnet();
            self.say([Notice::Overwritten { subnet, by }]);
        }
    }

    /// This subnet is ours. The peers are those of the list that showed it free or ours.
    fn take(&mut self, now: Duration, own: Own, how: How, listing: &Listing) {
        self.fallback.settled();
        let (subnet, key) = (own.subnet(), own.key());
        let former = listing.entries.iter().find(|entry| entry.key == key);
        if let Some(former) = former.filter(|former| self.us.claim(former).is_some()) {
            self.say([Notice::TakenOver { subnet, from: Box::new(former.attrs.clone()) }]);
        }
        self.say([Notice::Acquired { subnet, how, deadline: own.deadline() }]);
        self.own = Some(own);
        self.seek.settled(subnet);
        self.delays.settled();
        self.watcher.restart(Some(key));
        let steps = self.feed.follow(now, listing.revision, &mut self.delays);
        self.do_for_feed(now, steps, listing);
    }
}
