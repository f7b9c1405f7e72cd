//! Two hosts of one network, each with a container, that reach each other.

use super::{Api, Container, Daemon, Lab, Subnet, secs};

/// The network config with that backend.
pub fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.10.0.0/16","Backend":{backend}}}"#)
}

pub struct Pair {
    pub daemons: [Daemon; 2],
    pub subnets: [Subnet; 2],
    pub ends: [Container; 2],
    pub lab: Lab,
}

impl Pair {
    pub fn set(backend: &str) -> Option<Self> {
        let lab = Lab::start(2)?;
        lab.put_config(Api::V3, &config(backend));
        let mut daemons = [lab.daemon(1, &["--etcd-api=v3"]), lab.daemon(2, &["--etcd-api=v3"])];
        let subnets = [daemons[0].subnet(), daemons[1].subnet()];
        let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
        lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
        Some(Self { daemons, subnets, ends, lab })
    }
}
