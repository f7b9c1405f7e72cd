//! The choice of a free subnet.
//!
//! The choice is made as in flannel: walk from `SubnetMin` in steps of one subnet, collect the first hundred that
//! overlap no lease, and take one of them at random. A small bag keeps the leases of a network together. The random
//! pick keeps hosts that start at the same moment from all wanting the same subnet.

use super::{Config, overlap};
use ipnet::Ipv4Net;
use rand::Rng;
use rand::seq::IndexedRandom;

/// The size of flannel's bag: the choice is among this many candidates at most.
const MAX_CANDIDATES: usize = 100;

/// The error of a choice when no subnet is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of subnets: {leases} leases{} take all {pool} subnets", and_addresses(*addresses))]
pub struct OutOfSubnets {
    /// How many leases the store holds.
    pub leases: usize,
    /// How many addresses of hosts, of the store and of gateways lie in the network.
    pub addresses: usize,
    /// How many subnets the config has.
    pub pool: u64,
}

fn and_addresses(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} addresses outside of the overlay") }
}

/// One of the first hundred free subnets of `config`, all equally likely.
///
/// # Errors
/// The subnets in `taken` leave no free one.
pub fn pick(config: &Config, taken: &[Ipv4Net], rng: &mut impl Rng) -> Result<Ipv4Net, OutOfSubnets> {
    let free = candidates(config, taken);
    let picked =
        *free.choose(rng).ok_or(OutOfSubnets { leases: taken.len(), addresses: 0, pool: config.pool() })?;
    debug_assert!(config.fits(picked), "{picked} is not one of the config's subnets");
    debug_assert!(!taken.iter().any(|net| overlap(*net, picked)), "{picked} is taken");
    Ok(picked)
}

/// The first [`MAX_CANDIDATES`] subnets from `SubnetMin` on that overlap nothing in `taken`.
///
/// This takes one sort and one pass. A lease is stepped over at once, however many subnets it covers.
fn candidates(config: &Config, taken: &[Ipv4Net]) -> Vec<Ipv4Net> {
    // Where `SubnetMin` is not on a boundary, every base address is off by as much.
    let size = config.subnet_size();
    let (first, last) = (number(config.subnet_min), number(config.subnet_max));
    let off = first % size;
    let mut spans: Vec<(u64, u64)> =
        taken.iter().map(|net| (number(net.network()), number(net.broadcast()))).collect();
    spans.sort_unstable();
    let mut free = Vec::new();
    let mut base = first - off;
    let mut spans = spans.into_iter().peekable();
    while base + off <= last && free.len() < MAX_CANDIDATES {
        match spans.peek() {
            // This span lies behind us. A span that starts later ends later or lies inside this one.
            Some(&(_, end)) if end < base => drop(spans.next()),
            Some(&(start, end)) if start < base + size => base += ((end - base) / size + 1) * size,
            _ => {
                free.extend(subnet(config, base + off));
                base += size;
            }
        }
    }
    debug_assert!(free.len() <= MAX_CANDIDATES && free.is_sorted());
    free
}

fn number(address: std::net::Ipv4Addr) -> u64 {
    u64::from(u32::from(address))
}

fn subnet(config: &Config, base: u64) -> Option<Ipv4Net> {
    Ipv4Net::new(u32::try_from(base).ok()?.into(), config.subnet_len).ok()
}

#[cfg(test)]
mod generations;
#[cfg(test)]
mod tests;
