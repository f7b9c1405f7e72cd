//! The `host-gw` backend sets a plain route to each peer's subnet, with the peer as gateway. There is no tunnel, so
//! every peer must be on the external interface's own link.
//!
//! The routes stay when the process goes. They carry our protocol number, by which the next start knows them.

use super::tables::Tables;
use super::wanted::Wanted;
use super::{Backend, BackendError, Look, Network, Progress, Setup, Trouble};
use crate::iface::External;
use crate::netlink::{Change, Changes, Netlink, Territory};
use crate::report::{DataPath, Sample, metric};
use crate::subnet::{Event, Lease, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use ipnet::Ipv4Net;
use std::rc::Rc;
use std::time::Duration;
use tracing::warn;

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "host-gw";

/// The `host-gw` backend as configured.
#[derive(Debug, Clone)]
pub(super) struct Config {
    network: Ipv4Net,
    subnet_len: u8,
    external: External,
    attrs: LeaseAttrs,
}

impl Config {
    pub(super) fn configure(setup: Setup<'_>) -> Result<Config, BackendError> {
        let external = setup.external;
        let attrs = LeaseAttrs { backend_type: Some(KIND.to_owned()), ..LeaseAttrs::new(external.public_ip) };
        let (network, subnet_len) = (setup.config.network, setup.config.subnet_len);
        Config { network, subnet_len, external: external.clone(), attrs }.over(external)
    }

    /// This config over `external`.
    fn over(&self, external: &External) -> Result<Config, BackendError> {
        if external.public_ip != external.address {
            return Err(BackendError::PublicIp {
                public_ip: external.public_ip,
                name: external.name.clone(),
                address: external.address,
            });
        }
        let attrs = LeaseAttrs { public_ip: external.public_ip, ..self.attrs.clone() };
        // The MTU that containers were told stays.
        let external = External { mtu: self.external.mtu, ..external.clone() };
        Ok(Config { external, attrs, ..self.clone() })
    }
}

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    fn mtu(&self) -> u32 {
        self.external.mtu
    }

    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError> {
        super::shared(self.over(external))
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
    tables: Tables,
    /// Peers whose route the kernel refuses, since they are not on the interface's link.
    off_link: usize,
}

impl Routes {
    fn new(config: Config) -> Routes {
        let external = config.external.index;
        let territory = Territory {
            network: config.network,
            subnet_len: config.subnet_len,
            device: None,
            external: Some(external),
        };
        Routes { config, tables: Tables::new(Wanted::new(territory, external), false), off_link: 0 }
    }

    fn follow(&mut self, event: &Event) {
        match event {
            Event::Added(lease) if is_ours(lease) => {
                self.tables.upkeep.strangers.remove(lease.subnet);
                self.tables.wanted.put(lease.subnet, lease.attrs.public_ip, None);
            }
            Event::Added(lease) => {
                self.tables.upkeep.strangers.add(lease);
                self.tables.wanted.remove(lease.subnet);
            }
            Event::Removed(lease) => {
                self.tables.upkeep.strangers.remove(lease.subnet);
                self.tables.wanted.remove(lease.subnet);
            }
        }
    }

    async fn work(&mut self, netlink: &Netlink, look: Look) -> Result<Progress, BackendError> {
        let name = self.config.external.name.clone();
        if self.tables.begins(look) {
            // A device that was made anew has another number, so the name counts.
            let link = netlink.link_by_name(&name).await?.ok_or(BackendError::NoLink(name.clone()))?;
            self.config.external.index = link.index;
            self.tables.wanted.external = link.index;
            self.tables.wanted.territory.external = Some(link.index);
            self.tables.begin(Changes::default());
        }
        let progress = self.tables.step(netlink, &name).await?;
        if progress == Progress::Done {
            self.count_off_link();
        }
        Ok(progress)
    }

    fn count_off_link(&mut self) {
        let count = self.tables.upkeep.refused_with(&[libc::ENETUNREACH, libc::EHOSTUNREACH]);
        if count > 0 && count != self.off_link {
            let name = &self.config.external.name;
            warn!("{count} peers are not on {name}'s own link: host-gw cannot reach them (vxlan would)");
        }
        self.off_link = count;
    }
}

impl Network for Routes {
    fn apply(&mut self, events: &[Event]) {
        self.tables.note_hosts(events);
        for event in events {
            self.follow(event);
        }
        self.tables.upkeep.strangers.tell(KIND);
    }

    fn follow(&mut self, external: &External) -> Result<(), BackendError> {
        self.config = self.config.over(external)?;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.tables.is_pending()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.tables.trouble()
    }

    fn repair_pause(&self) -> Duration {
        self.tables.upkeep.repair_pause()
    }

    fn concerns(&self, change: &Change) -> bool {
        match change {
            Change::Link { name, .. } => *name == self.config.external.name,
            Change::Address { link_index, .. } => *link_index == self.config.external.index,
            Change::Route { destination, .. } => self.config.network.contains(destination),
            Change::Overrun => true,
        }
    }

    fn is_looking(&self) -> bool {
        self.tables.is_looking()
    }

    fn maintain<'a>(
        &'a mut self,
        netlink: &'a Netlink,
        look: Look,
    ) -> LocalBoxFuture<'a, Result<Progress, BackendError>> {
        self.work(netlink, look).boxed_local()
    }

    fn report<'a>(&'a self, _netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>> {
        let mut path = self.tables.upkeep.report(self.tables.wanted.len());
        path.samples.push(Sample::new(&metric::OFF_LINK_PEERS, "off_link_peers", self.off_link as u64));
        ready(Some(path)).boxed_local()
    }
}

fn is_ours(lease: &Lease) -> bool {
    lease.attrs.backend_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
}
