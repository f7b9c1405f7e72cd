//! The nftables flavour: one table, replaced whole in one transaction by `nft -f -`.
//!
//! The table has flannel's name, unless another daemon on this host, of another network, has it already: then
//! ours is named after our network, and stays so.

use super::command;
use super::{Error, Rules};
use ipnet::Ipv4Net;
use std::fmt::Write;
use std::path::PathBuf;

/// flannel's name for it, so that people and tools find it.
const TABLE: &str = "flannel-ipv4";
/// Others may write while we do; more than this often they do not.
const TRIES: usize = 3;
const _: () = assert!(TRIES > 1, "the first one may find that the table is another daemon's");

/// The name of a table beside another daemon's.
fn named(network: Ipv4Net) -> String {
    format!("{TABLE}-{}-{}", network.addr(), network.prefix_len())
}

/// Whether a table's listing holds the rules of a network, and none of these networks.
fn is_anothers(listing: &str, ours: &[Ipv4Net]) -> bool {
    let networks = || listing.split_whitespace().filter_map(|word| word.parse::<Ipv4Net>().ok());
    networks().next().is_some() && !networks().any(|network| ours.contains(&network))
}

/// The transaction that puts the wanted table in the place of whatever was there. `add` first, since a table
/// that does not exist cannot be deleted. Priorities are numbers (`srcnat` and `filter`), which every nft reads.
fn script(rules: &Rules, table: &str) -> String {
    let mut text = format!("add table ip {table}\ndelete table ip {table}\n");
    if !rules.any() {
        return text;
    }
    let (network, subnet) = (rules.network, rules.subnet);
    let _ = writeln!(text, "table ip {table} {{");
    if rules.masquerade {
        let masquerade = if rules.random_fully { "masquerade fully-random" } else { "masquerade" };
        let _ = write!(
            text,
            "\tchain postrtg {{
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tmeta mark & 0x4000 == 0x4000 return
\t\tip saddr {subnet} ip daddr {network} return
\t\tip saddr {network} ip daddr {subnet} return
\t\tip saddr != {network} ip daddr {subnet} return
\t\tip saddr {network} ip daddr != 224.0.0.0/4 {masquerade}
\t\tip saddr != {network} ip daddr {network} {masquerade}
\t}}\n"
        );
    }
    if rules.forward {
        let _ = write!(
            text,
            "\tchain forward {{
\t\ttype filter hook forward priority 0; policy accept;
\t\tip saddr {network} accept
\t\tip daddr {network} accept
\t}}\n"
        );
    }
    text.push_str("}\n");
    debug_assert!(!is_anothers(&text, &[network]), "a table that we write is known as ours");
    text
}

/// The program, and what it showed after our last transaction: how it prints a rule depends on its version.
#[derive(Debug)]
pub(super) struct Nftables {
    nft: PathBuf,
    expected: Option<(Rules, String)>,
    /// Our table has a name of its own.
    apart: bool,
}

impl Nftables {
    pub(super) const PROGRAM: &'static str = "nft";

    pub(super) fn find(path: Option<&str>) -> Option<Self> {
        Some(Self { nft: command::find(Self::PROGRAM, path)?, expected: None, apart: false })
    }

    /// The table's listing, if it exists.
    fn list(&self, table: &str) -> Result<Option<String>, Error> {
        match command::run(&self.nft, &["list", "table", "ip", table], "")? {
            output if output.success => Ok(Some(output.stdout)),
            output if output.says("No such file or directory") => Ok(None),
            output => Err(output.error()),
        }
    }

    /// Whether something had to be written. `older` networks are ours too.
    pub(super) fn ensure(&mut self, rules: &Rules, older: &[Ipv4Net]) -> Result<bool, Error> {
        let (named, ours) = (named(rules.network), [&[rules.network], older].concat());
        self.apart = self.apart || (self.expected.is_none() && self.list(&named)?.is_some());
        let mut changed = false;
        for _ in 0..TRIES {
            let mut table = if self.apart { named.as_str() } else { TABLE };
            let mut present = self.list(table)?;
            if !self.apart && present.as_deref().is_some_and(|listing| is_anothers(listing, &ours)) {
                (self.apart, table) = (true, &named);
                present = self.list(table)?;
            }
            let right = match (present, &self.expected) {
                (None, _) => !rules.any(),
                (Some(present), Some((of, expected))) => of == rules && *expected == present,
                (Some(_), None) => false,
            };
            if right {
                break;
            }
            command::run(&self.nft, &["-f", "-"], &script(rules, table))?.text()?;
            changed = true;
            // A daemon that started at the same moment may have put its table in the place of ours since.
            let listing = self.list(table)?.filter(|listing| !is_anothers(listing, &ours));
            self.expected = listing.map(|listing| (*rules, listing));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_replaces_the_whole_table() {
        let all = Rules {
            network: "10.10.0.0/16".parse().unwrap(),
            subnet: "10.10.5.0/24".parse().unwrap(),
            masquerade: true,
            random_fully: true,
            forward: true,
        };
        let head = "add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n";
        let masquerade = "\tchain postrtg {
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tmeta mark & 0x4000 == 0x4000 return
\t\tip saddr 10.10.5.0/24 ip daddr 10.10.0.0/16 return
\t\tip saddr 10.10.0.0/16 ip daddr 10.10.5.0/24 return
\t\tip saddr != 10.10.0.0/16 ip daddr 10.10.5.0/24 return
\t\tip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 10.10.0.0/16 ip daddr 10.10.0.0/16 masquerade fully-random
\t}\n";
        let forward = "\tchain forward {
\t\ttype filter hook forward priority 0; policy accept;
\t\tip saddr 10.10.0.0/16 accept
\t\tip daddr 10.10.0.0/16 accept
\t}\n";
        let table = |chains: &str| format!("{head}table ip flannel-ipv4 {{\n{chains}}}\n");
        assert_eq!(script(&all, TABLE), table(&format!("{masquerade}{forward}")));
        let plain = Rules { random_fully: false, forward: false, ..all };
        assert_eq!(script(&plain, TABLE), table(&masquerade.replace(" fully-random", "")));
        assert_eq!(script(&Rules { masquerade: false, ..all }, TABLE), table(forward));
        assert_eq!(script(&all.none(), TABLE), head);
    }

    #[test]
    fn a_table_is_anothers_by_its_networks() {
        let nets = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let ours = nets("10.10.0.0/16 10.9.0.0/16");
        let rules = |network| {
            let rules = Rules::new(network, network, &crate::masq::Settings::default());
            script(&rules, TABLE)
        };
        assert!(is_anothers(&rules("10.20.0.0/16".parse().unwrap()), &ours));
        for network in &ours {
            assert!(!is_anothers(&(rules(*network) + "ip saddr 172.16.0.0/12 drop"), &ours));
        }
        assert!(!is_anothers("table ip flannel-ipv4 {\n\tchain forward {\n\t}\n}", &ours), "an empty one");
    }
}
