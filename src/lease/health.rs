//! Whether the store answers, and when to say so: when it is lost, then once a minute, and when it is back.

use super::Notice;
use crate::log::Complaint;
use std::time::Duration;

/// Whether the store answers, as we see it.
#[derive(Debug, Default)]
pub(super) struct Health {
    outage: Option<Outage>,
    /// It is never settled, since a store that comes and goes must not fill the log.
    complaint: Complaint<Duration>,
}

#[derive(Debug)]
struct Outage {
    since: Duration,
    reason: String,
    said: bool,
    /// Whether a call has failed, and not only the watch.
    of_calls: bool,
}

/// Which of the two ways to the store has failed or brought something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Call,
    Watch,
}

impl Health {
    /// A call or the watch got no answer, or a refusal. Returns what is to be said about it.
    pub(super) fn failed(&mut self, now: Duration, way: Way, reason: String) -> Option<Notice> {
        let of_calls = way == Way::Call;
        match &mut self.outage {
            Some(outage) => {
                outage.reason = reason;
                outage.of_calls |= of_calls;
            }
            None => self.outage = Some(Outage { since: now, reason, said: false, of_calls }),
        }
        self.tick(now)
    }

    /// Whether something that came this way ends the outage, if there is one. A watch that was let in long ago still
    /// brings events when the store refuses every call, so it ends no outage of calls.
    pub(super) fn is_proof(&self, way: Way) -> bool {
        way == Way::Call || self.outage.as_ref().is_none_or(|outage| !outage.of_calls)
    }

    /// The store answered, whatever it said. Returns what is to be said about it.
    pub(super) fn answered(&mut self, now: Duration) -> Option<Notice> {
        let outage = self.outage.take()?;
        outage.said.then_some(Notice::StoreBack { after: now.saturating_sub(outage.since) })
    }

    /// Whether the last call got no answer.
    pub(super) fn is_out(&self) -> bool {
        self.outage.is_some()
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
        let reason = outage.reason.clone();
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
}
