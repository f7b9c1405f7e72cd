//! The machine: takes inputs, knows what is due when, and makes sure that one call is under way at most.

use super::feed::Feed;
use super::health::Health;
use super::hold::Own;
use super::watcher::Watcher;
use super::{Call, Counters, Input, Notice, Output, Reply, Settings};
use crate::log::Complaint;
use crate::store::{Backoff, jitter};
use crate::store::{Entry, Error, Revision, Skipped};
use crate::subnet::{Config, Event, LeaseAttrs, SubnetKey};
use ipnet::Ipv4Net;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

/// No attempt waits longer than this for the next, renewals and a full pool apart.
pub(super) const RETRY_LIMIT: Duration = Duration::from_secs(5);
/// The life of this host's lease and its view of the peers. See the room's theory of operation.
#[derive(Debug)]
pub struct Manager {
    pub(super) config: Config,
    pub(super) attrs: LeaseAttrs,
    pub(super) previous: Option<Ipv4Net>,
    pub(super) settings: Settings,
    pub(super) rng: StdRng,
    pub(super) phase: Phase,
    /// The subnet that we hold, or want back. `None` while seeking.
    pub(super) own: Option<Own>,
    pub(super) watcher: Watcher,
    /// For calls; the watch has its own.
    pub(super) backoff: Backoff,
    pub(super) seek_backoff: Backoff,
    /// Create calls that found the key there, since the last subnet.
    pub(super) races: u32,
    pub(super) out_of_subnets: Complaint<Duration>,
    pub(super) feed: Feed,
    pub(super) resync_at: Duration,
    /// Something failed since the last list was sent: the store that answers now may not hold what it held.
    pub(super) in_doubt: bool,
    in_flight: Option<InFlight>,
    pub(super) health: Health,
    pub(super) out: Vec<Output>,
}

/// What we are about.
#[derive(Debug)]
pub(super) enum Phase {
    /// Finding a subnet. The next list is due `at`; its answer is worked off in `cache`.
    Seek { at: Duration, cache: Option<Cache> },
    /// Holding one.
    Held { renew_at: Option<Duration> },
    /// It is gone or may be; getting the same one back. `at: None`: taken, wait until it is free.
    Regain { at: Option<Duration>, create: bool, conflict_said: bool },
    /// Conflict under `OnLost::Exit`.
    Stopped,
}

/// A list, while a subnet is being chosen.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) entries: Vec<Entry>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) revision: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    kind: Kind,
    sent: Duration,
}

/// What `Manager` shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The subnet that we hold at this instant.
    pub subnet: Option<Ipv4Net>,
    /// Until when, unless renewed.
    pub deadline: Option<Duration>,
    /// Known peers.
    pub peers: usize,
    /// Whether the last call or watch got no answer.
    pub store_out: bool,
    /// Counted since the start.
    pub counters: Counters,
}

impl Manager {
    /// A machine at its start: call [`Manager::handle`] with [`Input::Tick`] to set it going.
    ///
    /// `attrs` is what to publish; its `public_ip` is our identity. `previous` is the subnet of an
    /// earlier run. `seed` decides every random choice.
    pub fn new(
        config: Config,
        attrs: LeaseAttrs,
        previous: Option<Ipv4Net>,
        settings: Settings,
        seed: u64,
    ) -> Self {
        Self {
            watcher: Watcher::new(config.network, attrs.public_ip),
            config,
            attrs,
            previous,
            settings,
            rng: StdRng::seed_from_u64(seed),
            phase: Phase::Seek { at: Duration::ZERO, cache: None },
            own: None,
            backoff: Backoff::new(RETRY_LIMIT),
            seek_backoff: Backoff::new(Duration::from_secs(30)),
            races: 0,
            out_of_subnets: Complaint::default(),
            feed: Feed::new(),
            resync_at: Duration::MAX,
            in_doubt: false,
            in_flight: None,
            health: Health::default(),
            out: Vec::new(),
        }
    }

    /// Takes an input at time `now` (monotonic, since any fixed instant) and says what to do.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Output> {
        if !matches!(self.phase, Phase::Stopped) {
            match input {
                Input::Tick => {}
                Input::Reply(reply) => self.on_reply(now, reply),
                Input::WatchStarted => self.on_watch_started(now),
                Input::WatchFailed(error) => self.on_watch_failed(now, error),
                Input::Changes(changes) => self.on_changes(now, &changes),
            }
            self.advance(now);
            for notice in self.watcher.take_notices() {
                self.notice(notice);
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When to call [`Manager::handle`] with [`Input::Tick`] if nothing else happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        if matches!(self.phase, Phase::Stopped) {
            return None;
        }
        let call = if self.in_flight.is_some() { None } else { self.call_due() };
        let watch = self.feed.retry_at();
        let lost = self.own.as_ref().filter(|own| own.live).and_then(|own| own.deadline);
        [call, watch, lost, self.health.wake_at()].into_iter().flatten().min()
    }

    /// What to show.
    pub fn status(&self) -> Status {
        let own = self.own.as_ref().filter(|own| own.live);
        Status {
            subnet: own.map(|own| own.entry.key.ipv4),
            deadline: own.and_then(|own| own.deadline),
            peers: self.watcher.len(),
            store_out: self.health.is_out(),
            counters: self.watcher.counters(),
        }
    }

    /// The peers as now known.
    #[cfg(test)]
    pub(super) fn peers(&self) -> impl Iterator<Item = (Ipv4Net, &LeaseAttrs)> {
        self.watcher.peers()
    }

    /// The lease that we hold or want back, as the store last had it.
    #[cfg(test)]
    pub(super) fn lease(&self) -> Option<&Entry> {
        self.own.as_ref().map(|own| &own.entry)
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.out.push(Output::Notice(notice));
    }

    pub(super) fn peers_changed(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.notice(Notice::Peers(events));
        }
    }

    pub(super) fn kind_in_flight(&self) -> Option<Kind> {
        self.in_flight.map(|call| call.kind)
    }

    pub(super) fn call(&mut self, now: Duration, call: Call) {
        debug_assert!(self.in_flight.is_none(), "{call:?} while {:?} is under way", self.in_flight);
        let kind = match call {
            Call::List => Kind::List,
            Call::Create { .. } => Kind::Create,
            Call::Update { .. } => Kind::Update,
            Call::Delete { .. } => Kind::Delete,
        };
        if kind == Kind::List {
            self.in_doubt = false;
            self.feed.list_sent(now);
        }
        self.in_flight = Some(InFlight { kind, sent: now });
        self.out.push(Output::Call(call));
    }

    pub(super) fn create(&mut self, now: Duration, key: SubnetKey) {
        if let Some(own) = self.own.as_mut() {
            // What came during an earlier creation that got no answer may be of a store before a restore.
            own.forget_news();
        }
        let (attrs, ttl) = (self.attrs.clone(), self.settings.ttl());
        self.call(now, Call::Create { key, attrs, ttl });
    }

    pub(super) fn update(&mut self, now: Duration, held: Entry) {
        let (attrs, ttl) = (self.attrs.clone(), self.settings.ttl());
        self.call(now, Call::Update { held, attrs, ttl });
    }

    /// When the next call is due.
    fn call_due(&self) -> Option<Duration> {
        let own = match &self.phase {
            Phase::Stopped => return None,
            Phase::Seek { at, .. } => return Some(*at),
            Phase::Held { renew_at } => *renew_at,
            Phase::Regain { at, .. } => *at,
        };
        Some(own.unwrap_or(Duration::MAX).min(self.resync_at))
    }

    fn advance(&mut self, now: Duration) {
        if let Some(notice) = self.health.tick(now) {
            self.notice(notice);
        }
        self.check_deadline(now);
        if self.feed.retry_at().is_some_and(|at| at <= now) {
            self.resume_watch();
        }
        if self.in_flight.is_some() || self.call_due().is_none_or(|due| due > now) {
            return;
        }
        let own = self.own.as_ref().map(|own| own.entry.clone());
        match (&self.phase, own) {
            (Phase::Regain { create: true, at: Some(at), .. }, Some(own)) if *at <= now => {
                self.create(now, own.key);
            }
            (Phase::Held { renew_at: Some(at) }, Some(own)) if *at <= now => self.update(now, own),
            _ => self.call(now, Call::List),
        }
    }

    fn on_reply(&mut self, now: Duration, reply: Reply) {
        let Some(call) = self.in_flight.take() else { return };
        let error = match &reply {
            Reply::Listed(result) => result.as_ref().err(),
            Reply::Created(result) | Reply::Updated(result) => result.as_ref().err(),
            Reply::Deleted(result) => result.as_ref().err(),
        };
        match error {
            Some(e @ (Error::Unavailable(_) | Error::Denied(_) | Error::Invalid(_))) => {
                self.failed(now, e);
                self.retry(now, call.kind);
                return;
            }
            _ => self.answered(now),
        }
        match reply {
            Reply::Listed(Ok(listing)) => self.on_listing(now, listing),
            Reply::Listed(Err(_)) => self.retry(now, call.kind),
            Reply::Created(result) => self.on_created(now, call.sent, result.ok()),
            Reply::Updated(result) => self.on_updated(now, call.sent, result.ok()),
            Reply::Deleted(result) => self.on_deleted(now, result.is_ok()),
        }
    }

    /// No answer, or a refusal.
    pub(super) fn failed(&mut self, now: Duration, error: &Error) {
        self.in_doubt = true;
        let said = self.health.failed(now, error.to_string());
        self.out.extend(said.map(Output::Notice));
    }

    /// The store is there. What was waiting for it need not wait longer.
    pub(super) fn answered(&mut self, now: Duration) {
        self.backoff.reset();
        let was_out = self.health.is_out();
        let said = self.health.answered(now);
        self.out.extend(said.map(Output::Notice));
        if was_out {
            self.feed.hurry(now);
            let soon = self.soon(now);
            self.hurry(soon);
        }
        // It may have come back without what it knew (restored, wiped): look at everything.
        if self.in_doubt && !matches!(self.phase, Phase::Seek { .. }) {
            self.resync_at = self.resync_at.min(self.soon(now));
        }
    }

    /// Within a second, but not all hosts in step.
    pub(super) fn soon(&mut self, now: Duration) -> Duration {
        now + jitter(Duration::from_secs(1), &mut self.rng)
    }

    /// After a call without an answer: when to try again. Whether a write happened is open. A renewal can
    /// simply be repeated, since it fails if it has happened; everything else begins with a list.
    fn retry(&mut self, now: Duration, kind: Kind) {
        let delay = self.backoff.next(&mut self.rng);
        let renew_delay = self.renew_delay(now);
        if kind == Kind::List {
            self.resync_at = self.resync_at.max(now + delay);
        }
        match &mut self.phase {
            Phase::Stopped => {}
            Phase::Seek { at, cache } => {
                *at = now + delay;
                *cache = None;
            }
            Phase::Held { renew_at } => {
                if kind == Kind::Update && renew_at.is_some() {
                    *renew_at = Some(now + renew_delay);
                }
            }
            Phase::Regain { at, create, .. } => {
                *create = false;
                if at.is_some() || kind != Kind::List {
                    *at = Some(now + delay);
                }
            }
        }
    }
}
