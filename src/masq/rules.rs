//! What should be there, whoever writes it.

use super::Settings;
use ipnet::Ipv4Net;

/// The rules of one host. The subnet lies in the network; both are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The whole overlay.
    pub network: Ipv4Net,
    /// This host's part of it.
    pub subnet: Ipv4Net,
    /// Masquerade what leaves the overlay, and what enters it from elsewhere.
    pub masquerade: bool,
    /// Draw the source ports at random.
    pub random_fully: bool,
    /// Accept forwarded packets from and to the overlay.
    pub forward: bool,
}

impl Rules {
    /// The rules of `settings` for this subnet.
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

    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.masquerade || self.forward
    }

    /// The same, with none wanted.
    #[must_use]
    pub fn none(self) -> Rules {
        Rules { masquerade: false, forward: false, ..self }
    }
}
