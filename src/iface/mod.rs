//! Choice of the external interface: which device carries the overlay, which of its addresses is
//! bound, and which is advertised to peers.
//!
//! The order is flannel's: every `-iface` as written, every `-iface-regex`, `-iface-can-reach`; with
//! none of the three, the owner of `-public-ip`; without that, the first default route.

#[cfg(test)]
mod tests;

use crate::netlink::{Address, Link, Netlink, RouteTo};
use regex::Regex;
use std::net::Ipv4Addr;

/// What the operator said about the external interface.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Names or IPv4 addresses, tried in order.
    pub names: Vec<String>,
    /// Patterns for an address, else for a name, tried in order after all names.
    pub regexes: Vec<Regex>,
    /// The interface and source address by which the kernel reaches this address; tried last.
    pub can_reach: Option<Ipv4Addr>,
    /// The advertised address.
    pub public_ip: Option<Ipv4Addr>,
}

/// The chosen interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The kernel's number for the device.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes, never 0.
    pub mtu: u32,
    /// The address to bind to.
    pub address: Ipv4Addr,
    /// The address that peers send to.
    pub public_ip: Ipv4Addr,
}

/// Why no interface could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Nothing that the operator named can be used; the reasons, joined.
    #[error("no usable interface: {0}")]
    NoneMatches(String),
    /// `-public-ip` alone names the interface, and none has that address.
    #[error(
        "no interface has the address {0} of -public-ip; if it is the outside of a NAT, name the interface \
         with -iface too"
    )]
    PublicIpNotOwned(Ipv4Addr),
    /// No flag and no default route.
    #[error("there is no IPv4 default route to tell the interface; name it with -iface")]
    NoDefaultRoute,
    /// The device that the rules lead to cannot carry the overlay.
    #[error("{0}")]
    Unusable(String),
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
}

/// The kernel's tables, as far as the choice needs them.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    links: Vec<Link>,
    addresses: Vec<Address>,
    default_link: Option<u32>,
    /// The answer for [`Choice::can_reach`], or why there is none.
    reach: Option<Result<RouteTo, String>>,
}

/// Chooses the interface from the kernel's present tables.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<External, ChoiceError> {
    let reach = match choice.can_reach {
        Some(ip) => Some(netlink.route_to(ip).await.map_err(|e| e.to_string())),
        None => None,
    };
    let snapshot = Snapshot {
        links: netlink.links().await?,
        addresses: netlink.addresses(None).await?,
        default_link: netlink.default_route_link().await?,
        reach,
    };
    let external = snapshot.select(choice)?;
    tracing::info!("Using interface with name {} and address {}", external.name, external.address);
    if external.public_ip != external.address {
        tracing::info!("Using {} as external address", external.public_ip);
    }
    Ok(external)
}

impl Snapshot {
    fn select(&self, choice: &Choice) -> Result<External, ChoiceError> {
        let (link, address) =
            if choice.names.is_empty() && choice.regexes.is_empty() && choice.can_reach.is_none() {
                self.implied(choice.public_ip)?
            } else {
                self.named(choice)?
            };
        debug_assert!(link.up && link.mtu > 0, "only a usable link is chosen");
        Ok(External {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            address,
            public_ip: choice.public_ip.unwrap_or(address),
        })
    }

    /// No flag names the interface.
    fn implied(&self, public_ip: Option<Ipv4Addr>) -> Result<(&Link, Ipv4Addr), ChoiceError> {
        if let Some(ip) = public_ip {
            let link = self.owner(ip).ok_or(ChoiceError::PublicIpNotOwned(ip))?;
            return usable(link).map(|link| (link, ip)).map_err(ChoiceError::Unusable);
        }
        let index = self.default_link.ok_or(ChoiceError::NoDefaultRoute)?;
        let link = self.link(index).ok_or(ChoiceError::NoDefaultRoute)?;
        self.with_best_address(link).map_err(ChoiceError::Unusable)
    }

    /// Names, then patterns, then reach; a failure is logged and the next is tried.
    fn named(&self, choice: &Choice) -> Result<(&Link, Ipv4Addr), ChoiceError> {
        let names = choice.names.iter().map(|name| self.by_name(name));
        let regexes = choice.regexes.iter().map(|regex| self.by_regex(regex));
        let reach = choice.can_reach.iter().map(|ip| self.by_reach(*ip));
        let mut reasons = Vec::new();
        for attempt in names.chain(regexes).chain(reach) {
            match attempt {
                Ok(found) => return Ok(found),
                Err(reason) => {
                    tracing::warn!("Could not choose the interface: {reason}");
                    reasons.push(reason);
                }
            }
        }
        Err(ChoiceError::NoneMatches(reasons.join("; ")))
    }

    fn by_name(&self, name: &str) -> Result<(&Link, Ipv4Addr), String> {
        if let Ok(ip) = name.parse::<Ipv4Addr>() {
            let link =
                self.owner(ip).ok_or_else(|| format!("-iface {name}: no interface has that address"))?;
            return Ok((usable(link)?, ip));
        }
        let link = self.links.iter().find(|link| link.name == name);
        self.with_best_address(link.ok_or_else(|| format!("-iface {name}: no interface of that name"))?)
    }

    /// The first usable match among all addresses, else among all names.
    fn by_regex(&self, regex: &Regex) -> Result<(&Link, Ipv4Addr), String> {
        let matching_address = |link| {
            let found = self.candidates(link).into_iter().find(|ip| regex.is_match(&ip.to_string()));
            found.map(|ip| (link, ip))
        };
        let by_address =
            self.links.iter().filter_map(matching_address).map(|(link, ip)| Ok((usable(link)?, ip)));
        let named = self.links.iter().filter(|link| regex.is_match(&link.name));
        let by_name = named.map(|link| self.with_best_address(link));
        let mut failure = format!("-iface-regex {regex}: no address and no name match");
        for attempt in by_address.chain(by_name) {
            match attempt {
                Ok(found) => return Ok(found),
                Err(reason) => failure = format!("-iface-regex {regex}: {reason}"),
            }
        }
        Err(failure)
    }

    fn by_reach(&self, ip: Ipv4Addr) -> Result<(&Link, Ipv4Addr), String> {
        let route = match &self.reach {
            Some(Ok(route)) => route,
            Some(Err(reason)) => return Err(format!("-iface-can-reach {ip}: {reason}")),
            None => return Err(format!("-iface-can-reach {ip}: no route")),
        };
        let link = self.link(route.link_index);
        let link = usable(link.ok_or_else(|| format!("-iface-can-reach {ip}: its interface is gone"))?)?;
        match route.source {
            Some(source) => Ok((link, source)),
            None => self.with_best_address(link),
        }
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn owner(&self, ip: Ipv4Addr) -> Option<&Link> {
        self.addresses.iter().find(|a| a.address == ip).and_then(|a| self.link(a.link_index))
    }

    fn with_best_address<'a>(&self, link: &'a Link) -> Result<(&'a Link, Ipv4Addr), String> {
        let link = usable(link)?;
        let best = self.candidates(link).into_iter().next();
        best.map(|ip| (link, ip)).ok_or_else(|| format!("interface {} has no usable IPv4 address", link.name))
    }

    /// Addresses of a link that could carry the overlay, best first: global before link-local, then
    /// permanent before dynamic, then in the kernel's order.
    fn candidates(&self, link: &Link) -> Vec<Ipv4Addr> {
        let mut found: Vec<_> = self
            .addresses
            .iter()
            .filter(|a| a.link_index == link.index && !a.deprecated && is_unicast(a.address))
            .collect();
        found.sort_by_key(|a| (a.address.is_link_local(), !a.permanent));
        debug_assert!(found.is_sorted_by_key(|a| a.address.is_link_local()));
        found.iter().map(|a| a.address).collect()
    }
}

fn is_unicast(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
}

fn usable(link: &Link) -> Result<&Link, String> {
    match link {
        Link { mtu: 0, name, .. } => Err(format!("interface {name} has no MTU")),
        Link { up: false, name, .. } => Err(format!("interface {name} is down")),
        _ => Ok(link),
    }
}
