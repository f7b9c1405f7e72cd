//! Several networks in one daemon, as flannel v0.5 to v0.7 had them (`-networks`, `-watch-networks`).
//!
//! The networks are the children of `<prefix>` that own a `config` key. Each has a prefix, a lease, a backend and
//! a subnet file (`<dir>/<name>.env`) of its own, and runs as a [`Control`] of its own on the one control thread.
//! The store is asked for the list again and again: a new config starts a network, a deleted one ends it. A network
//! that fails says why and is tried again; it never ends another. As in flannel, systemd is not told of readiness,
//! since there is no one moment at which "the" network is there.

use super::DaemonError;
use super::control::Control;
use super::kept;
use super::notify::Notifier;
use super::orders::{Order, Orders};
use super::reload::adopt;
use super::settings::{Networks, Settings};
use super::signals::{CLEANUP_LIMIT, STOP_LIMIT};
use crate::etcd::Replaceable;
use crate::iface;
use crate::log::Complaint;
use crate::membership::StateDir;
use crate::membership::cache::Cache;
use crate::netlink::Netlink;
use crate::report::State;
use crate::status::{Ask, PATIENCE};
use crate::store::Backoff;
use crate::store::Registry;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use rand::rngs::{StdRng, SysRng};
use rand::{SeedableRng, TryRng};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, error, info, info_span, warn};

/// How often the store is asked which networks there are.
const POLL: Duration = Duration::from_secs(2);
/// The longest back-off after a failure: first that of the list, second that of a network.
const LONGEST_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// A network that ran longer than this before it failed starts again with a short back-off.
const STEADY: Duration = Duration::from_secs(60);
/// How long a network may take to stop before it is cut off. It usually takes milliseconds.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
/// How long a network may take to stop with `--cleanup-on-exit`, which runs programs.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(9);
const _: () = assert!(STOP_PATIENCE.as_millis() < CLEANUP_PATIENCE.as_millis());
// The networks are cut off before the process is.
const _: () = assert!(STOP_PATIENCE.as_millis() < STOP_LIMIT.as_millis());
const _: () = assert!(CLEANUP_PATIENCE.as_millis() < CLEANUP_LIMIT.as_millis());
// A network that counts as steady has run longer than any back-off.
const _: () = assert!(LONGEST_PAUSE.1.as_millis() < STEADY.as_millis());
// In the end a store that fails is asked less often than one that answers.
const _: () = assert!(POLL.as_millis() <= LONGEST_PAUSE.0.as_millis());

/// Runs the networks until a signal comes.
pub(super) async fn run(
    settings: Settings,
    networks: Networks,
    mut orders: Orders,
) -> Result<(), DaemonError> {
    // A mistake that no waiting would mend ends the start, as with one network.
    let state = settings.state_dir.as_deref().map(StateDir::open).transpose()?;
    iface::choose(&Netlink::new()?, &settings.iface).await?;
    let store = Replaceable::new(&settings.etcd)?;
    // Networks that an earlier run has kept may begin without the store, if it does not tell which there are.
    let mut kept = state.as_ref().map(Cache::networks).unwrap_or_default();
    let patience = Instant::now() + kept::PATIENCE;
    let settings = Rc::new(RefCell::new(settings));
    let (tasks, missing) = (BTreeMap::new(), BTreeSet::new());
    let mut supervisor = Supervisor { settings, networks, state, tasks, missing };
    let mut listing = Listing::new(&store)?;
    let stopped_by = loop {
        tokio::select! {
            biased;
            order = orders.next() => match order {
                Order::Stop(name) => break name,
                Order::Report => supervisor.each(|| Order::Report),
                Order::Reload(new) => supervisor.reload(&new, &store),
                Order::Ask(ask) => supervisor.answer(ask),
                Order::Watchdog => supervisor.watchdog(),
            },
            names = listing.next() => {
                kept.clear();
                supervisor.follow(names).await;
            }
            () = sleep_until(patience), if !kept.is_empty() => supervisor.begin(std::mem::take(&mut kept)),
        }
    };
    info!("{stopped_by}: stopping; the leases stay");
    Notifier::OPEN.stopping();
    let (tasks, patience) = (std::mem::take(&mut supervisor.tasks), supervisor.patience());
    join_all(tasks.into_values().map(|task| task.stop(stopped_by, patience))).await;
    Ok(())
}

/// Asks the store for the names of the networks, at once and then for ever.
struct Listing<'a> {
    store: &'a Replaceable,
    rng: StdRng,
    backoff: Backoff,
    complaint: Complaint<Instant>,
    next: LocalBoxFuture<'a, Result<Vec<String>, crate::store::Error>>,
}

impl<'a> Listing<'a> {
    fn new(store: &'a Replaceable) -> Result<Self, DaemonError> {
        let backoff = Backoff::new(LONGEST_PAUSE.0);
        Ok(Self {
            store,
            rng: rng()?,
            backoff,
            complaint: Complaint::default(),
            next: store.networks().boxed_local(),
        })
    }

    /// Waits for the next list of names. Cancel-safe.
    async fn next(&mut self) -> BTreeSet<String> {
        loop {
            let result = (&mut self.next).await;
            let pause = if result.is_ok() { POLL } else { self.backoff.next(&mut self.rng) };
            let store = self.store;
            self.next = async move {
                sleep(pause).await;
                store.networks().await
            }
            .boxed_local();
            match result {
                Ok(names) => {
                    self.backoff.reset();
                    self.complaint.settle();
                    return names.into_iter().collect();
                }
                Err(error) if self.complaint.is_news(Instant::now(), "") => {
                    error!("Couldn't list the networks: {error}; trying again");
                }
                Err(_) => {}
            }
        }
    }
}

/// The networks that run, and which of the wanted ones are missing.
struct Supervisor {
    /// The settings of all networks, as the last SIGHUP left them.
    settings: Rc<RefCell<Settings>>,
    networks: Networks,
    state: Option<StateDir>,
    tasks: BTreeMap<String, Task>,
    /// The wanted names that the store did not have when this was last logged.
    missing: BTreeSet<String>,
}

/// One network's task, and the way to give it orders.
struct Task {
    orders: mpsc::UnboundedSender<Order>,
    handle: JoinHandle<()>,
}

impl Supervisor {
    /// Starts and stops networks until they are those of the store.
    async fn follow(&mut self, present: BTreeSet<String>) {
        let wanted = &self.networks.names;
        let missing: BTreeSet<String> = wanted.difference(&present).cloned().collect();
        if missing != self.missing {
            missing.difference(&self.missing).for_each(|name| warn!("network {name} has no config yet"));
            self.missing = missing;
        }
        let names = self.wanted(present);
        let before: Vec<String> = self.tasks.keys().cloned().collect();
        for name in &before {
            // A task that was not asked to stop ends only if it panicked.
            let ended = self.tasks.get(name).is_some_and(|task| task.handle.is_finished());
            if (ended || !names.contains(name))
                && let Some(task) = self.tasks.remove(name)
            {
                info!("network {name}: stopping");
                task.stop("its config is gone", self.patience()).await;
                if !names.contains(name) {
                    self.forget(name);
                }
            }
        }
        self.start_all(&names);
        debug_assert!(self.tasks.keys().eq(&names), "every network has one task");
        debug_assert!(self.missing.is_subset(&self.networks.names), "only a wanted network can be missing");
        if !before.iter().eq(&names) {
            let list: Vec<&str> = names.iter().map(String::as_str).collect();
            Notifier::OPEN.status(&format!("{} networks: {}", names.len(), list.join(", ")));
        }
    }

    /// Starts the wanted ones of these networks, which an earlier run has kept. The store has not told yet which
    /// networks there are.
    fn begin(&mut self, kept: BTreeSet<String>) {
        let names = self.wanted(kept);
        if !names.is_empty() {
            warn!("etcd does not list the networks yet: starting those of the state directory");
            self.start_all(&names);
        }
    }

    fn wanted(&self, names: BTreeSet<String>) -> BTreeSet<String> {
        let wanted = &self.networks.names;
        let names = names.into_iter().filter(|name| Networks::is_name(name));
        names.filter(|name| wanted.is_empty() || wanted.contains(name)).collect()
    }

    fn start_all(&mut self, names: &BTreeSet<String>) {
        for name in names {
            if !self.tasks.contains_key(name) {
                info!("network {name}: starting");
                self.tasks.insert(name.clone(), self.start(name));
            }
        }
    }

    /// Removes what is kept of a network that is no more.
    fn forget(&self, name: &str) {
        let Some(state) = &self.state else { return };
        if let Err(error) = Cache::new(state.clone(), name, &self.settings.borrow().etcd).remove() {
            warn!("{error}");
        }
    }

    fn patience(&self) -> Duration {
        if self.settings.borrow().masq.cleanup_on_exit { CLEANUP_PATIENCE } else { STOP_PATIENCE }
    }

    /// Hands new settings over to the networks and to those that start later.
    fn reload(&self, new: &Rc<Settings>, store: &Replaceable) {
        adopt(new, &mut self.settings.borrow_mut(), |etcd| store.replace(etcd));
        self.each(|| Order::Reload(Rc::clone(new)));
    }

    fn start(&self, name: &str) -> Task {
        let settings = Rc::clone(&self.settings);
        let place = self.networks.dir.join(format!("{name}.env"));
        let (orders, inbox) = mpsc::unbounded_channel();
        let span = info_span!("network", name);
        let network = keep_up(settings, name.to_owned(), place, Orders::Networks(inbox)).instrument(span);
        Task { orders, handle: tokio::task::spawn_local(network) }
    }

    /// Gives every network an order, except one that has just ended.
    fn each(&self, order: impl Fn() -> Order) {
        for task in self.tasks.values() {
            let _ = task.orders.send(order());
        }
    }

    /// Asks every network for its state. A network that ends without an answer is left out.
    fn health(&self) -> impl Future<Output = Vec<State>> + use<> {
        let answers: Vec<_> = self
            .tasks
            .values()
            .filter_map(|task| {
                let (ask, answer) = Ask::new();
                task.orders.send(Order::Ask(ask)).ok().map(|()| answer)
            })
            .collect();
        async { join_all(answers).await.into_iter().flatten().flatten().collect() }
    }

    fn answer(&self, ask: Ask) {
        let health = self.health();
        tokio::task::spawn_local(async {
            // Without an answer the status server says that the control loop is silent: see `status`.
            if let Ok(networks) = timeout(PATIENCE, health).await {
                ask.answer(networks);
            }
        });
    }

    fn watchdog(&self) {
        let health = self.health();
        tokio::task::spawn_local(async {
            if timeout(PATIENCE, health).await.is_ok_and(|networks| networks.iter().all(|one| one.alive)) {
                Notifier::OPEN.watchdog();
            }
        });
    }
}

impl Task {
    async fn stop(self, reason: &'static str, patience: Duration) {
        let Task { orders, mut handle } = self;
        let _ = orders.send(Order::Stop(reason));
        match timeout(patience, &mut handle).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!("a network's task ended: {error}"),
            Err(_) => handle.abort(),
        }
    }
}

/// Runs one network, again and again, until it is asked to stop.
async fn keep_up(shared: Rc<RefCell<Settings>>, name: String, subnet_file: PathBuf, mut orders: Orders) {
    let mut backoff = Backoff::new(LONGEST_PAUSE.1);
    loop {
        let started = Instant::now();
        // What SIGHUP has changed meanwhile is in them.
        let mut settings = shared.borrow().clone();
        settings.etcd.prefix = format!("{}/{name}", settings.etcd.prefix);
        settings.subnet_file.clone_from(&subnet_file);
        let result = match Control::start(settings, &name).await {
            Ok(control) => control.run(&mut orders).await,
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(()) => return,
            Err(error @ DaemonError::ConfigChanged(_)) => {
                warn!("{error}");
                continue;
            }
            Err(error) => error,
        };
        if started.elapsed() > STEADY {
            backoff.reset();
        }
        let pause = rng().map_or(LONGEST_PAUSE.1, |mut rng| backoff.next(&mut rng));
        error!("{error}; trying again");
        tokio::select! {
            _ = orders.wait(&name, Notifier::CLOSED, |_| {}) => return,
            () = sleep(pause) => {}
        }
    }
}

fn rng() -> Result<StdRng, DaemonError> {
    let seed = SysRng.try_next_u64();
    seed.map(StdRng::seed_from_u64).map_err(|error| DaemonError::System("draw a random seed", error.into()))
}
