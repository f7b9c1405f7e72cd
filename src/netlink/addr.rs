//! The IPv4 addresses of devices.

use super::{Changes, Error, Netlink};
use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr};

/// How far an address is valid (`RT_SCOPE_*`, rtnetlink(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The address is valid everywhere.
    Global,
    /// The address is valid on this link.
    Link,
    /// The address is valid on this host.
    Host,
    /// The address has a scope number that the administrator defined.
    Other(u8),
}

/// An IPv4 address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The index of its device.
    pub link_index: u32,
    /// The local address itself.
    pub address: Ipv4Addr,
    /// The length of its on-link prefix, from 0 to 32.
    pub prefix_len: u8,
    /// How far the address is valid.
    pub scope: Scope,
    /// Whether the address never expires. An address from DHCP does.
    pub permanent: bool,
    /// Whether the address must not be used for anything new.
    pub deprecated: bool,
    /// Whether another address of the same prefix came first. When that one is removed, the kernel removes this one too.
    pub secondary: bool,
}

impl Address {
    /// Whether `ip` is of the prefix that this address puts on the link.
    pub fn reaches(&self, ip: Ipv4Addr) -> bool {
        Ipv4Net::new(self.address, self.prefix_len).is_ok_and(|net| net.contains(&ip))
    }

    /// Reads an address from a message of the kernel.
    pub(super) fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut peer = None;
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
                AddressAttribute::Address(IpAddr::V4(ip)) => peer = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Self {
            link_index: message.header.index,
            // On a point-to-point device, IFA_ADDRESS is the address of the far end.
            address: local.or(peer)?,
            prefix_len: message.header.prefix_len,
            scope: match message.header.scope {
                AddressScope::Universe => Scope::Global,
                AddressScope::Link => Scope::Link,
                AddressScope::Host => Scope::Host,
                other => Scope::Other(other.into()),
            },
            permanent: flags.contains(AddressFlags::Permanent),
            deprecated: flags.contains(AddressFlags::Deprecated),
            secondary: flags.contains(AddressFlags::Secondary),
        })
    }

    /// The address with its prefix length.
    fn net(&self) -> Option<Ipv4Net> {
        Ipv4Net::new(self.address, self.prefix_len).ok()
    }

    fn is(&self, wanted: Ipv4Net) -> bool {
        self.address == wanted.addr() && self.prefix_len == wanted.prefix_len()
    }
}

impl Netlink {
    /// Lists the IPv4 addresses of one device, or of all devices, in the order of the kernel.
    pub async fn addresses(&self, link_index: Option<u32>) -> Result<Vec<Address>, Error> {
        let messages = self.address_messages(link_index).await?;
        Ok(messages.iter().filter_map(Address::from_message).collect())
    }

    async fn address_messages(&self, link_index: Option<u32>) -> Result<Vec<AddressMessage>, Error> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let keep = |message| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                link_index.is_none_or(|index| message.header.index == index).then_some(message)
            }
            _ => None,
        };
        self.dump("list IPv4 addresses", RouteNetlinkMessage::GetAddress(request), keep).await
    }

    /// Makes `wanted` the only IPv4 address within `network` that a device of ours has: adds it if it is absent, and
    /// removes the others, unless `spare` says that one is to stay. An address outside of `network` is not ours.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn ensure_address(
        &self,
        link_index: u32,
        wanted: Ipv4Net,
        network: Ipv4Net,
        spare: impl Fn(Ipv4Net) -> bool,
    ) -> Result<(Changes, Vec<Ipv4Net>), Error> {
        debug_assert!(network.contains(&wanted.addr()), "{wanted} lies outside of {network}");
        let mut changes = Changes::default();
        let present = self.address_messages(Some(link_index)).await?;
        let is_wanted = |m: &AddressMessage| Address::from_message(m).is_some_and(|a| a.is(wanted));
        // The new address comes before the old ones go: with its last address a device loses all its routes.
        if !present.iter().any(is_wanted) {
            changes.push(self.add_address(link_index, wanted).await?);
        }
        let mut removed = Vec::new();
        for message in present.into_iter().filter(|m| !is_wanted(m)) {
            let Some(address) = Address::from_message(&message).and_then(|address| address.net()) else {
                continue;
            };
            if network.contains(&address.addr()) && !spare(address) {
                changes.extend(self.remove_address(message).await?);
                removed.push(address);
            }
        }
        // A primary address takes its secondary ones with it, and ours may have been one of them.
        if !removed.is_empty() && !self.addresses(Some(link_index)).await?.iter().any(|a| a.is(wanted)) {
            changes.push(self.add_address(link_index, wanted).await?);
        }
        Ok((changes, removed))
    }

    /// Removes the addresses of a device that `unwanted` says yes to.
    ///
    /// # Errors
    /// The kernel refuses. An address that is gone already is no error.
    pub(super) async fn remove_addresses(
        &self,
        link_index: u32,
        unwanted: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        for message in self.address_messages(Some(link_index)).await? {
            if Address::from_message(&message).is_some_and(|one| unwanted(one.address)) {
                changes.extend(self.remove_address(message).await?);
            }
        }
        Ok(changes)
    }

    async fn add_address(&self, link_index: u32, wanted: Ipv4Net) -> Result<String, Error> {
        let what = format!("add address {wanted} to link {link_index}");
        self.handle
            .address()
            .add(link_index, wanted.addr().into(), wanted.prefix_len())
            .execute()
            .await
            .map_err(|e| Error::request(&what, e))?;
        Ok(what)
    }

    async fn remove_address(&self, message: AddressMessage) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let Some(address) = Address::from_message(&message) else { return Ok(changes) };
        let what = format!(
            "remove address {}/{} of link {}",
            address.address, address.prefix_len, address.link_index
        );
        match self.handle.address().del(message).execute().await {
            Ok(()) => changes.push(what),
            Err(e) => {
                let e = Error::request(what, e);
                // This address went together with its primary one, which was removed before it.
                if e.errno() != Some(libc::EADDRNOTAVAIL) {
                    return Err(e);
                }
            }
        }
        Ok(changes)
    }
}
