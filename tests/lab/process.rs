//! Processes in namespaces: started by handle, ended by handle, never left behind.

use super::{eventually, ms, secs, words};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A process in a namespace; both its outputs go to one file. Dropping it kills it.
pub struct Proc {
    child: Child,
    log: PathBuf,
}

fn in_ns(ns: &str, argv: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", ns]).args(argv);
    command
}

impl Proc {
    /// Starts a command. `ip netns exec` replaces itself with the command, so the pid is the command's own.
    pub fn start(ns: &str, argv: &[&str], envs: &[(&str, &str)], log: &Path) -> Self {
        Self::of(in_ns(ns, argv).envs(envs.iter().copied()), log)
    }

    /// Starts a command that finds its way into a namespace by itself.
    pub fn of(command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let child =
            command.stdin(Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out).spawn().unwrap();
        Self { child, log: log.to_owned() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `TERM`, `USR1`, `STOP`, …
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("sh").args(["-c", "kill -$0 $1", name, &pid]).status().unwrap();
        assert!(sent.success(), "cannot signal {pid}");
    }

    /// The process's exit status, if it ends within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(ms(5));
        }
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends SIGTERM and returns the status and how long it took; panics after five seconds.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal("TERM");
        let status = self.wait(secs(5));
        (status.unwrap_or_else(|| panic!("SIGTERM does not end it:\n{}", self.text())), start.elapsed())
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What the process has printed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its output contains `pattern`.
    pub fn wait_text(&self, pattern: &str, limit: Duration) {
        eventually(limit, &format!("{pattern:?} in {}", self.log.display()), || {
            self.text().contains(pattern).then_some(())
        });
    }

    /// CPU time used so far by the threads whose name passes `which`.
    pub fn cpu(&self, which: impl Fn(&str) -> bool) -> Duration {
        let mut ticks = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten() {
            // pid (comm) state ppid …; utime and stime are the 14th and 15th fields, in 1/100 s.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let Some((head, tail)) = stat.rsplit_once(')') else { continue };
            if which(head.split_once('(').map_or("", |(_, name)| name)) {
                let fields = words(tail);
                ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            }
        }
        ms(ticks * 10)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One of this executable's own tools, running in a namespace: lines in, lines out.
pub struct Tool {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
    what: String,
}

impl Tool {
    /// Re-runs the test executable at its `tool_entry`, and waits until the tool says that it is ready.
    pub fn start(ns: &str, line: &str, dir: &Path) -> Self {
        let exe = std::env::current_exe().unwrap();
        let argv = [exe.to_str().unwrap(), "--ignored", "--exact", "tool_entry", "--nocapture"];
        let name = words(line)[0];
        let log = File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
        let mut child = in_ns(ns, &argv)
            .env(super::tools::VARIABLE, line)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test harness writes `test tool_entry ... ` without a newline before our first line.
                let Some((_, line)) = line.split_once("=> ") else { continue };
                if sender.send((Instant::now(), line.to_owned())).is_err() {
                    break;
                }
            }
        });
        let tool = Self { child, stdin, lines, what: format!("{line} in {ns}") };
        let ready = tool.line(secs(10));
        assert_eq!(ready, "ready", "{}", tool.what);
        tool
    }

    /// The next line; panics after `limit`.
    pub fn line(&self, limit: Duration) -> String {
        self.maybe_line(limit)
            .unwrap_or_else(|| panic!("{} has ended, or said nothing within {limit:?}", self.what))
            .1
    }

    /// The next line and when it came, if one comes within `limit` and the tool still runs.
    pub fn maybe_line(&self, limit: Duration) -> Option<(Instant, String)> {
        self.lines.recv_timeout(limit).ok()
    }

    /// Forgets the lines that have come so far.
    pub fn drain(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Writes a line to it.
    pub fn write(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Closes its input, which ends the tools that run until then.
    pub fn finish(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of every log in a directory, for the report of a failed test.
pub fn tails(dir: &Path) -> String {
    let mut all = String::new();
    let Ok(entries) = fs::read_dir(dir) else { return all };
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_some_and(|e| e == "log") && !path.ends_with("etcd.log") {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n    ");
            all += &format!("--- {}\n    {tail}\n", path.display());
        }
    }
    all
}
