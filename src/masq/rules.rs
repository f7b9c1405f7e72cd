//! The rules that should exist, whichever flavour writes them.

use super::Settings;
use ipnet::Ipv4Net;

/// The rules of one host. Its subnet lies in its network, and both are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The network of the whole overlay.
    pub network: Ipv4Net,
    /// The subnet of this host.
    pub subnet: Ipv4Net,
    /// Whether packets that leave the overlay, and packets that enter it from elsewhere, are masqueraded.
    pub masquerade: bool,
    /// Whether source ports are drawn at random.
    pub random_fully: bool,
    /// Whether forwarded packets from and to the overlay are accepted.
    pub forward: bool,
    /// The guard of the overlay's port, if packets of containers to that port of a host are dropped. A container could
    /// else send a peer what looks like an overlay packet of this host, since masquerading gives it the host's address.
    pub guard: Option<Guard>,
}

/// What tells a packet for the overlay's port of a host from one for a container.
///
/// An address does not: hosts may lie inside the overlay's network. A packet for a container leaves by the overlay's
/// device, or is for this host's own subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// The UDP port of the overlay.
    pub port: u16,
    /// Whether packets for containers leave by other devices, too, as with `DirectRouting` of vxlan. Then whatever is
    /// for the network passes, and hosts inside of it are not guarded.
    pub direct: bool,
}

impl Rules {
    /// The rules that `settings` ask for, for this subnet. `guard`: the UDP port of the overlay, if it has one.
    #[must_use]
    pub fn new(network: Ipv4Net, subnet: Ipv4Net, guard: Option<Guard>, settings: &Settings) -> Rules {
        debug_assert!(network.contains(&subnet), "{subnet} is no part of {network}");
        Rules {
            network: network.trunc(),
            subnet: subnet.trunc(),
            masquerade: settings.masquerade,
            random_fully: settings.random_fully,
            forward: settings.forward,
            guard: guard.filter(|_| settings.guard),
        }
    }

    /// Those of the rules that iptables keeps in these tables.
    #[must_use]
    pub fn of_tables(self, tables: &[&str]) -> Rules {
        Rules {
            masquerade: self.masquerade && tables.contains(&"nat"),
            forward: self.forward && tables.contains(&"filter"),
            guard: self.guard.filter(|_| tables.contains(&"mangle")),
            ..self
        }
    }

    /// Whether any rule is wanted.
    #[must_use]
    pub fn any(&self) -> bool {
        self.masquerade || self.forward || self.guard.is_some()
    }

    /// The same network and subnet, with no rule wanted.
    #[must_use]
    pub fn none(self) -> Rules {
        Rules { masquerade: false, forward: false, guard: None, ..self }
    }
}
