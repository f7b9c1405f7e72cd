//! One machine on a rig: the test gives its inputs by hand and gets its outputs in lists.

pub(super) use crate::lease::{
    Call, Claim, ConfigNews, How, Identity, Input, Manager, Notice, OnLost, Output, Reply, Rival, Settings,
    Sign,
};
pub(super) use crate::store::{Change, Entry, Error, Listing, Revision, Seen, Skipped};
pub(super) use crate::subnet::{Config, Event, Generation, Lease, LeaseAttrs, SubnetKey};
pub(super) use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
pub(super) use std::time::Duration;

pub(super) const TTL: Duration = Duration::from_secs(100);
pub(super) const MARGIN: Duration = Duration::from_secs(40);
pub(super) const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const THEM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(super) fn net(third: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap()
}

pub(super) fn entry(third: u8, ip: Ipv4Addr, revision: Revision) -> Entry {
    let attrs = LeaseAttrs::new(ip);
    let value = attrs.encode(Generation::V3);
    Entry { key: SubnetKey::v4(net(third)), attrs, value, revision, lease: Some(1) }
}

pub(super) fn reservation(third: u8, ip: Ipv4Addr, revision: Revision) -> Entry {
    Entry { lease: None, ..entry(third, ip, revision) }
}

pub(super) fn list(revision: Revision, entries: &[Entry]) -> Input {
    Input::Reply(Reply::Listed(Ok(Listing { entries: entries.to_vec(), skipped: vec![], revision })))
}

pub(super) fn created(result: Result<Entry, Error>) -> Input {
    Input::Reply(Reply::Created(result))
}

pub(super) fn updated(result: Result<Entry, Error>) -> Input {
    Input::Reply(Reply::Updated(result))
}

pub(super) fn set(entry: Entry) -> Input {
    Input::Changes(vec![Change::Set(entry)])
}

pub(super) fn gone(third: u8, revision: Revision) -> Input {
    Input::Changes(vec![Change::Gone { key: SubnetKey::v4(net(third)), revision }])
}

pub(super) fn down() -> Error {
    Error::Unavailable("down".to_owned())
}

/// A machine and its clock. Every call must be answered before the next, as `Manager` promises.
pub(super) struct Rig {
    pub(super) m: Manager,
    pub(super) now: Duration,
    pub(super) notices: Vec<Notice>,
    pub(super) watches: Vec<Revision>,
    /// What the store has to show before the last watch of them runs.
    pub(super) seen: Option<Seen>,
    pub(super) probes: Vec<Ipv4Addr>,
}

impl Rig {
    /// A machine at its start. The pool is 10.5.1.0/24 to 10.5.3.0/24.
    pub(super) fn new(on_lost: OnLost, previous: Option<Ipv4Net>) -> Self {
        Self::with(Settings::new(TTL, Some(MARGIN), on_lost).unwrap(), previous)
    }

    /// The same machine with other settings.
    pub(super) fn with(settings: Settings, previous: Option<Ipv4Net>) -> Self {
        Self::of(LeaseAttrs::new(US), settings, previous)
    }

    /// The machine of the node that publishes `attrs`.
    pub(super) fn of(attrs: LeaseAttrs, settings: Settings, previous: Option<Ipv4Net>) -> Self {
        let config = Config::parse(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.3.0"}"#).unwrap();
        Self::run(Manager::new(config, Identity::new(attrs, None), previous, settings, 42))
    }

    /// A machine on its own, at its start.
    pub(super) fn run(m: Manager) -> Self {
        let now = Duration::from_secs(1000);
        Self { m, now, notices: vec![], watches: vec![], seen: None, probes: vec![] }
    }

    /// A machine that holds 10.5.1.0/24, written at revision 11, with one peer and a running watch.
    pub(super) fn holding(on_lost: OnLost) -> Self {
        let mut b = Self::new(on_lost, Some(net(1)));
        assert_eq!(b.give(Input::Tick), Some(Call::List));
        assert!(matches!(b.give(list(10, &[entry(3, THEM, 9)])), Some(Call::Create { .. })));
        assert_eq!(b.give(created(Ok(entry(1, US, 11)))), None);
        assert_eq!(b.watches, [10]);
        assert_eq!(b.give(Input::WatchStarted), None);
        b.notices.clear();
        b
    }

    pub(super) fn give(&mut self, input: Input) -> Option<Call> {
        let mut call = None;
        for output in self.m.handle(self.now, input) {
            match output {
                Output::Call(wanted) => assert_eq!(call.replace(wanted), None, "two calls"),
                Output::Watch { from, seen } => {
                    assert!(seen.as_ref().is_none_or(|seen| seen.to() == from));
                    self.watches.push(from);
                    self.seen = seen;
                }
                Output::Probe(address) => self.probes.push(address),
                Output::Notice(notice) => self.notices.push(notice),
            }
        }
        call
    }

    /// The watch fails and is there again within a second.
    pub(super) fn outage(&mut self) {
        assert_eq!(self.give(Input::WatchFailed(down())), None);
        let watches = self.watches.len();
        while self.watches.len() == watches {
            self.now = self.m.wake_at().unwrap();
            assert_eq!(self.give(Input::Tick), None);
        }
        assert_eq!(self.give(Input::WatchStarted), None);
    }

    /// Sleeps until the machine wants to wake, as often as it takes to get a call.
    pub(super) fn sleep(&mut self) -> Call {
        for _ in 0..1000 {
            self.now = self.m.wake_at().expect("sleeps for ever").max(self.now);
            if let Some(call) = self.give(Input::Tick) {
                return call;
            }
        }
        panic!("wakes for nothing: {:?}", self.m)
    }

    pub(super) fn said(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub(super) fn held(&self) -> Option<Ipv4Net> {
        self.m.status().subnet
    }
}

pub(super) fn created_key(call: Option<Call>) -> Ipv4Net {
    match call {
        Some(Call::Create { key, ttl, .. }) if ttl == TTL => key.ipv4,
        other => panic!("{other:?}"),
    }
}

pub(super) fn updated_entry(call: Option<Call>) -> Entry {
    match call {
        Some(Call::Update { held, attrs, ttl }) if ttl == TTL && attrs == LeaseAttrs::new(US) => held,
        other => panic!("{other:?}"),
    }
}
