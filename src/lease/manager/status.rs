//! What the machine shows of itself.

use super::{Manager, Own};
use crate::lease::Counters;
use crate::lease::cached::Basis;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What [`Manager`] shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The subnet that we hold at this instant.
    pub subnet: Option<Ipv4Net>,
    /// The address that the store gives to peers for it.
    pub public_ip: Option<Ipv4Addr>,
    /// When we lose it, unless it is renewed. A reservation has no end.
    pub deadline: Option<Duration>,
    /// How many peers are known.
    pub peers: usize,
    /// Whether the last call or watch got no answer, or the last write was not taken.
    pub store_out: bool,
    /// Whether the store answers, but takes no write of ours.
    pub read_only: bool,
    /// Whether the network config in the store asks for what does not run.
    pub config_drift: bool,
    /// On whose word the subnet is held and the peers are known.
    pub basis: Basis,
    /// What was counted since the start.
    pub counters: Counters,
}

impl Manager {
    /// The address that peers send to.
    pub fn public_ip(&self) -> Ipv4Addr {
        self.us.attrs().public_ip
    }

    /// When the lease that we hold is to be renewed; `None` for a reservation, or without a lease.
    pub fn renew_at(&self) -> Option<Duration> {
        self.own.as_ref().filter(|own| own.is_live()).and_then(Own::due)
    }

    /// The state as the daemon shows it.
    pub fn status(&self) -> Status {
        let own = self.own.as_ref().filter(|own| own.is_live());
        Status {
            subnet: own.map(Own::subnet),
            public_ip: own.map(Own::public_ip),
            deadline: own.and_then(Own::deadline),
            peers: self.watcher.len(),
            store_out: self.health.is_out(),
            read_only: self.health.is_read_only(),
            config_drift: self.config.has_drifted(),
            basis: self.fallback.basis(),
            counters: Counters {
                conflicts: self.watcher.counters().conflicts + self.seek.conflicts(),
                lists: self.feed.lists(),
                proofs: self.feed.proofs(),
                overwrites: self.overwrites,
                ..self.watcher.counters()
            },
        }
    }
}
