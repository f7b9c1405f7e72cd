//! How often HTTP/2 pings are sent, and how a server that takes them for abuse is known.
//!
//! etcd allows a ping every five seconds. Its grpc-proxy, like any program that leaves grpc-go's defaults alone, wants
//! five minutes between them, and closes the connection after the third one that comes earlier
//! (`findings/grpc_proxy_pings.sh`). It says why in a GOAWAY
//! frame, but that does not reach us: the frame lets our stream live on, and so h2 ends the stream with a broken pipe.
//! So the connection is known by its rhythm: the server has answered some pings, and then the connection was closed
//! right after one, with more bytes than an answer has. A restart of etcd looks like that in one case of ten or so, which does no harm,
//! since TCP keep-alives and progress requests notice a dead server too.

use crate::etcd::endpoints::DEFAULT_PATIENCE;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// An HTTP/2 ping is sent after this much silence on the connection.
const OFTEN: Duration = Duration::from_secs(10);
/// The same at a server that takes so many pings for abuse (grpc-go: `keepalive.EnforcementPolicy`, five minutes).
const RARELY: Duration = Duration::from_secs(310);
/// The connection is dead if no answer to a ping comes within this time.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
const _: () = assert!(OFTEN.as_secs() + ANSWER.as_secs() < DEFAULT_PATIENCE);
/// What a server does within this time after a ping counts as its reaction.
const REACTION: Duration = Duration::from_secs(1);
/// grpc-go puts up with two pings that come too early, and the first one is never too early.
const PATIENT: u32 = 3;

/// Whether the servers of this store put up with our pings.
#[derive(Debug, Clone, Default)]
pub(super) struct Pings {
    unwelcome: Arc<AtomicBool>,
}

impl Pings {
    /// The silence after which the next connection sends a ping.
    pub(super) fn after(&self) -> Duration {
        if self.unwelcome.load(Ordering::Relaxed) { RARELY } else { OFTEN }
    }

    fn complain(&self) {
        if !self.unwelcome.swap(true, Ordering::Relaxed) {
            let seconds = RARELY.as_secs();
            tracing::info!("etcd (perhaps a proxy) wants fewer pings: one in {seconds} s from now on");
        }
    }
}

/// The rhythm of one connection.
#[derive(Debug)]
pub(super) struct Rhythm {
    pings: Pings,
    after: Duration,
    /// When the server was heard last.
    heard: Instant,
    /// How many times the server was heard right after a ping.
    reactions: u32,
    /// How many bytes the server has sent since the last ping, and the fewest after any ping: those of an answer alone.
    bytes: usize,
    fewest: usize,
}

impl Rhythm {
    /// The rhythm of a connection that begins now.
    pub(super) fn new(pings: &Pings, now: Instant) -> Self {
        Self {
            pings: pings.clone(),
            after: pings.after(),
            heard: now,
            reactions: 0,
            bytes: 0,
            fewest: usize::MAX,
        }
    }

    /// Notes that the server has sent so many bytes.
    pub(super) fn heard(&mut self, now: Instant, bytes: usize) {
        let silence = now - self.heard;
        self.heard = now;
        if self.is_reaction(silence) {
            self.reactions += 1;
            self.bytes = 0;
            self.fewest = self.fewest.min(bytes);
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notes that the server has closed the connection.
    pub(super) fn closed(&mut self, now: Instant) {
        let silence = now - self.heard;
        let just_now = u32::from(self.is_reaction(silence));
        let is_prompt = just_now == 1 || silence <= REACTION;
        if is_prompt && self.reactions + just_now >= PATIENT {
            self.pings.complain();
        }
    }

    /// Notes that we give the connection up, as h2 does when it has read a GOAWAY.
    pub(super) fn dropped(&mut self, now: Instant) {
        if self.bytes > self.fewest {
            self.closed(now);
        }
    }

    fn is_reaction(&self, silence: Duration) -> bool {
        (self.after..=self.after + REACTION).contains(&silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pings after a connection that heard so many bytes at these times, in seconds, and then ended.
    fn after(heard: &[(f64, usize)], end: f64, end_of: fn(&mut Rhythm, Instant)) -> Duration {
        let (pings, start) = (Pings::default(), Instant::now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut rhythm = Rhythm::new(&pings, start);
        for (time, bytes) in heard {
            rhythm.heard(at(*time), *bytes);
        }
        end_of(&mut rhythm, at(end));
        pings.after()
    }

    #[test]
    fn a_server_that_closes_upon_a_ping_gets_fewer() {
        let three = [(0.1, 99), (10.2, 17), (20.3, 17), (30.4, 17)];
        // grpc-proxy, as it was recorded: three answers, then an answer with a GOAWAY.
        let goaway = [&three[..], &[(40.5, 17), (40.501, 31)]].concat();
        assert_eq!(after(&goaway, 40.502, Rhythm::dropped), RARELY);
        assert_eq!(after(&goaway, 40.502, Rhythm::closed), RARELY);
        // The same, with the GOAWAY lost.
        assert_eq!(after(&three, 40.5, Rhythm::closed), RARELY);
        // A progress request in between brings a window update, a little before the ping would have been due.
        let busy = [(0.1, 99), (1.0, 50), (11.1, 17), (21.2, 17), (30.0, 13), (40.1, 48)];
        assert_eq!(after(&busy, 40.1, Rhythm::dropped), RARELY);
    }

    #[test]
    fn a_connection_that_ends_otherwise_gets_as_many_as_before() {
        let four = [(0.1, 99), (10.2, 17), (20.3, 17), (30.4, 17), (40.5, 17)];
        for (heard, end, end_of) in [
            (&four[..1], 0.2, Rhythm::closed as fn(&mut Rhythm, Instant)),
            (&four[..2], 10.3, Rhythm::closed),
            (&four[..4], 36.0, Rhythm::closed),
            // We give it up, for a reason of our own.
            (&four[..5], 40.6, Rhythm::dropped),
            (&[(0.1, 99), (10.2, 17), (20.3, 17), (25.0, 80), (27.0, 17)], 27.1, Rhythm::closed),
        ] {
            assert_eq!(after(heard, end, end_of), OFTEN, "{heard:?}, {end}");
        }
    }
}
