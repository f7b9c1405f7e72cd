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
}

impl Rules {
    /// The rules that `settings` ask for, for this subnet.
    #[must_use]
    pub fn new(network: Ipv4Net, subnet: Ipv4Net, settings: &Settings) -> Rules {
        debug_assert!(network.contains(&subnet), "{subnet} is no part of {network}");
        Rules {
            network: network.trunc(),
            subnet: subnet.trunc(),
            masquerade: settings.masquerade,
            random_fully: settings.random_fully,
            forward: settings.forward,
        }
    }

    /// Whether any rule is wanted.
    #[must_use]
    pub fn any(&self) -> bool {
        self.masquerade || self.forward
    }

    /// The same network and subnet, with no rule wanted.
    #[must_use]
    pub fn none(self) -> Rules {
        Rules { masquerade: false, forward: false, ..self }
    }
}
