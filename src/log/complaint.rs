//! A trouble that goes on is said when it is new or another one, and then once a minute.

use std::ops::Add;
use std::time::Duration;

/// A trouble that stays the same is said again after this long.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A point on some clock: an `Instant`, or a `Duration` since the start.
pub trait Time: Copy + PartialOrd + Add<Duration, Output = Self> {}

impl<T: Copy + PartialOrd + Add<Duration, Output = T>> Time for T {}

/// What was said last, and when. Every call brings the time, so the complaint has no clock of its own.
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
    /// Whether `text` is worth a line at `now`; it counts as said then. A caller whose text changes from one
    /// attempt to the next passes something that stays the same in its place.
    pub fn is_news(&mut self, now: T, text: &str) -> bool {
        if self.said.as_ref().is_some_and(|(at, last)| last == text && now < *at + SAY_EVERY) {
            return false;
        }
        self.said = Some((now, text.to_owned()));
        true
    }

    /// Ends the trouble; returns whether there was one.
    pub fn settle(&mut self) -> bool {
        self.said.take().is_some()
    }

    /// What was said last, while the trouble goes on.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.said.as_ref().map(|(_, text)| text.as_str())
    }

    /// When the same text will be news again; `None` before it was said.
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
