//! The nftables flavour: one table, replaced whole in one transaction by `nft -f -`.

use super::command;
use super::{Error, Rules};
use std::fmt::Write;
use std::path::PathBuf;

/// flannel's name for it, so that people and tools find it.
pub(super) const TABLE: &str = "ip flannel-ipv4";

/// The transaction that puts the wanted table in the place of whatever was there. `add` first, since a table
/// that does not exist cannot be deleted. Priorities are numbers (`srcnat` and `filter`), which every nft reads.
pub(super) fn script(rules: &Rules) -> String {
    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\n");
    if !rules.any() {
        return text;
    }
    let (network, subnet) = (rules.network, rules.subnet);
    let _ = writeln!(text, "table {TABLE} {{");
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
    text + "}\n"
}

/// The program, and what it showed after our last transaction: how it prints a rule depends on its version.
#[derive(Debug)]
pub(super) struct Nftables {
    nft: PathBuf,
    expected: Option<(Rules, String)>,
}

impl Nftables {
    pub(super) const PROGRAM: &'static str = "nft";

    pub(super) fn find(path: Option<&str>) -> Option<Self> {
        Some(Self { nft: command::find(Self::PROGRAM, path)?, expected: None })
    }

    /// The table's listing, if it exists.
    fn list(&self) -> Result<Option<String>, Error> {
        let words: Vec<&str> = ["list", "table"].into_iter().chain(TABLE.split(' ')).collect();
        match command::run(&self.nft, &words, "")? {
            output if output.success => Ok(Some(output.stdout)),
            output if output.says("No such file or directory") => Ok(None),
            output => Err(output.error()),
        }
    }

    /// Whether something had to be written.
    pub(super) fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        let right = match (self.list()?, &self.expected) {
            (None, _) => !rules.any(),
            (Some(present), Some((of, expected))) => of == rules && *expected == present,
            (Some(_), None) => false,
        };
        if right {
            return Ok(false);
        }
        self.expected = None;
        command::run(&self.nft, &["-f", "-"], &script(rules))?.text()?;
        self.expected = self.list()?.map(|listing| (*rules, listing));
        Ok(true)
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
        assert_eq!(script(&all), table(&format!("{masquerade}{forward}")));
        let plain = Rules { random_fully: false, forward: false, ..all };
        assert_eq!(script(&plain), table(&masquerade.replace(" fully-random", "")));
        assert_eq!(script(&Rules { masquerade: false, ..all }), table(forward));
        assert_eq!(script(&all.none()), head);
    }
}
