//! The lease as etcd holds it: key and value codecs.

use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::Value;
use std::net::Ipv4Addr;

/// The last element of a lease's key: `10.1.5.0-24`, or `10.1.5.0-24&fc00::-64` for a dual-stack node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The IPv4 subnet, masked to its prefix.
    pub ipv4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack node; we never write one, but must not mangle one either.
    pub ipv6: Option<Ipv6Net>,
}

/// What a node publishes about itself in its lease's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where peers send this node's packets, and the node's identity.
    pub public_ip: Ipv4Addr,
    /// `vxlan`, `host-gw`, …; absent for `udp` and `alloc`.
    pub backend_type: Option<String>,
    /// What that backend wants peers to know, as it stands in the store.
    pub backend_data: Option<Value>,
}

/// Which generation of flannel writes the value: the two differ in `PublicIPv6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// `{"PublicIP":"192.0.2.7"}`, as flannel up to v0.14 wrote through etcd v2.
    V2,
    /// `{"PublicIP":"192.0.2.7","PublicIPv6":null}`, as flannel since v0.18 writes through etcd v3.
    V3,
}
