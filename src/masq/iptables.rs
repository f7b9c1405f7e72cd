//! The iptables flavour: one `iptables-restore --noflush` changes flannel's chains into what is wanted.

use super::command;
use super::{Error, Rules};
use ipnet::Ipv4Net;
use std::cell::OnceCell;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// How many seconds to wait for the lock that other writers hold.
const WAIT: u64 = 5;
const _: () = assert!(WAIT < command::TIMEOUT.as_secs());
/// The first version whose `iptables-restore` knows `--wait` and whose MASQUERADE knows `--random-fully`.
const MODERN: (u32, u32, u32) = (1, 6, 2);

/// A chain of ours, the jump that leads to it, and the rules in it.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    table: &'static str,
    builtin: &'static str,
    chain: &'static str,
    comment: &'static str,
    /// The first rule of the chain. It names no network, and all daemons on this host share it.
    head: Option<String>,
    /// The rules of this network, in order. There are none if they are not wanted.
    body: Vec<String>,
}

impl Group {
    /// The rule in the built-in chain that leads to this chain.
    fn jump(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.chain)
    }
}

/// The chains of ours, with the rules that belong into them.
fn groups(rules: &Rules) -> [Group; 2] {
    let (c, p) = (rules.network, rules.subnet);
    let comment = "-m comment --comment \"flanneld masq\" -j";
    let masquerade = if rules.random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
    let masq = [
        format!("-s {p} -d {c} {comment} RETURN"),
        format!("-s {c} -d {p} {comment} RETURN"),
        format!("! -s {c} -d {p} {comment} RETURN"),
        format!("-s {c} ! -d 224.0.0.0/4 {comment} {masquerade}"),
        format!("! -s {c} -d {c} {comment} {masquerade}"),
    ];
    let comment = "-m comment --comment \"flanneld forward\" -j";
    let forward = [format!("-s {c} {comment} ACCEPT"), format!("-d {c} {comment} ACCEPT")];
    [
        Group {
            table: "nat",
            builtin: "POSTROUTING",
            chain: "FLANNEL-POSTRTG",
            comment: "flanneld masq",
            // This is the mark of kube-proxy, which masquerades such a packet itself.
            head: Some(
                "-m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN".to_owned(),
            ),
            body: if rules.masquerade { masq.to_vec() } else { Vec::new() },
        },
        Group {
            table: "filter",
            builtin: "FORWARD",
            chain: "FLANNEL-FWD",
            comment: "flanneld forward",
            head: None,
            body: if rules.forward { forward.to_vec() } else { Vec::new() },
        },
    ]
}

/// A rule as `iptables-save` prints it.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    table: &'a str,
    chain: &'a str,
    spec: &'a str,
}

impl Line<'_> {
    fn words(&self) -> Vec<String> {
        words(self.spec)
    }

    /// Whether the rule says the same as `spec`.
    fn is(&self, spec: &str) -> bool {
        self.words() == words(spec)
    }

    /// Whether the rule carries this comment and names one of these networks.
    fn is_of(&self, comment: &str, networks: &[Ipv4Net]) -> bool {
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
    fn leads_to(&self, chain: &str) -> bool {
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

/// The chains and rules in the output of `iptables-save`.
#[derive(Debug, Default)]
struct Listing<'a> {
    chains: Vec<(&'a str, &'a str)>,
    lines: Vec<Line<'a>>,
}

impl<'a> Listing<'a> {
    fn parse(text: &'a str) -> Self {
        let mut listing = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some(chain) = line.strip_prefix(':') {
                listing.chains.push((table, chain.split(' ').next().unwrap_or_default()));
            } else if let Some((chain, spec)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            {
                listing.lines.push(Line { table, chain, spec });
            }
        }
        listing
    }

    fn has_chain(&self, table: &str, chain: &str) -> bool {
        self.chains.contains(&(table, chain))
    }
}

/// The input for `iptables-restore --noflush` after which the host has these rules, and none of the `older` networks.
/// `save` is what `iptables-save` printed there. `None` if nothing has to change.
pub(super) fn restore(save: &str, rules: &Rules, older: &[Ipv4Net]) -> Option<String> {
    let listing = Listing::parse(save);
    let networks: Vec<Ipv4Net> = [&[rules.network], older].concat();
    let mut text = String::new();
    for group in groups(rules) {
        let is_known = |spec: &String| {
            Line { table: group.table, chain: group.chain, spec }.is_of(group.comment, &networks)
        };
        debug_assert!(group.body.iter().all(is_known), "a rule that we write is known as ours");
        let commands = commands(&listing, &group, &networks);
        if !commands.is_empty() {
            let _ = write!(text, "*{}\n{commands}COMMIT\n", group.table);
        }
    }
    Some(text).filter(|text| !text.is_empty())
}

/// The commands for one group. They delete copies of a rule before they append it, so that the order is right. They
/// make an absent chain with `-N`, which fails if another daemon was faster; a `:CHAIN` line would empty the chain of
/// that daemon.
fn commands(listing: &Listing<'_>, group: &Group, networks: &[Ipv4Net]) -> String {
    let (chain, builtin) = (group.chain, group.builtin);
    let in_table = || listing.lines.iter().filter(|line| line.table == group.table);
    let jumps: Vec<_> = in_table().filter(|line| line.chain == builtin && line.is(&group.jump())).collect();
    let inside: Vec<_> = in_table().filter(|line| line.chain == chain).collect();
    let is_head = |line: &Line<'_>| group.head.as_ref().is_some_and(|head| line.is(head));
    let heads: Vec<_> = inside.iter().filter(|line| is_head(line)).collect();
    let ours: Vec<_> = inside.iter().filter(|line| line.is_of(group.comment, networks)).collect();
    debug_assert!(!ours.iter().any(|line| is_head(line)), "the head names no network");
    let exists = listing.has_chain(group.table, chain);
    let mut text = String::new();
    let mut command = |operation: &str, chain: &str, spec: &str| {
        let _ = writeln!(text, "-{operation} {chain} {spec}");
    };
    if group.body.is_empty() {
        ours.iter().for_each(|line| command("D", chain, line.spec));
        let others = inside.len() - ours.len() - heads.len();
        let is_ours = |line: &&Line<'_>| line.chain == builtin && line.is(&group.jump());
        let led_to = in_table().any(|line| line.leads_to(chain) && !is_ours(&line));
        if exists && others == 0 && !led_to {
            heads.iter().for_each(|line| command("D", chain, line.spec));
            jumps.iter().for_each(|line| command("D", builtin, line.spec));
            let _ = writeln!(text, "-X {chain}");
        }
        return text;
    }
    if jumps.len() != 1 {
        jumps.iter().for_each(|line| command("D", builtin, line.spec));
        command("A", builtin, &group.jump());
    }
    if let Some(head) = &group.head
        && (heads.len() != 1 || !inside.first().is_some_and(|line| is_head(line)))
    {
        heads.iter().for_each(|line| command("D", chain, line.spec));
        command("I", &format!("{chain} 1"), head);
    }
    let right =
        ours.len() == group.body.len() && ours.iter().zip(&group.body).all(|(line, spec)| line.is(spec));
    if !right {
        ours.iter().for_each(|line| command("D", chain, line.spec));
        group.body.iter().for_each(|spec| command("A", chain, spec));
    }
    if exists { text } else { format!("-N {chain}\n{text}") }
}

/// The iptables programs of this host.
#[derive(Debug)]
pub(super) struct Iptables {
    save: PathBuf,
    restore: PathBuf,
    /// The program that tells the version.
    iptables: Option<PathBuf>,
    modern: OnceCell<bool>,
}

impl Iptables {
    pub(super) const PROGRAM: &'static str = "iptables-restore";

    /// Searches for the programs.
    pub(super) fn find(path: Option<&str>) -> Option<Self> {
        let save = command::find("iptables-save", path)?;
        let restore = command::find(Self::PROGRAM, path)?;
        Some(Self { save, restore, iptables: command::find("iptables", path), modern: OnceCell::new() })
    }

    /// Whether iptables is modern. The program is asked once, and only when the answer is needed, since it may hang.
    fn is_modern(&self) -> bool {
        *self.modern.get_or_init(|| self.iptables.as_deref().is_none_or(is_modern))
    }

    /// Brings the rules in, and returns whether something had to be written.
    pub(super) fn ensure(&self, rules: &Rules, older: &[Ipv4Net]) -> Result<bool, Error> {
        let rules = Rules { random_fully: rules.random_fully && self.is_modern(), ..*rules };
        // A script fits what was there a moment ago. If another writer came between, it fails without any effect.
        self.try_once(&rules, older).or_else(|_| self.try_once(&rules, older))
    }

    fn try_once(&self, rules: &Rules, older: &[Ipv4Net]) -> Result<bool, Error> {
        // This saves all tables, since naming a table would load its module.
        let present = command::run(&self.save, &[], "")?.text()?;
        let Some(script) = restore(&present, rules, older) else { return Ok(false) };
        let wait = WAIT.to_string();
        let args: &[&str] = if self.is_modern() { &["--noflush", "-w", &wait] } else { &["--noflush"] };
        command::run(&self.restore, args, &script)?.text()?;
        Ok(true)
    }
}

/// Whether this iptables is modern. A program that does not tell its version counts as modern.
fn is_modern(iptables: &Path) -> bool {
    let Ok(output) = command::run(iptables, &["--version"], "") else { return true };
    version(&output.stdout).is_none_or(|version| version >= MODERN)
}

/// The version in a text such as `iptables v1.8.9 (nf_tables)`, which gives (1, 8, 9).
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let digits = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = digits.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests;
