//! The two generations of flannel, which differ in what they derive from a config and in what they write.

/// The generation of flannel that an API of etcd belongs to. Whatever lies behind one API was written by flannels of
/// that generation, and is read by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Generation {
    /// flannel v0.6.2, through etcd v2: `{"PublicIP":"192.0.2.7"}`.
    V2,
    /// flannel since v0.18, through etcd v3: `{"PublicIP":"192.0.2.7","PublicIPv6":null}`.
    V3,
}
