//! Where things lie in the store, and what a key and its value mean.

use super::{Entry, Revision, Skipped};
use crate::subnet::{LeaseAttrs, SubnetKey};

/// The keys of one network: `<prefix>/config` and `<prefix>/subnets/<subnet>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keyspace {
    prefix: String,
}

impl Keyspace {
    /// Blanks around the prefix, empty elements and slashes at either end do not matter, as in flannel
    /// (Go's `path.Join`).
    pub(super) fn new(prefix: &str) -> Self {
        let mut clean = String::new();
        for element in prefix.trim().split('/').filter(|element| !element.is_empty()) {
            clean.push('/');
            clean.push_str(element);
        }
        Self { prefix: clean }
    }

    pub(super) fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// The directory of all leases, without a trailing slash.
    pub(super) fn leases(&self) -> String {
        format!("{}/subnets", self.prefix)
    }

    pub(super) fn lease(&self, key: &SubnetKey) -> String {
        format!("{}/subnets/{key}", self.prefix)
    }

    /// What follows `<prefix>/subnets/`; `None` for any other key.
    pub(super) fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)?.strip_prefix("/subnets/")
    }
}

/// The subnet that a key's last element names.
///
/// Only the spelling that we would write ourselves is taken (masked address, canonical IPv6): any other
/// names the same subnet by a second key, whose deletion would then pass for the first one's.
pub(super) fn subnet(name: &str) -> Result<SubnetKey, Skipped> {
    let skipped = |reason: String| Skipped { key: name.to_owned(), reason };
    let key: SubnetKey = name.parse().map_err(|error| skipped(format!("{error}")))?;
    if key.to_string() != name {
        return Err(skipped(format!("not the canonical spelling of {key}")));
    }
    Ok(key)
}

/// The lease that a key's last element and its value make.
pub(super) fn entry(
    name: &str,
    value: &str,
    revision: Revision,
    lease: Option<u64>,
) -> Result<Entry, Skipped> {
    let key = subnet(name)?;
    let attrs = LeaseAttrs::decode(value)
        .map_err(|error| Skipped { key: name.to_owned(), reason: format!("{error}") })?;
    Ok(Entry { key, attrs, revision, lease })
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

    #[test]
    fn only_the_canonical_key_names_a_subnet() {
        assert_eq!(subnet("10.1.5.0-24").map(|key| key.to_string()), Ok("10.1.5.0-24".to_owned()));
        for name in ["10.1.5.1-24", "010.1.5.0-24", "10.1.5.0-24hi", "junk", ""] {
            assert!(subnet(name).is_err(), "{name}");
        }
    }
}
