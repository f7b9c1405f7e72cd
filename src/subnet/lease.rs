//! The lease as the store holds it: how its key and its value are read and written.

use super::NodeId;
use super::generation::Generation;
use super::go_json::Object;
use crate::log::quote;
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::Value;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// The last element of a lease's key: `10.1.5.0-24`, or `10.1.5.0-24&fc00::-64` for a dual-stack node.
///
/// [`fmt::Display`] writes that text and [`FromStr`] reads it. Only the text that `Display` would write
/// is accepted, so that a key that was read can be written to again.
///
/// flannel v0.6.2 leases `10.1.5.7-24` where `SubnetMin` is not on the boundary of a subnet. Its key keeps that text,
/// and [`SubnetKey::subnet`] is the subnet that it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The IPv4 subnet as the key spells it.
    pub ipv4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack node. We never create one, but a key that we write again must keep it.
    pub ipv6: Option<Ipv6Net>,
}

/// What a node publishes about itself in its lease's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// The address to which peers send this node's packets. flannel takes it for the node's identity too.
    pub public_ip: Ipv4Addr,
    /// The backend of the node, such as `vxlan` or `host-gw`; absent for `udp` and `alloc`.
    pub backend_type: Option<String>,
    /// What that backend tells its peers, as it stands in the store.
    pub backend_data: Option<BackendData>,
    /// `NodeID`: the name of the node. flannel writes none and ignores it.
    pub node_id: Option<NodeId>,
    /// `AskedBy`: another node doubts that this one lives, and has written this into its lease. A node that lives writes
    /// its lease anew, without this field; peers ignore it.
    pub asked_by: Option<NodeId>,
}

/// What a backend tells its peers: any JSON, in the form that the store has but with sorted members and without blanks.
/// A text that all copies of a lease share takes a tenth of the memory of a tree for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendData(Arc<str>);

impl BackendData {
    /// What the text says.
    pub fn value(&self) -> Value {
        let value = serde_json::from_str(&self.0);
        debug_assert!(value.is_ok(), "{self} was written as JSON");
        value.unwrap_or_default()
    }
}

impl From<Value> for BackendData {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl fmt::Display for BackendData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a key is not the key of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is not a subnet key: {reason}")]
pub struct KeyError {
    /// The text of the key.
    pub key: String,
    /// What is wrong with the key.
    pub reason: &'static str,
}

/// Why a value is not the value of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value is empty. etcd v2 answers so for a directory, and some stores hold such values.
    #[error("the value is empty")]
    Empty,
    /// The value is not a JSON object.
    #[error("not a JSON object: {0}")]
    Syntax(String),
    /// A field is of a kind that flannel could not read either, or the lease is useless without it.
    #[error("{field}: {reason}: {value}")]
    Field {
        /// The name of the field as flannel spells it.
        field: &'static str,
        /// The value of the field as JSON; `nothing` if it is absent.
        value: String,
        /// What is wrong with the field.
        reason: &'static str,
    },
}

/// The longest IPv4 prefix in a key. flannel reads the length as a number of five bits, so it cannot read a key that
/// ends in `-32`, and nobody leases a single address.
const MAX_PREFIX: u8 = 31;
/// The longest IPv6 prefix in a key. flannel reads its length as a number of seven bits.
const MAX_PREFIX_V6: u8 = 127;

impl SubnetKey {
    /// The key of an IPv4-only lease.
    pub fn v4(subnet: Ipv4Net) -> Self {
        Self { ipv4: subnet, ipv6: None }
    }

    /// The IPv4 subnet, with the bits outside its prefix cleared.
    pub fn subnet(&self) -> Ipv4Net {
        self.ipv4.trunc()
    }
}

impl From<Ipv4Net> for SubnetKey {
    fn from(subnet: Ipv4Net) -> Self {
        Self::v4(subnet)
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.addr(), self.ipv4.prefix_len())?;
        match self.ipv6 {
            Some(net) => write!(f, "&{}-{}", net.addr(), net.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let error = |reason| KeyError { key: text.to_owned(), reason };
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (addr, len) = split_net::<Ipv4Addr>(v4, MAX_PREFIX).map_err(error)?;
        let ipv4 = Ipv4Net::new(addr, len).map_err(|_| error("bad IPv4 prefix length"))?;
        let ipv6 = match v6 {
            Some(v6) => {
                let (addr, len) = split_net::<Ipv6Addr>(v6, MAX_PREFIX_V6).map_err(error)?;
                Some(Ipv6Net::new(addr, len).map_err(|_| error("bad IPv6 prefix length"))?)
            }
            None => None,
        };
        let key = Self { ipv4, ipv6: ipv6.map(|net| net.trunc()) };
        // If two texts could name one subnet, two keys in the store would be one key here.
        if key.to_string() != text {
            return Err(error("not in canonical form"));
        }
        Ok(key)
    }
}

/// Splits `<address>-<length>` into its two parts.
fn split_net<A: FromStr>(text: &str, max_len: u8) -> Result<(A, u8), &'static str> {
    let (addr, len) = text.rsplit_once('-').ok_or("no prefix length")?;
    let len = len.parse::<u8>().map_err(|_| "bad prefix length")?;
    if len > max_len {
        return Err("prefix length out of range");
    }
    Ok((addr.parse().map_err(|_| "bad address")?, len))
}

impl LeaseAttrs {
    /// The attributes of a node whose backend tells its peers only where to send packets.
    pub fn new(public_ip: Ipv4Addr) -> Self {
        Self { public_ip, backend_type: None, backend_data: None, node_id: None, asked_by: None }
    }

    /// Whether `other` says the same of a node, apart from the question whether it lives.
    pub fn says(&self, other: &Self) -> bool {
        let Self { public_ip, backend_type, backend_data, node_id, asked_by: _ } = self;
        *public_ip == other.public_ip
            && *node_id == other.node_id
            && *backend_type == other.backend_type
            && *backend_data == other.backend_data
    }

    /// The value as flannel writes it: the fields have a fixed order, empty ones are left out, and there are no blanks.
    /// Fields that flannel does not know follow its own.
    pub fn encode(&self, form: Generation) -> String {
        let mut text = format!("{{\"PublicIP\":\"{}\"", self.public_ip);
        if form == Generation::V3 {
            text.push_str(",\"PublicIPv6\":null");
        }
        if let Some(kind) = self.backend_type.as_deref().filter(|kind| !kind.is_empty()) {
            text.push_str(&format!(",\"BackendType\":{}", Value::from(kind)));
        }
        if let Some(data) = &self.backend_data {
            text.push_str(&format!(",\"BackendData\":{data}"));
        }
        for (field, name) in [("NodeID", &self.node_id), ("AskedBy", &self.asked_by)] {
            if let Some(name) = name {
                text.push_str(&format!(",\"{field}\":{}", Value::from(name.as_str())));
            }
        }
        text.push('}');
        let same_host = |read: &Self| read.public_ip == self.public_ip;
        debug_assert!(Self::decode(&text).as_ref().is_ok_and(same_host), "{text} cannot be read back");
        text
    }

    /// Reads a value of either form. Unknown fields are ignored.
    ///
    /// # Errors
    /// The value is empty or is not a JSON object, `PublicIP` is absent or is not an IPv4 address, or `BackendType` is
    /// not a string.
    pub fn decode(text: &str) -> Result<Self, ValueError> {
        if text.trim().is_empty() {
            return Err(ValueError::Empty);
        }
        let object: Object =
            serde_json::from_str(text).map_err(|e| ValueError::Syntax(quote(&e.to_string())))?;
        let error = |field, value: Option<&Value>, reason| ValueError::Field {
            field,
            value: value.map_or_else(|| "nothing".to_owned(), |value| quote(&value.to_string())),
            reason,
        };
        let public_ip = object.get("PublicIP");
        let address = public_ip.and_then(Value::as_str).and_then(|text| text.parse().ok());
        let backend_type = match object.get_non_null("BackendType") {
            None => None,
            Some(Value::String(kind)) => Some(kind.clone()).filter(|kind| !kind.is_empty()),
            other => return Err(error("BackendType", other, "not a string")),
        };
        // flannel ignores these fields, so a peer whose fields make no sense to us is a peer like any of flannel's.
        let node = |field| object.get_non_null(field).and_then(Value::as_str).and_then(NodeId::published);
        Ok(Self {
            public_ip: address.ok_or_else(|| error("PublicIP", public_ip, "not an IPv4 address"))?,
            backend_type,
            backend_data: object.get_non_null("BackendData").map(|data| BackendData(data.to_string().into())),
            node_id: node("NodeID"),
            asked_by: node("AskedBy"),
        })
    }
}

#[cfg(test)]
mod tests;
