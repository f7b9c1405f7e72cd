//! The external interface after it was chosen. Its address may change or move to another device: then backend and lease
//! follow, as far as the operator's flags allow. The sockets outlive the address and the device, and work again when the
//! address is back. So a link that is down needs no repair, but the operator must hear what is wrong.

use super::changes::Changes;
use crate::iface::{self, Choice, External, Standing};
use crate::log::{Complaint, phrases};
use crate::netlink::{Change, Netlink};
use crate::report::{Sample, metric};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

/// How often we look at the interface when nothing was announced.
const RESYNC: Duration = Duration::from_secs(30);
/// How long we wait for the rest of a burst of announcements before we look.
const SETTLE: Duration = Duration::from_millis(50);
/// The least time between two lines, for a link that flaps; also the wait after a look that failed.
const CALM: Duration = Duration::from_secs(1);
/// The least time between the first line in a while and the next: an address that goes is often followed by another.
const FIRST_CALM: Duration = Duration::from_millis(200);
/// After so long without a line, the next is the first in a while.
const QUIET: Duration = Duration::from_secs(10);
/// How long a lost address is waited for if only one takes its place that was there beside it. Somebody may be setting
/// the interface up anew.
const HESITATION: Duration = Duration::from_secs(1);
/// How long an address that was lost has to be there again before it is taken back from the one that stood in for it. A
/// link that flaps would otherwise move all peers each time.
const HOMECOMING: Duration = Duration::from_secs(5);
const _: () =
    assert!(SETTLE.as_millis() < FIRST_CALM.as_millis() && FIRST_CALM.as_millis() < CALM.as_millis());
const _: () = assert!(CALM.as_millis() < QUIET.as_millis() && QUIET.as_millis() < RESYNC.as_millis());
// Peers reach this host again within two seconds of a change.
const _: () = assert!(SETTLE.as_millis() + HESITATION.as_millis() < 2000);

/// Chooses the interface again after a wait in which it may have changed. A choice that fails now is tried again, at each
/// change of the kernel's tables and now and then: what the operator asked for was there at the start.
pub(super) async fn choose_again(
    netlink: &Netlink,
    choice: &Choice,
    changes: &mut Changes,
    before: &External,
) -> External {
    let mut complaint = Complaint::default();
    loop {
        match iface::choose(netlink, choice).await {
            Ok(external) => {
                if (external.index, external.address) != (before.index, before.address) {
                    external.tell();
                }
                return external;
            }
            Err(error) => {
                let text = error.to_string();
                if complaint.is_news(Instant::now(), &text) {
                    error!("{}: {text}; waiting for it", phrases::NO_INTERFACE);
                }
            }
        }
        tokio::select! {
            _ = changes.next() => sleep(SETTLE).await,
            () = sleep(RESYNC) => {}
        }
    }
}

/// The external interface, and what the last look at it found.
#[derive(Debug)]
pub(super) struct Watch {
    external: External,
    /// The host's other addresses at the last look that found ours.
    beside: Vec<Ipv4Addr>,
    /// The address that was lost, while one stands in for it that the host had before.
    home: Option<Home>,
    trouble: Complaint<Instant>,
    /// The time at which the present trouble began.
    since: Option<Instant>,
    /// The time of the last line about the interface.
    news_at: Option<Instant>,
    /// The time that has to pass after that line before the next.
    calm: Duration,
    check_at: Instant,
    /// How often another interface or address was followed.
    changes: u64,
    /// The complaint that the kernel's tables cannot be read.
    unreadable: Complaint<Instant>,
}

/// An address that was lost while the host had another one, which stands in for it.
#[derive(Debug)]
struct Home {
    address: Ipv4Addr,
    /// The time since which the flags would choose it again.
    back_since: Option<Instant>,
}

/// What a look at the interface has led to.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing has changed.
    Same,
    /// There is news, which was logged.
    News,
    /// This takes the place of what we had. The caller follows it and says so by [`Watch::followed`] or
    /// [`Watch::refused`].
    Follow(External),
}

impl Watch {
    /// Begins to watch `external`, which was chosen some time ago; the first look is due at once.
    pub(super) fn new(external: External) -> Watch {
        Watch {
            external,
            beside: Vec::new(),
            home: None,
            trouble: Complaint::default(),
            since: None,
            news_at: None,
            calm: FIRST_CALM,
            check_at: Instant::now(),
            changes: 0,
            unreadable: Complaint::default(),
        }
    }

    /// The interface as it was at the last look that found it.
    pub(super) fn external(&self) -> &External {
        &self.external
    }

    /// What is wrong with the interface; `None` if nothing is.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.text()
    }

    /// The counters of the interface.
    pub(super) fn samples(&self) -> [Sample; 2] {
        let trouble = u64::from(self.trouble().is_some());
        [
            Sample::new(&metric::EXTERNAL_CHANGES, "external_changes", self.changes),
            Sample::new(&metric::EXTERNAL_TROUBLE, "external_trouble", trouble),
        ]
    }

    /// The time at which [`Watch::look`] is due.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Brings the next look forward if `change` may concern the interface. One that takes its place may be any.
    pub(super) fn changed(&mut self, change: &Change) {
        let External { index: own, name: own_name, address: own_address, .. } = &self.external;
        let is_unsettled = self.since.is_some() || self.home.is_some();
        let concerns = match change {
            Change::Link { index, name, .. } => is_unsettled || index == own || name == own_name,
            Change::Address { link_index, address, .. } => {
                is_unsettled || link_index == own || address == own_address
            }
            Change::Route { destination, .. } => is_unsettled && destination.prefix_len() == 0,
            Change::Overrun => true,
        };
        if concerns {
            let calm = self.news_at.map(|at| at + self.calm);
            let soon = Instant::now() + SETTLE;
            self.check_at = self.check_at.min(calm.map_or(soon, |calm| calm.max(soon)));
        }
    }

    /// Looks at the kernel's tables and logs what has changed.
    pub(super) async fn look(&mut self, netlink: &Netlink, choice: &Choice) -> Seen {
        let now = Instant::now();
        self.check_at = now + RESYNC;
        match iface::stand(netlink, choice, &self.external).await {
            Ok(standing) => {
                self.unreadable.settle();
                let seen = self.judge(now, standing);
                match self.way_home(now, netlink, choice).await {
                    Some(external) => Seen::Follow(external),
                    None => seen,
                }
            }
            Err(error) => {
                self.check_at = now + CALM;
                let text = error.to_string();
                if self.unreadable.is_news(now, &text) {
                    warn!("cannot look at the external interface: {text}; trying again");
                }
                Seen::Same
            }
        }
    }

    fn judge(&mut self, now: Instant, standing: Standing) -> Seen {
        match standing {
            Standing::There { external, trouble, beside } => {
                self.beside = beside;
                let news = match trouble {
                    Some(text) => self.wrong(now, &text),
                    None => self.right(now),
                };
                if external != self.external {
                    return Seen::Follow(external);
                }
                news
            }
            Standing::Replaced { external, trouble } => {
                let news = self.wrong(now, &trouble);
                let until = self.since.unwrap_or(now) + HESITATION;
                if self.beside.contains(&external.address) && now < until {
                    self.check_at = until;
                    return news;
                }
                Seen::Follow(external)
            }
            Standing::Left(text) => self.wrong(now, &text),
        }
    }

    /// The place that was lost, once the flags would choose it again and it has been there for a while.
    async fn way_home(&mut self, now: Instant, netlink: &Netlink, choice: &Choice) -> Option<External> {
        let home = self.home.as_mut()?;
        let is_there = self.beside.contains(&home.address);
        let chosen = if is_there { iface::would_choose(netlink, choice).await.ok() } else { None };
        let Some((external, _)) = chosen.filter(|(external, _)| external.address == home.address) else {
            home.back_since = None;
            return None;
        };
        let due = *home.back_since.get_or_insert(now) + HOMECOMING;
        if now < due && self.trouble.text().is_none() {
            self.check_at = self.check_at.min(due);
            return None;
        }
        Some(external)
    }

    /// The caller has followed to `external`.
    pub(super) fn followed(&mut self, external: External) {
        let now = Instant::now();
        let External { name, address, .. } = &external;
        if *address == self.external.address {
            if *name != self.external.name {
                info!("external interface: {address} is on {name} now");
            }
        } else {
            info!(
                "external interface: {address} on {name} takes the place of {} on {}",
                self.external.address, self.external.name
            );
            self.home = self.home_after(*address);
            self.since = None;
            self.trouble.settle();
        }
        self.external = external;
        self.changes += 1;
        self.tell(now);
        // What the new place is like is still to be seen.
        self.check_at = now + SETTLE;
    }

    /// The address to come back to once `address` has taken the place of ours: one that the host had all along stands in,
    /// a new one is there to stay.
    fn home_after(&self, address: Ipv4Addr) -> Option<Home> {
        if !self.beside.contains(&address) {
            return None;
        }
        let home = self.home.as_ref().map_or(self.external.address, |home| home.address);
        (home != address).then_some(Home { address: home, back_since: None })
    }

    /// The caller cannot follow to `external`, for the reason that `why` gives.
    pub(super) fn refused(&mut self, external: &External, why: &str) {
        let External { name, address, .. } = external;
        self.wrong(Instant::now(), &format!("cannot follow to {address} on {name}: {why}"));
    }

    fn tell(&mut self, now: Instant) {
        let is_first = self.news_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
        self.calm = if is_first { FIRST_CALM } else { CALM };
        self.news_at = Some(now);
    }

    fn wrong(&mut self, now: Instant, text: &str) -> Seen {
        self.since.get_or_insert(now);
        if !self.trouble.is_news(now, text) {
            return Seen::Same;
        }
        self.tell(now);
        warn!("external interface: {text}: no peer is reached until it is back");
        Seen::News
    }

    fn right(&mut self, now: Instant) -> Seen {
        let (Some(since), Some(text)) = (self.since.take(), self.trouble.text()) else { return Seen::Same };
        let after = now.saturating_duration_since(since).as_secs_f64();
        info!("external interface: {} is back after {after:.1} s ({text})", self.external.name);
        self.trouble.settle();
        self.tell(now);
        Seen::News
    }
}
