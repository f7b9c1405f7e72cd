//! What makes packets one flow: the same hosts, ports and protocol.

use crate::packet::ipv4::Ipv4;

/// The addresses, ports and protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Source address in the high half, destination address in the low half.
    pub(super) addresses: u64,
    /// Both ports above, the protocol in the low byte.
    pub(super) ports_and_protocol: u64,
}

impl Flow {
    /// What is of no flow: protocol 0 is neither TCP nor UDP.
    pub(super) const NONE: Flow = Flow { addresses: 0, ports_and_protocol: 0 };

    /// `ports` are source and destination port as they stand in the transport header.
    #[inline]
    pub(super) fn new(ip: &Ipv4, ports: u32) -> Flow {
        Flow {
            addresses: u64::from(ip.source.to_bits()) << 32 | u64::from(ip.destination.to_bits()),
            ports_and_protocol: u64::from(ports) << 8 | u64::from(ip.protocol),
        }
    }

    /// True if the flow has the hosts and the protocol of `ip`, over any ports.
    pub(super) fn is_between(self, ip: &Ipv4) -> bool {
        let other = Flow::new(ip, 0);
        self.addresses == other.addresses && self.ports_and_protocol & 0xff == other.ports_and_protocol
    }
}
