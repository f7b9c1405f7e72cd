//! Circles of files: modules of one folder that name each other, directly or round about.

use super::Source;
use super::paths::{module, named};
use std::collections::{BTreeMap, BTreeSet};

/// Folder (a module), and which of its modules names which.
type Edges = BTreeMap<(Vec<String>, String), BTreeSet<String>>;

/// Every circle inside a folder of a room, as a sentence. The rooms themselves have ranks. A folder's own file
/// (`mod.rs`) joins its modules and may name them all; what it re-exports belongs to the module that it comes from.
pub fn circles(sources: &[Source]) -> Vec<String> {
    let files: Vec<&Source> = sources.iter().filter(|s| is_production(&s.path)).collect();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|s| module(&s.path)).collect();
    let origins = origins(&files, &modules);
    let mut edges = Edges::new();
    for s in &files {
        let own = module(&s.path);
        for name in named(&without_tests(s)) {
            let path = origins.get(&name.path).unwrap_or(&name.path);
            let folder = own.iter().zip(path).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (own.get(folder), path.get(folder)) else { continue };
            if folder > 0 && modules.contains(&path[..=folder]) {
                edges.entry((own[..folder].to_vec(), from.clone())).or_default().insert(to.clone());
            }
        }
    }
    let mut found = BTreeSet::new();
    for (folder, from) in edges.keys() {
        let mut circle: Vec<&str> = reached(&edges, folder, from)
            .into_iter()
            .filter(|to| reached(&edges, folder, to).contains(from.as_str()))
            .collect();
        if circle.contains(&from.as_str()) {
            circle.sort_unstable();
            found.insert(format!("src/{}: a circle of {}", folder.join("/"), circle.join(", ")));
        }
    }
    found.into_iter().collect()
}

/// What is part of the daemon: no tests, and none of their rigs.
fn is_production(path: &str) -> bool {
    path.starts_with("src/") && !path.contains("/tests/") && !path.ends_with("tests.rs")
}

/// The file without its inline tests, which are blanked out.
fn without_tests(s: &Source) -> Source {
    let mut code = s.code.clone();
    for (at, attribute) in s.code.match_indices("#[cfg(test)]\nmod ") {
        let Some(open) = s.code[at + attribute.len()..].find(['{', ';']).map(|n| at + attribute.len() + n)
        else {
            continue;
        };
        if s.code.as_bytes()[open] == b'{' {
            let end = super::block_end(&s.code, open);
            code.replace_range(at..end, &" ".repeat(end - at));
        }
    }
    Source { path: s.path.clone(), raw: s.raw.clone(), code }
}

/// Where the re-exports of folders come from: `a::X` is `a::b::X` if `a/mod.rs` says `pub use b::X`.
fn origins(files: &[&Source], modules: &BTreeSet<Vec<String>>) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut origins = BTreeMap::new();
    for s in files.iter().filter(|s| s.path.ends_with("/mod.rs")) {
        let own = module(&s.path);
        for start in super::words(&s.code, "use").filter(|at| is_reexport(&s.code[..*at])) {
            let end = start + s.code[start..].find(';').unwrap_or(0);
            let first = super::ident(&s.code[start + 3..end]);
            let child: Vec<String> = own.iter().cloned().chain([first.to_owned()]).collect();
            if !modules.contains(&child) {
                continue;
            }
            // Read as if it were written from the root, so that groups are taken apart in one place.
            let text = format!("use crate::{}", s.code[start + 3..=end].trim_start());
            for name in named(&Source::new("src/any.rs", &text)) {
                let item = name.path.last().cloned().unwrap_or_default();
                let shown = own.iter().cloned().chain([item]).collect();
                origins.insert(shown, own.iter().cloned().chain(name.path).collect());
            }
        }
    }
    origins
}

fn is_reexport(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default().trim();
    line.starts_with("pub")
}

fn reached<'a>(edges: &'a Edges, folder: &[String], from: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(next) = open.pop() {
        for to in edges.get(&(folder.to_vec(), next)).into_iter().flatten() {
            if seen.insert(to.as_str()) {
                open.push(to.clone());
            }
        }
    }
    seen
}
