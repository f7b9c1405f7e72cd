//! A trouble that goes on is logged when it is new or has changed, and then once a minute.

use std::ops::Add;
use std::time::Duration;

/// A trouble that stays the same is logged again after this time.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A point on some clock: an `Instant`, or a `Duration` since the start.
pub trait Time: Copy + PartialOrd + Add<Duration, Output = Self> {}

impl<T: Copy + PartialOrd + Add<Duration, Output = T>> Time for T {}

/// What was said last about a trouble, and when. Every call brings the time, so the complaint has no clock of its own.
#[derive(Debug)]
pub struct Complaint<T> {
    said: Option<(T, String)>,
}

impl<T> Default for Complaint<T> {
    fn default() -> Self {
        Self { said: None }
    }
}

impl<T: Time> Complaint<T> {
    /// Whether `text` is worth a line in the log at `now`. If it is, it counts as said. A caller whose text changes
    /// from one attempt to the next passes a part of it that stays the same.
    pub fn is_news(&mut self, now: T, text: &str) -> bool {
        if self.said.as_ref().is_some_and(|(at, last)| last == text && now < *at + SAY_EVERY) {
            return false;
        }
        self.said = Some((now, text.to_owned()));
        true
    }

    /// Notes that the trouble has ended, and returns whether there was one.
    pub fn settle(&mut self) -> bool {
        self.said.take().is_some()
    }

    /// The text that was said last; `None` when there is no trouble.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.said.as_ref().map(|(_, text)| text.as_str())
    }

    /// The time at which the same text will be news again; `None` when there is no trouble.
    #[must_use]
    pub fn again_at(&self) -> Option<T> {
        self.said.as_ref().map(|(at, _)| *at + SAY_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_said_once_and_then_once_a_minute() {
        let at = Duration::from_secs;
        let mut complaint = Complaint::default();
        assert_eq!((complaint.text(), complaint.again_at()), (None, None));
        assert!(complaint.is_news(at(5), "a"));
        assert!(!complaint.is_news(at(64), "a"));
        assert_eq!((complaint.text(), complaint.again_at()), (Some("a"), Some(at(65))));
        assert!(complaint.is_news(at(65), "a"));
        assert!(complaint.is_news(at(66), "b"), "another trouble is news at once");
        assert!(complaint.settle() && !complaint.settle());
        assert!(complaint.is_news(at(67), "b"), "so is the same one after it had ended");
    }
}
