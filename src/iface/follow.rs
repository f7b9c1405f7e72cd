//! What has become of an interface that was chosen earlier, and what takes its place.
//!
//! As long as the host has the address, the interface is the one that has it, whatever its name is: a device may be
//! renamed, or become a port of the bridge or bond that takes over its address. When the address is gone, the flag that
//! chose it decides ([`By`]): another address of the interface of that name, or of the bridge above it; another one
//! that the pattern matches; the way to the address to reach; with no flag, another address of the same device, else
//! that of the default route. An address that was given by a flag is waited for, and no link-local address takes the place
//! of another kind.

use super::{By, Choice, External, Found, Snapshot, Want};
use crate::netlink::{Error, Netlink};
use std::net::Ipv4Addr;

/// What a look at an interface has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The host has the address.
    There {
        /// The interface that has it now.
        external: External,
        /// What keeps packets from passing, if anything does.
        trouble: Option<String>,
        /// The other addresses of the host.
        beside: Vec<Ipv4Addr>,
    },
    /// The host has lost the address, and this one takes its place.
    Replaced {
        /// What takes its place.
        external: External,
        /// How the address was lost.
        trouble: String,
    },
    /// The host has lost the address, and nothing takes its place: the text says how and what is waited for.
    Left(String),
}

/// Looks at the kernel's tables for what has become of `current`, which `choice` led to.
///
/// # Errors
/// The kernel's tables could not be read.
pub async fn stand(netlink: &Netlink, choice: &Choice, current: &External) -> Result<Standing, Error> {
    let mut snapshot = Snapshot {
        links: netlink.links().await?,
        addresses: netlink.addresses(None).await?,
        ..Snapshot::default()
    };
    if snapshot.owner(current.address, None).is_none() {
        match (&current.by, choice.can_reach) {
            (By::DefaultRoute, _) => snapshot.default_link = netlink.default_route_link().await?,
            (By::Reach, Some(ip)) => {
                snapshot.reach = Some(netlink.route_to(ip).await.map_err(|e| e.to_string()));
            }
            _ => {}
        }
    }
    Ok(snapshot.standing(choice, current))
}

impl Snapshot {
    pub(super) fn standing(&self, choice: &Choice, current: &External) -> Standing {
        let Some(link) = self.owner(current.address, Some(current.index)) else {
            return self.after_loss(choice, current);
        };
        let mut external = External::new(link, current.address, choice, current.by.clone());
        if link.index == current.index {
            // A new MTU of the same link does not concern containers that exist.
            external.mtu = current.mtu;
        }
        let trouble = match (link.up, link.running) {
            (false, _) => Some(format!("{} is down", link.name)),
            (true, false) => Some(format!("{} has no carrier", link.name)),
            (true, true) => None,
        };
        let others = self.addresses.iter().map(|a| a.address).filter(|address| *address != current.address);
        Standing::There { external, trouble, beside: others.collect() }
    }

    fn after_loss(&self, choice: &Choice, current: &External) -> Standing {
        let External { name, address, .. } = current;
        let link = self.links.iter().find(|link| link.name == *name).or_else(|| self.link(current.index));
        let mut trouble = match link {
            None => format!("{name} is gone"),
            Some(_) => format!("{name} has lost its address {address}"),
        };
        if let Some((link, address)) = self.successor(choice, current) {
            let external = External::new(link, address, choice, current.by.clone());
            return Standing::Replaced { external, trouble };
        }
        let other = link.and_then(|link| self.candidates(link).into_iter().next());
        if let (By::Address, Some(other)) = (&current.by, other) {
            trouble += &format!(" and has {other}, but the flags ask for {address}");
        }
        Standing::Left(trouble)
    }

    /// What takes the place of an address that is gone.
    fn successor(&self, choice: &Choice, current: &External) -> Option<Found<'_>> {
        // A host gives itself a link-local address where DHCP is silent, and no peer of another link can send to it.
        let fit = |found: &Found| !found.1.is_link_local() || current.address.is_link_local();
        // The same device, which may have another name or number by now, and the bridge or bond above it.
        let same = || {
            let link = self.links.iter().find(|link| link.name == current.name);
            let link = link.or_else(|| self.link(current.index))?;
            let above = self.masters(link);
            let mut way = std::iter::once(link).chain(above);
            way.find_map(|link| self.with_best_address(link, Want::Up).ok().filter(fit))
        };
        let found = match &current.by {
            By::Address => None,
            By::Name(name) => self.by_name(name, Want::Up).ok().filter(fit).or_else(same),
            By::Regex(number) => self.by_regex(choice.regexes.get(*number)?, Want::Up).ok(),
            By::Reach => self.by_reach(choice.can_reach?, Want::Up).ok(),
            By::DefaultRoute => same().or_else(|| {
                let link = self.link(self.default_link?)?;
                self.with_best_address(link, Want::Up).ok()
            }),
        };
        found.filter(fit)
    }
}
