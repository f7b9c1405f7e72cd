//! Where things lie in the store, and what a key and its value mean.

use super::{Entry, Revision, Skipped};
use crate::subnet::lease::KeyError;
use crate::subnet::{LeaseAttrs, SubnetKey};

/// The keys of one network: `<prefix>/config` and `<prefix>/subnets/<subnet>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    /// What stands before `config`: the prefix with a slash after it, or nothing where the prefix is empty.
    before: String,
}

impl Keyspace {
    /// The keys below `prefix` in a store whose keys are bytes (etcd v3). They are those of flannel, which joins them
    /// with Go's `path.Join`: doubled slashes, slashes at the end, `.` and `..` are resolved, and everything else stays
    /// as it was typed. So `/a` and `a` are different prefixes.
    pub fn new(prefix: &str) -> Self {
        let is_rooted = prefix.starts_with('/');
        let mut elements: Vec<&str> = Vec::new();
        for element in prefix.split('/') {
            match element {
                "" | "." => {}
                ".." if elements.last().is_some_and(|last| *last != "..") => drop(elements.pop()),
                // Nothing lies above the root.
                ".." if is_rooted => {}
                other => elements.push(other),
            }
        }
        let mut before = String::from(if is_rooted { "/" } else { "" });
        for element in elements {
            before.push_str(element);
            before.push('/');
        }
        debug_assert!(before.is_empty() || before.ends_with('/'));
        Self { before }
    }

    /// The keys below `prefix` in a store whose keys form a tree (etcd v2): there `/a` and `a` are the same prefix.
    pub fn in_tree(prefix: &str) -> Self {
        Self::new(&format!("/{prefix}"))
    }

    /// The key of this network's config.
    pub fn config(&self) -> String {
        format!("{}config", self.before)
    }

    /// What every key of this network and of the networks below it begins with. It ends with a slash, or is empty.
    pub fn root(&self) -> &str {
        &self.before
    }

    /// The key of the config of the network with that name, below this prefix.
    pub fn config_of(&self, network: &str) -> String {
        format!("{}{network}/config", self.before)
    }

    /// The directory of all leases, without a trailing slash.
    pub fn leases(&self) -> String {
        format!("{}subnets", self.before)
    }

    /// The key of one lease.
    pub fn lease(&self, key: &SubnetKey) -> String {
        let full = format!("{}subnets/{key}", self.before);
        debug_assert_eq!(
            self.name(&full).map(subnet),
            Some(Ok(*key)),
            "a key that we write can be read back"
        );
        full
    }

    /// The part of a lease's key that follows `<prefix>/subnets/`; `None` for any other key.
    pub fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.before)?.strip_prefix("subnets/")
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

    /// The wanted values are those of Go's `path.Join(prefix, "config")`, printed by a Go program.
    #[test]
    fn keys_are_joined_as_go_joins_them() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("coreos.com//network//", "coreos.com/network/config"),
            ("//coreos.com/./network/.", "/coreos.com/network/config"),
            ("/a/b/../c", "/a/c/config"),
            ("/../../a", "/a/config"),
            ("../a", "../a/config"),
            ("a/../../b", "../b/config"),
            (" /a ", " /a /config"),
            ("/", "/config"),
            ("", "config"),
            (".", "config"),
            ("a/..", "config"),
            ("/a b/%2f", "/a b/%2f/config"),
        ] {
            let keys = Keyspace::new(prefix);
            assert_eq!(keys.config(), config, "{prefix:?}");
            assert_eq!(keys.leases(), config.replace("config", "subnets"));
            assert_eq!(keys.config_of("n"), config.replace("config", "n/config"));
        }
    }

    #[test]
    fn a_tree_does_not_care_about_the_first_slash() {
        for prefix in ["/coreos.com/network", "coreos.com/network/", "//coreos.com//network//"] {
            let keys = Keyspace::in_tree(prefix);
            assert_eq!(keys.config(), "/coreos.com/network/config");
            assert_eq!(keys.leases(), "/coreos.com/network/subnets");
        }
        assert_eq!(Keyspace::in_tree("/").config(), "/config");
        assert_eq!(Keyspace::in_tree("").config(), "/config");
    }

    #[test]
    fn a_lease_is_known_by_its_whole_key() {
        for prefix in ["/n", "n", "/", ""] {
            let keys = Keyspace::new(prefix);
            let root = keys.root();
            assert_eq!(keys.name(&format!("{root}subnets/10.1.5.0-24")), Some("10.1.5.0-24"));
            assert_eq!(keys.name(&format!("{root}subnets-x/10.1.5.0-24")), None);
            assert_eq!(keys.name(&format!("x{root}subnets/10.1.5.0-24")), None);
            assert_eq!(keys.name(&keys.config()), None);
        }
    }
}
