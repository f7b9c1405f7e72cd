//! The syntax of Go's `flag` package: <https://pkg.go.dev/flag#hdr-Command_line_flag_syntax>.

use super::Refusal;
use super::flags::{self, Kind};
use super::value;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A flag as it was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// The flag's name, without dashes.
    pub(super) name: String,
    /// The flag's value; absent only for a flag that nobody knows.
    value: Option<OsString>,
}

impl Word {
    /// The word in the one form `--name=value`.
    pub(super) fn canonical(&self) -> OsString {
        let is_known = flags::find(&self.name).is_some();
        debug_assert_eq!(is_known, self.value.is_some(), "every known flag has a value: -{}", self.name);
        let mut word = OsString::from(format!("--{}", self.name));
        if let Some(value) = &self.value {
            word.push("=");
            word.push(value);
        }
        word
    }

    /// The value; empty if there is none or if it is not UTF-8.
    pub(super) fn text(&self) -> &str {
        self.value.as_deref().and_then(OsStr::to_str).unwrap_or_default()
    }

    /// Whether the value means true; for boolean flags.
    pub(super) fn is_true(&self) -> bool {
        value::bool(self.text()) == Ok(true)
    }
}

/// Reads the words after the program's name. An unknown flag ends the reading, since nobody can tell whether the next
/// word belongs to it.
pub(super) fn read(args: impl Iterator<Item = OsString>) -> Result<Vec<Word>, Refusal> {
    let mut words: Vec<Word> = Vec::new();
    let mut args = args.enumerate();
    while let Some((index, arg)) = args.next() {
        let bytes = arg.as_bytes();
        if bytes.len() < 2 || !bytes.starts_with(b"-") {
            return Err(stray(index, words.last()));
        }
        if bytes == b"--" {
            return match args.next() {
                Some((index, _)) => Err(stray(index, None)),
                None => Ok(words),
            };
        }
        let (name, value) = split(bytes)?;
        // Go's library knows -h as a short -help.
        let name = if name == "h" { "help".to_owned() } else { name };
        let known = flags::find(&name);
        let value = match (known, value) {
            (None, _) => {
                words.push(Word { name, value: None });
                return Ok(words);
            }
            (_, Some(value)) => value,
            (Some(flag), None) if flag.kind == Kind::Bool => OsString::from("true"),
            (Some(_), None) => match args.next() {
                Some((_, value)) => value,
                None => return Err(Refusal::usage(format!("flag needs an argument: -{name}"))),
            },
        };
        words.push(Word { name, value: Some(value) });
    }
    Ok(words)
}

/// Splits `-name=value` at the first `=`.
fn split(bytes: &[u8]) -> Result<(String, Option<OsString>), Refusal> {
    let rest = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).unwrap_or(bytes);
    let (name, value) = match rest.iter().position(|byte| *byte == b'=') {
        Some(at) => (&rest[..at], Some(OsString::from_vec(rest[at + 1..].to_vec()))),
        None => (rest, None),
    };
    let name = String::from_utf8_lossy(name).into_owned();
    if let Some((flag, _)) = name.split_once(char::is_whitespace) {
        let line = format!("bad flag syntax: -{flag} and more in one argument; write -{flag}=VALUE");
        return Err(Refusal::usage(line));
    }
    if name.is_empty() || name.starts_with('-') {
        return Err(Refusal::usage("bad flag syntax: one or two dashes, then a name; try -help"));
    }
    Ok((name, value))
}

/// Refuses a word that is no flag. The text does not quote it, since it may be a password gone astray.
fn stray(index: usize, before: Option<&Word>) -> Refusal {
    let place = before.map(|word| format!(" (after -{})", word.name)).unwrap_or_default();
    Refusal::usage(format!(
        "argument {}{place} is no flag; a boolean takes its value as -flag=false; try -help",
        index + 1
    ))
}
