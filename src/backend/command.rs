//! An operator's command runs without a shell: its line is split on white space, the documented variables are put in,
//! and its time and output are bounded. Nothing that peers published is ever parsed as a command.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command may take before it is killed.
const LIMIT: Duration = Duration::from_secs(30);
/// How often we look whether a command has ended.
const TICK: Duration = Duration::from_millis(5);
/// How long we wait for the output of a command that has ended: a process that it left may hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);
/// How many bytes of output are kept; the rest is dropped. etcd takes 1.5 MiB a request.
const MOST_OUTPUT: usize = 64 * 1024;
const _: () = assert!(TICK.as_millis() < DRAIN.as_millis() && DRAIN.as_millis() < LIMIT.as_millis());
// JSON may write a byte as six; the lease must still fit into a request.
const _: () = assert!(6 * MOST_OUTPUT < 1024 * 1024);

/// Why a command failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    /// The command could not be started or watched.
    #[error("{command:?}: {reason}")]
    Run {
        /// The command line as configured.
        command: String,
        /// The reason that the system gave.
        reason: String,
    },
    /// The command ended with an exit code other than 0, or by a signal.
    #[error("{command:?}: {status}: {output}")]
    Status {
        /// The command line as configured.
        command: String,
        /// The exit code or signal.
        status: ExitStatus,
        /// The text that it printed.
        output: String,
    },
    /// The command took too long and was killed.
    #[error("{command:?}: took more than {} s and was killed", LIMIT.as_secs())]
    Timeout {
        /// The command line as configured.
        command: String,
    },
}

/// A command line, and what the command is given.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// The command line as configured.
    pub(super) line: String,
    /// The variables. They can stand in the line as `$NAME` or `${NAME}`, and are in the environment too.
    pub(super) variables: Vec<(&'static str, String)>,
    /// The text that the command reads on its standard input.
    pub(super) input: String,
}

impl Command {
    /// The program and its arguments. The line is split before variables are put in, so a value never makes two words.
    /// A name that is not a variable of ours stays as it is.
    fn words(&self) -> Vec<String> {
        self.line.split_whitespace().map(|word| self.expand(word)).collect()
    }

    fn expand(&self, word: &str) -> String {
        let mut out = String::new();
        let mut rest = word;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            match self.variable(&rest[1..]) {
                Some((value, length)) => {
                    out.push_str(value);
                    rest = &rest[1 + length..];
                }
                None => {
                    out.push('$');
                    rest = &rest[1..];
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// The value of the variable whose name starts `text`, and how many bytes the name takes.
    fn variable(&self, text: &str) -> Option<(&str, usize)> {
        let (name, length) = match text.strip_prefix('{') {
            Some(inner) => inner.split_once('}').map(|(name, _)| (name, name.len() + 2))?,
            None => {
                let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
                (&text[..end], end)
            }
        };
        let (_, value) = self.variables.iter().find(|(known, _)| *known == name)?;
        debug_assert!(text.is_char_boundary(length), "a name ends inside {text:?}");
        Some((value, length))
    }

    /// Runs the command while a thread watches it, waits without blocking, and returns the trimmed output. Dropping the
    /// future kills the command.
    ///
    /// # Errors
    /// The command could not run, failed, or took too long.
    pub(super) async fn run(self) -> Result<String, CommandError> {
        type Slot = (Option<Result<String, CommandError>>, Option<Waker>);
        let (child, output) = self.start().map_err(|error| self.error(error))?;
        let child = KillOnDrop(Arc::new(Mutex::new(child)));
        let slot: Arc<Mutex<Slot>> = Arc::default();
        let failed = self.error("cannot start a thread for it");
        let (their_child, their_slot) = (Arc::clone(&child.0), Arc::clone(&slot));
        let work = move || {
            let result = self.watch(&their_child, &output);
            let mut slot = lock(&their_slot);
            slot.0 = Some(result);
            if let Some(waker) = slot.1.take() {
                waker.wake();
            }
        };
        if thread::Builder::new().name("fl-command".to_owned()).spawn(work).is_err() {
            return Err(failed);
        }
        poll_fn(|context| {
            let mut slot = lock(&slot);
            slot.1 = Some(context.waker().clone());
            slot.0.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Runs the command and returns the trimmed output of stdout and stderr.
    ///
    /// # Errors
    /// The command could not run, failed, or took too long.
    pub(super) fn run_blocking(&self) -> Result<String, CommandError> {
        let (child, output) = self.start().map_err(|error| self.error(error))?;
        self.watch(&Mutex::new(child), &output)
    }

    fn watch(&self, child: &Mutex<Child>, output: &Receiver<Vec<u8>>) -> Result<String, CommandError> {
        let end = Instant::now() + LIMIT;
        let status = loop {
            let mut child = lock(child);
            match child.try_wait().map_err(|error| self.error(error))? {
                Some(status) => break status,
                None if Instant::now() >= end => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(CommandError::Timeout { command: self.line.clone() });
                }
                None => drop(child),
            }
            thread::sleep(TICK);
        };
        let output = collect(output);
        if status.success() {
            return Ok(output);
        }
        Err(CommandError::Status { command: self.line.clone(), status, output })
    }

    fn start(&self) -> io::Result<(Child, Receiver<Vec<u8>>)> {
        let words = self.words();
        let (program, arguments) =
            words.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command"))?;
        let (mut reader, writer) = io::pipe()?;
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stderr(writer.try_clone()?)
            .stdout(writer)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = self.input.clone();
            // A thread writes, so a command that does not read cannot stop us. One that ends early is no error.
            thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        }
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let (mut buffer, mut room) = ([0; 4096], MOST_OUTPUT);
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let kept = length.min(room);
                room -= kept;
                if kept > 0 && sender.send(buffer[..kept].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok((child, output))
    }

    fn error(&self, reason: impl ToString) -> CommandError {
        CommandError::Run { command: self.line.clone(), reason: reason.to_string() }
    }
}

/// A child that is killed when nobody waits for it any more.
struct KillOnDrop(Arc<Mutex<Child>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The standard library remembers a child that was waited for, and kills nothing then.
        let _ = lock(&self.0).kill();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn collect(output: &Receiver<Vec<u8>>) -> String {
    let end = Instant::now() + DRAIN;
    let mut bytes = Vec::new();
    while let Ok(chunk) = output.recv_timeout(end.saturating_duration_since(Instant::now())) {
        bytes.extend(chunk);
    }
    debug_assert!(bytes.len() <= MOST_OUTPUT, "the reader keeps {} bytes", bytes.len());
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        let variables = vec![("SUBNET", "10.1.2.0/24".to_owned()), ("PUBLIC_IP", "192.0.2.2".to_owned())];
        Command { line: line.to_owned(), variables, input: String::new() }
    }

    #[test]
    fn words_are_split_first_and_filled_in_second() {
        let words = |line: &str| command(line).words();
        assert_eq!(
            words("ip  route\tadd $SUBNET via $PUBLIC_IP"),
            ["ip", "route", "add", "10.1.2.0/24", "via", "192.0.2.2"]
        );
        assert_eq!(words("a${SUBNET}b $SUBNET/x"), ["a10.1.2.0/24b", "10.1.2.0/24/x"]);
        assert_eq!(
            words("$SUBNETS ${SUBNET $HOME $ $$SUBNET"),
            ["$SUBNETS", "${SUBNET", "$HOME", "$", "$10.1.2.0/24"]
        );
        assert_eq!(words("sh -c 'a b'; && |"), ["sh", "-c", "'a", "b';", "&&", "|"]);
        let mut spaced = command("x $SUBNET");
        spaced.variables[0].1 = "two words; $PUBLIC_IP".to_owned();
        assert_eq!(spaced.words(), ["x", "two words; $PUBLIC_IP"]);
    }

    #[test]
    fn output_environment_and_input_are_passed() {
        assert_eq!(command("printenv SUBNET").run_blocking().unwrap(), "10.1.2.0/24");
        let reading = Command { input: "a\nb\n".to_owned(), ..command("cat") };
        assert_eq!(reading.run_blocking().unwrap(), "a\nb");
        let error = command("ls /does/not/exist").run_blocking().unwrap_err();
        assert!(
            matches!(&error, CommandError::Status { output, .. } if output.contains("/does/not/exist")),
            "{error}"
        );
        assert!(matches!(command("/does/not/exist").run_blocking().unwrap_err(), CommandError::Run { .. }));
        assert!(matches!(command(" ").run_blocking().unwrap_err(), CommandError::Run { .. }));
    }

    #[test]
    fn a_flood_or_a_deaf_command_does_no_harm() {
        let start = Instant::now();
        let flood = command("head -c 10000000 /dev/zero").run_blocking().unwrap();
        assert_eq!(flood.len(), MOST_OUTPUT);
        let deaf = Command { input: "x".repeat(1 << 20), ..command("true") };
        assert_eq!(deaf.run_blocking().unwrap(), "");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn waiting_for_it_blocks_nobody() {
        let runtime = futures_util::future::join(command("sleep 0.2").run(), async { Instant::now() });
        let (result, at) = block_on(runtime);
        assert_eq!(result.unwrap(), "");
        assert!(at.elapsed() >= Duration::from_millis(150));
    }

    #[test]
    fn giving_up_the_wait_kills_it() {
        let mark = tempfile::NamedTempFile::new().unwrap();
        let line = format!("tail -f {}", mark.path().display());
        let mut waiting = Box::pin(command(&line).run());
        let mut context = std::task::Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let mine = format!("/proc/{}/task", std::process::id());
        let alive = || {
            let children = std::fs::read_dir(&mine)
                .unwrap()
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
            let pids: Vec<_> =
                children.flat_map(|text| text.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
            let commands = pids.iter().filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
            let path = mark.path().display().to_string();
            commands.filter(|line| String::from_utf8_lossy(line).contains(&path)).count()
        };
        let end = Instant::now() + Duration::from_secs(2);
        while alive() == 0 {
            assert!(Instant::now() < end, "it does not start");
            thread::sleep(TICK);
        }
        drop(waiting);
        let end = Instant::now() + Duration::from_secs(2);
        while alive() > 0 {
            assert!(Instant::now() < end, "it lives on");
            thread::sleep(TICK);
        }
    }

    /// A minimal executor, which parks its thread until it is woken.
    fn block_on<F: Future>(future: F) -> F::Output {
        struct Unpark(thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = std::task::Context::from_waker(&waker);
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            thread::park();
        }
    }
}
