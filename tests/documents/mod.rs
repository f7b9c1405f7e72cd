//! The documents and what they may name: pages with their code, and the truth about flags, counters, words and files.
#![allow(unreachable_pub, reason = "one test binary uses it")]

pub mod rules;

use flanneld::report::metric;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

/// Where the names in the report's lines are written down, as string literals.
const METRIC_SOURCES: &[&str] = &["src/engine", "src/backend", "src/daemon"];

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_default()
}

/// Every file below `dir`, relative to the package; what is built or hidden is left out.
fn files(dir: &str) -> Vec<String> {
    let mut all = Vec::new();
    let Ok(entries) = std::fs::read_dir(root().join(dir)) else { return all };
    for entry in entries.map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
        match entry.file_type().unwrap() {
            kind if kind.is_dir() && name != "target" && name != ".git" => all.extend(files(&path)),
            kind if kind.is_file() => all.push(path),
            _ => {}
        }
    }
    all.sort();
    all
}

/// One document: where it is and what it says.
#[derive(Debug)]
pub struct Page {
    pub path: String,
    pub text: String,
}

impl Page {
    pub fn read(path: &str) -> Page {
        Page { path: path.to_owned(), text: read(path) }
    }

    /// The lines of its code blocks: fenced, or indented by four blanks.
    pub fn blocks(&self) -> Vec<String> {
        self.split().1
    }

    /// Its code spans, each on one line.
    pub fn spans(&self) -> Vec<String> {
        let span = Regex::new("`([^`]+)`").unwrap();
        let prose = self.split().0;
        span.captures_iter(&prose).map(|found| found[1].replace('\n', " ")).collect()
    }

    /// Prose, and the lines of code.
    pub fn split(&self) -> (String, Vec<String>) {
        let (mut prose, mut code, mut fenced) = (String::new(), Vec::new(), false);
        for line in self.text.lines() {
            let fence = line.starts_with("```");
            fenced ^= fence;
            if (fenced && !fence) || line.starts_with("    ") {
                code.push(line.trim().to_owned());
            } else if !fence {
                prose += line;
            }
            prose.push('\n');
        }
        (prose, code)
    }
}

/// All documents that are checked.
pub fn pages() -> Vec<Page> {
    let is_page = |path: &String| path.ends_with(".md") && path.matches('/').count() == 1;
    let folders = ["docs", "perf"].into_iter().flat_map(files).filter(is_page);
    ["README.md", "findings/README.md"]
        .into_iter()
        .map(str::to_owned)
        .chain(folders)
        .map(|p| Page::read(&p))
        .collect()
}

/// What there is.
#[derive(Debug)]
pub struct Truth {
    /// All files of the package.
    pub files: Vec<String>,
    /// Flags of flanneld, without dashes.
    pub flags: BTreeSet<String>,
    /// Flags of each of our scripts.
    pub script_flags: BTreeMap<String, BTreeSet<String>>,
    /// Names of counters and metrics.
    pub metrics: BTreeSet<String>,
    /// Every word of sources, scripts and settings.
    pub words: BTreeSet<String>,
    /// The sources' text, with string literals of several lines joined.
    pub sources: String,
}

impl Truth {
    pub fn gather() -> Truth {
        let files = files("");
        let word = Regex::new("[A-Za-z_][A-Za-z0-9_]*").unwrap();
        let label = Regex::new(r"(?m)^\s*(?:-\w \| )?--([a-z][a-z-]*)(?:=\*)?(?: \||\))").unwrap();
        // The made-up pages below tests/documents/ name what does not exist.
        let is_source = |path: &&String| !path.ends_with(".md") && !path.starts_with("tests/documents/");
        let mut words = BTreeSet::new();
        for path in files.iter().filter(is_source).filter(|path| !path.starts_with("perf/results/")) {
            words.extend(word.find_iter(&read(path)).map(|found| found.as_str().to_owned()));
        }
        let scripts = files.iter().filter(|path| path.ends_with(".sh"));
        let script_flags = scripts.map(|path| {
            (path.clone(), label.captures_iter(&read(path)).map(|found| found[1].to_owned()).collect())
        });
        let continued = Regex::new(r"\\\n\s*").unwrap();
        let sources: String =
            files.iter().filter(|path| path.starts_with("src/")).map(|path| read(path)).collect();
        Truth {
            flags: defined(&help()).into_keys().collect(),
            script_flags: script_flags.collect(),
            metrics: metric_names(),
            words,
            sources: continued.replace_all(&sources, "").into_owned(),
            files,
        }
    }

    pub fn is_metric(&self, name: &str) -> bool {
        let short = name.strip_prefix("flanneld_").unwrap_or(name);
        [name, short, short.trim_end_matches("_total")].into_iter().any(|name| self.metrics.contains(name))
    }

    /// Whether a file or directory of the package has this path or, without a folder of the root, this ending.
    pub fn has_path(&self, path: &str) -> bool {
        let pattern = regex::escape(path.trim_end_matches('/')).replace(r"\*", "[^/]*");
        let whole = Regex::new(&format!("(?:^|/){pattern}(?:/|$)")).unwrap();
        self.files.iter().any(|file| whole.is_match(file))
    }
}

/// Names of metrics, now and one release ago, and of counters as the report's lines show them.
pub fn metric_names() -> BTreeSet<String> {
    let literal = Regex::new(r#""([a-z][a-z0-9_]*)""#).unwrap();
    let text: String = METRIC_SOURCES.iter().flat_map(|dir| files(dir)).map(|file| read(&file)).collect();
    let metrics = metric::ALL.iter().flat_map(|metric| [Some(metric.name), metric.formerly]).flatten();
    literal.captures_iter(&text).map(|found| found[1].to_owned()).chain(metrics.map(str::to_owned)).collect()
}

/// Every metric as a row of the table in the documents.
pub fn metric_rows() -> Vec<String> {
    let row = |m: &&metric::Metric| format!("| `{}` | {} | {} | {} |", m.name, m.kind, m.unit, m.help);
    metric::ALL.iter().map(row).collect()
}

/// The flags that the usage defines, each with its default if it shows one.
pub fn defined(usage: &str) -> BTreeMap<String, Option<String>> {
    let start = Regex::new(r"(?m)^ +--([a-z][a-z0-9_-]*)").unwrap();
    let default = Regex::new(r"\[default: ([^\]]*)\]").unwrap();
    let starts: Vec<_> = start.captures_iter(usage).map(|found| found.get(1).unwrap()).collect();
    let ends = starts.iter().skip(1).map(regex::Match::start).chain([usage.len()]);
    let entry = |(name, end): (&regex::Match<'_>, usize)| {
        let text = &usage[name.start()..end];
        (name.as_str().to_owned(), default.captures(text).map(|found| found[1].to_owned()))
    };
    starts.iter().zip(ends).map(entry).collect()
}

pub fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld")).arg("--help").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

/// The engine's counters as the report prints them: `count NAME` and `drop NAME`.
pub fn engine_counters() -> Vec<String> {
    let report = flanneld::engine::counters::Snapshot::default().to_string();
    report.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}
