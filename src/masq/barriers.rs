//! Tables of others that drop forwarded packets. Every table of nft judges a packet for itself, so an accept in ours does
//! not help against a drop in theirs.

use super::command;
use super::iptables::GUARD_CHAIN;
use ipnet::Ipv4Net;
use std::path::Path;

/// A chain that sees forwarded packets.
#[derive(Debug, PartialEq, Eq)]
struct Chain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
    /// Whether its policy is drop.
    drops: bool,
}

/// The chains at the hook `forward` in the output of `nft list chains`, in the families that see IPv4.
fn forward_chains(text: &str) -> Vec<Chain<'_>> {
    let mut chains = Vec::new();
    let (mut table, mut name) = (("", ""), "");
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["table", family, of, "{"] => table = (family, of),
            ["chain", chain, "{"] => name = chain,
            ["type", "filter", "hook", "forward", rest @ ..] if matches!(table.0, "ip" | "inet") => {
                let drops = rest.windows(2).any(|pair| pair[0] == "policy" && pair[1].starts_with("drop"));
                chains.push(Chain { family: table.0, table: table.1, name, drops });
            }
            _ => {}
        }
    }
    chains
}

/// Whether the last rule of a chain rejects or drops whatever comes so far, by the listing of its table.
fn ends_in_a_wall(listing: &str, chain: &str) -> bool {
    let head = format!("chain {chain} {{");
    let inside = listing.lines().map(str::trim).skip_while(|line| *line != head);
    let rules = inside.take_while(|line| *line != "}");
    let last = rules.last().unwrap_or_default().trim_start_matches("counter ");
    last == "drop" || last == "reject" || last.starts_with("reject with ")
}

/// Whether a table names the network somewhere, so that it was told about it. What we drop in it ourselves tells nothing.
fn is_told(listing: &str, network: Ipv4Net) -> bool {
    let mut chain = "";
    listing.lines().any(|line| {
        if let ["chain", name, "{"] = line.split_whitespace().collect::<Vec<_>>().as_slice() {
            chain = name;
        }
        chain != GUARD_CHAIN && line.contains(&network.to_string())
    })
}

/// Names the chains outside our own tables that may drop forwarded packets of this network. A table that names the
/// network somewhere is taken for one that was told about it. `by_iptables`: iptables shows its table `filter`, where
/// our accepts come before what drops.
pub(super) fn barriers(nft: &Path, network: Ipv4Net, by_iptables: bool) -> Vec<String> {
    let run = |args: &[&str]| command::run(nft, args, "").ok().and_then(|output| output.text().ok());
    let Some(text) = run(&["list", "chains"]) else { return Vec::new() };
    let is_ours = |chain: &Chain<'_>| chain.family == "ip" && chain.table.starts_with("flannel-ipv4");
    let is_iptables = |chain: &Chain<'_>| {
        by_iptables && (chain.family, chain.table, chain.name) == ("ip", "filter", "FORWARD")
    };
    let others = forward_chains(&text).into_iter().filter(|chain| !is_ours(chain) && !is_iptables(chain));
    let walls = others.filter(|chain| {
        let Some(listing) = run(&["-s", "list", "table", chain.family, chain.table]) else { return false };
        !is_told(&listing, network) && (chain.drops || ends_in_a_wall(&listing, chain.name))
    });
    walls
        .map(|chain| format!("the chain {} of nft's table {} {}", chain.name, chain.family, chain.table))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_see_forwarded_packets_are_found() {
        let text = "table inet firewalld {\n\tchain filter_FORWARD {\n\t\ttype filter hook forward priority filter + 10; \
                    policy accept;\n\t}\n\tchain other {\n\t}\n}\ntable ip6 six {\n\tchain f {\n\t\ttype filter hook forward \
                    priority 0; policy drop;\n\t}\n}\ntable ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward \
                    priority filter; policy drop;\n\t}\n\tchain INPUT {\n\t\ttype filter hook input priority filter; \
                    policy drop;\n\t}\n}\n";
        let found: Vec<_> =
            forward_chains(text).into_iter().map(|chain| (chain.table, chain.name, chain.drops)).collect();
        assert_eq!(found, [("firewalld", "filter_FORWARD", false), ("filter", "FORWARD", true)]);
    }

    #[test]
    fn a_table_is_told_by_others_than_our_guard() {
        let network = "10.10.0.0/16".parse().unwrap();
        let table = |chain: &str| {
            format!("table ip mangle {{\n\tchain {chain} {{\n\t\tip saddr 10.10.0.0/16 drop\n\t}}\n}}\n")
        };
        assert!(is_told(&table("mine"), network) && is_told(&table("FORWARD"), network));
        assert!(!is_told(&table("FLANNEL-GUARD"), network));
        assert!(!is_told(&table("mine"), "10.20.0.0/16".parse().unwrap()));
    }

    #[test]
    fn a_wall_is_a_last_rule_without_a_condition() {
        let table = |rule: &str| {
            format!(
                "table inet t {{\n\tchain a {{\n\t\tdrop\n\t}}\n\n\tchain f {{\n\t\tct state new accept\n\t\t{rule}\n\t}}\n}}\n"
            )
        };
        for rule in ["drop", "reject", "counter drop", "reject with icmpx admin-prohibited"] {
            assert!(ends_in_a_wall(&table(rule), "f"), "{rule}");
        }
        for rule in ["ip saddr 192.0.2.1 drop", "accept", "jump a"] {
            assert!(!ends_in_a_wall(&table(rule), "f"), "{rule}");
        }
    }
}
