//! The choice of the external interface: the device that carries the overlay, the address of it that is bound, and the
//! address that is advertised to peers.
//!
//! The order is flannel's: every `-iface` as written, then every `-iface-regex`, then `-iface-can-reach`. With none of
//! the three it is the owner of `-public-ip`, and without that flag the device of the first default route.

#[cfg(test)]
mod tests;

use crate::log::phrases;
use crate::netlink::{Address, Link, Netlink, RouteTo};
use regex::Regex;
use std::net::Ipv4Addr;

/// What the operator says about the external interface.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Names or IPv4 addresses of interfaces, tried in order.
    pub names: Vec<String>,
    /// Patterns, tried in order after all names. A pattern is for an address or, if none matches, for a name.
    pub regexes: Vec<Regex>,
    /// An address to reach. The interface and source address by which the kernel reaches it are tried last.
    pub can_reach: Option<Ipv4Addr>,
    /// The address to advertise to peers. Without it, the bound address is advertised.
    pub public_ip: Option<Ipv4Addr>,
}

/// The interface that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The number by which the kernel knows the device.
    pub index: u32,
    /// The name of the device.
    pub name: String,
    /// The MTU of the device in bytes, which is never 0.
    pub mtu: u32,
    /// The address to bind to.
    pub address: Ipv4Addr,
    /// The address that peers send to.
    pub public_ip: Ipv4Addr,
}

/// Why no interface could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// No interface that the operator named can be used. The text holds the reasons.
    #[error("no usable interface: {0}")]
    NoneMatches(String),
    /// Only `-public-ip` names the interface, and no interface has that address.
    #[error(
        "no interface has the address {0} of -public-ip; if it is the outside of a NAT, name the interface \
         with -iface too"
    )]
    PublicIpNotOwned(Ipv4Addr),
    /// No flag names the interface, and there is no default route.
    #[error("there is no IPv4 default route to tell the interface; name it with -iface")]
    NoDefaultRoute,
    /// The choice leads to a device that cannot carry the overlay.
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
    /// The route to [`Choice::can_reach`], or the reason why there is none.
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
    let (name, address) = (&external.name, external.address);
    tracing::info!("{} {name} and address {address}", phrases::INTERFACE_CHOSEN);
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

    /// The choice when no flag names the interface.
    fn implied(&self, public_ip: Option<Ipv4Addr>) -> Result<(&Link, Ipv4Addr), ChoiceError> {
        if let Some(ip) = public_ip {
            let link = self.owner(ip).ok_or(ChoiceError::PublicIpNotOwned(ip))?;
            return usable(link).map(|link| (link, ip)).map_err(ChoiceError::Unusable);
        }
        let index = self.default_link.ok_or(ChoiceError::NoDefaultRoute)?;
        let link = self.link(index).ok_or(ChoiceError::NoDefaultRoute)?;
        self.with_best_address(link).map_err(ChoiceError::Unusable)
    }

    /// The choice among names, then patterns, then the address to reach. A failure is logged, and the next is tried.
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

    /// The first usable match among all addresses or, if there is none, among all names.
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

    /// The addresses of a link that could carry the overlay, the best first: global before link-local, then permanent
    /// before dynamic, then in the order of the kernel.
    fn candidates(&self, link: &Link) -> Vec<Ipv4Addr> {
        let mut found: Vec<_> = self
            .addresses
            .iter()
            .filter(|a| a.link_index == link.index && !a.deprecated && is_unicast(a.address))
            .collect();
        found.sort_by_key(|a| (a.address.is_link_local(), !a.permanent));
        found.iter().map(|a| a.address).collect()
    }
}

fn is_unicast(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
}

/// The link, if it can carry the overlay.
fn usable(link: &Link) -> Result<&Link, String> {
    match link {
        Link { mtu: 0, name, .. } => Err(format!("interface {name} has no MTU")),
        Link { up: false, name, .. } => Err(format!("interface {name} is down")),
        _ => Ok(link),
    }
}
