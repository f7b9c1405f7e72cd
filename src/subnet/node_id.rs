//! The name of a node, which lasts longer than its address.

use crate::log::quote;
use std::fmt;
use std::str::FromStr;

/// How a name begins that was derived from the machine id.
const OF_MACHINE: &str = "machine-";
/// The longest name that an operator may give, in characters.
const LONGEST: usize = 64;

/// The name of a node: `NodeID` in the value of its lease. flannel ignores it.
///
/// Two hosts with one PublicIP are told apart by it, and a host whose address has changed is known by it.
/// [`fmt::Display`] shows at most 200 characters and escapes what cannot be printed, since others write such names too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId(Box<str>);

/// Why a text is not the name of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// The text is empty, too long, or has other characters than letters, digits, dots, dashes and underscores.
    #[error("a node id has 1 to {LONGEST} of the characters A-Z, a-z, 0-9, '.', '-' and '_'")]
    Form,
    /// The text looks as if it was derived from a machine id.
    #[error("only names derived from a machine id begin with {OF_MACHINE:?}")]
    Reserved,
}

impl NodeId {
    /// The name for 128 random bits: 32 hexadecimal digits.
    pub fn random(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// The name that is derived from the machine id, for 128 bits of its hash. Hosts made from one image may share it,
    /// so it is trusted less than other names: see [`NodeId::is_of_machine`].
    pub fn of_machine(hash: u128) -> Self {
        Self(format!("{OF_MACHINE}{hash:032x}").into())
    }

    /// Whether the name was derived from a machine id. Such a name does not prove that two leases are of one host.
    pub fn is_of_machine(&self) -> bool {
        self.0.starts_with(OF_MACHINE)
    }

    /// The name that somebody has published; `None` if the text is empty.
    pub fn published(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// The text of the name, as it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > LONGEST || !text.chars().all(plain) {
            return Err(NodeIdError::Form);
        }
        if text.starts_with(OF_MACHINE) {
            return Err(NodeIdError::Reserved);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_form() {
        for text in ["a", "rack-7.host_3", &"x".repeat(64), "Machine-1"] {
            assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        }
        for text in ["", "a b", "a\n", "é", &"x".repeat(65)] {
            assert_eq!(text.parse::<NodeId>(), Err(NodeIdError::Form), "{text:?}");
        }
        assert_eq!("machine-1".parse::<NodeId>(), Err(NodeIdError::Reserved));
        assert_eq!(NodeId::random(7).to_string(), format!("{:0>32}", 7));
        assert!(NodeId::of_machine(7).is_of_machine() && !NodeId::random(7).is_of_machine());
        assert_eq!(NodeId::published("a\u{1b}[2J").unwrap().to_string(), r"a\u{1b}[2J");
    }
}
