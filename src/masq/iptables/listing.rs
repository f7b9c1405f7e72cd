//! What `iptables-save` prints, as chains and rules.

use ipnet::Ipv4Net;

/// How deep jumps are followed. Chains of real firewalls nest three or four times.
const DEPTH: usize = 8;

/// A rule as `iptables-save` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    pub(super) spec: &'a str,
}

impl Line<'_> {
    pub(super) fn words(&self) -> Vec<String> {
        words(self.spec)
    }

    /// Whether the rule says the same as `spec`.
    pub(super) fn is(&self, spec: &str) -> bool {
        self.words() == words(spec)
    }

    /// Whether the rule has no comment and says the same as `spec` without its comment. Rules that were saved and
    /// loaded by `nft` have lost their comments.
    pub(super) fn is_bare(&self, spec: &str) -> bool {
        self.words() == bare(words(spec))
    }

    /// Whether the rule carries this comment and names one of these networks.
    pub(super) fn is_of(&self, comment: &str, networks: &[Ipv4Net]) -> bool {
        let words = self.words();
        let after =
            |option: &str, value: &str| words.windows(2).any(|pair| pair[0] == option && pair[1] == value);
        let names = |network: &Ipv4Net| {
            let network = network.to_string();
            after("-s", &network) || after("-d", &network)
        };
        after("--comment", comment) && networks.iter().any(names)
    }

    /// Whether the rule jumps to this chain.
    pub(super) fn leads_to(&self, chain: &str) -> bool {
        self.words().windows(2).any(|pair| matches!(pair[0].as_str(), "-j" | "-g") && pair[1] == chain)
    }
}

/// The words of a rule. A quoted word may hold blanks. Versions of iptables differ in which words they quote.
fn words(spec: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut escaped) = (String::new(), false, false);
    for c in spec.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The words of a rule without its comment.
fn bare(words: Vec<String>) -> Vec<String> {
    let mut rest = words.as_slice();
    let mut bare = Vec::with_capacity(words.len());
    while let [first, tail @ ..] = rest {
        rest = match rest {
            [m, comment, option, _, tail @ ..]
                if m == "-m" && comment == "comment" && option == "--comment" =>
            {
                tail
            }
            _ => {
                bare.push(first.clone());
                tail
            }
        };
    }
    bare
}

/// The chains and rules in the output of `iptables-save`.
#[derive(Debug, Default)]
pub(super) struct Listing<'a> {
    /// Table, chain and policy; the policy of a chain that somebody made is `-`.
    chains: Vec<(&'a str, &'a str, &'a str)>,
    pub(super) lines: Vec<Line<'a>>,
    /// Tables that hold rules which iptables cannot show; it prints one comment in the place of such a table.
    hidden: Vec<&'a str>,
}

impl<'a> Listing<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut listing = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default();
                listing.chains.push((table, name, words.next().unwrap_or_default()));
            } else if let Some((chain, spec)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            {
                listing.lines.push(Line { table, chain, spec });
            } else if let Some(name) = hidden(line) {
                listing.hidden.push(name);
            }
        }
        listing
    }

    pub(super) fn has_chain(&self, table: &str, chain: &str) -> bool {
        self.chains.iter().any(|(of, name, _)| (*of, *name) == (table, chain))
    }

    /// Whether iptables cannot show this table.
    pub(super) fn hides(&self, table: &str) -> bool {
        self.hidden.contains(&table)
    }

    /// Whether the policy of this built-in chain is DROP.
    pub(super) fn drops(&self, table: &str, chain: &str) -> bool {
        self.chains.contains(&(table, chain, "DROP"))
    }

    /// The number of the first rule of a chain, from 1, that lets no packet go on to the rules after it. Rules for
    /// which `but` holds do not count.
    pub(super) fn barrier(&self, table: &str, chain: &str, but: impl Fn(&Line<'_>) -> bool) -> Option<usize> {
        let in_chain = |line: &&Line<'_>| (line.table, line.chain) == (table, chain);
        let mut rest = self.lines.iter().filter(in_chain).filter(|line| !but(line));
        rest.position(|line| self.stops(line, DEPTH)).map(|at| at + 1)
    }

    /// Whether a rule drops or rejects every packet, itself or in the chain to which it leads.
    fn stops(&self, line: &Line<'_>, depth: usize) -> bool {
        let words = bare(line.words());
        let target = match words.as_slice() {
            [jump, target, ..] if jump == "-j" => target.as_str(),
            [jump, target] if jump == "-g" => target.as_str(),
            _ => return false,
        };
        match target {
            "DROP" | "REJECT" => true,
            _ if depth == 0 => false,
            _ => {
                let in_chain = |other: &&Line<'_>| (other.table, other.chain) == (line.table, target);
                self.lines.iter().filter(in_chain).any(|other| self.stops(other, depth - 1))
            }
        }
    }
}

/// The table of which this line of `iptables-save` says that it cannot be shown, as in
/// ``# Table `nat' is incompatible, use 'nft' tool.`` of iptables 1.8.
fn hidden(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.starts_with(" is incompatible").then_some(name)
}
