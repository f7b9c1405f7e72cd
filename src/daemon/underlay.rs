//! What lies under the overlay: the addresses of this host, the gateways of its routes, and the store.

use crate::iface::External;
use crate::netlink::{Error, Netlink};
use crate::subnet::{HostAddress, Underlay};
use futures_util::future::join_all;
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::time::timeout;

/// How long the names of the store's endpoints are looked up.
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks at this host's devices and addresses. `others` are addresses of the store and of gateways.
pub(super) async fn look(
    netlink: &Netlink,
    external: &External,
    others: BTreeSet<Ipv4Addr>,
) -> Result<Underlay, Error> {
    let links = netlink.links().await?;
    let own: BTreeSet<u32> = links.iter().filter(|link| link.is_overlay()).map(|link| link.index).collect();
    let addresses = netlink.addresses(None).await?;
    let mut host: Vec<HostAddress> = addresses
        .iter()
        .filter(|one| !own.contains(&one.link_index))
        .filter_map(|one| {
            let net = Ipv4Net::new(one.address, one.prefix_len).ok()?;
            Some(HostAddress { net, external: one.link_index == external.index })
        })
        .collect();
    host.push(HostAddress { net: Ipv4Net::from(external.public_ip), external: true });
    Ok(Underlay { host, others: others.into_iter().collect() })
}

/// The IPv4 addresses of the store's endpoints. A name that tells none within [`PATIENCE`] is left out.
pub(super) async fn addresses_of(endpoints: &[String]) -> BTreeSet<Ipv4Addr> {
    let each = endpoints.iter().filter_map(|endpoint| host_of(endpoint)).map(addresses_of_host);
    join_all(each).await.into_iter().flatten().collect()
}

async fn addresses_of_host(host: &str) -> Vec<Ipv4Addr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let Ok(Ok(named)) = timeout(PATIENCE, tokio::net::lookup_host((host, 0))).await else {
        return Vec::new();
    };
    let ipv4 = |one: SocketAddr| match one.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    named.filter_map(ipv4).collect()
}

/// The host of a URL; `None` if it is an IPv6 address.
fn host_of(endpoint: &str) -> Option<&str> {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty() && !host.starts_with('[')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_endpoint_is_found_in_every_form() {
        for (endpoint, host) in [
            ("http://10.0.0.5:2379", Some("10.0.0.5")),
            ("https://etcd.example/", Some("etcd.example")),
            ("https://user:secret@10.0.0.5:2379/etcd", Some("10.0.0.5")),
            ("10.0.0.5:2379", Some("10.0.0.5")),
            ("http://[fd00::1]:2379", None),
        ] {
            assert_eq!(host_of(endpoint), host, "{endpoint}");
        }
    }
}
