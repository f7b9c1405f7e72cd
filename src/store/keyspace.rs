//! Where things lie in the store, and what a key and its value mean.

use super::{Entry, Revision, Skipped};
use crate::subnet::lease::KeyError;
use crate::subnet::{LeaseAttrs, SubnetKey};

/// The keys of one network: `<prefix>/config` and `<prefix>/subnets/<subnet>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    prefix: String,
}

impl Keyspace {
    /// The keys below `prefix`. As in flannel (Go's `path.Join`), blanks around it, empty elements and slashes at
    /// either end do not matter.
    pub fn new(prefix: &str) -> Self {
        let mut clean = String::new();
        for element in prefix.trim().split('/').filter(|element| !element.is_empty()) {
            clean.push('/');
            clean.push_str(element);
        }
        debug_assert!(clean.is_empty() || (clean.starts_with('/') && !clean.ends_with('/')));
        Self { prefix: clean }
    }

    /// The key of this network's config.
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// The prefix itself, without a trailing slash.
    pub fn root(&self) -> &str {
        &self.prefix
    }

    /// The key of the config of the network with that name, below this prefix.
    pub fn config_of(&self, network: &str) -> String {
        format!("{}/{network}/config", self.prefix)
    }

    /// The directory of all leases, without a trailing slash.
    pub fn leases(&self) -> String {
        format!("{}/subnets", self.prefix)
    }

    /// The key of one lease.
    pub fn lease(&self, key: &SubnetKey) -> String {
        let full = format!("{}/subnets/{key}", self.prefix);
        debug_assert_eq!(
            self.name(&full).map(subnet),
            Some(Ok(*key)),
            "a key that we write can be read back"
        );
        full
    }

    /// The part of a lease's key that follows `<prefix>/subnets/`; `None` for any other key.
    pub fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)?.strip_prefix("/subnets/")
    }
}

/// The subnet that the last element of a key names.
pub fn subnet(name: &str) -> Result<SubnetKey, Skipped> {
    name.parse().map_err(|error: KeyError| Skipped { key: name.to_owned(), reason: error.reason.to_owned() })
}

/// The lease that the last element of a key and its value describe.
pub fn entry(name: &str, value: &str, revision: Revision, lease: Option<u64>) -> Result<Entry, Skipped> {
    let key = subnet(name)?;
    let attrs = LeaseAttrs::decode(value)
        .map_err(|error| Skipped { key: name.to_owned(), reason: error.to_string() })?;
    Ok(Entry { key, attrs, value: value.to_owned(), revision, lease })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_normalised() {
        for prefix in ["/coreos.com/network", "coreos.com/network/", " //coreos.com//network// "] {
            let keys = Keyspace::new(prefix);
            assert_eq!(keys.config(), "/coreos.com/network/config");
            assert_eq!(keys.leases(), "/coreos.com/network/subnets");
            assert_eq!(keys.name("/coreos.com/network/subnets/10.1.5.0-24"), Some("10.1.5.0-24"));
            assert_eq!(keys.name("/coreos.com/network/subnets-x/10.1.5.0-24"), None);
            assert_eq!(keys.name("/coreos.com/network/config"), None);
        }
        assert_eq!(Keyspace::new(" / ").config(), "/config");
    }
}
