//! Our chains in tables of iptables that iptables cannot show.
//!
//! `nft list ruleset`, saved and loaded again at a boot, turns our masquerade rules into such as iptables does not know,
//! and a single one hides its whole table. Our rules for it are in a table of their own then, and what stands in the
//! old place would go on to masquerade, for another subnet maybe. Only `nft` can remove it.

use super::groups::{Group, groups};
use crate::masq::{Error, Rules, command};
use ipnet::Ipv4Net;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;

/// A rule in the output of `nft -a list table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule<'a> {
    chain: &'a str,
    text: &'a str,
    handle: &'a str,
}

impl Rule<'_> {
    fn leads_to(&self, chain: &str) -> bool {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        words.windows(2).any(|pair| matches!(pair[0], "jump" | "goto") && pair[1] == chain)
    }

    fn names(&self, networks: &[Ipv4Net]) -> bool {
        self.addresses().any(|address| networks.contains(&address))
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Net> {
        let parse =
            |word: &str| word.parse().ok().or_else(|| word.parse::<Ipv4Addr>().ok().map(Ipv4Net::from));
        self.text.split_whitespace().filter_map(parse)
    }
}

/// The chains and the rules in the output of `nft -a list table`.
fn parse(listing: &str) -> (Vec<&str>, Vec<Rule<'_>>) {
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    for line in listing.lines().map(str::trim) {
        let Some((text, handle)) = line.rsplit_once("# handle ") else { continue };
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["table", ..] => {}
            ["chain", name, "{"] => chains.push(*name),
            _ => rules.extend(chains.last().map(|chain| Rule { chain, text: text.trim(), handle })),
        }
    }
    (chains, rules)
}

/// The commands of nft that remove our chain with the jump to it. Where rules of another daemon's network stand in the
/// chain, only those of `networks` go; where somebody else leads to it, it stays, empty.
fn script(listing: &str, group: &Group, networks: &[Ipv4Net]) -> String {
    let (table, chain) = (group.table, group.chain);
    let (chains, rules) = parse(listing);
    let mut text = String::new();
    if !chains.contains(&chain) {
        return text;
    }
    let inside = || rules.iter().filter(|rule| rule.chain == chain);
    let is_anothers = |rule: &&Rule<'_>| rule.addresses().next().is_some() && !rule.names(networks);
    let is_shared = inside().any(|rule| is_anothers(&rule));
    let (jumps, others): (Vec<&Rule<'_>>, Vec<_>) =
        rules.iter().filter(|rule| rule.leads_to(chain)).partition(|rule| rule.chain == group.builtin);
    let goes: Vec<&Rule<'_>> =
        if is_shared { inside().filter(|rule| rule.names(networks)).collect() } else { jumps };
    for rule in goes {
        let _ = writeln!(text, "delete rule ip {table} {} handle {}", rule.chain, rule.handle);
    }
    if !is_shared && (others.is_empty() || inside().next().is_some()) {
        let _ = writeln!(text, "flush chain ip {table} {chain}");
    }
    if !is_shared && others.is_empty() {
        let _ = writeln!(text, "delete chain ip {table} {chain}");
    }
    text
}

/// Removes our chains from these tables. Returns whether there was anything to remove.
pub(in crate::masq) fn remove(
    nft: &Path,
    tables: &[&str],
    rules: &Rules,
    past: &[Ipv4Net],
) -> Result<bool, Error> {
    let networks = [&[rules.network], past].concat();
    let mut commands = String::new();
    for group in groups(rules).iter().filter(|group| tables.contains(&group.table)) {
        // The whole table may be long, and once our chain is gone nobody needs to see it at every look.
        if !command::run(nft, &["list", "chain", "ip", group.table, group.chain], "")?.success {
            continue;
        }
        let listing = command::run(nft, &["-a", "list", "table", "ip", group.table], "")?.text()?;
        commands += &script(&listing, group, &networks);
    }
    if !commands.is_empty() {
        command::run(nft, &["-f", "-"], &commands)?.text()?;
    }
    Ok(!commands.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masq::Settings;

    fn nets(text: &str) -> Vec<Ipv4Net> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    fn nat(more: &str, elsewhere: &str) -> String {
        format!(
            "table ip nat {{ # handle 1\n\
             \tchain FLANNEL-POSTRTG {{ # handle 2\n\
             \t\tmeta mark & 0x00004000 == 0x00004000 counter packets 0 bytes 0 return # handle 5\n\
             \t\tip saddr 10.1.5.0/24 ip daddr 10.1.0.0/16 counter packets 0 bytes 0 return # handle 6\n{more}\
             \t}}\n\n\
             \tchain POSTROUTING {{ # handle 3\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr 192.0.2.0/24 counter packets 0 bytes 0 masquerade # handle 4\n\
             \t\tcounter packets 0 bytes 0 jump FLANNEL-POSTRTG # handle 9\n{elsewhere}\
             \t}}\n}}\n"
        )
    }

    fn of_nat(listing: &str, networks: &str) -> String {
        let network = nets(networks)[0];
        let rules = Rules::new(network, network, None, &Settings::default());
        script(listing, &groups(&rules)[0], &nets(networks))
    }

    #[test]
    fn a_chain_of_ours_goes_with_its_jump() {
        let whole = "delete rule ip nat POSTROUTING handle 9\nflush chain ip nat FLANNEL-POSTRTG\n\
                     delete chain ip nat FLANNEL-POSTRTG\n";
        assert_eq!(of_nat(&nat("", ""), "10.1.0.0/16"), whole);
        assert_eq!(of_nat(&nat("", ""), "10.9.0.0/16 10.1.0.0/16"), whole, "of an older network");
        let theirs =
            "table ip nat { # handle 1\n\tchain theirs { # handle 2\n\t\tmasquerade # handle 3\n\t}\n}\n";
        assert_eq!(of_nat(theirs, "10.1.0.0/16"), "");
    }

    #[test]
    fn rules_of_others_in_it_or_before_it_stay() {
        let another =
            "\t\tip saddr 10.2.5.0/24 ip daddr 10.2.0.0/16 counter packets 0 bytes 0 return # handle 7\n";
        assert_eq!(
            of_nat(&nat(another, ""), "10.1.0.0/16"),
            "delete rule ip nat FLANNEL-POSTRTG handle 6\n",
            "the chain is shared with the daemon of another network"
        );
        assert_eq!(of_nat(&nat(another, ""), "10.3.0.0/16"), "");
        let elsewhere = "\t}\n\tchain mine { # handle 10\n\t\tgoto FLANNEL-POSTRTG # handle 11\n";
        assert_eq!(
            of_nat(&nat("", elsewhere), "10.1.0.0/16"),
            "delete rule ip nat POSTROUTING handle 9\nflush chain ip nat FLANNEL-POSTRTG\n"
        );
        let empty = "table ip nat { # handle 1\n\tchain FLANNEL-POSTRTG { # handle 2\n\t}\n\
                     \tchain mine { # handle 10\n\t\tgoto FLANNEL-POSTRTG # handle 11\n\t}\n}\n";
        assert_eq!(of_nat(empty, "10.1.0.0/16"), "", "nothing is left to do");
    }
}
