//! Promise: what the documents name exists: tests, flags and their defaults, counters, variables, files, links.
//!
//! The documents are README.md, docs/*.md, perf/*.md and findings/README.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod documents;

use documents::rules::{RULES, log_lines_exist};
use documents::{Page, Truth, defined, engine_counters, help, metric_names, metric_rows, pages, read};
use regex::Regex;
use std::collections::BTreeSet;

const NOT_SERVED: &str = "Flags of flannel that are not served";

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

/// The cells of each row of the flag table.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let section = page.split("\n## Flags\n").nth(1).unwrap().split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with("| `-")).map(|row| row.split('|').collect()).collect()
}

/// Flags, default: each row of the flag table.
fn table(page: &str) -> Vec<(BTreeSet<String>, String)> {
    let row = |cells: Vec<&str>| (flags(cells[1]), cells[2].trim().trim_matches('`').to_owned());
    rows(page).into_iter().map(row).collect()
}

/// Rows of tables that name neither a test nor why there is none; heads of tables do not count.
fn rows_without_proof(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| test |"));
    rows.filter(|row| !row.contains(".rs::") && !row.contains("by hand")).collect()
}

/// Variables of the flag table that are not their flag's.
fn wrong_variables(page: &str) -> Vec<&str> {
    let variables = rows(page).into_iter().map(|cells| (cells[1], cells[3].trim()));
    let wrong = variables.filter(|(flag, variable)| {
        let name = flags(flag).first().unwrap().to_uppercase().replace('-', "_");
        *variable != "none" && *variable != format!("`FLANNELD_{name}`")
    });
    wrong.map(|(_, variable)| variable).collect()
}

/// The names that no code span of the text shows whole.
fn unnamed(names: &[String], text: &str) -> Vec<String> {
    names.iter().filter(|name| !text.contains(&format!("`{name}`"))).cloned().collect()
}

/// Lines that are too wide to read.
fn wide_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.chars().count() > 120).collect()
}

#[test]
fn what_the_pages_name_exists() {
    let (pages, truth) = (pages(), Truth::gather());
    assert!(pages.len() > 8, "the walk found {} pages", pages.len());
    let violations: Vec<_> =
        pages.iter().flat_map(|page| RULES.iter().flat_map(|rule| rule(page, &truth))).collect();
    assert_eq!(violations, Vec::<String>::new());
    let operations = Page::read("docs/operations.md");
    assert_eq!(log_lines_exist(&operations, &truth), Vec::<String>::new());
    assert!(operations.text.matches('…').count() > 5, "the symptoms are gone");
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let named: Vec<_> = pages().iter().flat_map(|page| missing_tests(&page.text)).collect();
    assert_eq!(named, Vec::<String>::new());
    let text = read("docs/compatibility.md");
    assert!(text.matches(".rs::").count() > 60, "the compatibility table is gone");
    assert_eq!(rows_without_proof(&text), Vec::<&str>::new());
    assert_eq!(rows_without_proof("| a | test |\n| b | `a.rs::b` |\n| c | by hand |\n| d | |"), ["| d | |"]);
    for bad in ["tests/readme.rs::no_such_test", "tests/readme.rs::missing_tests", "no-such/file.rs::x"] {
        assert_eq!(missing_tests(&format!("`{bad}`")), [bad]);
    }
}

#[test]
fn every_flag_is_in_the_readme_whole() {
    let named: BTreeSet<_> = pages().iter().flat_map(|page| flags(&page.text)).collect();
    let help = defined(&help());
    assert!(help.len() > 50, "{help:?}");
    assert_eq!(help.keys().filter(|name| !named.contains(*name)).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(flags("`-iface-regex` (--v, x-y"), BTreeSet::from(["iface-regex", "v"].map(str::to_owned)));
}

#[test]
fn the_flag_table_holds_served_flags_and_their_defaults() {
    let help = help();
    let served = defined(help.split(NOT_SERVED).next().unwrap());
    let page = read("docs/flags.md");
    let table = table(&page);
    assert!(table.len() > 25, "{table:?}");
    let mut compared = 0;
    let mut rest: BTreeSet<_> = served.keys().collect();
    for (names, default) in &table {
        let unserved: Vec<_> = names.iter().filter(|name| !served.contains_key(*name)).collect();
        assert_eq!(unserved, Vec::<&String>::new());
        let name = names.first().unwrap();
        if let (1, Some(wanted)) = (names.len(), &served[name]) {
            assert_eq!(default, wanted, "--{name}");
            compared += 1;
        }
        rest.retain(|name| !names.contains(*name));
    }
    assert!(compared > 12, "only {compared} defaults were compared");
    assert_eq!(rest, BTreeSet::new(), "flags without a row");
    assert_eq!(wrong_variables(&page), Vec::<&str>::new());
    let made_up = "\n## Flags\n| `--a-b` | 1 | `FLANNELD_A_B` |\n| `--c` | 1 | `FLANNELD_D` |\n";
    assert_eq!(wrong_variables(made_up), ["`FLANNELD_D`"]);
}

#[test]
fn every_counter_and_metric_is_in_the_docs() {
    let families = metric_names().into_iter().filter(|name| name.starts_with("flanneld_"));
    let names: Vec<_> = families.chain(engine_counters()).collect();
    assert!(names.len() > 45, "{names:?}");
    assert_eq!(unnamed(&names, &read("docs/flags.md")), Vec::<String>::new());
    assert_eq!(unnamed(&["a_b".to_owned(), "a".to_owned()], "`a_b` a"), ["a"]);
    let page = read("docs/flags.md");
    let missing: Vec<_> =
        metric_rows().into_iter().filter(|row| !page.lines().any(|line| line == row)).collect();
    assert_eq!(missing, Vec::<String>::new(), "rows of the table of metrics");
}

#[test]
fn every_room_is_in_the_design() {
    let rooms = std::fs::read_dir(documents::root().join("src")).unwrap().map(Result::unwrap);
    let rooms =
        rooms.filter(|entry| entry.path().is_dir()).map(|room| room.file_name().into_string().unwrap() + "/");
    let rooms: Vec<_> = rooms.collect();
    assert!(rooms.len() > 10, "{rooms:?}");
    assert_eq!(unnamed(&rooms, &read("docs/design.md")), Vec::<String>::new());
}

/// The map in `src/lib.rs` leads to files that exist.
#[test]
fn the_map_of_the_library_is_true() {
    let path = Regex::new(r"`([a-z_/]+(?:\.rs|/))`").unwrap();
    let map: String = read("src/lib.rs").lines().filter(|line| line.starts_with("//!")).collect();
    let named: Vec<_> = path.captures_iter(&map).map(|found| found[1].to_owned()).collect();
    assert!(named.len() > 25, "{named:?}");
    let there =
        |name: &&String| ["src", ""].iter().any(|dir| documents::root().join(dir).join(name).exists());
    assert_eq!(named.iter().filter(|name| !there(name)).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn the_readme_is_short() {
    let text = read("README.md");
    assert!(text.lines().count() <= 170, "{} lines", text.lines().count());
    assert_eq!(wide_lines(&text), Vec::<&str>::new());
    assert_eq!(wide_lines(&format!("{}\n{}", "ä".repeat(120), "b".repeat(121))), ["b".repeat(121)]);
}
