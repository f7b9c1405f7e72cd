//! Masquerade and forward rules and the blackhole route, along the lease's life: there before `subnet.env` is
//! written, kept every resync period, removed at the end if so asked.

use super::{DaemonError, Settings};
use crate::masq::{self, Flavour, Keeper};
use crate::netlink::Netlink;
use crate::subnet::{Config, EnvFile};
use ipnet::Ipv4Net;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// For a timer that is not wanted.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What this host has for its subnet beside the backend.
pub(super) struct HostRules {
    settings: masq::Settings,
    keeper: Keeper,
    /// Whose blackhole route may be there: the last run's subnet, then ours.
    subnet: Option<Ipv4Net>,
    installed: bool,
    check_at: Instant,
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
            installed: false,
            check_at: Instant::now() + NEVER,
        })
    }

    /// Makes the rules those of `subnet`.
    ///
    /// # Errors
    /// Masquerading is wanted and the first try fails. Anything later is logged and tried again.
    pub(super) async fn set(&mut self, subnet: Ipv4Net, netlink: &Netlink) -> Result<(), DaemonError> {
        let (sender, done) = oneshot::channel();
        self.keeper.set(subnet, move |result| {
            let _ = sender.send(result);
        });
        let first = !std::mem::replace(&mut self.installed, true);
        match finished(done).await {
            Err(error) if first && self.settings.masquerade => return Err(error.into()),
            Err(error) => error!("cannot install masquerade and forward rules: {error}; trying again"),
            Ok(()) => {}
        }
        if let Some(older) = self.subnet.replace(subnet)
            && (older != subnet || !self.settings.blackhole)
        {
            remove_blackhole(older, netlink).await;
        }
        self.check(netlink).await;
        Ok(())
    }

    /// When [`HostRules::check`] is due.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
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
        if let Err(error) = finished(done).await {
            error!("cannot remove masquerade and forward rules: {error}");
        }
        if let Some(subnet) = self.subnet {
            remove_blackhole(subnet, netlink).await;
        }
    }
}

async fn finished(done: oneshot::Receiver<Result<(), masq::Error>>) -> Result<(), masq::Error> {
    done.await.unwrap_or_else(|_| Err(masq::Error::Thread("it has ended".to_owned())))
}

async fn remove_blackhole(subnet: Ipv4Net, netlink: &Netlink) {
    match netlink.remove_blackhole(subnet).await {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) => info!("{changes}"),
        Err(error) => warn!("{error}"),
    }
}
