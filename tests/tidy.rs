//! The shape of the code is a test: import ranks, rooms that may hold unsafe or name tokio, lengths, names.
//!
//! Every rule is a function from one file to its violations, with a made-up source beside it that breaks it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from lowest to highest; a room names only rooms of a lower rank.
const RANKS: &str = "packet,log,bpf,report:subnet:offload,route,ring,tun,udp,netlink,store,cni,handover:engine,etcd,kube,lease:masq,iface,status,membership:backend:daemon:cli";
/// Rooms that may hold `unsafe`.
const UNSAFE: &[&str] = &["bpf", "ring", "tun", "udp"];
/// Rooms that may name tokio.
const TOKIO: &[&str] = &["etcd", "netlink", "store", "membership", "status", "daemon"];
/// The control path, which does not know the engine, but for [`KNOWS_ENGINE`].
const CONTROL: &[&str] = &[
    "log",
    "subnet",
    "netlink",
    "store",
    "etcd",
    "lease",
    "masq",
    "iface",
    "status",
    "membership",
    "backend",
    "cli",
    "daemon",
];
/// Path prefixes on the control side that may name the engine.
const KNOWS_ENGINE: &[&str] = &["src/backend/udp", "src/daemon"];
/// Names that say nothing about what is inside.
const BANNED: &[&str] = &["utils", "util", "common", "types", "helpers", "helper", "misc"];
const MAX_FILE: usize = 500;
const MAX_FN: usize = 70;

/// One source file: as it is, and with comments and literals blanked out (same lines, same bytes).
struct Source {
    path: String,
    raw: String,
    code: String,
}

impl Source {
    fn new(path: &str, raw: &str) -> Self {
        Self { path: path.to_owned(), raw: raw.to_owned(), code: blank(raw) }
    }

    /// `src/udp/mod.rs` and `src/udp.rs` → `udp`; `None` outside `src/`, for `lib.rs` and for `main.rs`.
    fn room(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let room = rest.split('/').next()?.trim_end_matches(".rs");
        (!matches!(room, "lib" | "main")).then_some(room)
    }

    fn line(&self, at: usize) -> usize {
        self.raw[..at].matches('\n').count() + 1
    }

    fn found(&self, at: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.path, self.line(at))
    }
}

/// Blanks comments, strings and character literals; keeps every newline and every offset.
fn blank(raw: &str) -> String {
    let b = raw.as_bytes();
    let mut out = b.to_vec();
    let mut i = 0;
    while i < b.len() {
        let end = literal_end(b, i);
        if let Some(end) = end {
            out[i..end].iter_mut().filter(|c| **c != b'\n').for_each(|c| *c = b' ');
            i = end;
        } else {
            i += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal that starts at `i` ends, if one does.
fn literal_end(b: &[u8], i: usize) -> Option<usize> {
    let at = |k: usize| b.get(k).copied().unwrap_or(0);
    let find = |from: usize, pat: &[u8]| {
        b[from.min(b.len())..].windows(pat.len()).position(|w| w == pat).map_or(b.len(), |n| from + n)
    };
    match (at(i), at(i + 1)) {
        (b'/', b'/') => Some(find(i, b"\n")),
        (b'/', b'*') => {
            let (mut depth, mut k) = (1, i + 2);
            while k < b.len() && depth > 0 {
                match (at(k), at(k + 1)) {
                    (b'/', b'*') => (depth, k) = (depth + 1, k + 2),
                    (b'*', b'/') => (depth, k) = (depth - 1, k + 2),
                    _ => k += 1,
                }
            }
            Some(k)
        }
        (b'r', b'"' | b'#') if i == 0 || !is_word(at(i - 1)) || at(i - 1) == b'b' => {
            let hashes = b[i + 1..].iter().take_while(|c| **c == b'#').count();
            (at(i + 1 + hashes) == b'"').then(|| {
                let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
                (find(i + 2 + hashes, &close) + close.len()).min(b.len())
            })
        }
        (b'"', _) => Some(quote_end(b, i, b'"')),
        (b'\'', b'\\') => Some(quote_end(b, i, b'\'')),
        // 'x' is a literal, 'x: a lifetime; a literal of several bytes starts with one ≥ 0x80.
        (b'\'', c) if c >= 0x80 || at(i + 2) == b'\'' => Some(quote_end(b, i, b'\'')),
        _ => None,
    }
}

fn quote_end(b: &[u8], start: usize, quote: u8) -> usize {
    let mut k = start + 1;
    while k < b.len() && b[k] != quote {
        k += if b[k] == b'\\' { 2 } else { 1 };
    }
    (k + 1).min(b.len())
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// Offsets of `word` in `code` as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let b = code.as_bytes();
    code.match_indices(word).map(|(i, _)| i).filter(move |&i| {
        (i == 0 || !is_word(b[i - 1])) && b.get(i + word.len()).is_none_or(|c| !is_word(*c))
    })
}

/// The identifier that `text` starts with, after blanks.
fn ident(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.bytes().take_while(|c| is_word(*c)).count()]
}

/// The offset just past the brace that closes the one at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (i, c) in code[open..].bytes().enumerate() {
        match c {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + i + 1;
        }
    }
    code.len()
}

/// First-level names of a `{a::b, c::{d, e}}` group whose brace is at `open`.
fn group_names(code: &str, open: usize) -> Vec<(usize, String)> {
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), true);
    for (i, c) in code[open..block_end(code, open)].bytes().enumerate() {
        match c {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' => fresh |= depth == 1,
            c if fresh && depth == 1 && !c.is_ascii_whitespace() => {
                fresh = false;
                names.push((open + i, ident(&code[open + i..]).to_owned()));
            }
            _ => {}
        }
    }
    names
}

/// Every name that the file takes from the crate's root: `crate::x`, `crate::{x, y}`, and `super` chains that
/// climb that far.
fn root_names(s: &Source) -> Vec<(usize, String)> {
    let code = &s.code;
    let mut names = Vec::new();
    let take = |at: usize, after: usize, names: &mut Vec<(usize, String)>| {
        let rest = code[after..].trim_start();
        let Some(rest) = rest.strip_prefix("::") else { return };
        let rest = rest.trim_start();
        if rest.starts_with('{') {
            names.extend(group_names(code, code.len() - rest.len()));
        } else if rest.starts_with('*') {
            names.push((at, "*".to_owned()));
        } else {
            names.push((at, ident(rest).to_owned()));
        }
    };
    for at in words(code, "crate") {
        take(at, at + "crate".len(), &mut names);
    }
    let file_depth = s.path.trim_end_matches("/mod.rs").matches('/').count();
    let mut last_end = 0;
    for at in words(code, "super").filter(|_| s.room().is_some()).collect::<Vec<_>>() {
        if at < last_end {
            continue;
        }
        let (mut supers, mut end) = (1, at + "super".len());
        while code[end..].starts_with("::super") {
            (supers, end) = (supers + 1, end + "::super".len());
        }
        last_end = end;
        let inline = words(code, "mod")
            .filter_map(|m| Some((m, m + code[m..].find(['{', ';'])?)))
            .filter(|&(m, open)| m < at && code.as_bytes()[open] == b'{' && block_end(code, open) > at)
            .count();
        if supers >= file_depth + inline {
            take(at, end, &mut names);
        }
    }
    names
}

fn rank(room: &str) -> Option<usize> {
    RANKS.split(':').position(|rooms| rooms.split(',').any(|r| r == room))
}

fn imports_go_downward(s: &Source) -> Vec<String> {
    let Some(room) = s.room() else { return Vec::new() };
    let Some(mine) = rank(room) else { return vec![s.found(0, format_args!("room {room} has no rank"))] };
    let bad = |name: &str| name == "*" || (name != room && rank(name).is_some_and(|theirs| theirs >= mine));
    root_names(s)
        .into_iter()
        .filter(|(_, name)| bad(name))
        .map(|(at, name)| s.found(at, format_args!("{room} must not name {name}")))
        .collect()
}

fn engine_is_named_by_few(s: &Source) -> Vec<String> {
    let control = s.room().is_some_and(|room| CONTROL.contains(&room));
    if !control || KNOWS_ENGINE.iter().any(|p| s.path.starts_with(p)) {
        return Vec::new();
    }
    root_names(s)
        .into_iter()
        .filter(|(_, name)| name == "engine")
        .map(|(at, _)| s.found(at, "the control path must not name the engine here"))
        .collect()
}

fn unsafe_stays_in_its_rooms(s: &Source) -> Vec<String> {
    if !s.path.starts_with("src/") {
        return Vec::new();
    }
    let allowed = s.room().is_some_and(|room| UNSAFE.contains(&room));
    let mut found = Vec::new();
    let mut previous = 0;
    for at in words(&s.code, "unsafe") {
        if !allowed {
            found.push(s.found(at, "unsafe outside its rooms"));
            continue;
        }
        // The note stands at most 12 lines above (a statement may begin before its block) and serves one block.
        let note = if ident(&s.code[at + 6..]) == "fn" { "# Safety" } else { "SAFETY:" };
        if !s.raw[previous..at].rsplit('\n').take(13).any(|line| line.contains(note)) {
            found.push(s.found(at, format_args!("unsafe without its own {note} note")));
        }
        previous = at;
    }
    found
}

fn tokio_stays_in_its_rooms(s: &Source) -> Vec<String> {
    let allowed = !s.path.starts_with("src/") || s.room().is_some_and(|room| TOKIO.contains(&room));
    words(&s.code, "tokio").filter(|_| !allowed).map(|at| s.found(at, "tokio outside its rooms")).collect()
}

fn files_are_short(s: &Source) -> Vec<String> {
    let lines = s.raw.lines().count();
    if lines > MAX_FILE {
        vec![s.found(0, format_args!("{lines} lines, at most {MAX_FILE}"))]
    } else {
        vec![]
    }
}

fn functions_are_short(s: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for at in words(&s.code, "fn") {
        let name = ident(&s.code[at + 2..]);
        // A body opens at the first brace outside brackets; a declaration ends at a semicolon; no name: a type.
        let mut depth = 0i32;
        let open = s.code[at..].bytes().position(|c| {
            depth += i32::from(matches!(c, b'(' | b'[')) - i32::from(matches!(c, b')' | b']'));
            depth == 0 && matches!(c, b'{' | b';')
        });
        let Some(open) = open.map(|n| at + n).filter(|&n| !name.is_empty() && s.code.as_bytes()[n] == b'{')
        else {
            continue;
        };
        let lines = s.code[at..block_end(&s.code, open)].matches('\n').count() + 1;
        if lines > MAX_FN {
            found.push(s.found(at, format_args!("fn {name} has {lines} lines, at most {MAX_FN}")));
        }
    }
    found
}

fn names_say_something(s: &Source) -> Vec<String> {
    let mut found: Vec<String> = s
        .path
        .split('/')
        .map(|part| part.trim_end_matches(".rs"))
        .filter(|part| BANNED.contains(part))
        .map(|part| s.found(0, format_args!("a module named {part}")))
        .collect();
    for at in words(&s.code, "mod") {
        let name = ident(&s.code[at + 3..]);
        if BANNED.contains(&name) {
            found.push(s.found(at, format_args!("a module named {name}")));
        }
    }
    found
}

fn files_open_with_their_purpose(s: &Source) -> Vec<String> {
    if s.raw.starts_with("//!") { vec![] } else { vec![s.found(0, "does not open with //!")] }
}

fn scripts_stop_at_errors(s: &Source) -> Vec<String> {
    if s.raw.lines().any(|l| l.starts_with("set -eu")) { vec![] } else { vec![s.found(0, "no `set -eu`")] }
}

type Rule = fn(&Source) -> Vec<String>;

const RUST_RULES: &[Rule] = &[
    imports_go_downward,
    engine_is_named_by_few,
    unsafe_stays_in_its_rooms,
    tokio_stays_in_its_rooms,
    files_are_short,
    functions_are_short,
    names_say_something,
    files_open_with_their_purpose,
];

/// Every file under `dir` that `wanted` takes, as (path relative to the package, content).
fn walk(dir: &Path, wanted: &dyn Fn(&Path) -> bool, into: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, wanted, into);
        } else if wanted(&path) {
            let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap();
            into.push(Source::new(name, &fs::read_to_string(&path).unwrap()));
        }
    }
}

fn sources(dirs: &[&str], wanted: &dyn Fn(&Path) -> bool) -> Vec<Source> {
    let mut all = Vec::new();
    for dir in dirs {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), wanted, &mut all);
    }
    all
}

fn check(sources: &[Source], rules: &[Rule]) {
    let mut report = String::new();
    for violation in sources.iter().flat_map(|s| rules.iter().flat_map(move |rule| rule(s))) {
        writeln!(report, "  {violation}").unwrap();
    }
    assert!(report.is_empty(), "the house rules are broken:\n{report}");
}

#[test]
fn rust_files_obey() {
    let files = sources(&["src", "tests", "benches"], &|p| p.extension().is_some_and(|e| e == "rs"));
    assert!(files.iter().any(|s| s.path == "src/lib.rs"), "the walk found no sources");
    check(&files, RUST_RULES);
}

#[test]
fn shell_scripts_obey() {
    let script = |p: &Path| p.extension().is_some_and(|e| e == "sh") || p.ends_with(".ci/run");
    let files = sources(&["tests", "perf", "packaging", ".ci"], &script);
    assert!(files.len() >= 3, "the walk found {} scripts", files.len());
    check(&files, &[scripts_stop_at_errors]);
}

#[test]
fn every_room_has_a_rank() {
    let files = sources(&["src"], &|p| p.extension().is_some_and(|e| e == "rs"));
    for room in files.iter().filter_map(Source::room) {
        assert!(rank(room).is_some(), "room {room} has no rank");
    }
}

/// The made-up sources: each breaks exactly one rule, and its twin does not.
mod self_test {
    use super::*;

    fn breaks(rule: Rule, path: &str, raw: &str) {
        assert_ne!(
            rule(&Source::new(path, raw)),
            Vec::<String>::new(),
            "{path} should break the rule:\n{raw}"
        );
    }

    fn passes(rule: Rule, path: &str, raw: &str) {
        assert_eq!(rule(&Source::new(path, raw)), Vec::<String>::new(), "{path}:\n{raw}");
    }

    #[test]
    fn ranks() {
        let rule = imports_go_downward;
        breaks(rule, "src/packet/ipv4.rs", "use crate::route::Table;");
        breaks(rule, "src/tun/mod.rs", "use crate::{packet::ipv4, udp::{self, Socket}};");
        breaks(rule, "src/tun/mod.rs", "fn f() { crate::engine::go() }");
        breaks(rule, "src/tun/mod.rs", "use super::udp::Socket;");
        breaks(rule, "src/tun/queue.rs", "mod tests { use super::super::super::udp; }");
        breaks(rule, "src/daemon/mod.rs", "use crate::cli;");
        breaks(rule, "src/udp/mod.rs", "use crate::*;");
        breaks(rule, "src/novel/mod.rs", "");
        passes(
            rule,
            "src/tun/mod.rs",
            "use crate::{packet, tun::x};\n// crate::engine\nconst S: &str = \"crate::udp\";",
        );
        passes(rule, "src/tun/queue.rs", "use super::udp::Socket; mod tests { use super::super::udp; }");
        passes(rule, "src/main.rs", "use crate::anything;");
    }

    #[test]
    fn engine() {
        let rule = engine_is_named_by_few;
        breaks(rule, "src/backend/mod.rs", "use crate::engine::Worker;");
        breaks(rule, "src/backend/alloc.rs", "use crate::{engine, subnet};");
        breaks(rule, "src/cli/mod.rs", "use crate::engine::Worker;");
        for path in ["src/backend/udp.rs", "src/backend/udp/peers.rs", "src/daemon/mod.rs"] {
            passes(rule, path, "use crate::engine::Worker;");
        }
    }

    #[test]
    fn unsafe_code() {
        let rule = unsafe_stays_in_its_rooms;
        breaks(rule, "src/engine/mod.rs", "// SAFETY: sure\nunsafe { f() }");
        breaks(rule, "src/main.rs", "unsafe impl Send for X {}");
        breaks(rule, "src/ring/mod.rs", "unsafe { f() }");
        breaks(rule, "src/ring/mod.rs", "// SAFETY: sure\nunsafe { f() }\nunsafe impl Send for X {}");
        breaks(rule, "src/ring/mod.rs", &format!("// SAFETY: far\n{}unsafe {{ f() }}", "\n".repeat(40)));
        passes(
            rule,
            "src/ring/mod.rs",
            "// SAFETY: a\nunsafe { f() }\n// SAFETY: b\nunsafe impl Send for X {}",
        );
        passes(rule, "src/ring/mod.rs", "/// # Safety\n/// so\npub unsafe fn f() {}");
        passes(rule, "src/lib.rs", "#[allow(unsafe_code)] // unsafe\npub mod ring;");
    }

    #[test]
    fn tokio() {
        breaks(tokio_stays_in_its_rooms, "src/lease/mod.rs", "use tokio::time;");
        breaks(tokio_stays_in_its_rooms, "src/main.rs", "#[tokio::main] fn main() {}");
        passes(tokio_stays_in_its_rooms, "src/netlink/mod.rs", "use tokio::time;");
        passes(tokio_stays_in_its_rooms, "src/lease/mod.rs", "/* tokio */ //! tokio");
    }

    #[test]
    fn lengths() {
        let long = |n: usize| format!("fn f(x: [u8; 4]) {{\n{}}}", "    let _ = '{';\n".repeat(n));
        breaks(functions_are_short, "src/a.rs", &long(MAX_FN));
        passes(functions_are_short, "src/a.rs", &long(MAX_FN - 2));
        passes(functions_are_short, "src/a.rs", &format!("type F = fn(u8);\n{}", "\n".repeat(99)));
        breaks(files_are_short, "src/a.rs", &"\n".repeat(MAX_FILE + 1));
        passes(files_are_short, "src/a.rs", &"\n".repeat(MAX_FILE));
    }

    #[test]
    fn names() {
        breaks(names_say_something, "src/engine/utils.rs", "");
        breaks(names_say_something, "src/helpers/mod.rs", "");
        breaks(names_say_something, "src/engine/mod.rs", "mod misc;");
        passes(names_say_something, "src/engine/mod.rs", "mod worker; // mod misc;");
        breaks(files_open_with_their_purpose, "src/a.rs", "use std::io;");
        passes(files_open_with_their_purpose, "src/a.rs", "//! What it is for.");
        breaks(scripts_stop_at_errors, "perf/a.sh", "#!/bin/sh\n# set -eu\n");
        passes(scripts_stop_at_errors, "perf/a.sh", "#!/bin/bash\nset -euo pipefail\n");
    }

    #[test]
    fn blanking_keeps_offsets() {
        let raw = "let a = r#\"unsafe \"x\"\"#; let c = '\\''; let d: &'a str = \"\\\"unsafe\"; /* /* unsafe */ */ unsafe";
        let code = blank(raw);
        assert_eq!(code.len(), raw.len());
        assert_eq!(words(&code, "unsafe").collect::<Vec<_>>(), [raw.len() - 6]);
        assert!(code.contains("&'a str"));
    }
}
