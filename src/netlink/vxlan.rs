//! VXLAN devices (RFC 7348): how they are created, read back and compared.

use super::{Changes, Error, Mac, Netlink};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVxlan};
use std::net::Ipv4Addr;

/// The default VXLAN port of the kernel. It is older than IANA's 4789 (Linux drivers/net/vxlan/vxlan_core.c).
pub const DEFAULT_VXLAN_PORT: u16 = 8472;

/// A VXLAN device as we want it. It finds its peers by forwarding entries, without a multicast group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The name of the device, at most 15 bytes.
    pub name: String,
    /// The VXLAN network identifier (VNI), less than 2^24.
    pub vni: u32,
    /// The index of the device that carries the outer packets.
    pub link_index: u32,
    /// The source address of outer packets.
    pub local: Ipv4Addr,
    /// The destination port of outer packets, the same for every peer.
    pub port: u16,
    /// Whether the device learns forwarding entries from received packets.
    pub learning: bool,
    /// Whether the device uses the group based policy extension.
    pub gbp: bool,
    /// The size of the largest inner IP packet, in bytes.
    pub mtu: u32,
    /// The Ethernet address of the device.
    pub mac: Mac,
}

/// A device as the kernel holds it.
#[derive(Debug)]
struct Present {
    index: u32,
    mac: Option<Mac>,
    /// The VXLAN settings of the device; absent for a device of another kind.
    info: Option<Vec<InfoVxlan>>,
}

impl Present {
    fn from_message(message: &LinkMessage) -> Self {
        let mut present = Self { index: message.header.index, mac: None, info: None };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    present.mac = bytes.as_slice().try_into().ok().map(Mac);
                }
                LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Vxlan)) => {
                    present.info = Some(infos.iter().find_map(vxlan_info).unwrap_or_default());
                }
                _ => {}
            }
        }
        present
    }

    /// What differs from `wanted`.
    fn differences(&self, wanted: &Vxlan) -> Differences {
        let mut found = Differences::default();
        let Some(info) = &self.info else {
            found.fixed.push("it is no VXLAN device".to_owned());
            return found;
        };
        let has = |one: &InfoVxlan| info.contains(one);
        let multicast = |one: &InfoVxlan| matches!(one, InfoVxlan::Group(_) | InfoVxlan::Group6(_));
        let fixed = [
            (has(&InfoVxlan::Id(wanted.vni)), format!("not VNI {}", wanted.vni)),
            (has(&InfoVxlan::Port(wanted.port)), format!("not port {}", wanted.port)),
            (has(&InfoVxlan::Gbp) == wanted.gbp, format!("not GBP {}", wanted.gbp)),
            (!info.iter().any(multicast), "not without a group".to_owned()),
            (!has(&InfoVxlan::CollectMetadata(true)), "not on its own".to_owned()),
        ];
        let live = [
            (has(&InfoVxlan::Link(wanted.link_index)), format!("over link {}", wanted.link_index)),
            (has(&InfoVxlan::Local(wanted.local)), format!("from {}", wanted.local)),
            (has(&InfoVxlan::Learning(wanted.learning)), format!("learning {}", wanted.learning)),
        ];
        let wrong = |(right, what): (bool, String)| (!right).then_some(what);
        found.fixed.extend(fixed.into_iter().filter_map(wrong));
        found.live.extend(live.into_iter().filter_map(wrong));
        found
    }
}

/// The properties of a device that differ from what is wanted, in words.
#[derive(Debug, Default)]
struct Differences {
    /// Those that the kernel sets only when the device is made: how the device is.
    fixed: Vec<String>,
    /// Those that the kernel changes in a living device: how the device should be.
    live: Vec<String>,
}

fn vxlan_info(info: &LinkInfo) -> Option<Vec<InfoVxlan>> {
    match info {
        LinkInfo::Data(InfoData::Vxlan(info)) => Some(info.clone()),
        _ => None,
    }
}

impl Netlink {
    /// Reads the device of that name; `None` if there is none.
    async fn present_vxlan(&self, name: &str) -> Result<Option<Present>, Error> {
        let request = self.handle.link().get().match_name(name);
        let mut answers = std::pin::pin!(request.execute());
        match answers.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Present::from_message)),
            Err(error) => match Error::request(format!("look up link {name}"), error) {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }

    /// The MAC of the VXLAN device of that name, if there is one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn vxlan_mac(&self, name: &str) -> Result<Option<Mac>, Error> {
        let present = self.present_vxlan(name).await?;
        Ok(present.filter(|present| present.info.is_some()).and_then(|present| present.mac))
    }

    /// Makes the device as wanted, except for its MTU and state, and returns its index. The link below, the local
    /// address, learning and the MAC are changed in place; routes, ARP and forwarding entries stay, but a new MAC takes
    /// the permanent ARP entries along. A device that differs in anything else is deleted and made anew; then its
    /// addresses, routes and entries are gone.
    ///
    /// # Errors
    /// The kernel refuses, for instance with `EEXIST` if another device has the same VNI and port.
    pub async fn ensure_vxlan(&self, wanted: &Vxlan) -> Result<(u32, Changes), Error> {
        let name = &wanted.name;
        let mut changes = Changes::default();
        if let Some(present) = self.present_vxlan(name).await? {
            let index = present.index;
            let differences = present.differences(wanted);
            if differences.fixed.is_empty() {
                if !differences.live.is_empty() {
                    let what = format!("set {name} {}", differences.live.join(", "));
                    self.change_link(wanted.changed_message(index), &what).await?;
                    changes.push(what);
                }
                if present.mac != Some(wanted.mac) {
                    changes.push(self.set_mac(index, name, wanted.mac).await?);
                }
                return Ok((index, changes));
            }
            self.delete_link(index).await?;
            changes.push(format!("delete {name} ({})", differences.fixed.join(", ")));
        }
        let what = format!("create {name}");
        let request = self.handle.link().add(wanted.message());
        request.execute().await.map_err(|error| Error::request(&what, error))?;
        changes.push(what);
        let gone = || Error::new(format!("look up {name}"), std::io::Error::from_raw_os_error(libc::ENODEV));
        let index = self.present_vxlan(name).await?.ok_or_else(gone)?.index;
        Ok((index, changes))
    }

    /// Removes a VXLAN device of ours that is of no use.
    ///
    /// # Errors
    /// The kernel refuses. A device that is gone already is no error.
    pub async fn remove_vxlan(&self, index: u32) -> Result<(), Error> {
        self.delete_link(index).await.map(drop)
    }

    /// Changes the properties of a living device that `message` names (`RTM_NEWLINK` without the flags that create).
    async fn change_link(&self, message: LinkMessage, what: &str) -> Result<(), Error> {
        let done = self.handle.link().change(message).execute().await;
        done.map_err(|error| Error::request(what, error))
    }

    async fn set_mac(&self, index: u32, name: &str, mac: Mac) -> Result<String, Error> {
        let what = format!("set MAC of {name} to {mac}");
        let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|error| Error::request(&what, error)).map(|()| what)
    }
}

impl Vxlan {
    /// The message that brings the living device of that index in line with this one.
    fn changed_message(&self, index: u32) -> LinkMessage {
        let mut message = LinkVxlan::new(&self.name, self.vni)
            .dev(self.link_index)
            .local(self.local)
            .learning(self.learning)
            .build();
        message.header.index = index;
        message
    }

    /// The message that creates this device.
    fn message(&self) -> LinkMessage {
        debug_assert!(self.vni < 1 << 24 && self.name.len() <= 15 && self.mac.is_unicast());
        let mut builder = LinkVxlan::new(&self.name, self.vni)
            .dev(self.link_index)
            .local(self.local)
            .port(self.port)
            .learning(self.learning)
            .mtu(self.mtu)
            .address(self.mac.0.to_vec());
        if self.gbp {
            builder = builder.gbp();
        }
        builder.build()
    }
}

#[cfg(test)]
mod tests;
