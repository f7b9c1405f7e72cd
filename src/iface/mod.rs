//! The choice of the external interface: the device that carries the overlay, the address of it that is bound, and the
//! address that is advertised to peers.
//!
//! The order is flannel's: every `-iface` as written, then every `-iface-regex`, then `-iface-can-reach`. With none of
//! the three it is the owner of `-public-ip`, and without that flag the device of the first default route. An interface
//! that is down is taken only if no other choice is up; the daemon then waits for it.
//!
//! `follow` tells later what has become of the interface: its address may move to a bridge, or another may take its
//! place, as far as the flag that chose it allows.

mod follow;
#[cfg(test)]
mod tests;

pub use follow::{Standing, stand};

use crate::log::phrases;
use crate::netlink::{Address, Link, Netlink, RouteTo};
use regex::Regex;
use std::net::Ipv4Addr;

/// How many levels of bridges and bonds may lie above a port: a bond in a bridge are two.
const MOST_MASTERS: usize = 4;

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
    /// What led to this interface.
    pub by: By,
}

/// What led to an interface. It decides what may take the place of an address that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// `-iface` with a name.
    Name(String),
    /// `-iface` with an address, or `-public-ip` alone.
    Address,
    /// The `-iface-regex` of this number, from 0.
    Regex(usize),
    /// The way to the address of `-iface-can-reach`.
    Reach,
    /// No flag: the default route.
    DefaultRoute,
}

/// An interface that fits, with the address to bind to.
type Found<'a> = (&'a Link, Ipv4Addr);

/// Which interfaces come into question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Those that are up.
    Up,
    /// Those that are down too.
    Any,
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
///
/// # Errors
/// [`ChoiceError`] names what was tried.
pub async fn choose(netlink: &Netlink, choice: &Choice) -> Result<External, ChoiceError> {
    let (external, passed_over) = would_choose(netlink, choice).await?;
    for reason in passed_over {
        tracing::warn!("Could not choose the interface: {reason}");
    }
    Ok(external)
}

/// What [`choose`] would lead to now, and why others that were named before it would not be taken.
///
/// # Errors
/// As [`choose`].
pub async fn would_choose(
    netlink: &Netlink,
    choice: &Choice,
) -> Result<(External, Vec<String>), ChoiceError> {
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
    snapshot.select(choice)
}

impl External {
    /// Says in the log which interface was chosen, in flannel's words.
    pub fn tell(&self) {
        tracing::info!("{} {} and address {}", phrases::INTERFACE_CHOSEN, self.name, self.address);
        if self.public_ip != self.address {
            tracing::info!("Using {} as external address", self.public_ip);
        }
    }
}

impl Snapshot {
    /// The interface, and why others that were named before it were not taken.
    fn select(&self, choice: &Choice) -> Result<(External, Vec<String>), ChoiceError> {
        let mut passed_over = Vec::new();
        let found = self.pick(choice, Want::Up, &mut passed_over).or_else(|error| {
            let found = self.pick(choice, Want::Any, &mut Vec::new());
            found.map_err(|_| error)
        });
        let ((link, address), by) = found?;
        debug_assert!(link.mtu > 0, "only a usable link is chosen");
        Ok((External::new(link, address, choice, by), passed_over))
    }

    fn pick(
        &self,
        choice: &Choice,
        want: Want,
        passed_over: &mut Vec<String>,
    ) -> Result<(Found<'_>, By), ChoiceError> {
        if choice.names.is_empty() && choice.regexes.is_empty() && choice.can_reach.is_none() {
            return self.implied(choice.public_ip, want);
        }
        let by_names = choice.names.iter().map(|name| {
            let by = if name.parse::<Ipv4Addr>().is_ok() { By::Address } else { By::Name(name.clone()) };
            (self.by_name(name, want), by)
        });
        let by_regexes = choice.regexes.iter().enumerate();
        let by_regexes = by_regexes.map(|(n, regex)| (self.by_regex(regex, want), By::Regex(n)));
        let by_reach = choice.can_reach.iter().map(|ip| (self.by_reach(*ip, want), By::Reach));
        for (attempt, by) in by_names.chain(by_regexes).chain(by_reach) {
            match attempt {
                Ok(found) => return Ok((found, by)),
                Err(reason) => passed_over.push(reason),
            }
        }
        Err(ChoiceError::NoneMatches(passed_over.join("; ")))
    }

    /// The choice when no flag names the interface.
    fn implied(&self, public_ip: Option<Ipv4Addr>, want: Want) -> Result<(Found<'_>, By), ChoiceError> {
        if let Some(ip) = public_ip {
            let link = self.owner(ip, None).ok_or(ChoiceError::PublicIpNotOwned(ip))?;
            let link = usable(link, want).map_err(ChoiceError::Unusable)?;
            return Ok(((link, ip), By::Address));
        }
        let link = self.default_link.and_then(|index| self.link(index)).ok_or(ChoiceError::NoDefaultRoute)?;
        let found = self.with_best_address(link, want).map_err(ChoiceError::Unusable)?;
        Ok((found, By::DefaultRoute))
    }

    fn by_name(&self, name: &str, want: Want) -> Result<Found<'_>, String> {
        if let Ok(ip) = name.parse::<Ipv4Addr>() {
            let link = self
                .owner(ip, None)
                .ok_or_else(|| format!("-iface {name}: no interface has that address"))?;
            return Ok((usable(link, want)?, ip));
        }
        let link = self.links.iter().find(|link| link.name == name);
        let link = link.ok_or_else(|| format!("-iface {name}: no interface of that name"))?;
        // A port of a bridge or bond has no address of its own; what it carries is the bridge's.
        let own = self.with_best_address(link, want);
        own.or_else(|reason| {
            let masters = self.masters(link);
            masters.into_iter().find_map(|link| self.with_best_address(link, want).ok()).ok_or(reason)
        })
    }

    /// The first usable match among all addresses or, if there is none, among all names.
    fn by_regex(&self, regex: &Regex, want: Want) -> Result<Found<'_>, String> {
        let matching_address = |link| {
            let found = self.candidates(link).into_iter().find(|ip| regex.is_match(&ip.to_string()));
            found.map(|ip| (link, ip))
        };
        let by_address =
            self.links.iter().filter_map(matching_address).map(|(link, ip)| Ok((usable(link, want)?, ip)));
        let named = self.links.iter().filter(|link| regex.is_match(&link.name));
        let by_name = named.map(|link| self.with_best_address(link, want));
        let mut failure = format!("-iface-regex {regex}: no address and no name match");
        for attempt in by_address.chain(by_name) {
            match attempt {
                Ok(found) => return Ok(found),
                Err(reason) => failure = format!("-iface-regex {regex}: {reason}"),
            }
        }
        Err(failure)
    }

    fn by_reach(&self, ip: Ipv4Addr, want: Want) -> Result<Found<'_>, String> {
        let route = match &self.reach {
            Some(Ok(route)) => route,
            Some(Err(reason)) => return Err(format!("-iface-can-reach {ip}: {reason}")),
            None => return Err(format!("-iface-can-reach {ip}: no route")),
        };
        let link = self.link(route.link_index);
        let link =
            usable(link.ok_or_else(|| format!("-iface-can-reach {ip}: its interface is gone"))?, want)?;
        match route.source {
            Some(source) => Ok((link, source)),
            None => self.with_best_address(link, want),
        }
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The link that has the address. Of several it is one that is no port of a bridge, then the one of index `before`.
    fn owner(&self, ip: Ipv4Addr, before: Option<u32>) -> Option<&Link> {
        let owners =
            self.addresses.iter().filter(|a| a.address == ip).filter_map(|a| self.link(a.link_index));
        owners.min_by_key(|link| (!self.masters(link).is_empty(), Some(link.index) != before))
    }

    /// The bridge or bond that a link is a port of, and what that is a port of in turn.
    fn masters(&self, link: &Link) -> Vec<&Link> {
        let above = |link: &&Link| {
            // A device of a VRF keeps its own address.
            self.link(link.master?).filter(|master| master.kind.as_deref() != Some("vrf"))
        };
        std::iter::successors(above(&link), above).take(MOST_MASTERS).collect()
    }

    fn with_best_address<'a>(&self, link: &'a Link, want: Want) -> Result<Found<'a>, String> {
        let link = usable(link, want)?;
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

impl External {
    fn new(link: &Link, address: Ipv4Addr, choice: &Choice, by: By) -> External {
        External {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            address,
            public_ip: choice.public_ip.unwrap_or(address),
            by,
        }
    }
}

fn is_unicast(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
}

/// The link, if it can carry the overlay.
fn usable(link: &Link, want: Want) -> Result<&Link, String> {
    match link {
        Link { mtu: 0, name, .. } => Err(format!("interface {name} has no MTU")),
        Link { up: false, name, .. } if want == Want::Up => Err(format!("interface {name} is down")),
        _ => Ok(link),
    }
}
