//! The external interface after it was chosen. The sockets are bound to its address: they outlive the address and
//! the device, and work again when the address is back, on whatever device. So there is nothing to repair here, but
//! the operator must hear what is wrong.

use crate::iface::External;
use crate::log::Complaint;
use crate::netlink::{Change, Error, Netlink};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How often we look at the interface when nothing was announced.
const RESYNC: Duration = Duration::from_secs(30);
/// How long we wait for the rest of a burst of announcements before we look.
const SETTLE: Duration = Duration::from_millis(50);
/// The least time between two lines, for a link that flaps; also the wait after a look that failed.
const CALM: Duration = Duration::from_secs(1);
const _: () = assert!(SETTLE.as_millis() < CALM.as_millis() && CALM.as_millis() < RESYNC.as_millis());

/// The external interface, and what the last look at it found.
#[derive(Debug)]
pub(super) struct Watch {
    /// The number of the link that had the address at the last look.
    index: u32,
    name: String,
    address: Ipv4Addr,
    trouble: Complaint<Instant>,
    /// The time at which the present trouble began.
    since: Option<Instant>,
    /// The time of the last line about the interface.
    news_at: Option<Instant>,
    check_at: Instant,
    /// The complaint that the kernel's tables cannot be read.
    unreadable: Complaint<Instant>,
}

/// What a look at the interface has found.
enum State {
    Whole {
        index: u32,
        name: String,
    },
    Lost(String),
    /// The interface has this address in place of ours.
    Changed(Ipv4Addr),
}

impl Watch {
    /// Begins to watch `external`, which was chosen some time ago; the first look is due at once.
    pub(super) fn new(external: &External) -> Watch {
        Watch {
            index: external.index,
            name: external.name.clone(),
            address: external.address,
            trouble: Complaint::default(),
            since: None,
            news_at: None,
            check_at: Instant::now(),
            unreadable: Complaint::default(),
        }
    }

    /// What is wrong with the interface; `None` if nothing is.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.text()
    }

    /// The time at which [`Watch::look`] is due.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Brings the next look forward if `change` concerns the interface.
    pub(super) fn changed(&mut self, change: &Change) {
        let concerns = match change {
            Change::Link { index, name, .. } => *index == self.index || *name == self.name,
            Change::Address { link_index, address, .. } => {
                *link_index == self.index || *address == self.address
            }
            Change::Route { .. } => false,
            Change::Overrun => true,
        };
        if concerns {
            let calm = self.news_at.map(|at| at + CALM);
            let soon = Instant::now() + SETTLE;
            self.check_at = self.check_at.min(calm.map_or(soon, |calm| calm.max(soon)));
        }
    }

    /// Looks at the kernel's tables and logs what has changed; returns whether something has.
    pub(super) async fn look(&mut self, netlink: &Netlink) -> bool {
        let now = Instant::now();
        self.check_at = now + RESYNC;
        match self.state(netlink).await {
            Ok(state) => {
                self.unreadable.settle();
                let news = self.note(now, state);
                if news {
                    self.news_at = Some(now);
                }
                news
            }
            Err(error) => {
                self.check_at = now + CALM;
                let text = error.to_string();
                if self.unreadable.is_news(now, &text) {
                    warn!("cannot look at the external interface: {text}; trying again");
                }
                false
            }
        }
    }

    async fn state(&self, netlink: &Netlink) -> Result<State, Error> {
        let addresses = netlink.addresses(None).await?;
        let Some(owner) = addresses.iter().find(|one| one.address == self.address) else {
            let Some(link) = netlink.link_by_name(&self.name).await? else {
                return Ok(State::Lost(format!("{} is gone", self.name)));
            };
            let other = addresses.iter().find(|one| one.link_index == link.index && !one.deprecated);
            return Ok(match other {
                Some(other) => State::Changed(other.address),
                None => State::Lost(format!("{} has lost its address {}", self.name, self.address)),
            });
        };
        Ok(match netlink.link_by_index(owner.link_index).await? {
            None => State::Lost(format!("{} is gone", self.name)),
            Some(link) if !link.up => State::Lost(format!("{} is down", link.name)),
            Some(link) if !link.running => State::Lost(format!("{} has no carrier", link.name)),
            Some(link) => State::Whole { index: link.index, name: link.name },
        })
    }

    fn note(&mut self, now: Instant, state: State) -> bool {
        debug_assert_eq!(
            self.trouble.text().is_some(),
            self.since.is_some(),
            "every trouble has a beginning"
        );
        let (text, changed) = match state {
            State::Whole { index, name } => return self.whole(now, index, name),
            State::Lost(text) => (text, false),
            State::Changed(new) => {
                (format!("{} has lost its address {} and has {new}", self.name, self.address), true)
            }
        };
        if !self.trouble.is_news(now, &text) {
            return false;
        }
        self.since.get_or_insert(now);
        if changed {
            error!(
                "external interface: {text}: peers do not reach this host until the old address is back, or \
                 flanneld is restarted to take the new one"
            );
        } else {
            warn!("external interface: {text}: no peer is reached until it is back");
        }
        true
    }

    fn whole(&mut self, now: Instant, index: u32, name: String) -> bool {
        if self.name != name {
            info!("external interface: {} is on {name} now", self.address);
        }
        (self.index, self.name) = (index, name);
        let (Some(since), Some(text)) = (self.since.take(), self.trouble.text()) else { return false };
        let after = now.saturating_duration_since(since).as_secs_f64();
        info!("external interface: {} is back after {after:.1} s ({text})", self.name);
        self.trouble.settle();
        true
    }
}
