//! What systemd is told (sd_notify(3)). Without `NOTIFY_SOCKET` nothing happens.

use sd_notify::NotifyState;

/// `READY=1`, once: `subnet.env` is written and packets flow.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// `STATUS=`: what `systemctl status` shows.
pub(super) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// `STOPPING=1`.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
