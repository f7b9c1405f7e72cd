//! The machine when the network config in the store changes.

use super::Manager;
use crate::lease::{Notice, OnLost};
use crate::subnet::Config;
use ipnet::Ipv4Net;
use std::time::Duration;

impl Manager {
    /// The network of the config that runs.
    pub fn network(&self) -> Ipv4Net {
        self.config.network()
    }

    /// Whether a subnet that we had is given up if the newest config has no place for it.
    pub(super) fn must_fit(&self) -> bool {
        self.settings.on_lost != OnLost::Keep
    }

    /// The config has no place any more for the subnet that we had. The operator has decided what follows.
    pub(super) fn on_outgrown(&mut self, now: Duration, config: Config) {
        let Some(own) = &mut self.own else { return };
        let subnet = own.outgrown();
        // A subnet of another network needs another device, which this run cannot make.
        let is_another = self.config.is_another_network(&config);
        self.on_config(Ok(config));
        let then = if is_another { OnLost::Exit } else { self.settings.on_lost };
        self.say([Notice::Outgrown { subnet, then }]);
        match then {
            OnLost::Reacquire => self.give_up(now),
            OnLost::Exit | OnLost::Keep => self.stopped = true,
        }
    }

    pub(super) fn on_config(&mut self, newer: Result<Config, String>) {
        let (pool, news) = self.config.news(newer);
        if let Some(pool) = pool {
            self.seek.take_from(pool);
        }
        self.say(news.into_iter().map(Notice::Config));
    }

    /// Seeks another subnet.
    pub(super) fn give_up(&mut self, now: Duration) {
        self.own = None;
        let removed = self.watcher.restart(None);
        self.peers_changed(removed);
        self.seek.restart(now);
    }
}
