//! The iptables flavour: one `iptables-restore --noflush` changes flannel's chains into what is wanted.

mod groups;
mod listing;
mod unseen;

use super::command;
use super::{Error, Past, Rules};
use groups::{Group, groups, left_by_flannel};
use ipnet::Ipv4Net;
use listing::{Line, Listing};
use std::cell::OnceCell;
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub(super) use groups::GUARD_CHAIN;
pub(super) use unseen::remove as remove_unseen;

/// How many seconds to wait for the lock that other writers hold.
const WAIT: u64 = 5;
const _: () = assert!(WAIT < command::TIMEOUT.as_secs());
/// The first version whose `iptables-restore` knows `--wait` and whose MASQUERADE knows `--random-fully`.
const MODERN: (u32, u32, u32) = (1, 6, 2);

/// What has to be written on a host, and what cannot be.
#[derive(Debug, Default)]
struct Plan<'a> {
    /// The input for `iptables-restore --noflush`; empty if nothing has to change.
    script: String,
    /// The tables of ours which iptables cannot show.
    hidden: Vec<&'static str>,
    /// Rules of an older flannel that the script removes.
    older: Vec<Line<'a>>,
}

/// The plan after which the host has these rules, and none of the `past`. `save` is what `iptables-save` printed there.
fn plan<'a>(listing: &Listing<'a>, rules: &Rules, past: &Past) -> Plan<'a> {
    let networks: Vec<Ipv4Net> = [&[rules.network], past.networks.as_slice()].concat();
    let mut plan = Plan::default();
    for group in groups(rules) {
        let is_known = |spec: &String| {
            Line { table: group.table, chain: group.chain, spec }.is_of(group.comment, &networks)
        };
        debug_assert!(group.body.iter().all(is_known), "a rule that we write is known as ours");
        if listing.hides(group.table) {
            plan.hidden.push(group.table);
            continue;
        }
        let mut commands = commands(listing, &group, &networks);
        if past.sweep {
            for line in left_by_flannel(listing, &group, &networks) {
                let _ = writeln!(commands, "-D {} {}", line.chain, line.spec);
                plan.older.push(line);
            }
        }
        if !commands.is_empty() {
            let _ = write!(plan.script, "*{}\n{commands}COMMIT\n", group.table);
        }
    }
    plan
}

/// The commands for one group. They delete copies of a rule before they append it, so that the order is right. They
/// make an absent chain with `-N`, which fails if another daemon was faster; a `:CHAIN` line would empty the chain of
/// that daemon.
fn commands(listing: &Listing<'_>, group: &Group, networks: &[Ipv4Net]) -> String {
    let (chain, builtin) = (group.chain, group.builtin);
    let in_table = || listing.lines.iter().filter(|line| line.table == group.table);
    let is_jump = |line: &Line<'_>| group.is_jump(line);
    let jumps: Vec<_> = in_table().filter(|line| is_jump(line)).collect();
    let inside: Vec<_> = in_table().filter(|line| line.chain == chain).collect();
    let is_head = |line: &Line<'_>| group.is_head(line);
    let heads: Vec<_> = inside.iter().filter(|line| is_head(line)).collect();
    let ours: Vec<_> = inside.iter().filter(|line| group.is_ours(line, networks)).collect();
    debug_assert!(!ours.iter().any(|line| is_head(line)), "the head names no network");
    let exists = listing.has_chain(group.table, chain);
    let mut text = String::new();
    let mut command = |operation: &str, chain: &str, spec: &str| {
        let _ = writeln!(text, "-{operation} {chain} {spec}");
    };
    if group.body.is_empty() {
        ours.iter().for_each(|line| command("D", chain, line.spec));
        let others = inside.len() - ours.len() - heads.len();
        let led_to = in_table().any(|line| line.leads_to(chain) && !is_jump(line));
        if exists && others == 0 && !led_to {
            heads.iter().for_each(|line| command("D", chain, line.spec));
            jumps.iter().for_each(|line| command("D", builtin, line.spec));
            let _ = writeln!(text, "-X {chain}");
        }
        return text;
    }
    // An accept after a rule that drops everything would never be met.
    let barrier = listing.barrier(group.table, builtin, is_jump);
    let place = in_table().filter(|line| line.chain == builtin).position(is_jump).map(|at| at + 1);
    let is_met = barrier.is_none_or(|barrier| place.is_some_and(|place| place <= barrier));
    let jumps_right = jumps.len() == 1 && jumps[0].is(&group.jump()) && is_met;
    if !jumps_right {
        jumps.iter().for_each(|line| command("D", builtin, line.spec));
        match barrier {
            Some(barrier) => command("I", &format!("{builtin} {barrier}"), &group.jump()),
            None => command("A", builtin, &group.jump()),
        }
    }
    if let Some(head) = &group.head
        && (heads.len() != 1 || !inside.first().is_some_and(|line| line.is(head)))
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

/// What came of one look at the rules.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Whether something had to be written.
    pub(super) changed: bool,
    /// The tables that hold rules of `nft`, so that iptables can neither show nor keep ours in them.
    pub(super) hidden: Vec<&'static str>,
    /// How many rules of an older flannel, which wrote into the built-in chains, were removed.
    pub(super) swept: usize,
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
    /// The tables in which our chains are.
    pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
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

    /// Brings the rules in.
    pub(super) fn ensure(&self, rules: &Rules, past: &Past) -> Result<Placed, Error> {
        self.twice(past, |_| *rules)
    }

    /// Brings the forward rules in, but only where the filter table drops what nobody accepts, which an accept of `nft`
    /// cannot undo. No other rules of ours stay.
    pub(super) fn ensure_where_dropped(&self, rules: &Rules, past: &Past) -> Result<Placed, Error> {
        self.twice(past, |listing| {
            let is_wall = |line: &Line<'_>| line.leads_to(groups::FORWARD_CHAIN);
            let drops =
                listing.drops("filter", "FORWARD") || listing.barrier("filter", "FORWARD", is_wall).is_some();
            Rules { forward: rules.forward && drops, ..rules.none() }
        })
    }

    /// A script fits what was there a moment ago. If another writer came between, it fails without any effect.
    fn twice(&self, past: &Past, wanted: impl Fn(&Listing<'_>) -> Rules) -> Result<Placed, Error> {
        self.try_once(past, &wanted).or_else(|_| self.try_once(past, &wanted))
    }

    fn try_once(&self, past: &Past, wanted: &impl Fn(&Listing<'_>) -> Rules) -> Result<Placed, Error> {
        // This saves all tables, since naming a table would load its module.
        let present = command::run(&self.save, &[], "")?.text()?;
        let listing = Listing::parse(&present);
        let rules = wanted(&listing);
        let rules = Rules { random_fully: rules.random_fully && self.is_modern(), ..rules };
        let plan = plan(&listing, &rules, past);
        let changed = !plan.script.is_empty();
        if changed {
            let wait = WAIT.to_string();
            let args: &[&str] = if self.is_modern() { &["--noflush", "-w", &wait] } else { &["--noflush"] };
            command::run(&self.restore, args, &plan.script)?.text()?;
        }
        Ok(Placed { changed, hidden: plan.hidden, swept: plan.older.len() })
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
