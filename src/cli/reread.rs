//! Reading the settings once more, on SIGHUP: what has changed, and what of it takes a restart.

use super::env_file::{COMMAND_LINE, EnvFiles};
use super::value::Value;
use super::{Environment, Outcome, Refusal, Run, parse_words, spelled};
use crate::daemon::Reloaded;
use std::collections::BTreeMap;
use std::ffi::OsString;

/// The flags that a running daemon takes over.
const LIVE: [&str; 10] = [
    "v",
    "peer-filter",
    "etcd-endpoints",
    "etcd-timeout",
    "etcd-username",
    "etcd-password",
    "etcd-password-file",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
];

/// The command line and the environment of the start, and what runs since.
#[derive(Debug)]
pub struct Reread {
    words: Vec<OsString>,
    environment: Environment,
    /// The values that the daemon runs with.
    running: BTreeMap<&'static str, Vec<Value>>,
    /// The variables that the unit put on the command line at the start.
    command_line: BTreeMap<&'static str, String>,
}

impl Reread {
    /// Takes down what the start saw. systemd hands a unit's `EnvironmentFile=` over as the environment, so a variable
    /// that says the same as a file counts as that file's: otherwise no change of the file could ever take effect.
    pub(super) fn new(words: Vec<OsString>, mut environment: Environment, run: &Run) -> Reread {
        let in_file = |flag: &str| run.files.flags.get(flag).map(|(text, _)| text.trim());
        environment.retain(|flag, value| value.to_str().map(str::trim) != in_file(flag));
        let EnvFiles { command_line, .. } = &run.files;
        Reread { words, environment, running: run.values.clone(), command_line: command_line.clone() }
    }

    /// Reads the command line of the start and the files as they are now. What a running daemon can take over counts as
    /// running from now on; the rest is named again the next time.
    ///
    /// # Errors
    /// One line that says what is wrong. Then nothing has changed.
    pub fn again(&mut self) -> Result<Reloaded, String> {
        let run = match parse_words(&self.words, &self.environment) {
            Ok(Outcome::Run(run)) => run,
            Ok(Outcome::Help | Outcome::Version) => return Err("the command line asks for no run".to_owned()),
            Err(Refusal { line, .. }) => return Err(line),
        };
        if let Some(odd) = run.files.skipped.first() {
            return Err(odd.clone());
        }
        let (mut applied, mut stale) = (Vec::new(), Vec::new());
        for (flag, value) in &run.values {
            if self.running.get(flag) == Some(value) {
                continue;
            }
            let name = spelled(flag, &run.origins);
            if LIVE.contains(flag) {
                applied.push(name);
                self.running.insert(*flag, value.clone());
            } else {
                stale.push(name);
            }
        }
        let (then, now) = (&self.command_line, &run.files.command_line);
        let changed = COMMAND_LINE.iter().filter(|name| then.get(*name) != now.get(*name));
        stale.extend(changed.map(|name| (*name).to_owned()));
        Ok(Reloaded { settings: *run.settings, applied, stale, remarks: run.files.remarks })
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Parsed, Reread, parse};
    use crate::daemon::settings::PeerFilter;
    use std::ffi::OsString;
    use std::fs;

    fn start(words: &[&str], env: &[(&str, &str)]) -> Reread {
        let args = std::iter::once("flanneld").chain(words.iter().copied()).map(OsString::from);
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        match parse(args, lookup) {
            Parsed::Run { reread, .. } => reread,
            Parsed::Exit { stderr, .. } => panic!("{stderr}"),
        }
    }

    #[test]
    fn a_variable_that_a_unit_took_from_the_file_follows_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        write("FLANNELD_V=\"0\"\nFLANNELD_BATCH=8\nFLANNELD_OPTIONS=-spin=0\n");
        let env = [("FLANNELD_V", "0"), ("FLANNELD_BATCH", "16")];
        let mut reread = start(&["-env-file", path, "-peer-filter=inner"], &env);
        assert_eq!(reread.again().unwrap().applied, Vec::<String>::new(), "nothing has changed");

        write(
            "FLANNELD_V=1\nFLANNELD_BATCH=64\nFLANNELD_PEER_FILTER=off\nFLANNELD_OPTIONS=\nFLANNELD_BUFFERS=8\n",
        );
        let new = reread.again().unwrap();
        assert_eq!((new.settings.log.v, new.applied), (1, vec![format!("FLANNELD_V in {path}")]));
        // The environment differed from the file, so it is the operator's own and still wins, as the command line does.
        assert_eq!(
            (new.settings.engine.reads_per_turn, new.settings.engine.peer_filter),
            (16, PeerFilter::Inner)
        );
        let stale = vec![format!("FLANNELD_BUFFERS in {path}"), "FLANNELD_OPTIONS".to_owned()];
        assert_eq!(new.stale, stale);
        // What is applied is said once; what is not runs differently until a restart.
        let again = reread.again().unwrap();
        assert_eq!((again.applied, again.stale), (Vec::new(), stale));

        write("FLANNELD_BUFFERS=x\n");
        let line = reread.again().unwrap_err();
        assert!(line.contains(&format!("FLANNELD_BUFFERS in {path}")), "{line}");
        write("FLANNELD_V=0\nFLANNELD_OPT");
        let line = reread.again().unwrap_err();
        assert!(line.ends_with("line 2: a line without ="), "half of a file changes nothing: {line}");
        write("FLANNELD_OPTIONS=-spin=0\n");
        let back = reread.again().unwrap();
        assert_eq!(
            (back.applied, back.stale),
            (vec!["-v".to_owned()], Vec::new()),
            "it is the default again"
        );
    }
}
