//! What systemd is told (sd_notify(3)). Without `NOTIFY_SOCKET` nothing happens.

use sd_notify::NotifyState;
use std::time::Duration;

/// The way to systemd; a closed one for the networks of the mode of several, where flannel says nothing either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notifier {
    open: bool,
}

impl Notifier {
    pub(super) const OPEN: Notifier = Notifier { open: true };
    pub(super) const CLOSED: Notifier = Notifier { open: false };

    /// `READY=1`, once: `subnet.env` is written and packets flow.
    pub(super) fn ready(self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// `STATUS=`: what `systemctl status` shows.
    pub(super) fn status(self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// `WATCHDOG=1`: workers are alive and the control loop runs.
    pub(super) fn watchdog(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// `STOPPING=1`.
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

/// A server's error page may be part of a status: none of its lines must become an assignment of its own.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
