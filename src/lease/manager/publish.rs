//! What we publish changes while the machine runs: this host has another address.

use super::{Manager, Notice};
use crate::subnet::LeaseAttrs;
use std::time::Duration;

impl Manager {
    /// The host's address is another one, and with it what we publish, unless that is fixed. The connections were made
    /// from the old address: call and watch are made anew. A search and a loss need no more, since their next write says
    /// what is new.
    pub(super) fn on_publish(&mut self, now: Duration, attrs: LeaseAttrs) {
        let is_news = self.us.publish(attrs);
        if let Some(call) = self.in_flight.take() {
            self.retry(now, call.kind);
        }
        if let Some(own) = &mut self.own {
            self.feed.reconnect(now);
            if is_news {
                own.republish(now);
            }
        }
    }

    /// Tells the daemon when the store gives another address of ours to peers.
    pub(super) fn tell_address(&mut self) {
        let Some(own) = self.own.as_ref().filter(|own| own.is_live()) else { return };
        let (subnet, public_ip) = (own.subnet(), own.public_ip());
        let before = self.told_address.replace(public_ip);
        if before.is_some_and(|before| before != public_ip) {
            self.say([Notice::Readdressed { subnet, public_ip }]);
        }
    }
}
