//! The addresses outside of the overlay that no subnet may take away.
//!
//! A subnet over an address of this host makes the host, or its way to others, unreachable: containers' traffic and the
//! host's own meet in one place. flannel does not look.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// An address of this host, on any device but the overlay's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress {
    /// The address and the length of its on-link prefix.
    pub net: Ipv4Net,
    /// Whether peers or the host's network reach this host by it: it is on the external interface.
    pub external: bool,
}

/// What lies under the overlay, as this host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Underlay {
    /// The addresses of this host, PublicIP among them.
    pub host: Vec<HostAddress>,
    /// The addresses of the store, and the gateways of this host's routes.
    pub others: Vec<Ipv4Addr>,
}

impl Underlay {
    /// An address of this host that `subnet` would take away; `None` if there is none. An address on the external
    /// interface is one, and so is one whose on-link prefix is wider than `subnet`. Any other one may be that of a bridge
    /// that serves `subnet` to containers.
    pub fn taken_by(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        let takes = |own: &&HostAddress| {
            let is_underlay = own.external || own.net.prefix_len() < subnet.prefix_len();
            is_underlay && subnet.contains(&own.net.addr())
        };
        self.host.iter().find(takes).map(|own| own.net.addr())
    }

    /// All these addresses within `network`.
    pub fn within(&self, network: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
        let own = self.host.iter().map(|own| own.net.addr());
        own.chain(self.others.iter().copied()).filter(move |address| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_for_containers_is_not_taken_away_and_a_hosts_network_is() {
        let own = |net: &str, external| HostAddress { net: net.parse().unwrap(), external };
        let underlay = Underlay {
            host: vec![own("10.1.7.5/24", true), own("10.1.9.1/24", false), own("10.1.0.6/16", false)],
            others: vec!["10.1.3.3".parse().unwrap(), "192.0.2.1".parse().unwrap()],
        };
        let taken = |subnet: &str| underlay.taken_by(subnet.parse().unwrap()).map(|own| own.to_string());
        assert_eq!(taken("10.1.7.0/24").as_deref(), Some("10.1.7.5"));
        assert_eq!(taken("10.1.9.0/24"), None, "docker0 with our subnet");
        assert_eq!(
            taken("10.1.0.0/24").as_deref(),
            Some("10.1.0.6"),
            "a network of the host around the subnet"
        );
        assert_eq!(taken("10.1.3.0/24"), None);
        assert_eq!(underlay.within("10.1.0.0/16".parse().unwrap()).count(), 4);
    }
}
