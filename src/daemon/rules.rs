//! Masquerade and forward rules and the blackhole route follow the lease. They are checked every resync period, and
//! removed at the end if that was asked for. If masquerading is asked for, it is there before `subnet.env` is written.

use super::{DaemonError, NEVER, Settings};
use crate::masq::{self, Flavour, Guard, Keeper};
use crate::netlink::Netlink;
use crate::subnet::{Config, EnvFile};
use ipnet::Ipv4Net;
use std::future::pending;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

/// The channel on which the keeper's answer comes.
type Answer = oneshot::Receiver<Result<(), masq::Error>>;

/// The rules and the blackhole route that this host keeps for its subnet.
pub(super) struct HostRules {
    settings: masq::Settings,
    keeper: Keeper,
    /// The subnet whose blackhole route may be there: the last run's at first, then ours.
    subnet: Option<Ipv4Net>,
    /// The answer for rules that are on their way into the kernel.
    pending: Option<Answer>,
    /// Whether masquerade rules were asked for and are not there yet.
    withheld: bool,
    /// Whether rules were ever asked of the keeper for a subnet of this run.
    installed: bool,
    check_at: Instant,
}

/// What [`HostRules::due`] has waited for.
#[derive(Debug)]
pub(super) enum Due {
    /// The keeper answered whether the rules are in the kernel.
    Installed(Result<(), masq::Error>),
    /// It is time for [`HostRules::check`].
    Check,
}

impl HostRules {
    /// Finds out whether masquerading can work here at all. `guard`: the UDP port of the overlay, if it has one.
    ///
    /// # Errors
    /// Masquerading is wanted and cannot work.
    pub(super) fn start(
        settings: &Settings,
        config: &Config,
        guard: Option<Guard>,
    ) -> Result<HostRules, DaemonError> {
        // An unreadable file was logged when the previous subnet was looked for.
        let older = EnvFile::read(&settings.subnet_file).ok().flatten();
        let flavour = if config.enable_nftables { Flavour::Nftables } else { Flavour::Iptables };
        let network = older.map(|file| file.network);
        let keeper = Keeper::start(flavour, settings.masq, config.network, network, guard)?;
        Ok(HostRules {
            settings: settings.masq,
            keeper,
            subnet: older.map(|file| file.subnet.trunc()),
            pending: None,
            withheld: settings.masq.masquerade,
            installed: false,
            check_at: Instant::now() + NEVER,
        })
    }

    /// Asks the keeper for the rules of `subnet`. Its programs may take many seconds: [`HostRules::due`] tells when the
    /// rules are there.
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

    /// Whether `subnet.env` has to wait, since it promises masquerading that is not there yet.
    pub(super) fn withheld(&self) -> bool {
        self.withheld
    }

    /// Whether the rules were installed; `None` if there should be none.
    pub(super) fn in_place(&self) -> Option<bool> {
        self.keeper.wants_any().then(|| self.keeper.in_place())
    }

    /// Waits for the keeper's answer or the next check. Cancel-safe.
    pub(super) async fn due(&mut self) -> Due {
        let check_at = self.check_at;
        tokio::select! {
            result = answer(&mut self.pending) => Due::Installed(result),
            () = sleep_until(check_at) => Due::Check,
        }
    }

    /// Notes the keeper's answer.
    ///
    /// # Errors
    /// Masquerading is wanted and its first installation failed. A later failure is logged, and the keeper tries again.
    pub(super) fn settle(&mut self, result: Result<(), masq::Error>) -> Result<(), DaemonError> {
        debug_assert!(self.pending.is_none(), "the answer was taken from its slot");
        debug_assert!(!self.withheld || self.settings.masquerade, "nothing else holds up subnet.env");
        match result {
            Ok(()) => self.withheld = false,
            Err(error) => {
                // The operator's own rules stand in the way, and containers reach their peers without masquerading.
                let is_in_the_way = matches!(error, masq::Error::Hidden { .. });
                if self.withheld && !is_in_the_way {
                    return Err(error.into());
                }
                self.withheld = false;
                error!("cannot install masquerade and forward rules: {error}; trying again");
            }
        }
        Ok(())
    }

    /// Puts the blackhole route back if it is missing; the rules have their own thread.
    pub(super) async fn check(&mut self, netlink: &Netlink) {
        debug_assert!(self.subnet.is_some() || !self.installed, "rules are installed for a subnet");
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

    /// Removes rules and blackhole route at the daemon's end, if that was asked for.
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

/// Waits for the answer and empties the slot; waits for ever if the slot is empty.
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
