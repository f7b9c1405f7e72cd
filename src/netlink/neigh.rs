//! The hosts at the other end of a device of ours: ARP entries (IPv4 address → MAC) and, for VXLAN, the forwarding
//! database, FDB (MAC → outer IPv4 address).
//!
//! Entries that we set are permanent: the kernel neither lets them age nor asks the network for them. A permanent ARP
//! entry is ours if its address lies in the overlay's network. A forwarding entry names no address of the overlay, so it
//! is ours if its MAC stands in an ARP entry of ours. Everything else on the device is somebody else's and stays.

use super::route_set::unless_gone;
use super::{Error, Netlink};
use ipnet::Ipv4Net;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An Ethernet address of six bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it can be the address of one device. The address of a group cannot, and neither can all zeros.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The address with its first two bits changed to say that it belongs to one device and that no manufacturer has
    /// assigned it (IEEE 802, section 8.2).
    pub fn locally_administered(mut self) -> Self {
        self.0[0] = self.0[0] & !1 | 2;
        debug_assert!(self.is_unicast());
        self
    }

    /// `None` if these are not six bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The error for a text that is not an Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address like 0a:1b:2c:3d:4e:5f")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    /// Reads six pairs of hexadecimal digits, separated by colons or dashes.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split([':', '-']);
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or(MacError)?;
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        if pairs.next().is_some() { Err(MacError) } else { Ok(Self(bytes)) }
    }
}

/// An entry of either table, as the kernel holds it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    address: Ipv4Addr,
    mac: Option<Mac>,
    permanent: bool,
}

impl Entry {
    fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
                // In the forwarding database of a VXLAN device, NDA_DST is bare bytes without an address family.
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                    address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_bytes(bytes),
                _ => {}
            }
        }
        // The state is a set of bits: `NUD_NOARP` often stands beside `NUD_PERMANENT`.
        let permanent = u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0;
        Some(Self { address: address?, mac, permanent })
    }
}

/// What a look at the ARP entries of a device has found.
#[derive(Debug, Default)]
pub struct NeighbourSurvey {
    /// The addresses whose entry is as wanted.
    pub right: BTreeSet<Ipv4Addr>,
    /// The addresses of the network whose entry is not wanted.
    pub stale: Vec<Ipv4Addr>,
    /// The MACs of entries of the network that are stale or wrong.
    pub left: BTreeSet<Mac>,
    /// The MACs of permanent entries outside of the network. Another program on the device needs them.
    pub foreign: BTreeSet<Mac>,
}

/// What a look at the forwarding entries of a device has found.
#[derive(Debug, Default)]
pub struct FdbSurvey {
    /// The MACs whose entry is as wanted.
    pub right: BTreeSet<Mac>,
    /// The entries that are not wanted, and those that stand beside a wanted one of their MAC.
    pub stale: Vec<(Mac, Ipv4Addr)>,
}

impl Netlink {
    /// Reads the permanent entries of one device. The family `Bridge` stands for the forwarding database.
    async fn entries(&self, family: AddressFamily, index: u32) -> Result<Vec<Entry>, Error> {
        let what = if family == AddressFamily::Bridge { "list FDB entries" } else { "list ARP entries" };
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        // The two tables take the device in two places (Linux net/core/neighbour.c, net/core/rtnetlink.c).
        if family == AddressFamily::Bridge {
            request.header.ifindex = index;
        } else {
            request.attributes.push(NeighbourAttribute::IfIndex(index));
        }
        let keep = |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == index => {
                Entry::from_message(&message).filter(|entry| entry.permanent)
            }
            _ => None,
        };
        self.dump(what, RouteNetlinkMessage::GetNeighbour(request), keep).await
    }

    /// Compares the permanent ARP entries of a device with the wanted ones. An entry is ours if its address lies in
    /// `network`.
    ///
    /// # Errors
    /// The kernel does not let us read the present entries.
    pub async fn survey_neighbours(
        &self,
        index: u32,
        network: Ipv4Net,
        wanted: impl Fn(Ipv4Addr) -> Option<Mac>,
    ) -> Result<NeighbourSurvey, Error> {
        let mut survey = NeighbourSurvey::default();
        for entry in self.entries(AddressFamily::Inet, index).await? {
            if !network.contains(&entry.address) {
                survey.foreign.extend(entry.mac);
                continue;
            }
            match wanted(entry.address) {
                Some(mac) if entry.mac == Some(mac) => drop(survey.right.insert(entry.address)),
                Some(_) => survey.left.extend(entry.mac),
                None => {
                    survey.left.extend(entry.mac);
                    survey.stale.push(entry.address);
                }
            }
        }
        Ok(survey)
    }

    /// The permanent ARP entries of a device.
    ///
    /// # Errors
    /// The kernel does not let us read the present entries.
    pub(super) async fn neighbours(&self, index: u32) -> Result<Vec<(Ipv4Addr, Option<Mac>)>, Error> {
        let entries = self.entries(AddressFamily::Inet, index).await?;
        Ok(entries.into_iter().map(|entry| (entry.address, entry.mac)).collect())
    }

    /// Sets a permanent ARP entry, in the place of any other for the address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn set_neighbour(&self, index: u32, ip: Ipv4Addr, mac: Mac) -> Result<(), Error> {
        let request = self.handle.neighbours().add(index, ip.into()).link_layer_address(&mac.0).replace();
        let done = request.execute().await;
        done.map_err(|error| Error::request(format!("set ARP entry {ip} at {mac}"), error))
    }

    /// Removes an ARP entry.
    ///
    /// # Errors
    /// The kernel refuses. An entry that is gone already is no error.
    pub async fn remove_neighbour(&self, index: u32, ip: Ipv4Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
        let done = self.handle.neighbours().del(message).execute().await;
        unless_gone(done.map_err(|error| Error::request(format!("remove ARP entry {ip}"), error)))
    }

    /// Compares the permanent forwarding entries of a VXLAN device with the wanted ones. `stale` says whether the entry
    /// of a MAC that is not wanted is one of ours. Entries of the all-zero MAC, which say where to flood, belong to the
    /// operator.
    ///
    /// # Errors
    /// The kernel does not let us read the present entries.
    pub async fn survey_fdb(
        &self,
        index: u32,
        wanted: impl Fn(Mac) -> Option<Ipv4Addr>,
        stale: impl Fn(Mac) -> bool,
    ) -> Result<FdbSurvey, Error> {
        let mut survey = FdbSurvey::default();
        let mut beside = Vec::new();
        for entry in self.entries(AddressFamily::Bridge, index).await? {
            let Some(mac) = entry.mac.filter(|mac| mac.is_unicast()) else { continue };
            match wanted(mac) {
                Some(address) if address == entry.address => drop(survey.right.insert(mac)),
                Some(_) => beside.push((mac, entry.address)),
                None if stale(mac) => survey.stale.push((mac, entry.address)),
                None => {}
            }
        }
        // Setting the entry of a MAC replaces a wrong one. A wrong one beside a right one has to be removed.
        survey.stale.extend(beside.into_iter().filter(|(mac, _)| survey.right.contains(mac)));
        Ok(survey)
    }

    /// Sets a permanent forwarding entry, in the place of any other for the MAC.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn set_fdb(&self, index: u32, mac: Mac, ip: Ipv4Addr) -> Result<(), Error> {
        let request = self.handle.neighbours().add_bridge(index, &mac.0);
        let request = request.flags(NeighbourFlags::Own).destination(ip.into()).replace();
        let done = request.execute().await;
        done.map_err(|error| Error::request(format!("set FDB entry {mac} at {ip}"), error))
    }

    /// Removes a forwarding entry.
    ///
    /// # Errors
    /// The kernel refuses. An entry that is gone already is no error.
    pub async fn remove_fdb(&self, index: u32, mac: Mac, ip: Ipv4Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Own;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
        let done = self.handle.neighbours().del(message).execute().await;
        unless_gone(done.map_err(|error| Error::request(format!("remove FDB entry {mac} at {ip}"), error)))
    }
}

#[cfg(test)]
mod tests;
