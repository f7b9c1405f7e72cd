//! The nftables flavour: one table, which `nft -f -` replaces as a whole in one transaction.
//!
//! The table has flannel's name, unless a daemon of another network on this host has a table of that name already. Then
//! ours is named after our network, and keeps that name.

use super::command;
use super::rules::Guard;
use super::{Error, Past, Rules};
use crate::netlink::OVERLAY_DEVICES;
use ipnet::Ipv4Net;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// flannel's name for the table, so that people and tools find it.
const TABLE: &str = "flannel-ipv4";
/// How often a write is tried. Another program may write at the same moment, but not again and again.
const TRIES: usize = 3;
const _: () = assert!(TRIES > 1, "the first one may find that the table is another daemon's");

/// The name of our table when another daemon has flannel's name.
fn named(network: Ipv4Net) -> String {
    format!("{TABLE}-{}-{}", network.addr(), network.prefix_len())
}

/// Whether a table belongs to another daemon: its listing names networks, but none of `ours`.
fn is_anothers(listing: &str, ours: &[Ipv4Net]) -> bool {
    let networks = || listing.split_whitespace().filter_map(|word| word.parse::<Ipv4Net>().ok());
    networks().next().is_some() && !networks().any(|network| ours.contains(&network))
}

/// The transaction that replaces whatever table was there by the wanted one. It begins with `add`, since a table that
/// does not exist cannot be deleted. Priorities are numbers, which every nft reads: 100 is `srcnat`, 0 is
/// `filter`, -150 is `mangle`.
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
    if let Some(Guard { port, direct }) = rules.guard {
        let inside = if direct { network } else { subnet };
        let _ = write!(
            text,
            "\tchain guard {{
\t\ttype filter hook forward priority -150; policy accept;
\t\tip saddr {network} ip daddr != {inside} oifname != \"{OVERLAY_DEVICES}*\" udp dport {port} counter drop
\t}}\n"
        );
    }
    text.push_str("}\n");
    debug_assert!(!is_anothers(&text, &[network]), "a table that we write is known as ours");
    text
}

/// The program, and the listing after our last transaction. The next listing is compared with it, since the way in which
/// nft prints a rule depends on its version.
#[derive(Debug)]
pub(super) struct Nftables {
    nft: PathBuf,
    expected: Option<(Rules, String)>,
    /// Whether our table has a name of its own.
    apart: bool,
}

impl Nftables {
    pub(super) const PROGRAM: &'static str = "nft";

    /// Searches for the program.
    pub(super) fn find(path: Option<&str>) -> Option<Self> {
        Some(Self { nft: command::find(Self::PROGRAM, path)?, expected: None, apart: false })
    }

    /// The path of the program.
    pub(super) fn program(&self) -> &Path {
        &self.nft
    }

    /// The listing of a table without the state of its counters; `None` if it does not exist.
    fn list(&self, table: &str) -> Result<Option<String>, Error> {
        match command::run(&self.nft, &["-s", "list", "table", "ip", table], "")? {
            output if output.success => Ok(Some(output.stdout)),
            output if output.says("No such file or directory") => Ok(None),
            output => Err(output.error()),
        }
    }

    /// Brings the rules in, and returns whether something had to be written. The networks of the `past` count as ours, too.
    pub(super) fn ensure(&mut self, rules: &Rules, past: &Past) -> Result<bool, Error> {
        let (named, ours) = (named(rules.network), [&[rules.network], past.networks.as_slice()].concat());
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
            // A daemon that started at the same moment may have replaced our table by its own in the meantime.
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
            guard: Some(Guard { port: 8285, direct: false }),
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
        let guard = "\tchain guard {
\t\ttype filter hook forward priority -150; policy accept;
\t\tip saddr 10.10.0.0/16 ip daddr != 10.10.5.0/24 oifname != \"flannel*\" udp dport 8285 counter drop
\t}\n";
        let table = |chains: &str| format!("{head}table ip flannel-ipv4 {{\n{chains}}}\n");
        assert_eq!(script(&all, TABLE), table(&format!("{masquerade}{forward}{guard}")));
        let plain = Rules { random_fully: false, forward: false, guard: None, ..all };
        assert_eq!(script(&plain, TABLE), table(&masquerade.replace(" fully-random", "")));
        assert_eq!(script(&Rules { masquerade: false, guard: None, ..all }, TABLE), table(forward));
        assert_eq!(script(&all.none(), TABLE), head);
        let direct = script(&Rules { guard: Some(Guard { port: 8472, direct: true }), ..all }, TABLE);
        assert!(
            direct.contains("ip daddr != 10.10.0.0/16 oifname != \"flannel*\" udp dport 8472"),
            "{direct}"
        );
    }

    #[test]
    fn a_table_is_anothers_by_its_networks() {
        let nets = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let ours = nets("10.10.0.0/16 10.9.0.0/16");
        let rules = |network| {
            let rules = Rules::new(network, network, None, &crate::masq::Settings::default());
            script(&rules, TABLE)
        };
        assert!(is_anothers(&rules("10.20.0.0/16".parse().unwrap()), &ours));
        for network in &ours {
            assert!(!is_anothers(&(rules(*network) + "ip saddr 172.16.0.0/12 drop"), &ours));
        }
        assert!(!is_anothers("table ip flannel-ipv4 {\n\tchain forward {\n\t}\n}", &ours), "an empty one");
    }
}
