//! Network devices, which the kernel calls links.

use super::{Changes, Error, Mac, Netlink};
use futures_util::TryStreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::LinkUnspec;
use std::fs;
use std::path::Path;

/// Devices whose names begin so are an overlay's, whichever network's: `flannel0`, `flannel.1`.
pub const OVERLAY_DEVICES: &str = "flannel";

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The number by which the kernel knows the device.
    pub index: u32,
    /// The name of the device.
    pub name: String,
    /// The largest IP packet that it carries, in bytes; 0 if the kernel does not say.
    pub mtu: u32,
    /// Whether the administrator has set it up (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets (`IFF_RUNNING`).
    pub running: bool,
    /// The index of the bridge or bond that it is a port of, if it is one.
    pub master: Option<u32>,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// The kind of its driver, such as `tun` or `veth`; absent for plain hardware.
    pub kind: Option<String>,
}

/// Which MTU a link is to have, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// The link has this MTU and no other.
    Exactly(u32),
    /// The link has this MTU or a lower one, which is an operator's choice.
    AtMost(u32),
}

impl Mtu {
    /// The MTU to set in place of `present`, if that one will not do.
    fn correction(self, present: u32) -> Option<u32> {
        match self {
            Mtu::Exactly(mtu) => (present != mtu).then_some(mtu),
            Mtu::AtMost(mtu) => (present > mtu).then_some(mtu),
        }
    }
}

impl Link {
    /// Whether the device is an overlay's, whichever network's.
    pub fn is_overlay(&self) -> bool {
        self.name.starts_with(OVERLAY_DEVICES)
    }

    /// Reads a device from a message of the kernel.
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            master: None,
            mac: None,
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(index) => link.master = Some(*index).filter(|index| *index > 0),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = Mac::from_bytes(bytes),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

impl Netlink {
    /// Lists all links, in the order of the kernel.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let keep = |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(&message)),
            _ => None,
        };
        self.dump("list links", RouteNetlinkMessage::GetLink(LinkMessage::default()), keep).await
    }

    /// Looks up the link of that name; `None` if there is none.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name);
        self.one_link(request, &format!("look up link {name}")).await
    }

    /// Looks up the link of that index; `None` if there is none.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_index(index);
        self.one_link(request, &format!("look up link {index}")).await
    }

    async fn one_link(
        &self,
        request: rtnetlink::LinkGetRequest,
        operation: &str,
    ) -> Result<Option<Link>, Error> {
        let mut answers = std::pin::pin!(request.execute());
        match answers.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Link::from_message)),
            Err(e) => match Error::request(operation, e) {
                e if e.is_not_found() => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Gives the link this MTU and this administrative state, where it has others.
    pub async fn ensure_link(&self, index: u32, mtu: Mtu, up: bool) -> Result<Changes, Error> {
        let link = self.link_by_index(index).await?.ok_or_else(|| {
            Error::new(format!("set up link {index}"), std::io::Error::from_raw_os_error(libc::ENODEV))
        })?;
        let name = &link.name;
        let mut changes = Changes::default();
        if let Some(mtu) = mtu.correction(link.mtu) {
            let request = LinkUnspec::new_with_index(index).mtu(mtu);
            let what = format!("set MTU of {name} to {mtu}");
            self.set_link(request.build(), &what).await?;
            changes.push(what);
        }
        if link.up != up {
            let request = LinkUnspec::new_with_index(index);
            let request = if up { request.up() } else { request.down() };
            let what = format!("set {name} {}", if up { "up" } else { "down" });
            self.set_link(request.build(), &what).await?;
            changes.push(what);
        }
        debug_assert!(changes.writes() <= 2);
        Ok(changes)
    }

    async fn set_link(&self, message: LinkMessage, operation: &str) -> Result<(), Error> {
        self.handle.link().set(message).execute().await.map_err(|e| Error::request(operation, e))
    }

    /// How many packets the kernel has dropped on their way into a device, such as a TUN whose queue was full. `None` if
    /// the device is gone.
    pub async fn dropped_on_send(&self, index: u32) -> Result<Option<u64>, Error> {
        let request = self.handle.link().get().match_index(index).execute();
        let messages: Vec<_> = match request.try_collect().await {
            Ok(messages) => messages,
            Err(e) => {
                let error = Error::request(format!("read the counters of link {index}"), e);
                return if error.is_not_found() { Ok(None) } else { Err(error) };
            }
        };
        Ok(messages.iter().flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
            _ => None,
        }))
    }

    /// Deletes the link. Returns false if it was gone already.
    pub(super) async fn delete_link(&self, index: u32) -> Result<bool, Error> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(true),
            Err(e) => match Error::request(format!("delete link {index}"), e) {
                e if e.is_not_found() => Ok(false),
                e => Err(e),
            },
        }
    }

    /// Lets a device of ours deliver packets whose source is an address of this host. An ICMP error that we write into
    /// the TUN comes from the TUN's own address, and the kernel would drop it as a martian (`fib_validate_source`).
    /// Returns what it changed; a read-only `/proc/sys` is no error.
    pub fn accept_local(&self, name: &str) -> Changes {
        set_to_one("ipv4", name, "accept_local")
    }

    /// Takes back [`Netlink::accept_local`].
    pub fn refuse_local(&self, name: &str) -> Changes {
        set("ipv4", name, "accept_local", "0")
    }

    /// Keeps IPv6 off a device of ours, so that it gets no link-local address and the kernel sends no router
    /// solicitations into the overlay. Returns what it changed. A kernel without IPv6, or a read-only `/proc/sys`, is no
    /// error: packets other than IPv4 are dropped later anyway.
    pub fn disable_ipv6(&self, name: &str) -> Changes {
        let mut changes = Changes::default();
        // addr_gen_mode 1 is IN6_ADDR_GEN_MODE_NONE (Linux include/uapi/linux/if_link.h).
        changes.extend(set_to_one("ipv6", name, "addr_gen_mode"));
        changes.extend(set_to_one("ipv6", name, "disable_ipv6"));
        changes
    }
}

/// Sets `/proc/sys/net/<family>/conf/<name>/<key>` to 1 if it exists and is not 1 yet.
fn set_to_one(family: &str, name: &str, key: &str) -> Changes {
    set(family, name, key, "1")
}

/// Sets `/proc/sys/net/<family>/conf/<name>/<key>` to `value` if it exists and is another.
fn set(family: &str, name: &str, key: &str, value: &str) -> Changes {
    let mut changes = Changes::default();
    let path = Path::new("/proc/sys/net").join(family).join("conf").join(name).join(key);
    let Ok(present) = fs::read_to_string(&path) else { return changes };
    if present.trim() != value && fs::write(&path, value).is_ok() {
        changes.push(format!("set {key} of {name}"));
    }
    changes
}
