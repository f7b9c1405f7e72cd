//! flannel's contract as values: the network config, the lease's key and value, the choice of a free
//! subnet, and `subnet.env`.

pub mod lease;

pub use lease::{LeaseAttrs, SubnetKey, ValueForm};
