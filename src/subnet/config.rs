//! The network config: the JSON text at `<prefix>/config`.

use super::generation::Generation;
use super::go_json::Object;
use crate::log::quote;
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::net::Ipv4Addr;

/// The port of flannel's udp backend.
const DEFAULT_UDP_PORT: u16 = 8285;

/// flannel leases /24 subnets wherever the network has room for several of them.
const DEFAULT_SUBNET_LEN: u8 = 24;

/// What a generation of flannel takes for a `SubnetLen`, in bits.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The longest prefix of a subnet.
    longest: u8,
    /// How much longer a given `SubnetLen` is than the prefix of `Network`, at least.
    least_bits: u8,
    /// How much longer the derived `SubnetLen` is than the prefix of a `Network` that is too small for /24 subnets.
    default_bits: u8,
}

/// flannel v0.6.2 takes one subnet for a network. It cannot read a key that ends in `-32`.
const OLD: Limits = Limits { longest: 31, least_bits: 0, default_bits: 1 };
/// flannel v0.28.9 wants room for four subnets, each with two host addresses beside base and broadcast.
const NEW: Limits = Limits { longest: 30, least_bits: 2, default_bits: 2 };
const _: () = assert!(OLD.longest < 32 && NEW.longest < 32, "a subnet has a size of more than one address");

impl Limits {
    fn of(generation: Generation) -> Self {
        match generation {
            Generation::V2 => OLD,
            Generation::V3 => NEW,
        }
    }
}

/// A network config that was checked, with every default filled in.
///
/// Defaults and limits are those of the flannel whose API of etcd holds the config ([`Generation`]). Through v3 a
/// network has at least four subnets, `SubnetLen` is at most 30, and bounds lie on the boundary of a subnet. Through v2
/// a network may be one subnet, `SubnetLen` may be 31, and bounds may lie anywhere in the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Whose defaults and limits were used.
    pub generation: Generation,
    /// The network of the whole overlay, masked.
    pub network: Ipv4Net,
    /// The prefix length of every host's subnet.
    pub subnet_len: u8,
    /// The base address of the first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// No subnet that may be leased has a higher base address.
    pub subnet_max: Ipv4Addr,
    /// How packets travel between hosts.
    pub backend: BackendConfig,
    /// `EnableIPv4`: always true, since networks without IPv4 are not served yet.
    pub enable_ipv4: bool,
    /// `EnableIPv6`: always false, since IPv6 is not served yet.
    pub enable_ipv6: bool,
    /// `EnableNFTables`: write masquerade and forward rules with nftables instead of iptables.
    pub enable_nftables: bool,
}

/// The `Backend` object of a network config.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendConfig {
    /// The `Type` of the backend, in lower case.
    pub kind: String,
    /// All fields, `Type` among them, with keys spelt as in the text. [`BackendConfig::get`] reads them.
    pub fields: Map<String, Value>,
}

/// Why a config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("the network config is not a JSON object: {0}")]
    Syntax(String),
    /// A field is wrong or missing.
    #[error("network config: {field} {value}: {reason}")]
    Field {
        /// The name of the field as flannel spells it.
        field: String,
        /// The value of the field as JSON, or `(absent)`.
        value: String,
        /// What is wrong with the field.
        reason: String,
    },
    /// The config asks for a part of flannel that this daemon does not have yet.
    #[error("network config: {0} is not served yet")]
    NotServed(&'static str),
}

fn bad(field: &str, value: impl ToString, reason: impl Into<String>) -> ConfigError {
    ConfigError::Field { field: field.to_owned(), value: quote(&value.to_string()), reason: reason.into() }
}

fn syntax(error: &serde_json::Error) -> ConfigError {
    ConfigError::Syntax(quote(&error.to_string()))
}

impl Config {
    /// Reads a config by the rules of [`Generation::V3`].
    ///
    /// # Errors
    /// As [`Config::parse_for`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::parse_for(Generation::V3, text)
    }

    /// Reads a config, fills in what it leaves out as that generation of flannel does, and checks all of it.
    ///
    /// # Errors
    /// The error names the first field that is wrong, and its value.
    pub fn parse_for(generation: Generation, text: &str) -> Result<Self, ConfigError> {
        let object: Object = serde_json::from_str(text).map_err(|e| syntax(&e))?;
        let enable_ipv4 = boolean(&object, "EnableIPv4", true)?;
        let enable_ipv6 = boolean(&object, "EnableIPv6", false)?;
        match (enable_ipv4, enable_ipv6) {
            (true, false) => {}
            (true, true) => return Err(ConfigError::NotServed("EnableIPv6 (dual stack)")),
            (false, true) => return Err(ConfigError::NotServed("an IPv6-only network")),
            (false, false) => return Err(bad("EnableIPv4", "false", "EnableIPv6 is false too")),
        }
        let network = network(&object)?;
        let subnet_len = subnet_len(&object, network, Limits::of(generation))?;
        let (subnet_min, subnet_max) = bounds(&object, network, subnet_len, generation)?;
        Ok(Self {
            generation,
            network,
            subnet_len,
            subnet_min,
            subnet_max,
            backend: backend(text)?,
            enable_ipv4,
            enable_ipv6,
            enable_nftables: boolean(&object, "EnableNFTables", false)?,
        })
    }

    /// The number of addresses in one subnet.
    pub(super) fn subnet_size(&self) -> u64 {
        1 << (32 - u32::from(self.subnet_len))
    }

    /// The number of subnets that can be leased.
    pub fn pool(&self) -> u64 {
        (u64::from(u32::from(self.subnet_max)) - u64::from(u32::from(self.subnet_min))) / self.subnet_size()
            + 1
    }

    /// Whether `subnet` is one that this config leases.
    pub fn fits(&self, subnet: Ipv4Net) -> bool {
        self.misfit(subnet).is_none()
    }

    /// Why this config does not lease `subnet`; `None` if it does.
    pub fn misfit(&self, subnet: Ipv4Net) -> Option<String> {
        let (min, max, len) = (self.subnet_min, self.subnet_max, self.subnet_len);
        if subnet.prefix_len() != len {
            Some(format!("the network config has subnets of /{len}"))
        } else if !(min..=max).contains(&subnet.addr()) {
            Some(format!("the network config has subnets from {min} to {max}"))
        } else if self.generation == Generation::V3 && subnet.addr() != subnet.network() {
            Some(format!("it is not on a /{len} boundary"))
        } else {
            None
        }
    }
}

fn boolean(object: &Object, field: &str, default: bool) -> Result<bool, ConfigError> {
    match object.get_non_null(field) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(bad(field, other, "must be true or false")),
    }
}

fn network(object: &Object) -> Result<Ipv4Net, ConfigError> {
    const FIELD: &str = "Network";
    let value = object.get(FIELD).ok_or_else(|| bad(FIELD, "(absent)", "is required"))?;
    let text = value.as_str().ok_or_else(|| bad(FIELD, value, "must be a string like \"10.1.0.0/16\""))?;
    let net: Ipv4Net = text.parse().map_err(|_| {
        let reason = match text.parse::<ipnet::Ipv6Net>() {
            Ok(_) => "is an IPv6 network; IPv6 belongs into IPv6Network",
            Err(_) => "is not an IPv4 network like \"10.1.0.0/16\"",
        };
        bad(FIELD, value, reason)
    })?;
    if net.prefix_len() == 0 {
        return Err(bad(FIELD, value, "must not be the whole address space"));
    }
    Ok(net.trunc())
}

fn subnet_len(object: &Object, network: Ipv4Net, limits: Limits) -> Result<u8, ConfigError> {
    const FIELD: &str = "SubnetLen";
    let prefix = network.prefix_len();
    let given = match object.get_non_null(FIELD) {
        None => 0,
        Some(value) => value.as_u64().ok_or_else(|| bad(FIELD, value, "must be an integer of 0 or more"))?,
    };
    if given == 0 {
        let derived = DEFAULT_SUBNET_LEN.max(prefix + limits.default_bits);
        if derived > limits.longest {
            let (count, longest) = (1 << limits.default_bits, limits.longest);
            let reason = format!("is too small: a network must have room for {count} subnets of /{longest}");
            return Err(bad("Network", network, reason));
        }
        return Ok(derived);
    }
    if given > u64::from(limits.longest) {
        return Err(bad(FIELD, given, format!("must be {} or less", limits.longest)));
    }
    let least = prefix + limits.least_bits;
    if given < u64::from(least) {
        let count = 1 << limits.least_bits;
        let room = if count == 1 { "a subnet".to_owned() } else { format!("{count} subnets") };
        return Err(bad(FIELD, given, format!("must be {least} or more: {network} must hold {room}")));
    }
    u8::try_from(given).map_err(|_| bad(FIELD, given, "is out of range"))
}

/// `SubnetMin` and `SubnetMax`. As in flannel, the default skips the first subnet.
fn bounds(
    object: &Object,
    network: Ipv4Net,
    len: u8,
    generation: Generation,
) -> Result<(Ipv4Addr, Ipv4Addr), ConfigError> {
    let size = 1_u32 << (32 - u32::from(len));
    let (base, end) = (network.network(), network.broadcast());
    let aligned = if generation == Generation::V3 { size } else { 1 };
    let last = Ipv4Addr::from(u32::from(end) - (size - 1));
    let max = bound(object, "SubnetMax", network, aligned)?.unwrap_or(last);
    let Some(min) = bound(object, "SubnetMin", network, aligned)? else {
        let first = u32::from(base).checked_add(size).map(Ipv4Addr::from).filter(|first| *first <= max);
        return first.map(|first| (first, max)).ok_or_else(|| {
            let reason = format!(
                "the first subnet is skipped, and the next one is above SubnetMax {max}; SubnetMin {base} would \
                 lease the first one too"
            );
            bad("SubnetMin", "(absent)", reason)
        });
    };
    debug_assert!(network.contains(&min) && network.contains(&max));
    if min > max {
        return Err(bad("SubnetMin", min, format!("is above SubnetMax {max}")));
    }
    Ok((min, max))
}

/// One of the two bounds; `None` if it is absent or `0.0.0.0`. It must be a multiple of `size` addresses.
fn bound(object: &Object, field: &str, net: Ipv4Net, size: u32) -> Result<Option<Ipv4Addr>, ConfigError> {
    let Some(value) = object.get(field) else { return Ok(None) };
    let address: Ipv4Addr = value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad(field, value, "must be a string like \"10.1.5.0\""))?;
    if address.is_unspecified() {
        return Ok(None);
    }
    if !net.contains(&address) {
        return Err(bad(field, value, format!("is not in the range of Network {net}")));
    }
    let base = u32::from(address) & !(size - 1);
    if base != u32::from(address) {
        let len = size.leading_zeros() + 1;
        let nearest = Ipv4Addr::from(base);
        return Err(bad(
            field,
            value,
            format!("is not on a /{len} boundary; the subnet starts at {nearest}"),
        ));
    }
    Ok(Some(address))
}

/// The `Backend` object. Without one the backend is udp, even where flannel's documentation names another.
fn backend(text: &str) -> Result<BackendConfig, ConfigError> {
    const TYPE: &str = "Backend.Type";
    let members: Object<&RawValue> = serde_json::from_str(text).map_err(|e| syntax(&e))?;
    let Some(value) = members.get("Backend") else {
        return Ok(BackendConfig { kind: "udp".to_owned(), fields: Map::new() });
    };
    let fields: Object = serde_json::from_str(value.get())
        .map_err(|_| bad("Backend", value, "must be an object like {\"Type\": \"udp\"}"))?;
    let kind = match fields.get_non_null("Type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.to_lowercase(),
        Some(other) => return Err(bad(TYPE, other, "must name a backend, like \"udp\"")),
        None => return Err(bad(TYPE, "(absent)", "a Backend must have a Type, like \"udp\"")),
    };
    Ok(BackendConfig { kind, fields: fields.into_map() })
}

impl BackendConfig {
    /// The value of a field, whatever the case of its key; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let found = self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// The value of a field as a `T`; `None` if it is absent.
    ///
    /// # Errors
    /// The field is there, but its value is not a `T`.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        T::deserialize(value)
            .map(Some)
            .map_err(|e| bad(&format!("Backend.{name}"), value, quote(&e.to_string())))
    }

    /// `Port`: the port on which every host of a udp network listens; 8285 if absent. flannel takes 0 too: then the
    /// kernel chooses a port, which no peer knows.
    ///
    /// # Errors
    /// The value is not an integer from 0 to 65535.
    pub fn port(&self) -> Result<u16, ConfigError> {
        let Some(value) = self.get("Port") else { return Ok(DEFAULT_UDP_PORT) };
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| bad("Backend.Port", value, "must be an integer from 0 to 65535"))
    }
}

#[cfg(test)]
mod tests;
