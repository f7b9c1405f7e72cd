//! The `alloc` backend has no data path, only the lease and `subnet.env`.

use super::{Backend, BackendError, Network, Setup};
use crate::iface::External;
use crate::netlink::Netlink;
use crate::report::DataPath;
use crate::subnet::{Event, LeaseAttrs};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use ipnet::Ipv4Net;
use std::rc::Rc;

/// The `Backend.Type` by which flannel names this backend.
pub(super) const KIND: &str = "alloc";

/// The `alloc` backend as configured.
#[derive(Debug)]
pub(super) struct Config {
    mtu: u32,
    attrs: LeaseAttrs,
}

impl Config {
    pub(super) fn configure(setup: Setup<'_>) -> Config {
        // alloc publishes no type, as flannel does.
        Config { mtu: setup.external.mtu, attrs: LeaseAttrs::new(setup.external.public_ip) }
    }
}

impl Backend for Config {
    fn attrs(&self) -> &LeaseAttrs {
        &self.attrs
    }

    /// The MTU of the external interface, since we add no header.
    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn follow(&self, external: &External) -> Result<Rc<dyn Backend>, BackendError> {
        let attrs = LeaseAttrs { public_ip: external.public_ip, ..self.attrs.clone() };
        Ok(Rc::new(Config { mtu: self.mtu, attrs }))
    }

    fn register<'a>(
        &'a self,
        _netlink: &'a Netlink,
        _subnet: Ipv4Net,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Network>, BackendError>> {
        ready(super::boxed(Ok(Nothing))).boxed_local()
    }
}

/// The `alloc` backend at work: somebody else carries the packets.
#[derive(Debug)]
struct Nothing;

impl Network for Nothing {
    fn apply(&mut self, _events: &[Event]) {}

    fn report<'a>(&'a self, _netlink: &'a Netlink) -> LocalBoxFuture<'a, Option<DataPath>> {
        ready(None).boxed_local()
    }
}
