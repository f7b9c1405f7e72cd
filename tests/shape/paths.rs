//! The paths of modules that a file names: `crate::a::b`, `super::x`, and groups of them.

use super::{Source, block_end, ident, words};

/// A path that a file names, from the crate's root on, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub at: usize,
    pub path: Vec<String>,
}

/// The file's module: `src/etcd/v2/http.rs` is `etcd::v2::http`, `src/etcd/mod.rs` and `src/etcd.rs` are `etcd`.
pub fn module(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod")).map(str::to_owned).collect()
}

/// How many inline modules stand around the offset.
fn inline_depth(code: &str, at: usize) -> usize {
    words(code, "mod")
        .filter_map(|m| Some((m, m + code[m..].find(['{', ';'])?)))
        .filter(|&(m, open)| m < at && code.as_bytes()[open] == b'{' && block_end(code, open) > at)
        .count()
}

/// Every path that begins with `crate` or `super`, with its groups taken apart.
pub fn named(s: &Source) -> Vec<Named> {
    let code = &s.code;
    let mut all = Vec::new();
    for at in words(code, "crate") {
        follow(code, at, at + "crate".len(), &[], &mut all);
    }
    let own = module(&s.path);
    let mut last_end = 0;
    for at in words(code, "super").collect::<Vec<_>>() {
        if at < last_end {
            continue;
        }
        let (mut supers, mut end) = (1_usize, at + "super".len());
        while code[end..].starts_with("::super") {
            (supers, end) = (supers + 1, end + "::super".len());
        }
        last_end = end;
        // From an inline module, the first `super` leads to the file itself.
        let up = supers.saturating_sub(inline_depth(code, at));
        let base = &own[..own.len().saturating_sub(up)];
        follow(code, at, end, base, &mut all);
    }
    all
}

/// The paths that `base` and the text after it make.
fn follow(code: &str, at: usize, after: usize, base: &[String], all: &mut Vec<Named>) {
    let Some(rest) = code[after..].trim_start().strip_prefix("::") else {
        return all.push(Named { at, path: base.to_vec() });
    };
    let rest = rest.trim_start();
    let start = code.len() - rest.len();
    let mut path = base.to_vec();
    if rest.starts_with('{') {
        for part in parts(code, start) {
            let name = ident(&code[part..]);
            if name == "self" || name.is_empty() {
                all.push(Named { at: part, path: path.clone() });
                continue;
            }
            let mut path = path.clone();
            path.push(name.to_owned());
            follow(code, part, part + name.len(), &path, all);
        }
    } else if rest.starts_with('*') {
        path.push("*".to_owned());
        all.push(Named { at, path });
    } else {
        let name = ident(rest);
        path.push(name.to_owned());
        follow(code, at, start + name.len(), &path, all);
    }
}

/// Where each part of the `{a::b, c::{d, e}}` group begins whose brace is at `open`.
fn parts(code: &str, open: usize) -> Vec<usize> {
    let (mut depth, mut starts, mut fresh) = (0, Vec::new(), true);
    for (i, c) in code[open..block_end(code, open)].bytes().enumerate() {
        match c {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' => fresh |= depth == 1,
            c if fresh && depth == 1 && !c.is_ascii_whitespace() => {
                fresh = false;
                starts.push(open + i);
            }
            _ => {}
        }
    }
    starts
}
