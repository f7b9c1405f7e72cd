//! A trouble that goes on: said when it is new or another one, then once a minute.

use std::time::Duration;
use tokio::time::Instant;

/// A trouble that stays the same is said again after this long.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What was said last, and when.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    said: Option<(Instant, String)>,
}

impl Complaint {
    /// Whether `text` is worth a line now; it counts as said then.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        let now = Instant::now();
        if self.said.as_ref().is_some_and(|(at, last)| last == text && now < *at + SAY_EVERY) {
            return false;
        }
        self.said = Some((now, text.to_owned()));
        true
    }

    /// The trouble is over; whether there was one.
    pub(super) fn settle(&mut self) -> bool {
        self.said.take().is_some()
    }

    /// What was said last, while the trouble goes on.
    pub(super) fn text(&self) -> Option<&str> {
        self.said.as_ref().map(|(_, text)| text.as_str())
    }
}
