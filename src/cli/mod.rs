//! The command line and the environment become the daemon's [`Settings`].
//!
//! Theory of operation. `go_syntax` rewrites the words that Go's `flag` package would take
//! (`-flag=value`, `--flag value`, bare booleans) to the one form `--flag=value`; the environment
//! supplies `FLANNELD_*` for flags that were not typed, and `env_file` those that are not there either;
//! clap, fed from the table in `flags`, checks names and values; `meaning` turns the values into the
//! daemon's [`Settings`]. On SIGHUP `reread` does all of this once more.
//!
//! Exit codes follow flannel: 2 for what Go's `flag` package would refuse (unknown flag, bad value, a
//! word that is no flag) and for flags that are not served; 1 for values that are well formed and cannot work
//! (a text that is no address, a certificate that cannot be read).
//!
//! Two deliberate differences. A stray word is refused (flannel v0.6.2 printed its usage and exited
//! 0, later ones ignored the rest of the line in silence). A bad value in a `FLANNELD_*` variable is
//! refused by the variable's name (flannel ignored it).
//!
//! A password never reaches an error text: errors name flags and positions, and quote values only of flags whose
//! values have a form.

mod env_file;
mod flags;
mod go_syntax;
mod meaning;
mod reread;
#[cfg(test)]
mod tests;
mod value;

use crate::daemon::Settings;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use env_file::EnvFiles;
use flags::FLAGS;
pub use reread::Reread;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::ffi::OsString;
use value::Value;

/// The version that `-version` prints.
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// What to do after parsing.
#[derive(Debug)]
pub enum Parsed {
    /// Run the daemon.
    Run {
        /// What was typed, as the daemon wants it.
        settings: Box<Settings>,
        /// What the log should say: flags that were taken and have no effect.
        remarks: Vec<String>,
        /// The way to read all of it again.
        reread: Reread,
    },
    /// Print a text and end.
    Exit {
        /// The process's exit code: 0, 1 or 2.
        code: u8,
        /// The text for stderr, as in flannel even for `-version` and `-help`; it ends with a newline.
        stderr: String,
    },
}

/// A refusal of the command line, as an exit code and one line.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    code: u8,
    line: String,
}

impl Refusal {
    /// The command line itself is wrong.
    fn usage(line: impl Into<String>) -> Self {
        Self { code: 2, line: line.into() }
    }

    /// The command line is well formed, but its settings cannot work.
    fn setting(line: impl Into<String>) -> Self {
        Self { code: 1, line: line.into() }
    }
}

/// The variables of flags in the environment of the process.
type Environment = BTreeMap<&'static str, OsString>;
/// How the operator named a flag that was not typed: its variable, and the file if it stands in one.
type Origins = BTreeMap<&'static str, String>;

/// Parses the command line, whose first word is the program's name, and the environment. It reads
/// the files that flags name (variables, password) and checks that others can be read (certificates).
pub fn parse(args: impl Iterator<Item = OsString>, env: impl Fn(&str) -> Option<OsString>) -> Parsed {
    let mut args = args;
    let program = args.next().map_or_else(|| "flanneld".to_owned(), |s| s.to_string_lossy().into_owned());
    let words: Vec<OsString> = args.collect();
    let with_variable = FLAGS.iter().filter(|flag| flag.takes_env());
    let environment: Environment =
        with_variable.filter_map(|flag| Some((flag.name, env(&variable(flag.name))?))).collect();
    match parse_words(&words, &environment) {
        Ok(Outcome::Run(run)) => {
            let reread = Reread::new(words, environment, &run);
            Parsed::Run { settings: run.settings, remarks: run.remarks, reread }
        }
        Ok(Outcome::Help) => Parsed::Exit { code: 0, stderr: usage(&program) },
        Ok(Outcome::Version) => Parsed::Exit { code: 0, stderr: format!("{VERSION}\n") },
        Err(Refusal { code, line }) => Parsed::Exit { code, stderr: format!("{program}: {line}\n") },
    }
}

enum Outcome {
    Run(Run),
    Help,
    Version,
}

/// What was typed, and what the environment and the files add.
struct Run {
    settings: Box<Settings>,
    remarks: Vec<String>,
    /// Every value of every flag, by which a later reading is compared.
    values: BTreeMap<&'static str, Vec<Value>>,
    origins: Origins,
    files: EnvFiles,
}

fn parse_words(args: &[OsString], environment: &Environment) -> Result<Outcome, Refusal> {
    let words = go_syntax::read(args.iter().cloned())?;
    let typed: BTreeSet<&str> = words.iter().map(|word| word.name.as_str()).collect();
    let asked = |name: &str| words.iter().rev().find(|word| word.name == name).map(go_syntax::Word::is_true);
    if asked("help") == Some(true) {
        return Ok(Outcome::Help);
    }
    // Everything typed must be right before -version or the environment counts.
    match_words(words.iter().map(go_syntax::Word::canonical), &Origins::new())?;
    if asked("version") == Some(true) {
        return Ok(Outcome::Version);
    }
    let files = env_files(&words, environment)?;
    let mut origins = Origins::new();
    let mut all = Vec::new();
    for flag in FLAGS.iter().filter(|flag| flag.takes_env() && !typed.contains(flag.name)) {
        let Some((text, origin)) = beside_the_words(flag.name, environment, &files)? else { continue };
        // A password may begin or end with a blank. Everything else is trimmed, since people quote blanks.
        let text = if flag.is_secret() { text } else { text.trim() };
        all.push(OsString::from(format!("--{}={text}", flag.name)));
        origins.insert(flag.name, origin);
    }
    all.extend(words.iter().map(go_syntax::Word::canonical));
    let matches = match_words(all.into_iter(), &origins)?;
    let given = meaning::Given::new(&matches, &origins);
    let settings = Box::new(meaning::settings(&given)?);
    let skipped = files.skipped.iter().map(|line| format!("{line}: skipped"));
    let remarks = meaning::remarks(&given).into_iter().chain(skipped).chain(files.remarks.iter().cloned());
    let remarks = remarks.collect();
    let values = given.values();
    Ok(Outcome::Run(Run { settings, remarks, values, origins, files }))
}

/// Reads the files that the command line names, or else the environment.
fn env_files(words: &[go_syntax::Word], environment: &Environment) -> Result<EnvFiles, Refusal> {
    const FLAG: &str = "env-file";
    let typed: Vec<&str> = words.iter().filter(|word| word.name == FLAG).map(go_syntax::Word::text).collect();
    if !typed.is_empty() {
        return env_file::read(typed.into_iter(), "-env-file");
    }
    let from_env = environment.get(FLAG).and_then(|path| path.to_str());
    env_file::read(from_env.into_iter(), &variable(FLAG))
}

/// The text of a flag that was not typed, and its origin: first the environment counts, then the files.
fn beside_the_words<'a>(
    flag: &'static str,
    environment: &'a Environment,
    files: &'a EnvFiles,
) -> Result<Option<(&'a str, String)>, Refusal> {
    let name = variable(flag);
    let of_process = match environment.get(flag) {
        Some(value) => value.to_str().ok_or_else(|| Refusal::usage(format!("{name} is not valid UTF-8")))?,
        None => "",
    };
    if !of_process.trim().is_empty() {
        return Ok(Some((of_process, name)));
    }
    Ok(files.flags.get(flag).map(|(text, origin)| (text.as_str(), origin.clone())))
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("FLANNELD_{}", flag.to_uppercase().replace('-', "_"))
}

/// How the operator named this flag: `-flag`, its variable, or its variable and the file.
fn spelled(flag: &str, origins: &Origins) -> String {
    origins.get(flag).cloned().unwrap_or_else(|| format!("-{flag}"))
}

fn match_words(
    words: impl Iterator<Item = OsString>,
    origins: &Origins,
) -> Result<clap::ArgMatches, Refusal> {
    let argv = std::iter::once(OsString::from("flanneld")).chain(words);
    flags::command().try_get_matches_from(argv).map_err(|error| explain(&error, origins))
}

/// Puts clap's error into one line.
fn explain(error: &clap::Error, origins: &Origins) -> Refusal {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let name = argument.trim_start_matches('-').split([' ', '=', '[']).next().unwrap_or_default();
    let shown = spelled(name, origins);
    Refusal::usage(match error.kind() {
        ErrorKind::UnknownArgument => {
            let suggestion = context(ContextKind::SuggestedArg).map(|s| s.trim_start_matches('-'));
            let hint = suggestion.map_or("try -help".to_owned(), |s| format!("did you mean -{s}?"));
            format!("flag provided but not defined: {shown}; {hint}")
        }
        ErrorKind::ValueValidation => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            let reason = error.source().map(ToString::to_string).unwrap_or_default();
            format!("invalid value {value:?} for {shown}: {reason}")
        }
        ErrorKind::InvalidUtf8 => "a flag's value is not valid UTF-8".to_owned(),
        kind => format!("{shown}: {kind}"),
    })
}

fn usage(program: &str) -> String {
    let help = flags::command().render_help().to_string();
    format!("Usage: {program} [OPTION]...\n\n{help}")
}
