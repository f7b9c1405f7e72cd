//! The hosts at the other end of a device of ours: ARP entries (IPv4 address → MAC) and, for VXLAN, the forwarding
//! database, FDB (MAC → outer IPv4 address).
//!
//! Entries that we set are permanent: the kernel neither lets them age nor asks the network for them. Every permanent
//! entry on the device counts as ours; entries that the kernel has learned stay.

use super::{Error, Netlink, Outcome, Stale};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use std::collections::{BTreeMap, BTreeSet};
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

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
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

impl Netlink {
    /// Reads the entries of one device. The family `Bridge` stands for the forwarding database.
    async fn entries(&self, family: AddressFamily, index: u32) -> Result<Vec<Entry>, Error> {
        let what = if family == AddressFamily::Bridge { "list FDB entries" } else { "list ARP entries" };
        let all: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .set_address_family(family)
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::request(what, error))?;
        let here = all.iter().filter(|message| message.header.ifindex == index);
        Ok(here.filter_map(Entry::from_message).collect())
    }

    /// Makes `wanted` the permanent ARP entries of a device of ours.
    ///
    /// # Errors
    /// The kernel does not let us read the present entries. Refused writes are in [`Outcome::failures`].
    pub async fn ensure_neighbours(
        &self,
        index: u32,
        wanted: &BTreeMap<Ipv4Addr, Mac>,
        stale: Stale,
    ) -> Result<Outcome, Error> {
        let mut set = wanted.clone();
        let mut remove = Vec::new();
        for entry in self.entries(AddressFamily::Inet, index).await? {
            if !entry.permanent {
                continue;
            }
            match wanted.get(&entry.address) {
                Some(mac) if entry.mac == Some(*mac) => drop(set.remove(&entry.address)),
                Some(_) => {}
                None => remove.push(self.delete_neighbour(index, entry.address)),
            }
        }
        let set = set.into_iter().map(|(ip, mac)| self.set_neighbour(index, ip, mac)).collect();
        let mut outcome = Outcome::default();
        outcome.write("ARP entries", set, remove, stale).await;
        Ok(outcome)
    }

    async fn set_neighbour(&self, index: u32, ip: Ipv4Addr, mac: Mac) -> Result<(), Error> {
        let request = self.handle.neighbours().add(index, ip.into()).link_layer_address(&mac.0).replace();
        let done = request.execute().await;
        done.map_err(|error| Error::request(format!("set ARP entry {ip} at {mac}"), error))
    }

    async fn delete_neighbour(&self, index: u32, ip: Ipv4Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
        let done = self.handle.neighbours().del(message).execute().await;
        done.map_err(|error| Error::request(format!("remove ARP entry {ip}"), error))
    }

    /// Makes `wanted` the permanent forwarding entries of a VXLAN device of ours. Entries of the all-zero MAC, which say
    /// where to flood, belong to the operator and stay.
    ///
    /// # Errors
    /// The kernel does not let us read the present entries. Refused writes are in [`Outcome::failures`].
    pub async fn ensure_fdb(
        &self,
        index: u32,
        wanted: &BTreeMap<Mac, Ipv4Addr>,
        stale: Stale,
    ) -> Result<Outcome, Error> {
        let mut right = BTreeSet::new();
        let mut wrong = Vec::new();
        for entry in self.entries(AddressFamily::Bridge, index).await? {
            let Some(mac) = entry.mac.filter(|mac| mac.is_unicast() && entry.permanent) else { continue };
            if wanted.get(&mac) == Some(&entry.address) {
                right.insert(mac);
            } else {
                wrong.push((mac, entry.address));
            }
        }
        // Setting the entry of a MAC replaces a wrong one. A wrong one beside a right one has to be removed.
        wrong.retain(|(mac, _)| !wanted.contains_key(mac) || right.contains(mac));
        let set = wanted.iter().filter(|(mac, _)| !right.contains(mac));
        let set = set.map(|(mac, ip)| self.set_fdb(index, *mac, *ip)).collect();
        let remove = wrong.into_iter().map(|(mac, ip)| self.delete_fdb(index, mac, ip)).collect();
        let mut outcome = Outcome::default();
        outcome.write("FDB entries", set, remove, stale).await;
        Ok(outcome)
    }

    async fn set_fdb(&self, index: u32, mac: Mac, ip: Ipv4Addr) -> Result<(), Error> {
        let request = self.handle.neighbours().add_bridge(index, &mac.0);
        let request = request.flags(NeighbourFlags::Own).destination(ip.into()).replace();
        let done = request.execute().await;
        done.map_err(|error| Error::request(format!("set FDB entry {mac} at {ip}"), error))
    }

    async fn delete_fdb(&self, index: u32, mac: Mac, ip: Ipv4Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Own;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
        let done = self.handle.neighbours().del(message).execute().await;
        done.map_err(|error| Error::request(format!("remove FDB entry {mac} at {ip}"), error))
    }
}

#[cfg(test)]
mod tests;
