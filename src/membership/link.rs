//! Asking the external interface's link whether another host has our address.

use crate::arp;
use crate::netlink::{Mac, Netlink};
use std::error::Error;
use std::net::Ipv4Addr;
use tracing::warn;

/// The MAC, as text, of another host on this link that has `address`; `None` if nobody answers. A link that cannot be
/// asked does not keep us from asking the store, so the log gets the reason.
pub(super) async fn who_has(link: u32, address: Ipv4Addr) -> Option<String> {
    match ask(link, address).await {
        Ok(mac) => mac.map(|mac| mac.to_string()),
        Err(error) => {
            warn!("cannot ask the link who has {address}: {error}");
            None
        }
    }
}

/// An address that is not of the link's own prefixes, such as the outside of a NAT, is not asked about: only a router
/// would answer for it. A second interface of this host on the same link answers for our address, and is no other host.
async fn ask(link: u32, address: Ipv4Addr) -> Result<Option<Mac>, Box<dyn Error + Send + Sync>> {
    let netlink = Netlink::new()?;
    let is_on_link = netlink.addresses(Some(link)).await?.iter().any(|own| own.reaches(address));
    if !is_on_link {
        return Ok(None);
    }
    let ours: Vec<[u8; 6]> = netlink.links().await?.iter().filter_map(|link| Some(link.mac?.0)).collect();
    let asked = tokio::task::spawn_blocking(move || arp::who_has(link, address, &ours)).await?;
    Ok(asked?.map(Mac))
}
