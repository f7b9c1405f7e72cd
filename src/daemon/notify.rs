//! What systemd is told (sd_notify(3)). Without `NOTIFY_SOCKET` it is told nothing.

use sd_notify::NotifyState;
use std::time::Duration;

/// The way to systemd. It is closed for each network of the mode of several, where flannel says nothing either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notifier {
    open: bool,
}

impl Notifier {
    pub(super) const OPEN: Notifier = Notifier { open: true };
    pub(super) const CLOSED: Notifier = Notifier { open: false };

    /// Sends `READY=1`: `subnet.env` is written and packets flow. The caller does so once.
    pub(super) fn ready(self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Sends `STATUS=`, which `systemctl status` shows.
    pub(super) fn status(self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// Sends `WATCHDOG=1`: workers are alive and the control loop runs.
    pub(super) fn watchdog(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Sends `STOPPING=1`: the process is about to end. systemd kills it if it goes on.
    pub(super) fn stopping(self) {
        self.send(&[NotifyState::Stopping]);
    }

    fn send(self, states: &[NotifyState<'_>]) {
        if self.open
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::warn!(%error, "cannot notify systemd");
        }
    }
}

/// How often [`Notifier::watchdog`] must be called: half of `WATCHDOG_USEC`, as sd_watchdog_enabled(3) advises.
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero())
}

/// The text on one line. A status may quote a server's error page, whose lines must not become assignments.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
