//! SIGTERM, SIGINT, SIGUSR1 and SIGHUP are caught on a thread of their own (`fl-sig`).
//!
//! A stop must be obeyed whatever the control thread is doing: it may hang in a write to a full pipe at stderr, or
//! wait for the kernel. So this thread passes the first stop on, and ends the process itself if the stop takes too
//! long or a second one comes. It never writes a line: stderr may be what hangs.

use super::DaemonError;
use std::convert::Infallible;
use std::process;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::sleep;

/// How long an orderly stop may take. A second is promised.
pub(super) const STOP_LIMIT: Duration = Duration::from_millis(800);
/// How long a stop may take with `--cleanup-on-exit`, which runs programs before the end.
pub(super) const CLEANUP_LIMIT: Duration = Duration::from_secs(10);
const _: () = assert!(STOP_LIMIT.as_millis() < 1000, "a second is promised");
const _: () = assert!(STOP_LIMIT.as_millis() < CLEANUP_LIMIT.as_millis());

/// The signals that have come, as channels.
#[derive(Debug)]
pub(super) struct Signals {
    /// The name of the first SIGTERM or SIGINT.
    pub(super) stop: Receiver<&'static str>,
    /// A message for SIGUSR1; several signals may become one.
    pub(super) report: Receiver<()>,
    /// A message for SIGHUP; several signals may become one.
    pub(super) reload: Receiver<()>,
}

/// Catches the signals from now on. With `cleanup` the stop may take longer.
///
/// # Errors
/// [`DaemonError::System`] if the system refuses the handlers or the thread.
pub(super) fn catch(cleanup: bool) -> Result<Signals, DaemonError> {
    let failed = |error| DaemonError::System("catch signals", error);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handlers = Handlers::new(&runtime).map_err(failed)?;
    let (stop, stops) = channel(1);
    let (report, reports) = channel(1);
    let (reload, reloads) = channel(1);
    let limit = if cleanup { CLEANUP_LIMIT } else { STOP_LIMIT };
    std::thread::Builder::new()
        .name("fl-sig".to_owned())
        .spawn(move || runtime.block_on(handlers.run(&stop, &report, &reload, limit)))
        .map_err(failed)?;
    Ok(Signals { stop: stops, report: reports, reload: reloads })
}

struct Handlers {
    terminate: Signal,
    interrupt: Signal,
    report: Signal,
    reload: Signal,
}

impl Handlers {
    fn new(runtime: &Runtime) -> std::io::Result<Handlers> {
        let _inside = runtime.enter();
        Ok(Handlers {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            report: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    async fn run(
        mut self,
        stop: &Sender<&'static str>,
        report: &Sender<()>,
        reload: &Sender<()>,
        limit: Duration,
    ) -> Infallible {
        let name = loop {
            tokio::select! {
                (name, _) = next_stop(&mut self.terminate, &mut self.interrupt) => break name,
                // A message that was not read yet stands for this signal too.
                _ = self.report.recv() => drop(report.try_send(())),
                _ = self.reload.recv() => drop(reload.try_send(())),
            }
        };
        // This is the first and only message, so there is room.
        let _ = stop.try_send(name);
        tokio::select! {
            (_, number) = next_stop(&mut self.terminate, &mut self.interrupt) => process::exit(128 + number),
            // Something takes too long to end. The next start needs nothing of what could not be finished.
            () = sleep(limit) => process::exit(0),
        }
    }
}

/// Waits for SIGTERM or SIGINT; returns its name and number.
async fn next_stop(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}
