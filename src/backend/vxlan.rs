//! The `vxlan` backend has a VXLAN device of the kernel's, and for each peer an ARP entry, a forwarding entry and a
//! route. The kernel carries the packets.
//!
//! - Every node publishes its device's MAC (`VtepMAC`). A packet to a peer's subnet goes by a route to the
//!   subnet's base address, by an ARP entry from there to the peer's MAC, and by a forwarding entry from there
//!   to the peer's PublicIP. All three are static, so packets still flow when the daemon has stopped.
//! - The device stays when the process goes, and the next start finds and keeps it with its MAC. If somebody deletes
//!   it, we make it again with the same MAC and every entry. After a reboot the MAC is the same too: it is derived
//!   from PublicIP, VNI and `/etc/machine-id`, so peers need not learn a new one.
//! - With `DirectRouting` a peer on the external interface's own link gets a plain route, as with host-gw.

use super::restarts::Restarts;
use super::tables::Tables;
use super::wanted::Wanted;
use super::{Backend, BackendError, Look, Network, Progress, Setup, Trouble};
use crate::iface::External;
use crate::masq::Guard;
use crate::netlink::{Change, Changes, DEFAULT_VXLAN_PORT, Mac, Mtu, Netlink, Territory, Vxlan};
use crate::report::DataPath;
use crate::subnet::{ConfigError, Event, Lease, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "vxlan";
/// The bytes of the outer IPv4, UDP and VXLAN headers and the inner Ethernet header.
const OVERHEAD: u32 = 50;
/// The smallest MTU of an IPv4 link (RFC 791).
const LEAST_MTU: u32 = 68;
/// The largest VNI. It has 24 bits, but `flannel.<VNI>` must fit into the 15 bytes of an interface's name.
const MAX_VNI: u32 = 9_999_999;
const _: () = assert!(MAX_VNI < 1 << 24);
const _: () = assert!("flannel.".len() + MAX_VNI.ilog10() as usize + 1 < libc::IFNAMSIZ);
/// How often within a minute we make a deleted device anew before we conclude that somebody else manages it.
const MOST_RESTARTS: usize = 10;
/// How often we remove an address of our network from the device before we leave it to whoever sets it.
const MOST_REMOVALS: usize = 3;

/// The `vxlan` backend as configured.
#[derive(Debug, Clone)]
pub(super) struct Config {
    network: Ipv4Net,
    subnet_len: u8,
    external: External,
    /// The device. The number of the link below it may change, and is set anew at every pass.
    device: Vxlan,
    direct_routing: bool,
    attrs: LeaseAttrs,
}

impl Config {
    /// Reads the config. The MAC is that of the device that an earlier run left, if there is one, else a derived one.
    pub(super) async fn configure(setup: Setup<'_>) -> Result<Config, BackendError> {
        let Setup { config, external, netlink, .. } = setup;
        let fields = &config.backend;
        let vni = fields.field("VNI")?.unwrap_or(1);
        if vni > MAX_VNI {
            return Err(bad("VNI", vni, format!("must be {MAX_VNI} or less")).into());
        }
        let port = fields.field::<u16>("Port")?.filter(|port| *port > 0).unwrap_or(DEFAULT_VXLAN_PORT);
        let name = format!("flannel.{vni}");
        let mac = netlink.vxlan_mac(&name).await?.filter(|mac| mac.is_unicast());
        let mac = mac.unwrap_or_else(|| derive_mac(&machine_id(), external.public_ip, vni));
        let device = Vxlan {
            name,
            vni,
            link_index: external.index,
            local: external.address,
            port,
            learning: fields.field("Learning")?.unwrap_or(false),
            gbp: fields.field("GBP")?.unwrap_or(false),
            mtu: mtu(fields.field("MTU")?, external)?,
            mac,
        };
        let attrs = LeaseAttrs {
            backend_type: Some(KIND.to_owned()),
            backend_data: Some(json!({ "VNI": vni, "VtepMAC": mac.to_string() }).into()),
            ..LeaseAttrs::new(external.public_ip)
        };
        let direct_routing = fields.field("DirectRouting")?.unwrap_or(false);
        let (network, subnet_len) = (config.network, config.subnet_len);
        Ok(Config { network, subnet_len, external: external.clone(), device, direct_routing, attrs })
    }

    /// This config over `external`. The MAC stays, so peers need not learn another one, and so does the MTU, unless the
    /// link is too narrow for it.
    fn over(&self, external: &External) -> Result<Config, BackendError> {
        let widest = mtu(None, external)?;
        let mut moved = self.clone();
        moved.external = external.clone();
        moved.device.link_index = external.index;
        moved.device.local = external.address;
        moved.device.mtu = self.device.mtu.min(widest);
        moved.attrs.public_ip = external.public_ip;
        Ok(moved)
    }
}

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    fn mtu(&self) -> u32 {
        self.device.mtu
    }

    fn guard(&self) -> Option<Guard> {
        Some(Guard { port: self.device.port, direct: self.direct_routing })
    }

    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError> {
        super::shared(self.over(external))
    }

    fn register<'a>(
        &'a self,
        netlink: &'a Netlink,
        subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>> {
        Tunnel::start(self.clone(), netlink, subnet).map(super::boxed).boxed_local()
    }
}

/// The device's MTU: the link's (or the configured one, which is the link's too) less the headers.
fn mtu(configured: Option<u32>, external: &External) -> Result<u32, BackendError> {
    let mut link = external.mtu;
    match configured.filter(|mtu| *mtu > 0) {
        Some(mtu) if mtu > link => {
            warn!("Backend.MTU {mtu} is more than {} carries: using {link}", external.name);
        }
        Some(mtu) => link = mtu,
        None => {}
    }
    debug_assert!(link <= external.mtu, "no packet is wider than the link");
    let mtu = link.saturating_sub(OVERHEAD);
    if mtu < LEAST_MTU {
        return Err(BackendError::Mtu { name: external.name.clone(), mtu: link });
    }
    Ok(mtu)
}

fn bad(field: &str, value: impl ToString, reason: String) -> ConfigError {
    ConfigError::Field { field: format!("Backend.{field}"), value: value.to_string(), reason }
}

fn machine_id() -> String {
    let paths = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    paths.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

/// A MAC that is always the same for this machine, address and VNI, and hardly ever another machine's. It is 46 bits
/// of a hash (FNV-1a, then the finalizer of SplitMix64 to spread it), since the results of [`std::hash`] may change.
fn derive_mac(machine_id: &str, public_ip: Ipv4Addr, vni: u32) -> Mac {
    let bytes = machine_id.trim().bytes().chain(public_ip.octets()).chain(vni.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [a, b, c, d, e, f, ..] = (hash ^ (hash >> 31)).to_be_bytes();
    let mac = Mac([a, b, c, d, e, f]).locally_administered();
    debug_assert!(mac.is_unicast(), "{mac}");
    mac
}

/// The MAC of the far end of the tunnel, from a lease that any flannel has written: `{"VtepMAC":"…"}` with or without
/// `VNI`, keys in any case.
fn vtep_mac(lease: &Lease) -> Option<Mac> {
    let Value::Object(data) = lease.attrs.backend_data.as_ref()?.value() else { return None };
    let mac = data.iter().find(|(key, _)| key.eq_ignore_ascii_case("VtepMAC"))?.1;
    mac.as_str()?.parse().ok().filter(|mac: &Mac| mac.is_unicast())
}

/// The `vxlan` backend at work.
#[derive(Debug)]
struct Tunnel {
    config: Config,
    subnet: Ipv4Net,
    /// The device's number (ifindex); 0 before there is one.
    index: u32,
    tables: Tables,
    /// How often we have removed each address of our network from the device.
    removed: BTreeMap<Ipv4Net, usize>,
    restarts: Restarts,
}

impl Tunnel {
    async fn start(config: Config, netlink: &Netlink, subnet: Ipv4Net) -> Result<Tunnel, BackendError> {
        let external = config.external.index;
        let territory = Territory {
            network: config.network,
            subnet_len: config.subnet_len,
            device: None,
            external: config.direct_routing.then_some(external),
        };
        let tables = Tables::new(Wanted::new(territory, external), config.direct_routing);
        let restarts = Restarts::new(MOST_RESTARTS);
        let mut network = Tunnel { config, subnet, index: 0, tables, removed: BTreeMap::new(), restarts };
        let mtu = Mtu::Exactly(network.config.device.mtu);
        let changes = network.ensure_device(netlink, mtu).await?;
        if !changes.is_empty() {
            info!("{}: {changes}", network.config.device.name);
        }
        Ok(network)
    }

    /// Sets device, MAC, address, MTU and state; returns what was missing.
    async fn ensure_device(&mut self, netlink: &Netlink, mtu: Mtu) -> Result<Changes, BackendError> {
        let external = &mut self.config.external;
        let link = netlink.link_by_name(&external.name).await?;
        external.index = link.ok_or(BackendError::NoLink(external.name.clone()))?.index;
        let device = &mut self.config.device;
        device.link_index = external.index;
        let (index, mut changes) = netlink.ensure_vxlan(device).await?;
        if index != self.index {
            netlink.disable_ipv6(&device.name);
            self.index = index;
        }
        let wanted = &mut self.tables.wanted;
        wanted.external = external.index;
        wanted.territory.device = Some(index);
        wanted.territory.external = self.config.direct_routing.then_some(external.index);
        changes.extend(self.ensure_address(netlink).await?);
        match netlink.ensure_link(index, mtu, true).await {
            Ok(more) => changes.extend(more),
            // The kernel opens the port only now. A device that stays down would only puzzle the operator.
            Err(error) if error.errno() == Some(libc::EADDRINUSE) => {
                netlink.remove_vxlan(index).await?;
                let device = &self.config.device;
                return Err(BackendError::VxlanPort { name: device.name.clone(), port: device.port });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(changes)
    }

    /// Gives the device its address. Of the others only those within our network are ours to remove, and one that always
    /// comes back is somebody's: two daemons of one VNI would remove each other's for ever.
    async fn ensure_address(&mut self, netlink: &Netlink) -> Result<Changes, BackendError> {
        let base = Ipv4Net::from(self.subnet.network());
        let spare = |address| self.removed.get(&address).is_some_and(|times| *times >= MOST_REMOVALS);
        let (changes, removed) = netlink.ensure_address(self.index, base, self.config.network, spare).await?;
        for address in removed {
            let times = self.removed.entry(address).or_default();
            *times += 1;
            if *times == MOST_REMOVALS {
                let name = &self.config.device.name;
                warn!("{name}: somebody sets the address {address} again and again; from now on it stays");
            }
        }
        Ok(changes)
    }

    fn added(&mut self, lease: &Lease) {
        let kind = lease.attrs.backend_type.as_deref();
        let upkeep = &mut self.tables.upkeep;
        if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(KIND)) {
            upkeep.unusable.remove(lease.subnet);
            upkeep.strangers.add(lease);
            return self.tables.wanted.remove(lease.subnet);
        }
        upkeep.strangers.remove(lease.subnet);
        if let Some(mac) = vtep_mac(lease).filter(|mac| *mac != self.config.device.mac) {
            upkeep.unusable.remove(lease.subnet);
            return self.tables.wanted.put(lease.subnet, lease.attrs.public_ip, Some(mac));
        }
        upkeep.unusable.add(lease, "no VtepMAC of a peer's");
        self.tables.wanted.remove(lease.subnet);
    }

    async fn work(&mut self, netlink: &Netlink, look: Look) -> Result<Progress, BackendError> {
        if self.tables.begins(look) {
            let before = self.index;
            let changes = self.ensure_device(netlink, Mtu::AtMost(self.config.device.mtu)).await?;
            if self.index != before {
                warn!("{} was deleted or changed; made it anew", self.config.device.name);
                self.restarts.note(Instant::now())?;
            }
            self.tables.begin(changes);
        }
        self.tables.step(netlink, &self.config.device.name).await
    }
}

impl Network for Tunnel {
    fn apply(&mut self, events: &[Event]) {
        self.tables.note_hosts(events);
        for event in events {
            match event {
                Event::Added(lease) => self.added(lease),
                Event::Removed(lease) => {
                    self.tables.upkeep.strangers.remove(lease.subnet);
                    self.tables.upkeep.unusable.remove(lease.subnet);
                    self.tables.wanted.remove(lease.subnet);
                }
            }
        }
        self.tables.upkeep.strangers.tell(KIND);
        self.tables.upkeep.unusable.tell(KIND);
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
        let external = &self.config.external;
        match change {
            Change::Link { index, name, .. } => *index == self.index || *name == external.name,
            Change::Address { link_index, .. } => *link_index == self.index || *link_index == external.index,
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
        ready(Some(self.tables.upkeep.report(self.tables.wanted.len()))).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(data: Value) -> Lease {
        let attrs = LeaseAttrs {
            backend_type: Some("vxlan".to_owned()),
            backend_data: Some(data.into()),
            ..LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 7))
        };
        Lease { subnet: "10.1.7.0/24".parse().unwrap(), attrs }
    }

    #[test]
    fn both_shapes_of_backend_data_are_read() {
        let expected = Mac([2, 0, 0, 0, 0, 7]);
        for data in [
            json!({"VtepMAC": "02:00:00:00:00:07"}),
            json!({"VNI": 1, "VtepMAC": "02:00:00:00:00:07"}),
            json!({"vtepmac": "02-00-00-00-00-07", "more": [1]}),
        ] {
            assert_eq!(vtep_mac(&lease(data.clone())), Some(expected), "{data}");
        }
        for data in [
            json!(null),
            json!("02:00:00:00:00:07"),
            json!({}),
            json!({"VtepMAC": 7}),
            json!({"VtepMAC": "x"}),
            json!({"VtepMAC": "01:00:5e:00:00:01"}),
            json!({"VtepMAC": "00:00:00:00:00:00"}),
        ] {
            assert_eq!(vtep_mac(&lease(data.clone())), None, "{data}");
        }
    }

    /// The derived values must never change, since peers hold them.
    #[test]
    fn the_derived_mac_is_stable_and_told_apart() {
        let id = "0123456789abcdef0123456789abcdef";
        let ip = Ipv4Addr::new(192, 0, 2, 1);
        let first = derive_mac(id, ip, 1);
        assert_eq!(first, derive_mac("0123456789abcdef0123456789abcdef\n", ip, 1));
        assert_eq!(first.to_string(), "76:bc:70:e5:a4:25");
        assert!(first.is_unicast() && first.0[0] & 2 == 2);
        let others =
            [derive_mac("", ip, 1), derive_mac(id, ip, 2), derive_mac(id, Ipv4Addr::new(192, 0, 2, 2), 1)];
        assert!(others.iter().all(|mac| *mac != first), "{others:?}");
        let many: std::collections::BTreeSet<_> =
            (0..50_000).map(|n| derive_mac(id, Ipv4Addr::from(0x0a00_0000 + n), 1)).collect();
        assert_eq!(many.len(), 50_000);
    }

    #[test]
    fn the_mtu_is_the_links_less_the_headers() {
        let external = |mtu| External {
            index: 2,
            name: "eth0".to_owned(),
            mtu,
            address: Ipv4Addr::new(192, 0, 2, 1),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            by: crate::iface::By::DefaultRoute,
        };
        assert_eq!(mtu(None, &external(1500)).unwrap(), 1450);
        assert_eq!(mtu(Some(0), &external(1500)).unwrap(), 1450);
        assert_eq!(mtu(Some(1400), &external(1500)).unwrap(), 1350);
        assert_eq!(mtu(Some(9000), &external(1500)).unwrap(), 1450);
        assert!(mtu(None, &external(117)).is_err());
    }
}
