//! Promise: what the README and the pages in docs/ name exists: tests, flags, their defaults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const NOT_SERVED: &str = "Flags of flannel that are not served";

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default()
}

/// The README and all pages in docs/.
fn pages() -> String {
    let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    docs.map(|page| read(page.unwrap().path().to_str().unwrap()))
        .fold(read("README.md"), |all, page| all + &page)
}

/// Whether `code` holds a test of that name; a mere function is none.
fn has_test(code: &str, name: &str) -> bool {
    let lines: Vec<_> = code.lines().map(str::trim).collect();
    let start = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let above =
            lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        line.strip_prefix("async ").unwrap_or(line).starts_with(&start)
            && above.into_iter().any(|l| *l == "#[test]")
    })
}

/// What a text names as `file::name` in a code span, without what is a test.
fn missing_tests(text: &str) -> Vec<String> {
    let named = Regex::new(r"`([^`\s]+\.rs)::([^`\s]+)`").unwrap();
    let all = named.captures_iter(text).map(|found| (found[1].to_owned(), found[2].to_owned()));
    all.filter(|(file, name)| !has_test(&read(file), name))
        .map(|(file, name)| format!("{file}::{name}"))
        .collect()
}

/// The flags that a text names, whole and without their dashes.
fn flags(text: &str) -> BTreeSet<String> {
    let flag = Regex::new(r"(?:^|[\s`(])--?([a-z][a-z0-9_-]*)").unwrap();
    flag.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The flags that the usage defines, each with its default if it shows one.
fn defined(usage: &str) -> BTreeMap<String, Option<String>> {
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

fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld")).arg("--help").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

/// Flags, default: each row of the flag table.
fn table(page: &str) -> Vec<(BTreeSet<String>, String)> {
    let section = page.split("\n## Flags\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `-"));
    rows.map(|row| row.split('|').collect::<Vec<_>>())
        .map(|cells| (flags(cells[1]), cells[2].trim().trim_matches('`').to_owned()))
        .collect()
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let text = pages();
    assert_eq!(missing_tests(&text), Vec::<String>::new());
    assert!(text.matches(".rs::").count() > 60, "the compatibility table is gone");
    for bad in ["tests/readme.rs::no_such_test", "tests/readme.rs::missing_tests", "no-such/file.rs::x"] {
        assert_eq!(missing_tests(&format!("`{bad}`")), [bad]);
    }
}

#[test]
fn every_flag_is_in_the_readme_whole() {
    let named = flags(&pages());
    let help = defined(&help());
    assert!(help.len() > 50, "{help:?}");
    assert_eq!(help.keys().filter(|name| !named.contains(*name)).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(flags("`-iface-regex` (--v, x-y"), BTreeSet::from(["iface-regex", "v"].map(str::to_owned)));
}

#[test]
fn the_flag_table_holds_served_flags_and_their_defaults() {
    let help = help();
    let served = defined(help.split(NOT_SERVED).next().unwrap());
    let table = table(&read("docs/flags.md"));
    assert!(table.len() > 25, "{table:?}");
    let mut compared = 0;
    for (names, default) in table {
        let unserved: Vec<_> = names.iter().filter(|name| !served.contains_key(*name)).collect();
        assert_eq!(unserved, Vec::<&String>::new());
        let name = names.first().unwrap();
        if let (1, Some(wanted)) = (names.len(), &served[name]) {
            assert_eq!(&default, wanted, "--{name}");
            compared += 1;
        }
    }
    assert!(compared > 12, "only {compared} defaults were compared");
}
