//! `--env-file`: variables of flags in files of the form of systemd's `EnvironmentFile=`, read at the start and again
//! on SIGHUP.
//!
//! The form is that of systemd.exec(5): `NAME=VALUE` lines, comments that begin with `#` or `;`, values that may be
//! quoted, and a backslash at a line's end. At the start, a line of another form is skipped as systemd skips it, with a
//! remark. On SIGHUP it is refused: half of a file that is being written must not become the daemon's settings.

use super::flags::{FLAGS, find};
use super::meaning::unreadable;
use super::{Refusal, variable};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

/// Names of the packages of RHEL and Fedora (`/etc/sysconfig/flanneld`, read by their `flanneld-start`), and the flags
/// that they set. Of two names for one flag the later one in this list counts.
const RHEL: [(&str, &str); 4] = [
    ("FLANNEL_ETCD", "etcd-endpoints"),
    ("FLANNEL_ETCD_ENDPOINTS", "etcd-endpoints"),
    ("FLANNEL_ETCD_KEY", "etcd-prefix"),
    ("FLANNEL_ETCD_PREFIX", "etcd-prefix"),
];
/// Names that a unit puts on the command line. They are no flags, and a change of them takes a restart.
pub(super) const COMMAND_LINE: [&str; 2] = ["FLANNEL_OPTIONS", "FLANNELD_OPTIONS"];

/// What the files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EnvFiles {
    /// The text of each flag's variable, and where it stands: `NAME in FILE`.
    pub(super) flags: BTreeMap<&'static str, (String, String)>,
    /// The variables that a unit puts on the command line.
    pub(super) command_line: BTreeMap<&'static str, String>,
    /// A sentence for each `FLANNELD_` name that is no flag's.
    pub(super) remarks: Vec<String>,
    /// A sentence for each line that is not of the form.
    pub(super) skipped: Vec<String>,
}

/// Reads the files in order; a later one wins. A path that begins with `-` names a file that may be missing.
///
/// # Errors
/// A file cannot be read.
pub(super) fn read<'a>(paths: impl Iterator<Item = &'a str>, shown: &str) -> Result<EnvFiles, Refusal> {
    let mut files = EnvFiles::default();
    for given in paths.map(str::trim).filter(|path| !path.is_empty()) {
        let path = given.strip_prefix('-').unwrap_or(given);
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if path != given && error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Refusal::setting(format!("{shown}: {}", unreadable(path, &error)))),
        };
        let (variables, odd) = parse(&text);
        files
            .skipped
            .extend(odd.iter().map(|(line, reason)| format!("{shown}: {path}, line {line}: {reason}")));
        files.take(&variables, path);
    }
    Ok(files)
}

impl EnvFiles {
    /// Adds the variables of one file, which win over those of the files before.
    fn take(&mut self, variables: &BTreeMap<String, String>, path: &str) {
        for (name, flag) in RHEL {
            self.set(flag, name, variables.get(name), path);
        }
        for flag in FLAGS.iter().filter(|flag| flag.takes_env()) {
            let name = variable(flag.name);
            self.set(flag.name, &name, variables.get(&name), path);
        }
        for name in COMMAND_LINE {
            if let Some(text) = variables.get(name) {
                self.command_line.insert(name, text.clone());
            }
        }
        let is_flag = |name: &str| FLAGS.iter().any(|flag| flag.takes_env() && variable(flag.name) == name);
        let unknown = variables.keys().filter(|name| {
            name.starts_with("FLANNELD_") && !is_flag(name) && !COMMAND_LINE.contains(&&***name)
        });
        self.remarks
            .extend(unknown.map(|name| format!("{name} in {path} has no effect: there is no such flag")));
    }

    fn set(&mut self, flag: &'static str, name: &str, text: Option<&String>, path: &str) {
        debug_assert!(find(flag).is_some(), "-{flag} is not in the table");
        match text {
            None => {}
            // A blank value takes back what an earlier file said.
            Some(text) if text.trim().is_empty() => drop(self.flags.remove(flag)),
            Some(text) => drop(self.flags.insert(flag, (text.clone(), format!("{name} in {path}")))),
        }
    }
}

/// The variables of a text, and the lines that are not of the form: the number from 1, and what is wrong there.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<(usize, &'static str)>) {
    let (mut variables, mut odd) = (BTreeMap::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let at = text[..text.len() - rest.len()].matches('\n').count() + 1;
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = line.trim_start();
        if trimmed.trim_end().is_empty() || trimmed.starts_with(['#', ';']) {
            rest = after;
            continue;
        }
        match assignment(rest) {
            Ok((name, value, used)) => {
                variables.insert(name.to_owned(), value);
                rest = &rest[used..];
            }
            Err(reason) => {
                odd.push((at, reason));
                rest = after;
            }
        }
    }
    (variables, odd)
}

/// The assignment that `text` begins with, and how much of it that takes.
fn assignment(text: &str) -> Result<(&str, String, usize), &'static str> {
    let line = text.split('\n').next().unwrap_or(text);
    let (name, _) = line.split_once('=').ok_or("a line without =")?;
    let name = name.trim();
    if !is_name(name) {
        return Err("no name of a variable before =");
    }
    let start = text.find('=').map_or(text.len(), |found| found + 1);
    let (value, used) = value(&text[start..]).ok_or("a quote that does not end, or text after it")?;
    Ok((name, value, start + used))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The value at the beginning of `text`, and how many bytes it takes with its line's end; `None` for a quote that does
/// not end, or that other text follows.
fn value(text: &str) -> Option<(String, usize)> {
    let blanks = text.len() - text.trim_start_matches([' ', '\t', '\r']).len();
    let quote = text[blanks..].chars().next().filter(|first| matches!(first, '\'' | '"'));
    let mut chars = text[blanks..].char_indices().skip(usize::from(quote.is_some()));
    let mut out = String::new();
    let end = loop {
        match chars.next() {
            None if quote.is_some() => return None,
            None => break text.len(),
            Some((at, '\n')) if quote.is_none() => break blanks + at + 1,
            Some((at, found)) if Some(found) == quote => {
                let tail = &text[blanks + at + 1..];
                let (tail, line_end) = tail.split_once('\n').map_or((tail, 0), |(tail, _)| (tail, 1));
                return tail.trim().is_empty().then(|| (out, blanks + at + 1 + tail.len() + line_end));
            }
            Some((_, '\\')) if quote != Some('\'') => match chars.next() {
                // A backslash at a line's end joins the next line.
                Some((_, '\n')) | None => {}
                Some((_, next)) if quote.is_none() || matches!(next, '"' | '\\' | '`' | '$') => {
                    out.push(next);
                }
                Some((_, next)) => out.extend(['\\', next]),
            },
            Some((_, found)) => out.push(found),
        }
    };
    Some((out.trim_end().to_owned(), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_systemd() {
        let text = "# a comment\n  ; another\n\nA=1\n B = two words \nC='it is \"so\" \\'\nD=\"a \\\"b\\\" \\$x \\n\"\n\
                    E=one \\\n  two\nF=\nG=a#b\nA=3\r\n_h2=\"two\nlines\"\nI=x\\y=z";
        let expected = [
            ("A", "3"),
            ("B", "two words"),
            ("C", "it is \"so\" \\"),
            ("D", "a \"b\" $x \\n"),
            ("E", "one   two"),
            ("F", ""),
            ("G", "a#b"),
            ("I", "xy=z"),
            ("_h2", "two\nlines"),
        ];
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(parse(text), (expected, vec![]));
        assert_eq!(parse(""), (BTreeMap::new(), vec![]));
    }

    #[test]
    fn what_is_not_of_the_form_is_told_with_its_line() {
        for (text, line) in [
            ("A=1\nFLANNELD_V", 2),
            ("=1", 1),
            ("A B=1", 1),
            ("1A=1", 1),
            ("A=1\n\nB=\"open\n", 3),
            ("A='x' y", 1),
            ("A=\"x\ny\"\nfoo", 3),
            ("\u{0}\u{0}\u{0}", 1),
        ] {
            let lines: Vec<_> = parse(text).1.iter().map(|(at, _)| *at).collect();
            assert_eq!(lines, [line], "{text:?}");
        }
        let (variables, odd) = parse("export A=1\nB=2\nC=\"open\nD=4\n");
        assert_eq!(variables.keys().collect::<Vec<_>>(), ["B", "D"]);
        assert_eq!(odd.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn later_files_win_and_names_of_rhel_yield_to_ours() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let rhel = file(
            "rhel",
            "FLANNEL_ETCD_KEY=/old\nFLANNEL_ETCD_PREFIX=/atomic.io/network\nFLANNEL_ETCD_ENDPOINTS=\"http://a:1\"\n\
             FLANNEL_OPTIONS=-v=1\nFLANNELD_IFACE=eth1\nFLANNELD_V=1\n",
        );
        let ours =
            file("ours", "FLANNELD_ETCD_ENDPOINTS=http://b:1\nFLANNELD_IFACE=\nFLANNELD_TYPO=1\nX=1\n");
        let gone = format!("-{}", dir.path().join("gone").display());
        let files = read([&*rhel, &gone, &ours].into_iter(), "-env-file").unwrap();
        let texts: Vec<_> = files.flags.iter().map(|(flag, (text, _))| (*flag, text.as_str())).collect();
        assert_eq!(
            texts,
            [("etcd-endpoints", "http://b:1"), ("etcd-prefix", "/atomic.io/network"), ("v", "1")]
        );
        assert_eq!(files.flags["etcd-prefix"].1, format!("FLANNEL_ETCD_PREFIX in {rhel}"));
        assert_eq!(files.command_line, BTreeMap::from([("FLANNEL_OPTIONS", "-v=1".to_owned())]));
        assert_eq!(files.remarks, [format!("FLANNELD_TYPO in {ours} has no effect: there is no such flag")]);
        let refused = |path: &str| read([path].into_iter(), "-env-file").unwrap_err().line;
        assert!(refused(&gone[1..]).contains("cannot read"), "{}", refused(&gone[1..]));
        let half = read([&*file("half", "FLANNELD_V=1\nFLANN")].into_iter(), "-env-file").unwrap();
        assert!(half.skipped[0].ends_with("half, line 2: a line without ="), "{:?}", half.skipped);
        assert_eq!(half.flags["v"].0, "1");
    }
}
