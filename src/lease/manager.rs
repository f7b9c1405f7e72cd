//! The machine: routes the inputs to its parts, carries out the steps that they return, and makes sure that one call
//! is under way at most.

mod new_config;
mod outage;
mod publish;
mod status;
mod steps;
mod without_store;

use super::cached::Fallback;
use super::delays::Delays;
use super::drift::Standing;
use super::feed::{self, Feed};
use super::health::{Health, Way};
use super::identity::Identity;
use super::own::Own;
use super::seek::Seek;
use super::watcher::Watcher;
use super::{Call, Input, Notice, Output, Reply, Settings};
use crate::log::Complaint;
use crate::store::{Change, Entry, Error, Listing};
#[cfg(test)]
use crate::subnet::LeaseAttrs;
use crate::subnet::{Config, Event, SubnetKey, Underlay};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::Duration;

pub use status::Status;

/// The life of this host's lease and its view of the peers. See the room's theory of operation.
#[derive(Debug)]
pub struct Manager {
    /// Who we are: what we publish, and which entries are ours.
    us: Identity,
    settings: Settings,
    seek: Seek,
    /// The subnet that we hold, or want back. `None` while seeking.
    own: Option<Own>,
    feed: Feed,
    watcher: Watcher,
    fallback: Fallback,
    config: Standing,
    health: Health,
    delays: Delays,
    in_flight: Option<InFlight>,
    /// No write is brought forward to a time before this: the last one failed.
    writes_from: Duration,
    /// The address that the store gives to peers, as the daemon knows it.
    told_address: Option<Ipv4Addr>,
    /// Another host writes our lease as its own, or asks whether we live.
    overwritten: Complaint<Duration>,
    asked: Complaint<Duration>,
    /// How often another host has written our lease as its own.
    overwrites: u64,
    /// Our subnet is somebody else's, and [`super::OnLost::Exit`] says that this is the end; or another living host is
    /// who we are.
    stopped: bool,
    /// What the input under way has led to so far.
    out: Vec<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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

impl Manager {
    /// A machine at its start: call [`Manager::handle`] with [`Input::Tick`] to set it going.
    ///
    /// `us` is what we publish, and by it what is ours. `previous` is the subnet of an earlier run. `seed` decides every
    /// random choice.
    pub fn new(
        config: Config,
        us: Identity,
        previous: Option<Ipv4Net>,
        settings: Settings,
        seed: u64,
    ) -> Self {
        Self {
            watcher: Watcher::new(config.network),
            config: Standing::new(config.clone()),
            seek: Seek::new(config, previous, settings.force_takeover),
            fallback: Fallback::none(),
            own: None,
            feed: Feed::new(),
            health: Health::default(),
            delays: Delays::new(seed),
            in_flight: None,
            writes_from: Duration::ZERO,
            told_address: None,
            stopped: false,
            us,
            overwritten: Complaint::default(),
            asked: Complaint::default(),
            overwrites: 0,
            settings,
            out: Vec::new(),
        }
    }

    /// The same machine, which takes no subnet that this underlay forbids.
    #[must_use]
    pub fn over(mut self, underlay: Underlay) -> Self {
        self.us.set_underlay(underlay);
        self
    }

    /// Takes an input at time `now` (on a monotonic clock that started at any instant) and says what to do.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Output> {
        if !self.stopped {
            match input {
                Input::Tick => {}
                Input::Reply(reply) => self.on_reply(now, reply),
                Input::WatchStarted => {
                    if self.feed.watch_started(now) {
                        self.answered(now, Way::Watch);
                    }
                }
                Input::WatchFailed(error) => self.on_watch_failed(now, &error),
                Input::Changes(changes) => self.on_changes(now, &changes),
                Input::Publish(attrs) => self.on_publish(now, attrs),
                Input::Underlay(underlay) => self.on_underlay(now, underlay),
                Input::Config(newer) => self.on_config(newer),
                Input::Admission => self.on_admission(now),
                Input::Probed { address, mac } => {
                    let steps = self.seek.probed(now, address, mac);
                    self.do_for_seek(now, now, steps);
                }
            }
            self.tell_address();
            self.advance(now);
            self.recover();
            self.rest(now);
            let notices = self.watcher.take_notices();
            self.say(notices);
        }
        self.check(now);
        std::mem::take(&mut self.out)
    }

    /// What holds after every input.
    fn check(&self, now: Duration) {
        let kind = self.in_flight.map(|call| call.kind);
        debug_assert!(
            self.feed.is_listing() == (kind == Some(Kind::List)),
            "the feed waits for another call"
        );
        let calls = self.out.iter().filter(|output| matches!(output, Output::Call(_))).count();
        debug_assert!(calls <= 1 && (calls == 0 || kind.is_some()), "{calls} calls, in flight: {kind:?}");
        debug_assert!(
            self.watcher.own() == self.own.as_ref().map(Own::key),
            "the peers are another subnet's"
        );
        if let Some(own) = &self.own {
            debug_assert!(
                own.is_creating() == (kind == Some(Kind::Create)),
                "{own:?} waits for another call"
            );
            debug_assert!(kind != Some(Kind::Delete), "only a search deletes keys");
            debug_assert!(!self.seek.is_writing(), "a search goes on beside {own:?}");
            debug_assert!(!self.stopped || !own.is_live(), "at its end with a subnet: {own:?}");
        } else {
            let writing = matches!(kind, Some(Kind::Create | Kind::Update | Kind::Delete));
            debug_assert!(
                !self.seek.is_writing() || writing,
                "the search waits for a call that nobody makes"
            );
        }
        if self.stopped {
            return;
        }
        let wake_at = self.wake_at();
        debug_assert!(wake_at.is_none_or(|at| at > now), "it wants to wake at {wake_at:?} and it is {now:?}");
        let sleeps = wake_at.is_none_or(|at| at == Duration::MAX);
        debug_assert!(kind.is_some() || !sleeps, "it sleeps for ever: {self:?}");
    }

    /// When to call [`Manager::handle`] with [`Input::Tick`] if nothing else happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        let call = if self.in_flight.is_some() { None } else { self.call_due() };
        let lost = self.own.as_ref().and_then(Own::ends_at);
        [call, self.feed.retry_at(), lost, self.fallback.at(), self.health.wake_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// All peers that are known at present.
    #[cfg(test)]
    pub(super) fn peers(&self) -> impl Iterator<Item = (Ipv4Net, &LeaseAttrs)> {
        self.watcher.peers()
    }

    /// The lease that we hold or want back, as the store last had it.
    #[cfg(test)]
    pub(super) fn lease(&self) -> Option<&Entry> {
        self.own.as_ref().map(Own::entry)
    }

    fn say(&mut self, notices: impl IntoIterator<Item = Notice>) {
        self.out.extend(notices.into_iter().map(Output::Notice));
    }

    fn peers_changed(&mut self, events: Vec<Event>) {
        if !events.is_empty() && !self.withholds_peers() {
            self.say([Notice::Peers(events)]);
        }
    }

    fn call(&mut self, now: Duration, call: Call) {
        debug_assert!(self.in_flight.is_none(), "{call:?} while {:?} is under way", self.in_flight);
        let kind = match call {
            Call::List => Kind::List,
            Call::Create { .. } => Kind::Create,
            Call::Update { .. } => Kind::Update,
            Call::Delete { .. } => Kind::Delete,
        };
        if kind == Kind::List {
            self.feed.list_sent(now, self.watcher.len());
        }
        self.in_flight = Some(InFlight { kind, sent: now });
        self.out.push(Output::Call(call));
    }

    /// Creates a key. `again`: it is one that we had.
    fn create(&mut self, now: Duration, key: SubnetKey, again: bool) {
        let (attrs, ttl) = (self.us.attrs().clone(), self.settings.ttl());
        self.call(now, Call::Create { key, attrs, ttl, again });
    }

    fn update(&mut self, now: Duration, held: Entry) {
        let (attrs, ttl) = (self.us.attrs().clone(), self.settings.ttl());
        self.call(now, Call::Update { held, attrs, ttl });
    }

    /// When the next call is due.
    fn call_due(&self) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        Some(match &self.own {
            None => self.seek.due(),
            Some(_) if self.is_unsure() => self.feed.list_due(self.watcher.len()),
            Some(own) => own.due().unwrap_or(Duration::MAX).min(self.feed.list_due(self.watcher.len())),
        })
    }

    /// Does what the time asks for.
    fn advance(&mut self, now: Duration) {
        let said = self.health.tick(now);
        self.say(said);
        self.begin_from_cache(now);
        let lost = self.own.as_mut().and_then(|own| own.tick(now));
        if lost.is_some() && !self.lapse() {
            self.do_for_own(now, lost);
        }
        if let Some(feed::Step::Watch { from, seen }) = self.feed.watch_due(now, self.held_revision()) {
            self.out.push(Output::Watch { from, seen });
        }
        if self.in_flight.is_some() || self.call_due().is_none_or(|due| due > now) {
            return;
        }
        let may_write = !self.is_unsure();
        match self.own.as_mut().filter(|_| may_write).and_then(|own| own.write_due(now)) {
            Some(write) => self.do_for_own(now, [write]),
            None => self.call(now, Call::List),
        }
    }

    fn on_reply(&mut self, now: Duration, reply: Reply) {
        let Some(call) = self.in_flight.take() else { return };
        let error = match &reply {
            Reply::Listed(result) => result.as_ref().err(),
            Reply::Created(result) | Reply::Updated(result) => result.as_ref().err(),
            Reply::Deleted(result) => result.as_ref().err(),
            Reply::Outgrown(_) => None,
        };
        match error {
            Some(error @ (Error::Unavailable(_) | Error::Denied(_) | Error::Invalid(_))) => {
                return self.call_failed(now, call.kind, error);
            }
            None | Some(Error::NotFound(_) | Error::Exists | Error::Conflict | Error::Compacted) => {
                let is_write = call.kind != Kind::List && !matches!(reply, Reply::Outgrown(_));
                if is_write {
                    self.written(now);
                }
                self.answered(now, Way::Call);
            }
        }
        let wrote = error.is_none() && matches!(call.kind, Kind::Create | Kind::Update);
        match reply {
            Reply::Listed(Ok(listing)) => self.on_listing(now, listing),
            Reply::Listed(Err(error)) => self.call_failed(now, call.kind, &error),
            Reply::Created(result) => self.on_created(now, call.sent, result.ok()),
            Reply::Outgrown(config) => self.on_outgrown(now, config),
            Reply::Updated(result) => self.on_updated(now, call.sent, result.ok()),
            Reply::Deleted(result) => self.on_deleted(now, result.is_ok()),
        }
        if let Some(own) = self.own.as_mut().filter(|_| wrote) {
            own.published();
        }
    }

    fn on_listing(&mut self, now: Duration, listing: Listing) {
        let feed::Merged { listing, reset } = self.feed.merge(listing);
        self.doubt_cached(now);
        if self.own.is_none() {
            self.list_spoke(now);
            self.check_written(&listing);
            let steps = self.seek.choose(now, listing, &self.us, &mut self.delays);
            if !self.seek.is_writing() {
                self.written(now);
            }
            return self.do_for_seek(now, now, steps);
        }
        let steps = self.feed.listed(now, listing.revision, reset, &mut self.delays);
        self.do_for_feed(now, steps, &listing);
        let overlapped = self.watcher.is_overlapped();
        if let Some(own) = &mut self.own {
            let steps = own.listed(now, &listing, &self.us, overlapped, &mut self.delays);
            self.do_for_own(now, steps);
        }
        self.list_spoke(now);
    }

    fn on_created(&mut self, now: Duration, sent: Duration, created: Option<Entry>) {
        let overlapped = self.watcher.is_overlapped();
        if let Some(own) = &mut self.own {
            let steps = own.created(now, sent, created, &self.us, overlapped, &mut self.delays);
            self.do_for_own(now, steps);
        } else {
            let step = self.seek.created(now, created, &mut self.delays);
            self.do_for_seek(now, sent, step);
        }
    }

    fn on_updated(&mut self, now: Duration, sent: Duration, updated: Option<Entry>) {
        if updated.is_some() {
            self.fallback.store_spoke();
        }
        if let Some(own) = &mut self.own {
            let step = own.updated(now, sent, updated, &mut self.delays);
            self.do_for_own(now, step);
        } else {
            let step = self.seek.updated(now, updated, &mut self.delays);
            self.do_for_seek(now, sent, step);
        }
    }

    fn on_deleted(&mut self, now: Duration, deleted: bool) {
        if self.own.is_none() {
            let steps = self.seek.deleted(now, deleted, &self.us, &mut self.delays);
            self.do_for_seek(now, now, steps);
        }
    }

    fn on_watch_failed(&mut self, now: Duration, error: &Error) {
        self.feed.watch_failed(now, error, &mut self.delays);
        if *error != Error::Compacted {
            self.failed(now, Way::Watch, error);
        }
    }

    fn on_changes(&mut self, now: Duration, changes: &[Change]) {
        if self.own.is_none() {
            // These are of the watch of the subnet that we had. The next watch begins anew.
            return;
        }
        self.feed.watch_works();
        self.answered(now, Way::Watch);
        let mut events = Vec::new();
        for change in changes {
            // An earlier change may have taken the subnet from us. Then the rest is of no use.
            let Some(own) = self.own.as_mut().filter(|_| !self.stopped) else { break };
            if !self.feed.is_news(change) {
                continue;
            }
            if !own.concerns(change) {
                events.extend(self.watcher.apply(&self.us, change));
                continue;
            }
            let steps = own.changed(now, change, &self.us, self.watcher.is_overlapped(), &mut self.delays);
            self.peers_changed(std::mem::take(&mut events));
            self.do_for_own(now, steps);
        }
        self.peers_changed(events);
    }
}
