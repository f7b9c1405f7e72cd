//! Changes of links, IPv4 addresses and IPv4 routes, as the kernel announces them.
//!
//! The kernel announces our own changes too, thousands of them while many peers are programmed. A filter on the socket
//! keeps these echoes away: they would wake us for a second look at all tables, and overrun the socket.

use super::route::Present;
use super::{Address, Error, Link, Port};
use futures_util::{Stream, StreamExt};
use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;
use socket2::{SockFilter, SockRef};
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use tokio::task::AbortHandle;

/// A change in the kernel's tables, made by others.
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
    own: Port,
    events: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>>>>,
    connection: AbortHandle,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes to all changes but those that `own` makes; call it inside a tokio runtime.
    pub fn new(own: Port) -> Result<Self, Error> {
        let subscribe = |e| Error::new("subscribe to changes of links, addresses and routes", e);
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        let (mut connection, _, events) = rtnetlink::new_multicast_connection(&groups).map_err(subscribe)?;
        let socket = SockRef::from(connection.socket_mut().socket_ref()).attach_filter(&all_but(own));
        socket.map_err(subscribe)?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { own, events: Box::pin(events.map(|(message, _)| message)), connection })
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
                    *self = Self::new(self.own)?;
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

/// A filter that passes every message but those whose header names `own` as the socket that asked for the change
/// (`nlmsg_pid`, at byte 12). It reads numbers in network order, and the header is in the host's.
fn all_but(own: Port) -> [SockFilter; 4] {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_WORD, 0, 0, 12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, own.0.to_be()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
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
