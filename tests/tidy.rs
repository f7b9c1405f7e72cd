//! The shape of the code is a test: import ranks, rooms that may hold unsafe or name tokio, lengths, names.
//!
//! Every rule is a function from one file to its violations, with a made-up source beside it that breaks it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod shape;

use shape::circles::circles;
use shape::docs::docs_say_something;
use shape::paths::named;
use shape::{Source, block_end, ident, words};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from lowest to highest; a room names only rooms of a lower rank.
const RANKS: &str = "packet,log,bpf,report:subnet:offload,route,ring,tun,udp,arp,netlink,store,cni,handover:engine,etcd,kube,lease:masq,iface,status,membership:backend:daemon:cli";
/// Rooms that may hold `unsafe`.
const UNSAFE: &[&str] = &["arp", "bpf", "ring", "tun", "udp"];
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

fn rank(room: &str) -> Option<usize> {
    RANKS.split(':').position(|rooms| rooms.split(',').any(|r| r == room))
}

/// Every name that the file takes from the crate's root.
fn root_names(s: &Source) -> Vec<(usize, String)> {
    if s.room().is_none() && !s.path.starts_with("src/") {
        return Vec::new();
    }
    named(s).into_iter().filter_map(|name| Some((name.at, name.path.into_iter().next()?))).collect()
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
    docs_say_something,
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
fn files_of_a_room_are_in_no_circle() {
    let files = sources(&["src"], &|p| p.extension().is_some_and(|e| e == "rs"));
    assert_eq!(circles(&files), Vec::<String>::new());
}

#[test]
fn shell_scripts_obey() {
    let script = |p: &Path| p.extension().is_some_and(|e| e == "sh") || p.ends_with(".ci/run");
    let files = sources(&["tests", "perf", "packaging", "findings", ".ci"], &script);
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
    fn documentation() {
        let rule = docs_say_something;
        breaks(rule, "src/a.rs", "/// Which.\npub which: u8,");
        breaks(rule, "src/a.rs", "/// Ours alone.\nfn f() {}");
        breaks(rule, "src/a.rs", "/// Who: the owner of it.\n");
        passes(rule, "src/a.rs", "/// Which peer it is.\npub which: u8,\n//// no doc\n// Which.");
        passes(rule, "src/a.rs", "/// One\n/// sentence of five words.\n");
    }

    #[test]
    fn circles_of_files() {
        let room = |files: &[(&str, &str)]| {
            let whole: Vec<Source> = files.iter().map(|(path, raw)| Source::new(path, raw)).collect();
            circles(&whole)
        };
        let direct = room(&[("src/a/b.rs", "use super::c::X;"), ("src/a/c.rs", "use crate::a::{b::Y, d};")]);
        assert_eq!(direct, ["src/a: a circle of b, c"]);
        let three = [
            ("src/a/b.rs", "use super::{c::X, Z};"),
            ("src/a/c/mod.rs", "fn f() { super::d::g() }"),
            ("src/a/c/e.rs", "//! a"),
            ("src/a/d.rs", "use crate::a::b::W;"),
        ];
        assert_eq!(room(&three), ["src/a: a circle of b, c, d"]);
        let hidden = [
            ("src/a/mod.rs", "mod b;\nmod c;\npub use b::{X, Y as Z};"),
            ("src/a/b.rs", "use super::c::V;"),
            ("src/a/c.rs", "use super::X;"),
        ];
        assert_eq!(room(&hidden), ["src/a: a circle of b, c"], "through a re-export");
        let below = [
            ("src/a/b.rs", "#[cfg(test)]\nmod tests;\nuse super::c::X;"),
            ("src/a/c.rs", "#[cfg(test)]\nmod tests { fn f() {} }\nuse super::b::X;"),
        ];
        assert_eq!(room(&below), ["src/a: a circle of b, c"], "below the tests");
        let deep = [("src/a/c/e.rs", "use super::super::b::X;"), ("src/a/b.rs", "use super::c::e::Y;")];
        assert_eq!(room(&[deep[0], deep[1], ("src/a/c/mod.rs", "")]), ["src/a: a circle of b, c"]);
        let none = [
            ("src/a/mod.rs", "use b::X; use c::Y; pub struct S;"),
            ("src/a/b.rs", "use super::{S, c::Y};\n#[cfg(test)]\nmod tests { use crate::a::b::X; }"),
            ("src/a/c.rs", "use super::S;\n#[cfg(test)]\nmod tests { use super::super::b::X; }"),
            ("src/a/tests.rs", "use super::b::X;"),
        ];
        assert_eq!(room(&none), Vec::<String>::new());
    }

    #[test]
    fn blanking_keeps_offsets() {
        let raw = "let a = r#\"unsafe \"x\"\"#; let c = '\\''; let d: &'a str = \"\\\"unsafe\"; /* /* unsafe */ */ unsafe";
        let code = shape::blank(raw);
        assert_eq!(code.len(), raw.len());
        assert_eq!(words(&code, "unsafe").collect::<Vec<_>>(), [raw.len() - 6]);
        assert!(code.contains("&'a str"));
    }
}
