//! The rules: each is a function from one page to its violations, with made-up pages beside it that break it.

use super::{Page, Truth, root};
use regex::Regex;
use std::collections::BTreeSet;
use std::path::Path;

/// Paths of the system and of the store, by their beginnings.
const SYSTEM_PATHS: &[&str] = &[
    "/run/flannel",
    "/var/lib/flanneld",
    "/etc/default/flanneld",
    "/etc/sysconfig/flanneld",
    "/etc/machine-id",
    "/dev/net/tun",
    "/proc/",
    "/sys/class/net/",
    "/coreos.com/network",
    "/healthz",
    "/readyz",
    "/metrics",
];
/// Names with a slash that are no files: keys of the store, and what a script writes.
const NOT_FILES: &[&str] = &["subnets/", "perf/out/"];
/// Flags of other programs.
const FOREIGN_FLAGS: &[&str] =
    &["enable-v2", "flag", "security-opt", "ulimit", "C", "P", "u", "b", "l", "c", "h"];
/// Names of the kernel's and of other programs' that stand in no source of ours.
const FOREIGN_NAMES: &[&str] = &[
    "tun_do_read",
    "_copy_to_iter",
    "_copy_from_iter",
    "udp_recvmsg",
    "udp_sendmsg",
    "tun_get_user",
    "__do_softirq",
    "handle_softirqs",
    "finish_task_switch",
    "fib_table_lookup",
    "nf_hook_slow",
    "_raw_spin_unlock_irqrestore",
    "sum_received",
    "sum_sent",
    "xps_cpus",
    "rps_cpus",
];

pub type Rule = fn(&Page, &Truth) -> Vec<String>;

pub const RULES: &[Rule] = &[counters_exist, flags_exist, variables_exist, files_exist, links_lead_somewhere];

/// Counters, metrics and other names of the form `a_b`.
fn counters_exist(page: &Page, truth: &Truth) -> Vec<String> {
    let counter = Regex::new("^(?:count|drop|kernel) ([a-z][a-z0-9_]*)$").unwrap();
    let metric = Regex::new(r"\b(?:flanneld|process)_[a-z0-9_]+").unwrap();
    let name = Regex::new("^[a-z_][a-z0-9]*(?:_[a-z0-9]+)+$").unwrap();
    let mut missing = Vec::new();
    for span in page.spans() {
        if let Some(found) = counter.captures(&span).filter(|found| !truth.metrics.contains(&found[1])) {
            missing.push(format!("{}: no counter {}", page.path, &found[0]));
        }
        let metrics = metric.find_iter(&span).filter(|found| !truth.is_metric(found.as_str()));
        missing.extend(metrics.map(|found| format!("{}: no metric {}", page.path, found.as_str())));
        let known =
            truth.words.contains(&span) || FOREIGN_NAMES.contains(&span.as_str()) || truth.is_metric(&span);
        if name.is_match(&span) && !metric.is_match(&span) && !known {
            missing.push(format!("{}: nothing is named {span}", page.path));
        }
    }
    missing
}

/// Flags of flanneld and of our scripts.
fn flags_exist(page: &Page, truth: &Truth) -> Vec<String> {
    let flag = Regex::new("^--?([A-Za-z][A-Za-z0-9_-]*)").unwrap();
    let mut missing = Vec::new();
    let lines = page.blocks().into_iter().filter(|line| !line.starts_with('-'));
    for code in page.spans().into_iter().chain(lines) {
        let command = code.split_whitespace().next().unwrap_or_default();
        let of_script = truth.script_flags.get(command);
        if command != "flanneld" && of_script.is_none() && !command.starts_with('-') {
            continue;
        }
        for found in code.split_whitespace().filter_map(|word| flag.captures(word)) {
            let name = &found[1];
            let of_ours = truth.flags.contains(name) || of_script.is_some_and(|flags| flags.contains(name));
            // A flag that stands alone may be any script's, or another program's.
            let alone = command.starts_with('-');
            let of_any = || truth.script_flags.values().any(|flags| flags.contains(name));
            if !(of_ours || alone && (FOREIGN_FLAGS.contains(&name) || of_any())) {
                missing.push(format!("{}: no flag {} in `{code}`", page.path, &found[0]));
            }
        }
    }
    missing
}

/// Variables of the environment and of the files that we write.
fn variables_exist(page: &Page, truth: &Truth) -> Vec<String> {
    let variable = Regex::new(r"\bFLANNELD?_[A-Z0-9_]*[A-Z0-9]\b").unwrap();
    let of_flag = |name: &str| {
        let flag = name.strip_prefix("FLANNELD_").unwrap_or_default().to_lowercase();
        truth.flags.iter().any(|known| known.replace('-', "_") == flag)
    };
    let unknown = variable
        .find_iter(&page.text)
        .map(|found| found.as_str())
        .filter(|name| !of_flag(name) && !truth.words.contains(*name));
    unknown.map(|name| format!("{}: no variable {name}", page.path)).collect()
}

/// Files, directories and scripts.
fn files_exist(page: &Page, truth: &Truth) -> Vec<String> {
    let spans = page.spans();
    let words = |code: &String| code.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rooms = spans.iter().filter(|span| is_room(span)).filter(|room| !has_room(room, truth));
    let missing_rooms: Vec<_> = rooms.map(|room| format!("{}: no directory {room}", page.path)).collect();
    let all = spans.iter().chain(&page.blocks()).flat_map(words).collect::<Vec<_>>();
    let missing = all.iter().filter(|word| !is_there(word, truth));
    missing.map(|word| format!("{}: no file {word}", page.path)).chain(missing_rooms).collect()
}

fn is_room(span: &str) -> bool {
    Regex::new("^[a-z_]+/$").unwrap().is_match(span)
}

fn has_room(room: &str, truth: &Truth) -> bool {
    NOT_FILES.contains(&room)
        || truth.files.iter().any(|file| file.starts_with(room) || file.starts_with(&format!("src/{room}")))
}

/// Whether a word of code is no path, or one that exists.
fn is_there(word: &str, truth: &Truth) -> bool {
    let word = word.split("::").next().unwrap().trim_matches(|c: char| "\"'(),;:".contains(c));
    let absolute = Regex::new("^/[a-z]").unwrap();
    let kind = Regex::new(r"^[\w.*/-]+\.(?:rs|sh|py|md|toml|service|network|link)$").unwrap();
    if absolute.is_match(word) {
        return SYSTEM_PATHS.iter().any(|known| word.starts_with(known));
    }
    let first = word.split('/').next().unwrap();
    let below_root = word.contains('/') && root().join(first).is_dir() && !first.is_empty();
    let excepted = NOT_FILES.iter().any(|known| word.starts_with(known)) || word.contains("NAME");
    if excepted || !(below_root || kind.is_match(word)) {
        return true;
    }
    let path = if below_root { root().join(word).exists() } else { false };
    path || truth.has_path(word)
}

/// Relative links, and the headings that they point at.
fn links_lead_somewhere(page: &Page, _: &Truth) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let dir = Path::new(&page.path).parent().unwrap();
    let prose = page.split().0;
    let targets = link.captures_iter(&prose).map(|found| found[1].to_owned());
    let broken = targets.filter(|target| !target.contains("://")).filter(|target| {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        let path = if file.is_empty() { root().join(&page.path) } else { root().join(dir).join(file) };
        let text = if file.is_empty() {
            page.text.clone()
        } else {
            std::fs::read_to_string(&path).unwrap_or_default()
        };
        !(file.is_empty() || path.exists()) || !(heading.is_empty() || headings(&text).contains(heading))
    });
    broken.map(|target| format!("{}: {target} leads nowhere", page.path)).collect()
}

/// The names under which GitHub knows a page's headings.
fn headings(text: &str) -> BTreeSet<String> {
    let titles =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |title: &str| {
        let kept = title
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        kept.replace(' ', "-")
    };
    titles.map(slug).collect()
}

/// Symptoms of docs/operations.md: what the first column of a table quotes stands in the sources. `…` is for what
/// varies, and a line may be put together at a colon.
pub fn log_lines_exist(page: &Page, truth: &Truth) -> Vec<String> {
    let span = Regex::new("`([^`]+)`").unwrap();
    let symptoms =
        page.text.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    let quoted = symptoms
        .flat_map(|cell| span.captures_iter(cell).map(|found| found[1].to_owned()).collect::<Vec<_>>());
    let counter = Regex::new("^(?:count|drop|kernel) [a-z_]+$").unwrap();
    let lines = quoted.filter(|text| text.contains(' ') && !text.starts_with('-') && !counter.is_match(text));
    let is_said =
        |text: &String| text.split(['…', ':']).map(str::trim).all(|piece| truth.sources.contains(piece));
    lines.filter(|text| !is_said(text)).map(|text| format!("{}: nobody says {text:?}", page.path)).collect()
}

/// The made-up pages: each breaks exactly one rule, and its twin does not.
mod self_test {
    use super::*;

    /// Holds `rule` to pages that break it and to pages that do not.
    fn hold(rule: Rule, breaking: &[&str], passing: &[&str]) {
        let truth = Truth::gather();
        let found = |text: &str| rule(&Page { path: "docs/a.md".to_owned(), text: text.to_owned() }, &truth);
        for text in breaking {
            assert_eq!(found(text).len(), 1, "{text} should break the rule once: {:?}", found(text));
        }
        for text in passing {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn counters() {
        hold(
            counters_exist,
            &[
                "`count tun_raeds`",
                "`drop ttls`",
                "`kernel link`",
                "`flanneld_no_such_total`",
                "`no_such_name`",
            ],
            &[
                "`count tun_reads`",
                "`drop ttl`",
                "`flanneld_rx_packets_total`, no_such_name",
                "`count NAME N`",
            ],
        );
    }

    #[test]
    fn flags_of_ours() {
        hold(
            flags_exist,
            &["`--no-such`", "`-no-such=1`", "```\nflanneld --no-such\n```", "    perf/many.sh --no-such 1"],
            &[
                "`--batch`",
                "`-v`",
                "`ip --no-such`",
                "```\nflanneld --batch=1\n```",
                "`perf/many.sh --rounds 3`",
            ],
        );
    }

    #[test]
    fn variables() {
        hold(
            variables_exist,
            &["FLANNELD_NO_SUCH", "`FLANNEL_NONE`"],
            &["FLANNELD_BATCH, `FLANNELD_*`", "FLANNEL_MTU"],
        );
    }

    #[test]
    fn paths() {
        hold(
            files_exist,
            &[
                "`src/no_such.rs`",
                "`perf/no-such.sh`",
                "`no_such/`",
                "`/no/such`",
                "`reference/no-such.md`",
                "`docs/no/`",
            ],
            &[
                "`src/lib.rs`",
                "`perf/*.sh`",
                "`engine/`",
                "`/run/flannel/a.env`",
                "`udp/ or b`",
                "src/no_such.rs",
            ],
        );
    }

    #[test]
    fn links() {
        hold(
            links_lead_somewhere,
            &["[a](no-such.md)", "[a](flags.md#no-such)", "[a](#no-such)", "[a](../no-such.md)"],
            &["[a](flags.md)", "[a](flags.md#exit-codes)", "# B c!\n[a](#b-c)", "[a](https://example.org/x)"],
        );
    }

    #[test]
    fn log_lines() {
        hold(
            log_lines_exist,
            &["| `we never say this` | x |"],
            &["| `Lease has been revoked: … belongs to` | x |"],
        );
    }
}
