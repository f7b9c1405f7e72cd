//! Changes of links, IPv4 addresses and IPv4 routes, as the kernel announces them.

use super::route::Present;
use super::{Address, Error, Link};
use futures_util::{Stream, StreamExt};
use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use tokio::task::AbortHandle;

/// A change in the kernel's tables, made by us or by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A device appeared, changed or was removed.
    Link {
        /// The index of the device.
        index: u32,
        /// The name of the device.
        name: String,
        /// Whether the administrator has set it up.
        up: bool,
        /// Whether it can carry packets.
        running: bool,
        /// Whether the device is gone.
        deleted: bool,
    },
    /// An IPv4 address was added, changed or removed.
    Address {
        /// The index of its device.
        link_index: u32,
        /// The address itself.
        address: Ipv4Addr,
        /// The length of its on-link prefix.
        prefix_len: u8,
        /// Whether the address is gone.
        deleted: bool,
    },
    /// A route of the main table was added, changed or removed.
    ///
    /// The kernel does not announce IPv4 routes that it removes because their device went down or lost its last
    /// address. So a caller that needs to know looks at its routes after every kind of change.
    Route {
        /// The destination of the route.
        destination: Ipv4Net,
        /// The device that it leads through; with several next hops, that of the first.
        link_index: Option<u32>,
        /// The number of the program that installed it; ours is [`super::ROUTE_PROTOCOL`].
        protocol: u8,
        /// Whether the route is gone.
        deleted: bool,
    },
    /// Events were lost (`ENOBUFS`), so the caller has to read everything again.
    Overrun,
}

/// A subscription to all changes from the moment it is made. It belongs to the network namespace of the thread that
/// made it.
pub struct Monitor {
    events: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>>>>,
    connection: AbortHandle,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes; call it inside a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        let (connection, _, events) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|e| Error::new("subscribe to changes of links, addresses and routes", e))?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { events: Box::pin(events.map(|(message, _)| message)), connection })
    }

    /// Waits for the next change. The call is cancel-safe. An error ends the subscription: the caller then makes a new
    /// one and reads everything again.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let Some(message) = self.events.next().await else {
                let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(Error::new("follow changes of links, addresses and routes", source));
            };
            match translate(&message.payload) {
                // After an overrun the kernel silently drops further events until the socket has been read empty
                // (`NETLINK_S_CONGESTED`, Linux net/netlink/af_netlink.c). A new socket has no such gap: it is in
                // place before the caller reads anything again.
                Some(Change::Overrun) => {
                    *self = Self::new()?;
                    return Ok(Change::Overrun);
                }
                Some(change) => return Ok(change),
                None => {}
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The change that a message of the kernel tells of, if it tells of one.
fn translate(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let message = match payload {
        NetlinkPayload::Overrun(_) => return Some(Change::Overrun),
        NetlinkPayload::InnerMessage(message) => message,
        _ => return None,
    };
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link_change(Link::from_message(link), false)),
        RouteNetlinkMessage::DelLink(link) => Some(link_change(Link::from_message(link), true)),
        RouteNetlinkMessage::NewAddress(address) => address_change(Address::from_message(address)?, false),
        RouteNetlinkMessage::DelAddress(address) => address_change(Address::from_message(address)?, true),
        RouteNetlinkMessage::NewRoute(route) => route_change(Present::from_message(route)?, false),
        RouteNetlinkMessage::DelRoute(route) => route_change(Present::from_message(route)?, true),
        _ => None,
    }
}

fn link_change(link: Link, deleted: bool) -> Change {
    let Link { index, name, up, running, .. } = link;
    Change::Link { index, name, up, running, deleted }
}

fn address_change(address: Address, deleted: bool) -> Option<Change> {
    let Address { link_index, address, prefix_len, .. } = address;
    Some(Change::Address { link_index, address, prefix_len, deleted })
}

fn route_change(route: Present, deleted: bool) -> Option<Change> {
    let Present { destination, link_index, protocol, main_table, .. } = route;
    main_table.then_some(Change::Route { destination, link_index, protocol, deleted })
}
