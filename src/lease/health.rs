//! Whether the store answers and takes writes, and when to say so: when it is lost, then once a minute, and when it is
//! back.
//!
//! A store may answer every read and refuse every write: the user may only read, or the store is full. That is an
//! outage too, and only a write that is taken ends it.

use super::Notice;
use crate::log::Complaint;
use std::time::Duration;

/// Whether the store answers, as we see it.
#[derive(Debug, Default)]
pub(super) struct Health {
    outage: Option<Outage>,
    writes: Writes,
    /// It is never settled, since a store that comes and goes must not fill the log.
    complaint: Complaint<Duration>,
}

#[derive(Debug)]
struct Outage {
    since: Duration,
    reason: String,
    said: bool,
    /// Whether the watch has failed since the store was last heard.
    of_watch: bool,
    /// Whether a call has failed since the store was last heard.
    of_calls: bool,
    /// Why the store took no write, although it answers.
    of_writes: Option<String>,
}

/// What became of the last writes.
#[derive(Debug, Default)]
struct Writes {
    /// The last one failed.
    failed: bool,
    /// The store has answered since then.
    answered_since: bool,
}

/// Which of the two ways to the store has failed or brought something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Call,
    Watch,
    /// A write that failed, and not for want of a store that answers.
    Write,
}

impl Health {
    /// A call or the watch got no answer, or a refusal. Returns what is to be said about it.
    pub(super) fn failed(&mut self, now: Duration, way: Way, reason: String) -> Option<Notice> {
        let outage = self.outage.get_or_insert(Outage {
            since: now,
            reason: String::new(),
            said: false,
            of_watch: false,
            of_calls: false,
            of_writes: None,
        });
        match way {
            Way::Watch => outage.of_watch = true,
            Way::Call => outage.of_calls = true,
            Way::Write => outage.of_writes = Some(format!("it answers, but takes no write: {reason}")),
        }
        outage.reason = reason;
        self.tick(now)
    }

    /// A write has failed, as an answer (`refused`) or without one. Returns what has failed with it: writes alone, if the
    /// store refuses it, or answers other calls between writes that it does not answer.
    pub(super) fn write_failed(&mut self, refused: bool) -> Way {
        let Writes { failed, answered_since } = self.writes;
        self.writes = Writes { failed: true, answered_since: false };
        if refused || (failed && answered_since) { Way::Write } else { Way::Call }
    }

    /// A write was taken, or none is wanted any more. Returns what is to be said about it.
    pub(super) fn written(&mut self, now: Duration) -> Option<Notice> {
        self.writes = Writes::default();
        self.outage.as_mut()?.of_writes.take()?;
        self.end(now)
    }

    /// Whether something that came this way shows that the store answers, if it did not. A watch that was let in long ago
    /// still brings events when the store refuses every call.
    pub(super) fn is_proof(&self, way: Way) -> bool {
        way == Way::Call || self.outage.as_ref().is_none_or(|outage| !outage.of_calls)
    }

    /// The store answered, whatever it said. Returns what is to be said about it.
    pub(super) fn answered(&mut self, now: Duration) -> Option<Notice> {
        self.writes.answered_since = true;
        let outage = self.outage.as_mut()?;
        (outage.of_watch, outage.of_calls) = (false, false);
        self.end(now)
    }

    /// Ends the outage if nothing fails any more.
    fn end(&mut self, now: Duration) -> Option<Notice> {
        let lasts = |outage: &Outage| outage.of_watch || outage.of_calls || outage.of_writes.is_some();
        if self.outage.as_ref().is_some_and(lasts) {
            return None;
        }
        let outage = self.outage.take()?;
        outage.said.then_some(Notice::StoreBack { after: now.saturating_sub(outage.since) })
    }

    /// Whether the last call or watch failed, or the last write.
    pub(super) fn is_out(&self) -> bool {
        self.outage.is_some()
    }

    /// Whether the last call or watch failed. A store that only takes no write is not silent.
    pub(super) fn is_silent(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.of_watch || outage.of_calls)
    }

    /// Whether the store answers, but takes no write.
    pub(super) fn is_read_only(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.of_writes.is_some())
    }

    /// When there will be something to say, if the outage lasts.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        self.outage.as_ref()?;
        self.complaint.again_at()
    }

    /// Returns what is to be said if the outage goes on and it is time to say so again.
    pub(super) fn tick(&mut self, now: Duration) -> Option<Notice> {
        let outage = self.outage.as_mut()?;
        // The reason may differ from one attempt to the next, and is no news by itself.
        let is_news = self.complaint.is_news(now, "");
        debug_assert!(self.complaint.again_at().is_some_and(|at| at > now), "it would speak again at once");
        if !is_news {
            return None;
        }
        let reason = outage.of_writes.as_ref().unwrap_or(&outage.reason).clone();
        if !outage.said {
            outage.said = true;
            return Some(Notice::StoreLost { reason });
        }
        Some(Notice::StoreStillLost { reason, since: now.saturating_sub(outage.since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_at_loss_one_a_minute_one_at_return() {
        let at = Duration::from_secs;
        let mut health = Health::default();
        assert_eq!(health.answered(at(1)), None);
        assert_eq!(
            health.failed(at(10), Way::Call, "a".into()),
            Some(Notice::StoreLost { reason: "a".into() })
        );
        assert_eq!(health.failed(at(12), Way::Watch, "b".into()), None);
        assert!(!health.is_proof(Way::Watch) && health.is_proof(Way::Call));
        assert_eq!(health.wake_at(), Some(at(70)));
        assert_eq!(health.tick(at(69)), None);
        let still = Notice::StoreStillLost { reason: "b".into(), since: at(60) };
        assert_eq!(health.tick(at(70)), Some(still));
        assert_eq!(health.answered(at(75)), Some(Notice::StoreBack { after: at(65) }));
        // A second loss within the minute is said only if it lasts.
        assert_eq!(health.failed(at(80), Way::Watch, "c".into()), None);
        assert_eq!(health.answered(at(81)), None);
        assert_eq!(health.failed(at(82), Way::Watch, "d".into()), None);
        assert!(health.is_proof(Way::Watch), "only the watch has failed");
        assert_eq!(health.tick(at(130)), Some(Notice::StoreLost { reason: "d".into() }));
    }
    #[test]
    fn only_a_write_ends_an_outage_of_writes() {
        let at = Duration::from_secs;
        let mut health = Health::default();
        assert_eq!(health.write_failed(true), Way::Write, "refused");
        let Some(Notice::StoreLost { reason }) = health.failed(at(10), Way::Write, "no".into()) else {
            panic!("nothing is said")
        };
        assert_eq!(reason, "it answers, but takes no write: no");
        assert_eq!(health.failed(at(11), Way::Call, "silent".into()), None);
        assert_eq!(health.answered(at(12)), None);
        assert!(health.is_out() && health.is_read_only() && !health.is_silent());
        let Some(Notice::StoreStillLost { reason, .. }) = health.tick(at(70)) else { panic!("silent") };
        assert!(reason.ends_with("no write: no"), "{reason}");
        assert_eq!(health.written(at(71)), Some(Notice::StoreBack { after: at(61) }));
        assert!(!health.is_out());

        // What fails without an answer is the store, until it answers all but writes.
        assert_eq!(health.write_failed(false), Way::Call);
        assert_eq!(health.write_failed(false), Way::Call);
        health.answered(at(80));
        assert_eq!(health.write_failed(false), Way::Write);
        health.written(at(81));
        assert_eq!(health.write_failed(false), Way::Call);
    }
}
