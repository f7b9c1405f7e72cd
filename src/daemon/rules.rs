//! Masquerade and forward rules and the blackhole route, along the lease's life: kept every resync period, removed
//! at the end if so asked. If masquerading is asked for, it is there before `subnet.env` is written.

use super::{DaemonError, Settings};
use crate::masq::{self, Flavour, Keeper};
use crate::netlink::Netlink;
use crate::subnet::{Config, EnvFile};
use ipnet::Ipv4Net;
use std::future::pending;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

/// For a timer that is not wanted.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The keeper's answer, when it comes.
type Answer = oneshot::Receiver<Result<(), masq::Error>>;

/// What this host has for its subnet beside the backend.
pub(super) struct HostRules {
    settings: masq::Settings,
    keeper: Keeper,
    /// Whose blackhole route may be there: the last run's subnet, then ours.
    subnet: Option<Ipv4Net>,
    /// The rules on their way into the kernel.
    pending: Option<Answer>,
    /// Masquerade rules were asked for and are not there yet.
    withheld: bool,
    /// Whether the keeper's last answer was that the rules are in.
    in_place: bool,
    installed: bool,
    check_at: Instant,
}

/// What [`HostRules::due`] waits for.
#[derive(Debug)]
pub(super) enum Due {
    /// The rules are in, or not.
    Installed(Result<(), masq::Error>),
    /// [`HostRules::check`] wants to be called.
    Check,
}

impl HostRules {
    /// Finds out whether masquerading can work here at all.
    ///
    /// # Errors
    /// It is wanted and cannot.
    pub(super) fn start(settings: &Settings, config: &Config) -> Result<HostRules, DaemonError> {
        // An unreadable file was logged when the previous subnet was looked for.
        let older = EnvFile::read(&settings.subnet_file).ok().flatten();
        let flavour = if config.enable_nftables { Flavour::Nftables } else { Flavour::Iptables };
        let keeper = Keeper::start(flavour, settings.masq, config.network, older.map(|file| file.network))?;
        Ok(HostRules {
            settings: settings.masq,
            keeper,
            subnet: older.map(|file| file.subnet),
            pending: None,
            withheld: settings.masq.masquerade,
            in_place: false,
            installed: false,
            check_at: Instant::now() + NEVER,
        })
    }

    /// Has the rules made those of `subnet`, which may take the programs many seconds: [`HostRules::due`] tells
    /// when they are there.
    pub(super) async fn set(&mut self, subnet: Ipv4Net, netlink: &Netlink) {
        let (sender, answer) = oneshot::channel();
        self.keeper.set(subnet, move |result| {
            // Another subnet may have been set meanwhile; then nobody waits for this one.
            let _ = sender.send(result);
        });
        self.pending = Some(answer);
        self.installed = true;
        if let Some(older) = self.subnet.replace(subnet)
            && (older != subnet || !self.settings.blackhole)
        {
            remove_blackhole(older, netlink).await;
        }
        self.check(netlink).await;
    }

    /// Whether `subnet.env` has to wait: it promises masquerading, which is not there yet.
    pub(super) fn withheld(&self) -> bool {
        self.withheld
    }

    /// Whether the rules were installed; `None` if there should be none.
    pub(super) fn in_place(&self) -> Option<bool> {
        (self.settings.masquerade || self.settings.forward).then_some(self.in_place)
    }

    /// The next thing to see to. Cancel-safe.
    pub(super) async fn due(&mut self) -> Due {
        let check_at = self.check_at;
        tokio::select! {
            result = answer(&mut self.pending) => Due::Installed(result),
            () = sleep_until(check_at) => Due::Check,
        }
    }

    /// Deals with the keeper's answer.
    ///
    /// # Errors
    /// Masquerading is wanted and the first try failed. Anything later is logged and tried again.
    pub(super) fn settle(&mut self, result: Result<(), masq::Error>) -> Result<(), DaemonError> {
        self.in_place = result.is_ok();
        match result {
            Err(error) if self.withheld => return Err(error.into()),
            Err(error) => error!("cannot install masquerade and forward rules: {error}; trying again"),
            Ok(()) => self.withheld = false,
        }
        Ok(())
    }

    /// Looks after the blackhole route; the rules have their own thread.
    pub(super) async fn check(&mut self, netlink: &Netlink) {
        let Some(subnet) = self.subnet.filter(|_| self.settings.blackhole && self.installed) else {
            self.check_at = Instant::now() + NEVER;
            return;
        };
        self.check_at = Instant::now() + self.settings.resync;
        match netlink.ensure_blackhole(subnet).await {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => info!("{changes}"),
            Err(error) => error!("{error}; trying again"),
        }
    }

    /// The daemon ends.
    pub(super) async fn stop(&self, netlink: &Netlink) {
        if !self.settings.cleanup_on_exit {
            return;
        }
        let (sender, done) = oneshot::channel();
        self.keeper.clean(move |result| {
            let _ = sender.send(result);
        });
        if let Err(error) = answer(&mut Some(done)).await {
            error!("cannot remove masquerade and forward rules: {error}");
        }
        if let Some(subnet) = self.subnet {
            remove_blackhole(subnet, netlink).await;
        }
    }
}

/// The answer; the slot is free then. Never, if none is awaited.
async fn answer(slot: &mut Option<Answer>) -> Result<(), masq::Error> {
    let Some(receiver) = slot else { return pending().await };
    let result = receiver.await;
    *slot = None;
    result.unwrap_or_else(|_| Err(masq::Error::Thread("it has ended".to_owned())))
}

async fn remove_blackhole(subnet: Ipv4Net, netlink: &Netlink) {
    match netlink.remove_blackhole(subnet).await {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) => info!("{changes}"),
        Err(error) => warn!("{error}"),
    }
}
