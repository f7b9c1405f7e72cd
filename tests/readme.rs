//! Promise: what the README names exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use regex::Regex;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The tests that a text names as `file.rs::name`, which are not there.
fn missing_tests(text: &str) -> Vec<String> {
    let named = Regex::new(r"`((?:src|tests)/[\w/]+\.rs)::(\w+)`").unwrap();
    let exists = |file: &str, name: &str| {
        let code = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        code.contains(&format!("fn {name}("))
    };
    let all = named.captures_iter(text).map(|found| (found[1].to_owned(), found[2].to_owned()));
    all.filter(|(file, name)| !exists(file, name)).map(|(file, name)| format!("{file}::{name}")).collect()
}

/// The flags in a text, without their dashes.
fn flags(text: &str) -> BTreeSet<String> {
    let flag = Regex::new(r"(?:^|[\s`\[|(])--?([a-z][a-z_-]*[a-z]|v)\b").unwrap();
    flag.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld")).arg("--help").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let text = readme();
    assert_eq!(missing_tests(&text), Vec::<String>::new());
    assert!(text.matches(".rs::").count() > 40, "the compatibility table is gone");
    assert_eq!(missing_tests("`tests/readme.rs::no_such_test`"), ["tests/readme.rs::no_such_test"]);
}

#[test]
fn every_flag_of_the_readmes_table_is_one_of_ours() {
    let text = readme();
    let table = text.split("\n## Flags\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: String = table.lines().filter(|line| line.starts_with("| `-")).collect::<Vec<_>>().join("\n");
    let names: BTreeSet<_> = rows.lines().flat_map(|row| flags(row.split('|').nth(1).unwrap())).collect();
    assert!(names.len() > 25, "{names:?}");
    let known = flags(&help());
    assert_eq!(names.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn every_served_flag_is_in_the_readme() {
    let help = help();
    let served = help.split("Flags of flannel that are not served").next().unwrap();
    let served: BTreeSet<_> = served.lines().filter_map(|line| line.trim().strip_prefix("--")).collect();
    let text = readme();
    let absent = |line: &&&str| {
        let name = line.split(['=', '[', ' ']).next().unwrap();
        !["help", "version"].contains(&name) && !text.contains(&format!("-{name}"))
    };
    let logging = ["v=", "vmodule", "log_", "alsologtostderr", "stderrthreshold"];
    let missing: Vec<_> = served
        .iter()
        .filter(|line| !logging.iter().any(|prefix| line.starts_with(prefix)))
        .filter(absent)
        .collect();
    assert_eq!(missing, Vec::<&&str>::new());
}
