//! What we publish changes while the machine runs: this host has another address.

use super::{Manager, Notice};
use crate::subnet::{LeaseAttrs, Underlay};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

impl Manager {
    /// The host's address is another one, and with it what we publish, unless that is fixed. The connections were made
    /// from the old address: call and watch are made anew. A search and a loss need no more, since their next write says
    /// what is new.
    pub(super) fn on_publish(&mut self, now: Duration, attrs: LeaseAttrs) {
        let is_news = self.us.publish(attrs);
        if let Some(call) = self.in_flight.take() {
            self.retry(now, call.kind, false);
        }
        let address = self.us.attrs().public_ip;
        // A peer with our new address is none, which a list tells.
        let is_taken = self.watcher.leases().any(|(_, peer)| peer.public_ip == address);
        if is_news {
            self.seek.republish();
        }
        if let Some(own) = &mut self.own {
            self.feed.reconnect(now);
            if is_news {
                own.republish(now);
            }
            if is_news && is_taken {
                self.feed.list_by(now);
            }
        }
    }

    /// The host has other addresses. A list judges the peers anew, if it makes a difference to any subnet.
    pub(super) fn on_underlay(&mut self, now: Duration, underlay: Underlay) {
        let within = |one: &Underlay| -> BTreeSet<Ipv4Addr> { one.within(self.network()).collect() };
        let is_news = within(self.us.underlay()) != within(&underlay);
        self.us.set_underlay(underlay);
        if is_news && self.own.is_some() {
            self.feed.list_by(now);
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
