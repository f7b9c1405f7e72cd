//! flannel's contract as values: the network config, the lease's key and value, the choice of a free
//! subnet, and `subnet.env`.
//!
//! Theory of operation. This room turns text that others wrote (operators, flanneld of any age, CNI plugins) into
//! checked values, and such values into the bytes that flannel would write. Nothing here talks to a store or knows
//! the time. JSON is read as Go reads it (`go_json`): keys match whatever their case, the last of several wins, and
//! unknown ones are ignored. We can read all that flannel wrote and can read back. Text that makes no sense gets an
//! error that names the field and its value, [quoted](crate::log::quote).
//!
//! | file | text | value |
//! |---|---|---|
//! | `config` | `<prefix>/config` | [`Config`] |
//! | [`lease`] | `<prefix>/subnets/<key>` and its value | [`SubnetKey`], [`LeaseAttrs`] |
//! | `node_id` | `NodeID` in that value | [`NodeId`] |
//! | `generation` | | which flannel's defaults and forms count ([`Generation`]) |
//! | `event` | | a peer's [`Lease`], and how it changes ([`Event`]) |
//! | [`allocate`] | | a free subnet of a [`Config`] |
//! | `underlay` | | the outer addresses that no subnet may take away ([`Underlay`]) |
//! | `env_file` | `/run/flannel/subnet.env` | [`EnvFile`] |
//! | [`replace`](mod@replace) | a file that is replaced whole | |

pub mod allocate;
mod config;
mod drift;
mod env_file;
mod event;
mod generation;
mod go_json;
pub mod lease;
mod node_id;
pub mod replace;
mod underlay;

pub use config::{BackendConfig, Config, ConfigError};
pub use drift::Drift;
pub use env_file::{EnvFile, Written};
pub use event::{Event, Lease};
pub use generation::Generation;
pub use lease::{BackendData, LeaseAttrs, SubnetKey};
pub use node_id::{NodeId, NodeIdError};
pub use replace::FileError;
pub use underlay::{HostAddress, Underlay};

use ipnet::Ipv4Net;

/// Whether two subnets share an address. If they do, one of them contains the other.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}
