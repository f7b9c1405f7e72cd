//! The peers of the `udp` backend, and what an event of their leases means for the workers' routes.

use crate::backend::strangers::Strangers;
use crate::route::{Peer, RouteCommand};
use crate::subnet::{Event, Lease};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;

/// Every peer that this network reaches, with the address that its packets go to.
#[derive(Debug)]
pub(super) struct Peers {
    port: u16,
    known: BTreeMap<Ipv4Net, SocketAddrV4>,
    /// The peers of other backends.
    pub(super) strangers: Strangers,
}

impl Peers {
    /// Starts without peers; all that come listen on `port`.
    pub(super) fn new(port: u16) -> Self {
        Self { port, known: BTreeMap::new(), strangers: Strangers::default() }
    }

    /// How many peers there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// All peers as routes, for workers that are new.
    pub(super) fn routes(&self) -> Vec<RouteCommand> {
        self.known.iter().map(|(subnet, address)| set(*subnet, *address)).collect()
    }

    /// Notes one event; returns the command for the workers, if it changes their routes.
    pub(super) fn follow(&mut self, event: &Event) -> Option<RouteCommand> {
        match event {
            Event::Added(lease) if is_ours(lease) => {
                self.strangers.remove(lease.subnet);
                let address = SocketAddrV4::new(lease.attrs.public_ip, self.port);
                let known = self.known.insert(lease.subnet, address);
                (known != Some(address)).then(|| set(lease.subnet, address))
            }
            Event::Added(lease) => {
                self.strangers.add(lease);
                self.forget(lease.subnet)
            }
            Event::Removed(lease) => {
                self.strangers.remove(lease.subnet);
                self.forget(lease.subnet)
            }
        }
    }

    fn forget(&mut self, subnet: Ipv4Net) -> Option<RouteCommand> {
        self.known.remove(&subnet).map(|_| RouteCommand::Del { subnet })
    }
}

fn set(subnet: Ipv4Net, address: SocketAddrV4) -> RouteCommand {
    RouteCommand::Set { subnet, peer: Peer { address } }
}

/// Whether a udp node has written the lease. flannel's udp nodes publish no type; the type `udp` is welcome too.
fn is_ours(lease: &Lease) -> bool {
    lease.attrs.backend_type.as_deref().is_none_or(|kind| kind.is_empty() || kind.eq_ignore_ascii_case("udp"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::LeaseAttrs;
    use std::net::Ipv4Addr;

    fn lease(last: u8, kind: Option<&str>) -> Lease {
        let attrs = LeaseAttrs {
            backend_type: kind.map(str::to_owned),
            ..LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, last))
        };
        Lease { subnet: "10.1.7.0/24".parse().unwrap(), attrs }
    }

    #[test]
    fn events_become_routes_and_other_kinds_are_counted() {
        let mut peers = Peers::new(8285);
        let subnet = lease(1, None).subnet;
        for (kind, last) in [(None, 1), (Some(""), 2), (Some("UDP"), 3)] {
            let wanted = set(subnet, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 8285));
            assert_eq!(peers.follow(&Event::Added(lease(last, kind))), Some(wanted), "{kind:?}");
        }
        assert_eq!(peers.follow(&Event::Added(lease(3, None))), None, "nothing has changed");
        assert_eq!((peers.len(), peers.routes().len()), (1, 1));
        let foreign = peers.follow(&Event::Added(lease(3, Some("vxlan"))));
        assert_eq!(foreign, Some(RouteCommand::Del { subnet }), "the node changed its backend");
        assert_eq!(peers.follow(&Event::Removed(lease(3, None))), None);
        let [present, ever] = peers.strangers.samples();
        assert_eq!((peers.len(), present.value, ever.value), (0, 0, 1));
    }
}
