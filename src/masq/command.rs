//! The programs that this room runs: each is found at the start, gets a text, and is ended if it hangs.

use super::Error;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Directories that are searched after those of `PATH`, which a service manager or a container may set without them.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How long a program may run. A host with many thousands of rules and a contended lock needs less.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);

/// What a program wrote, and how it ended.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) success: bool,
    pub(super) stdout: String,
    stderr: String,
    program: String,
}

impl Output {
    /// The error that tells of this output in the words of the program.
    pub(super) fn error(&self) -> Error {
        let lines: Vec<&str> = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let reason =
            if lines.is_empty() { "failed".to_owned() } else { lines[..lines.len().min(3)].join("; ") };
        Error::Program { program: self.program.clone(), reason }
    }

    /// Whether the program wrote `text` to stderr.
    pub(super) fn says(&self, text: &str) -> bool {
        self.stderr.contains(text)
    }

    /// The output of a program that must succeed.
    pub(super) fn text(self) -> Result<String, Error> {
        if self.success { Ok(self.stdout) } else { Err(self.error()) }
    }
}

/// Searches for a program in the directories of `path` (the variable `PATH`), and then in those of the system.
pub(super) fn find(name: &str, path: Option<&str>) -> Option<PathBuf> {
    let dirs = path.into_iter().flat_map(|path| path.split(':')).chain(SYSTEM_DIRS);
    let mut files = dirs.filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(name));
    let found = files.find(|file| file.is_file());
    debug_assert!(found.as_deref().is_none_or(Path::is_absolute), "never by the current directory");
    found
}

/// Runs a program with `input` on stdin, for at most [`TIMEOUT`].
pub(super) fn run(program: &Path, args: &[&str], input: &str) -> Result<Output, Error> {
    run_for(program, args, input, TIMEOUT)
}

fn run_for(program: &Path, args: &[&str], input: &str, timeout: Duration) -> Result<Output, Error> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |reason: String| Error::Program { program: name.clone(), reason };
    let deadline = Instant::now() + timeout;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdout = child.stdout.take().map(read_to_end);
    let stderr = child.stderr.take().map(read_to_end);
    if let Some(mut stdin) = child.stdin.take() {
        // Our scripts fit into the buffer of a pipe. A program that ends without reading its input says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let until_deadline = |output: Option<mpsc::Receiver<String>>| {
        output.and_then(|output| output.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok())
    };
    let outputs = until_deadline(stdout).zip(until_deadline(stderr));
    if outputs.is_none() {
        let _ = child.kill();
    }
    // The program has closed its outputs or was killed, so it has ended or is about to end.
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let Some((stdout, stderr)) = outputs else {
        return Err(failed(format!("no answer within {} s", timeout.as_secs_f32())));
    };
    Ok(Output { success: status.success(), stdout, stderr, program: name })
}

/// Reads a pipe on a thread of its own, so that the caller can stop waiting.
fn read_to_end(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, timeout: Duration) -> Result<Output, Error> {
        run_for(Path::new("/bin/sh"), &["-c", script], input, timeout)
    }

    #[test]
    fn a_program_gets_its_input_and_gives_both_outputs() {
        let output = shell("cat; echo ' no ' >&2; echo >&2; exit 3", "in\n", TIMEOUT).unwrap();
        assert_eq!((output.success, output.stdout.as_str()), (false, "in\n"));
        assert!(output.says("no"));
        assert_eq!(output.error().to_string(), "sh: no");
        // This output is more than a pipe holds.
        let long = shell("head -c 1000000 /dev/zero | tr '\\0' x", "", TIMEOUT).unwrap().text().unwrap();
        assert_eq!(long.len(), 1_000_000);
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let start = Instant::now();
        let error = shell("exec sleep 60", "", Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.to_string(), "sh: no answer within 0.2 s");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn programs_are_found_beyond_path() {
        assert_eq!(find("sh", Some("relative::/bin")), Some(PathBuf::from("/bin/sh")));
        assert!(find("ip", Some("")).or(find("ldconfig", None)).is_some());
        assert_eq!(find("no-such-program", Some("/bin")), None);
    }
}
