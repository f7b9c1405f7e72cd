//! These tests run the driver in tokio's time over the simulation's store.

use super::*;
use crate::lease::tests::sim::store::Store;
use crate::lease::{How, Settings, Status};
use crate::membership::Published;
use crate::store::{Change, Entry, Listing, Revision};
use crate::subnet::{Event, Generation, Lease, LeaseAttrs, SubnetKey, Underlay};
use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// The simulation's store behind the real trait. The tests of `etcd/` cover what real etcd does.
#[derive(Default)]
struct Fake {
    store: RefCell<Store>,
    config: RefCell<Option<String>>,
    down: Cell<bool>,
    changed: Notify,
    start: Cell<Option<Instant>>,
    calls: Cell<u32>,
}

impl Fake {
    fn visit<T>(&self, visit: impl FnOnce(&mut Store, Duration) -> Result<T, Error>) -> Result<T, Error> {
        self.calls.set(self.calls.get() + 1);
        if self.down.get() {
            return Err(Error::Unavailable("connection refused".to_owned()));
        }
        let start = self.start.get().unwrap_or_else(Instant::now);
        self.start.set(Some(start));
        let mut store = self.store.borrow_mut();
        let now = start.elapsed();
        store.tick(now);
        let result = visit(&mut store, now);
        self.changed.notify_waiters();
        result
    }
}

struct FakeWatch(Rc<Fake>, Revision);

impl Watch for FakeWatch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.down.get() {
                return Err(Error::Unavailable("stream closed".to_owned()));
            }
            let changes = self.0.store.borrow().changes(self.1)?;
            if let Some(&(last, _)) = changes.last() {
                self.1 = last;
                return Ok(changes.into_iter().map(|(_, change)| change).collect());
            }
            changed.await;
        }
    }
}

impl Registry for Rc<Fake> {
    type Watch = FakeWatch;
    async fn config(&self) -> Result<String, Error> {
        self.visit(|_, _| self.config.borrow().clone().ok_or(Error::NotFound("/config".to_owned())))
    }
    fn generation(&self) -> Generation {
        Generation::V3
    }

    async fn networks(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
    async fn list(&self) -> Result<Listing, Error> {
        self.visit(|store, _| Ok(store.list()))
    }
    async fn create(&self, key: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        tokio::task::yield_now().await;
        self.visit(|store, now| store.create(now, key, attrs, ttl))
    }
    async fn update(&self, held: &Entry, attrs: &LeaseAttrs, ttl: Duration) -> Result<Entry, Error> {
        tokio::task::yield_now().await;
        self.visit(|store, now| store.update(now, held, attrs, ttl))
    }
    async fn delete(&self, held: &Entry) -> Result<(), Error> {
        self.visit(|store, _| store.delete(held))
    }
    async fn watch(&self, revision: Revision) -> Result<FakeWatch, Error> {
        self.visit(|_, _| Ok(()))?;
        Ok(FakeWatch(Rc::clone(self), revision))
    }
}

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.2.0"}"#;
const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn manager(on_lost: OnLost, ttl: Duration) -> Manager {
    let settings = Settings::new(ttl, None, on_lost).unwrap();
    Manager::new(
        Config::parse(CONFIG).unwrap(),
        crate::lease::Identity::new(LeaseAttrs::new(US), None),
        None,
        settings,
        1,
    )
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.unwrap() })
}

/// Runs `script` beside the driver, then stops it.
fn drive(
    fake: &Rc<Fake>,
    manager: Manager,
    script: impl AsyncFnOnce(&mut mpsc::UnboundedReceiver<Notice>, &watch::Receiver<Option<Status>>),
) -> Ending {
    let (notices, mut heard) = mpsc::unbounded_channel();
    let (status, seen) = watch::channel(None);
    let (stop, stopped) = oneshot::channel::<()>();
    let clock = Clock::new();
    block_on(async {
        let published = Published { attrs: LeaseAttrs::new(Ipv4Addr::UNSPECIFIED), link: 1 };
        let (_publisher, publish) = watch::channel(published);
        let (_seer, underlay) = watch::channel(Underlay::default());
        let exchange = Exchange { publish, underlay, notices, status };
        let driver = run(fake, manager, &clock, exchange, async { drop(stopped.await) }, None);
        let script = async {
            script(&mut heard, &seen).await;
            drop(stop);
        };
        tokio::join!(driver, script).0
    })
}

#[test]
fn a_lease_is_acquired_renewed_and_kept_at_the_stop() {
    let fake = Rc::new(Fake::default());
    let ending = drive(&fake, manager(OnLost::Exit, Duration::from_secs(1)), async |heard, seen| {
        let Some(Notice::Acquired { subnet, .. }) = heard.recv().await else { panic!() };
        for _ in 0..3 {
            assert!(matches!(heard.recv().await, Some(Notice::Renewed { .. })));
        }
        assert_eq!(seen.borrow().unwrap().subnet, Some(subnet));
    });
    assert_eq!(ending, Ending::Stopped);
    assert_eq!(fake.store.borrow().list().entries.len(), 1);
    assert!(fake.calls.get() < 20, "{} calls", fake.calls.get());
}

#[test]
fn peers_come_and_go() {
    let fake = Rc::new(Fake::default());
    drive(&fake, manager(OnLost::Exit, Duration::from_secs(60)), async |heard, _| {
        let Some(Notice::Acquired { subnet, .. }) = heard.recv().await else { panic!() };
        let other = if subnet.to_string() == "10.5.1.0/24" { "10.5.2.0-24" } else { "10.5.1.0-24" };
        let peer = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 2));
        let key: SubnetKey = other.parse().unwrap();
        let start = Instant::now();
        fake.visit(|store, _| Ok(store.put(key, &peer, None))).unwrap();
        let lease = Lease { subnet: key.ipv4, attrs: peer };
        assert_eq!(heard.recv().await, Some(Notice::Peers(vec![Event::Added(lease.clone())])));
        fake.visit(|store, _| {
            store.remove(key);
            Ok(())
        })
        .unwrap();
        assert_eq!(heard.recv().await, Some(Notice::Peers(vec![Event::Removed(lease)])));
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn an_outage_ends_nothing_and_the_lease_comes_back() {
    let fake = Rc::new(Fake::default());
    let ending = drive(&fake, manager(OnLost::Exit, Duration::from_secs(2)), async |heard, seen| {
        assert!(matches!(heard.recv().await, Some(Notice::Acquired { .. })));
        fake.down.set(true);
        fake.changed.notify_waiters();
        assert!(matches!(heard.recv().await, Some(Notice::StoreLost { .. })));
        assert!(matches!(heard.recv().await, Some(Notice::Lost { .. })), "after its two seconds");
        assert_eq!(seen.borrow().unwrap().subnet, None);
        fake.down.set(false);
        assert!(matches!(heard.recv().await, Some(Notice::StoreBack { .. })));
        loop {
            match heard.recv().await {
                Some(Notice::Acquired { how: How::Regained, .. }) => break,
                Some(Notice::Revoked { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(ending, Ending::Stopped);
}

#[test]
fn a_subnet_that_somebody_took_ends_the_run() {
    let fake = Rc::new(Fake::default());
    let ending = drive(&fake, manager(OnLost::Exit, Duration::from_secs(60)), async |heard, _| {
        let Some(Notice::Acquired { subnet, .. }) = heard.recv().await else { panic!() };
        let thief = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 66));
        fake.visit(|store, _| Ok(store.put(SubnetKey::v4(subnet), &thief, None))).unwrap();
        assert!(matches!(heard.recv().await, Some(Notice::Conflict { then: OnLost::Exit, .. })));
        assert_eq!(heard.recv().await, None);
    });
    assert_eq!(ending, Ending::LeaseLost);
}

#[test]
fn the_config_is_waited_for() {
    let fake = Rc::new(Fake::default());
    fake.down.set(true);
    let config = block_on(async {
        let script = async {
            let pause = || tokio::time::sleep(Duration::from_millis(150));
            pause().await;
            fake.down.set(false);
            pause().await;
            *fake.config.borrow_mut() = Some("{".to_owned());
            pause().await;
            *fake.config.borrow_mut() = Some(CONFIG.to_owned());
        };
        tokio::join!(fetch_config(&fake, 1), script).0.0
    });
    assert_eq!(config, Config::parse(CONFIG).unwrap());
    assert!((3..20).contains(&fake.calls.get()), "{} calls", fake.calls.get());
}
