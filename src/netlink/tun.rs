//! TUN devices that another process has left behind.

use super::route::{Filter, Present};
use super::{Error, Link, Netlink};
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoData, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteType;
use rtnetlink::packet_core::Nla;

/// Attributes of a TUN device (`IFLA_TUN_*`, Linux include/uapi/linux/if_link.h).
const TYPE: u16 = 3;
const PERSIST: u16 = 6;
const MULTI_QUEUE: u16 = 7;
const QUEUES: u16 = 8;
const DISABLED_QUEUES: u16 = 9;
/// The type of a device that carries IP packets, and no Ethernet frames (`IFF_TUN`).
const IFF_TUN: u32 = 1;

impl Netlink {
    /// The devices through which plain routes of the main table lead to exactly `network`.
    ///
    /// # Errors
    /// The kernel does not let us read routes or links.
    pub async fn links_to(&self, network: Ipv4Net) -> Result<Vec<Link>, Error> {
        let plain = Filter { kind: Some(RouteType::Unicast), ..Filter::default() };
        let there = |route: &Present| route.holds_the_place(network);
        let mut links = Vec::new();
        for index in self.routes(plain, there).await?.iter().filter_map(|route| route.link_index) {
            links.extend(self.link_by_index(index).await?);
        }
        Ok(links)
    }

    /// Removes a persistent TUN device that no process holds, with its address and routes. Returns false, and leaves the
    /// device alone, if it is another kind of device or some process reads it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_unheld_tun(&self, index: u32) -> Result<bool, Error> {
        let request = self.handle.link().get().match_index(index).execute();
        let link: Vec<_> = match request.try_collect().await {
            Ok(link) => link,
            Err(error) => {
                let error = Error::request(format!("look up link {index}"), error);
                return if error.is_not_found() { Ok(false) } else { Err(error) };
            }
        };
        if !link.iter().any(is_unheld_tun) {
            return Ok(false);
        }
        self.delete_link(index).await
    }
}

/// Whether the device is a persistent TUN without a reader. The driver switches the carrier off when the last reader
/// goes (Linux drivers/net/tun.c, `__tun_detach`).
fn is_unheld_tun(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Tun(data)) => Some(data),
            _ => None,
        }),
        _ => None,
    });
    let Some(infos) = infos else { return false };
    let value = |kind| infos.iter().find(|info| info.kind() == kind).map(number);
    let carrier = link.attributes.contains(&LinkAttribute::Carrier(1));
    let unread = if value(MULTI_QUEUE) == Some(1) {
        value(QUEUES) == Some(0) && value(DISABLED_QUEUES) == Some(0)
    } else {
        !carrier
    };
    value(TYPE) == Some(IFF_TUN) && value(PERSIST) == Some(1) && unread
}

/// An attribute of one or four bytes.
fn number(attribute: &impl Nla) -> u32 {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    match bytes[..] {
        [byte] => u32::from(byte),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, ip_shows, run};

    #[test]
    fn only_a_tun_that_nobody_reads_is_removed() {
        run("netlink::tun::tests::only_a_tun_that_nobody_reads_is_removed", || async {
            let netlink = Netlink::new().unwrap();
            let index = async |name| netlink.link_by_name(name).await.unwrap().unwrap().index;
            ip("tuntap add left0 mode tun");
            ip("tuntap add left1 mode tun multi_queue");
            ip("tuntap add tap0 mode tap");
            ip("link add br0 type bridge");
            ip("tuntap add held0 mode tun");
            let held = tun_tap::Iface::without_packet_info("held0", tun_tap::Mode::Tun).unwrap();
            let own = tun_tap::Iface::without_packet_info("own0", tun_tap::Mode::Tun).unwrap();
            ip("link set held0 up");
            for name in ["left0", "left1"] {
                ip(&format!("link set {name} up"));
                assert!(netlink.remove_unheld_tun(index(name).await).await.unwrap(), "{name}");
            }
            for name in ["tap0", "br0", "held0", "own0"] {
                assert!(!netlink.remove_unheld_tun(index(name).await).await.unwrap(), "{name}");
                assert!(!ip_shows(&format!("link show {name}")).is_empty());
            }
            drop(own);
            drop(held);
            assert!(netlink.remove_unheld_tun(index("held0").await).await.unwrap(), "its reader is gone");
        });
    }
}
