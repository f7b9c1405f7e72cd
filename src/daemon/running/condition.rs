//! How a network is: whether it is ready and why it is not, for systemd, monitors and the person who asks.

use super::Running;
use crate::backend::Trouble;
use crate::daemon::samples;
use crate::lease::Basis;
use crate::log;
use crate::report::{self, Lines, Sample, State, Summary, metric};
use std::io::Write;
use std::time::SystemTime;
use tracing::info;

impl Running {
    /// Tells systemd whether we are ready, and what is wrong.
    pub(super) fn tell_state(&mut self) {
        let mut text = match &self.network {
            Some((subnet, _)) => format!("{} backend, subnet {subnet}", self.config.backend.kind),
            None => "waiting for a subnet lease".to_owned(),
        };
        if self.network.is_some() && self.rules.withheld() {
            text += "; waiting for the masquerade rules";
        }
        if let Some(reason) = &self.store_lost {
            text += &format!("; without etcd: {reason}");
        }
        match self.basis() {
            Basis::Store => {}
            Basis::Cache => text += "; from the state directory",
            Basis::Lapsed => text += "; the lease has ended: not forwarding",
        }
        for trouble in [self.file.trouble(), self.hindrance().as_deref()].iter().flatten() {
            text += &format!("; {trouble}");
        }
        if self.announced || !self.is_up() {
            self.notifier.status(&text);
        } else {
            self.notifier.ready(&text);
            self.announced = true;
        }
    }

    /// Whether containers can be made: the network stands and the subnet file tells of it.
    pub(super) fn is_up(&self) -> bool {
        let is_up = self.network.is_some() && self.file.is_written() && self.basis() != Basis::Lapsed;
        debug_assert!(!is_up || !self.rules.withheld(), "subnet.env waits for the rules that it promises");
        is_up
    }

    /// Why a network that is up does not work; `None` if it works.
    pub(super) fn hindrance(&self) -> Option<String> {
        if let Some(trouble) = self.external.trouble().or(self.failing.text()) {
            return Some(trouble.to_owned());
        }
        if let Some(trouble) = self.trouble().filter(|trouble| trouble.is_grave) {
            return Some(trouble.reason.clone());
        }
        let wanted = self.publish.borrow().attrs.public_ip;
        let published = self.lease.borrow().and_then(|status| status.public_ip);
        let stale = published.filter(|published| *published != wanted);
        stale.map(|old| format!("peers still know {old}, since the store has not taken {wanted} yet"))
    }

    /// On whose word the lease is held.
    pub(super) fn basis(&self) -> Basis {
        self.lease.borrow().map_or(Basis::Store, |status| status.basis)
    }

    /// What of the network that is up cannot be set.
    fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref().filter(|_| self.network.is_some())
    }

    /// Why the network works less well than it should; `None` if it does not.
    pub(super) fn degraded(&self) -> Option<String> {
        let without_store = match self.basis() {
            Basis::Cache => {
                let reason = self.store_lost.as_deref().unwrap_or("it has not answered yet");
                Some(format!("running from the state directory, without etcd since the start: {reason}"))
            }
            _ => self.refused().map(|reason| format!("the lease cannot be renewed in etcd: {reason}")),
        };
        let missing = self.trouble().map(|trouble| trouble.reason.clone());
        let reasons: Vec<String> =
            [without_store, missing, self.detours.trouble()].into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Why a store that answers takes no write; `None` if it does.
    fn refused(&self) -> Option<&str> {
        let is_read_only = self.lease.borrow().is_some_and(|status| status.read_only);
        is_read_only.then(|| self.store_lost.as_deref().unwrap_or("it answers, but takes no write"))
    }

    /// Why there is no subnet yet, if the store says why.
    fn unserved(&self) -> Option<String> {
        let reason = self.refused().filter(|_| self.network.is_none())?;
        Some(format!("no subnet lease from etcd: {reason}"))
    }

    /// The state of this network at this moment.
    pub(super) async fn state(&self) -> State {
        let status = *self.lease.borrow();
        let data_path = match &self.network {
            Some((_, network)) => network.report(&self.netlink).await,
            None => None,
        };
        let hindrance = self.hindrance().or_else(|| self.unserved());
        let left = status.and_then(|status| status.deadline).map(|at| at.saturating_sub(self.clock.now()));
        State {
            network: self.name.clone(),
            alive: self.is_alive(),
            ready: self.is_up() && hindrance.is_none(),
            degraded: self.degraded(),
            hindrance,
            upkeep: self.upkeep_samples(),
            backend: self.config.backend.kind.clone(),
            store_up: status.is_some_and(|status| !status.store_out),
            lease: report::Lease {
                held: status.is_some_and(|status| status.subnet.is_some()),
                expiry: left.and_then(|left| SystemTime::now().checked_add(left)),
                from_cache: self.basis() != Basis::Store,
                samples: samples::of(status, self.cache_failures.get(), self.detours.count()),
            },
            rules_in_place: self.rules.in_place(),
            data_path,
        }
    }

    pub(super) fn upkeep_samples(&self) -> Vec<Sample> {
        let failing = u64::from(self.failing.text().is_some() || self.trouble().is_some());
        let failing = Sample::new(&metric::REPAIR_FAILING, "repair_failing", failing);
        self.external.samples().into_iter().chain([failing]).collect()
    }

    /// Whether no worker has ended by itself.
    pub(super) fn is_alive(&self) -> bool {
        self.network.as_ref().is_none_or(|(_, network)| network.is_alive())
    }

    /// Prints the counters to stderr, without the log's format: they are for the person who sent the signal.
    pub(super) async fn report(&self) {
        if self.network.is_some() {
            let text = Lines(&self.state().await).to_string();
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }

    /// Prints the counters at the end. In the journal they are one line.
    pub(super) async fn farewell(&self) {
        if !log::is_journal() {
            self.report().await;
        } else if self.network.is_some() {
            info!("counters: {}", Summary(&self.state().await));
        }
    }
}
