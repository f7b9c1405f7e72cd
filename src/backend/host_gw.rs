//! The `host-gw` backend sets a plain route to each peer's subnet, with the peer as gateway. There is no tunnel, so
//! every peer must be on the external interface's own link.
//!
//! The routes stay when the process goes. They carry our protocol number, by which the next start knows them.

use super::upkeep::Upkeep;
use super::{Backend, BackendError, Network, Setup};
use crate::iface::External;
use crate::netlink::{Change, Changes, Error, Netlink, Outcome, Route, Stale, Territory};
use crate::report::{DataPath, Sample, metric};
use crate::subnet::{Event, Lease, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tracing::warn;

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "host-gw";

/// The `host-gw` backend as configured.
#[derive(Debug, Clone)]
pub(super) struct Config {
    network: Ipv4Net,
    external: External,
    attrs: LeaseAttrs,
}

impl Config {
    pub(super) fn configure(setup: Setup<'_>) -> Result<Config, BackendError> {
        let external = setup.external;
        if external.public_ip != external.address {
            return Err(BackendError::PublicIp {
                public_ip: external.public_ip,
                name: external.name.clone(),
                address: external.address,
            });
        }
        let attrs = LeaseAttrs {
            public_ip: external.public_ip,
            backend_type: Some(KIND.to_owned()),
            backend_data: None,
        };
        Ok(Config { network: setup.config.network, external: external.clone(), attrs })
    }
}

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    fn mtu(&self) -> u32 {
        self.external.mtu
    }

    fn register<'a>(
        &'a self,
        _netlink: &'a Netlink,
        _subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>> {
        ready(super::boxed(Ok(Routes::new(self.clone())))).boxed_local()
    }
}

/// The `host-gw` backend at work.
#[derive(Debug)]
struct Routes {
    config: Config,
    peers: BTreeMap<Ipv4Net, Ipv4Addr>,
    /// Peers whose route the kernel refuses, since they are not on the interface's link.
    off_link: usize,
    upkeep: Upkeep,
}

impl Routes {
    fn new(config: Config) -> Routes {
        Routes { config, peers: BTreeMap::new(), off_link: 0, upkeep: Upkeep::new() }
    }

    fn follow(&mut self, event: &Event) {
        match event {
            Event::Added(lease) if is_ours(lease) => {
                self.peers.insert(lease.subnet, lease.attrs.public_ip);
            }
            Event::Added(lease) => {
                self.upkeep.foreign_lease();
                let kind = lease.attrs.backend_type.as_deref();
                warn!(subnet = %lease.subnet, ?kind, "not a host-gw node's lease: ignored");
                self.peers.remove(&lease.subnet);
            }
            Event::Removed(lease) => {
                self.peers.remove(&lease.subnet);
            }
        }
        self.upkeep.peers_changed();
    }

    async fn compare(&mut self, netlink: &Netlink) -> Result<(), BackendError> {
        let name = self.config.external.name.clone();
        // A device that was made anew has another number, so the name counts.
        let link = netlink.link_by_name(&name).await?.ok_or(BackendError::NoLink(name.clone()))?;
        self.config.external.index = link.index;
        let mut outcome = self.routes(netlink, self.upkeep.stale()).await?;
        if self.upkeep.may_sweep(Instant::now(), outcome.stale, self.peers.len()) {
            outcome.changes.extend(self.routes(netlink, Stale::Remove).await?.changes);
        }
        self.count_off_link(&outcome);
        self.upkeep.conclude(&name, Changes::default(), outcome);
        Ok(())
    }

    fn count_off_link(&mut self, outcome: &Outcome) {
        let unreachable =
            |error: &&Error| matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH));
        let count = outcome.failures.iter().filter(unreachable).count();
        if count > 0 && count != self.off_link {
            let name = &self.config.external.name;
            warn!("{count} peers are not on {name}'s own link: host-gw cannot reach them (vxlan would)");
        }
        self.off_link = count;
    }

    async fn routes(&self, netlink: &Netlink, stale: Stale) -> Result<Outcome, BackendError> {
        let link_index = self.config.external.index;
        let route = |(subnet, peer): (&Ipv4Net, &Ipv4Addr)| {
            let route = Route { destination: *subnet, link_index, gateway: Some(*peer), onlink: false };
            (*subnet, route)
        };
        let wanted = self.peers.iter().map(route).collect();
        let territory = Territory { network: self.config.network, device: None };
        Ok(netlink.ensure_routes(&wanted, territory, stale).await?)
    }
}

impl Network for Routes {
    fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.follow(event);
        }
    }

    fn is_pending(&self) -> bool {
        self.upkeep.is_pending()
    }

    fn repair_pause(&self) -> Duration {
        self.upkeep.repair_pause()
    }

    fn concerns(&self, change: &Change) -> bool {
        match change {
            Change::Link { name, .. } => *name == self.config.external.name,
            Change::Address { link_index, .. } => *link_index == self.config.external.index,
            Change::Route { destination, .. } => self.config.network.contains(destination),
            Change::Overrun => true,
        }
    }

    fn maintain<'a>(&'a mut self, netlink: &'a Netlink) -> LocalBoxFuture<'a, Result<(), BackendError>> {
        self.compare(netlink).boxed_local()
    }

    fn report<'a>(&'a self, _netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>> {
        let mut path = self.upkeep.report(self.peers.len());
        path.samples.push(Sample::new(&metric::OFF_LINK_PEERS, "off_link_peers", self.off_link as u64));
        ready(Some(path)).boxed_local()
    }
}

fn is_ours(lease: &Lease) -> bool {
    lease.attrs.backend_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
}
