//! The control loop: notices of the lease, changes in the kernel's tables, signals and timers meet here.
//!
//! Nothing that takes long is awaited inside a branch: while a branch runs, no lease is renewed.

mod condition;

use super::changes::Changes;
use super::detours::Detours;
use super::external::{Seen, Watch};
use super::notify::Notifier;
use super::orders::{Order, Orders};
use super::publish::SubnetFile;
use super::reload::take_over;
use super::rules::{Due, HostRules};
use super::signals::STOP_LIMIT;
use super::{DaemonError, Settings};
use crate::backend::{Backend, BackendError, Look, Network, Progress, Trouble};
use crate::iface::External;
use crate::lease::{Notice, Status};
use crate::log::{Complaint, phrases};
use crate::membership::{Clock, Ending, Published, Source};
use crate::netlink::{Change, Netlink};
use crate::subnet::{Config, EnvFile};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

/// How often the kernel's tables are compared with ours when nothing was announced.
const RESYNC: Duration = Duration::from_secs(30);
/// How long we wait for the rest of a burst of announcements: a deleted device takes its addresses along.
const SETTLE: Duration = Duration::from_millis(50);
/// The wait after a repair that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long we try for a port that is in use.
const PORT_PATIENCE: Duration = Duration::from_millis(900);
/// The wait between two attempts for a port in use.
const PORT_RETRY: Duration = Duration::from_millis(50);
const _: () = assert!(SETTLE.as_millis() < RETRY.as_millis() && RETRY.as_millis() < RESYNC.as_millis());
const _: () = assert!(PORT_RETRY.as_millis() < PORT_PATIENCE.as_millis());
// A daemon that was asked to stop has let go of its port in this time.
const _: () = assert!(STOP_LIMIT.as_millis() < PORT_PATIENCE.as_millis());

/// What [`Running`] is made of.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) name: String,
    pub(super) notifier: Notifier,
    /// The lease after the machine's last step; its times are those of `clock`.
    pub(super) lease: watch::Receiver<Option<Status>>,
    /// How many writes to the state directory have failed.
    pub(super) cache_failures: Rc<Cell<u64>>,
    /// Where the store is reached, for those who keep what it says.
    pub(super) endpoints: watch::Sender<Vec<String>>,
    /// What the lease is to publish.
    pub(super) publish: watch::Sender<Published>,
    pub(super) clock: Rc<Clock>,
    /// Where the lease comes from; `SIGHUP` changes how it is reached.
    pub(super) source: Rc<Source>,
    pub(super) config: Config,
    pub(super) backend: Rc<dyn Backend>,
    pub(super) rules: HostRules,
    pub(super) netlink: Netlink,
    pub(super) changes: Changes,
    pub(super) external: External,
    pub(super) detours: Detours,
}

/// One network at work, and all that its control loop needs.
pub(super) struct Running {
    settings: Settings,
    name: String,
    notifier: Notifier,
    lease: watch::Receiver<Option<Status>>,
    cache_failures: Rc<Cell<u64>>,
    endpoints: watch::Sender<Vec<String>>,
    publish: watch::Sender<Published>,
    clock: Rc<Clock>,
    source: Rc<Source>,
    config: Config,
    backend: Rc<dyn Backend>,
    rules: HostRules,
    netlink: Rc<Netlink>,
    changes: Changes,
    external: Watch,
    detours: Detours,
    registering: Option<Registering>,
    network: Option<(Ipv4Net, Box<dyn Network>)>,
    file: SubnetFile,
    /// Whether systemd was told that we are ready.
    announced: bool,
    /// When all tables are looked at next.
    check_at: Instant,
    /// The network has something to write, or is in the middle of a look.
    busy: bool,
    /// Why the last repair failed.
    failing: Complaint<Instant>,
    /// What the last pass over the tables could not set.
    trouble: Option<Trouble>,
    /// Why the store cannot be reached; `None` if it can.
    store_lost: Option<String>,
}

/// A network that has come up, or the reason why it has not.
type Registered = Result<Box<dyn Network>, BackendError>;

/// A backend that is coming up for a subnet.
type Registering = LocalBoxFuture<'static, (Ipv4Net, Registered)>;

/// Why the loop ended.
enum End {
    Signal(&'static str),
    Failed(DaemonError),
    ConfigChanged,
}

impl Running {
    pub(super) fn new(parts: Parts) -> Running {
        let is_only_one = parts.name.is_empty();
        debug_assert_eq!(
            is_only_one,
            parts.notifier == Notifier::OPEN,
            "one of several tells systemd nothing"
        );
        Running {
            file: SubnetFile::new(parts.settings.subnet_file.clone()),
            settings: parts.settings,
            name: parts.name,
            notifier: parts.notifier,
            lease: parts.lease,
            cache_failures: parts.cache_failures,
            endpoints: parts.endpoints,
            publish: parts.publish,
            clock: parts.clock,
            source: parts.source,
            config: parts.config,
            backend: parts.backend,
            rules: parts.rules,
            netlink: Rc::new(parts.netlink),
            changes: parts.changes,
            external: Watch::new(parts.external),
            detours: parts.detours,
            registering: None,
            network: None,
            announced: false,
            check_at: Instant::now() + RESYNC,
            busy: false,
            failing: Complaint::default(),
            trouble: None,
            store_lost: None,
        }
    }

    /// Runs the loop to its end. `lease` holds the lease as long as it is polled: it ends when the loop
    /// does, once `stop` is dropped.
    pub(super) async fn run(
        mut self,
        orders: &mut Orders,
        mut inbox: mpsc::UnboundedReceiver<Notice>,
        lease: impl Future<Output = Ending>,
        stop: oneshot::Sender<()>,
    ) -> Result<(), DaemonError> {
        let mut lease = std::pin::pin!(lease);
        let end = loop {
            // Announcements come last, so that a flood of them does not hold up the timers.
            tokio::select! {
                biased;
                order = orders.next() => match order {
                    Order::Stop(name) => break End::Signal(name),
                    Order::Report => self.report().await,
                    Order::Reload(settings) => self.reload(&settings),
                    Order::Ask(ask) => ask.answer(vec![self.state().await]),
                    Order::Watchdog => self.watchdog(),
                },
                // Notices wait while a network is coming up, since they concern that network.
                Some(notice) = inbox.recv(), if self.registering.is_none() => self.notice(notice),
                ending = &mut lease => match ending {
                    Ending::LeaseLost => break End::Failed(DaemonError::LeaseLost),
                    Ending::Outgrown => break End::Failed(DaemonError::Outgrown),
                    Ending::Claimed(text) => break End::Failed(DaemonError::Claimed(text)),
                    Ending::Stopped => break End::Signal("stop"),
                    Ending::ConfigChanged => break End::ConfigChanged,
                },
                (subnet, network) = registered(&mut self.registering) => self.begin(subnet, network?).await,
                due = self.rules.due() => self.rules_due(due).await?,
                () = worker_ended(self.network.as_ref()) => self.maintain().await?,
                // A detour is there before the route that would swallow its address.
                () = sleep_until(self.detours.check_at()) => {
                    self.detours.look(&self.netlink).await;
                }
                () = self.detours.look_up() => {}
                // The tables follow the external interface, so that is looked at first.
                () = sleep_until(self.external.check_at()) => self.look_outside().await,
                () = sleep_until(self.file.retry_at()) => self.publish(),
                // A step of a few milliseconds; what else is due comes before the next one.
                () = sleep_until(next_step(self.busy, self.check_at)) => self.maintain().await?,
                change = self.changes.next() => self.changed(&change),
            }
        };
        // What is dropped at the end of this function stops the rest: the network its workers, and with them the TUN.
        // A changed config ends the network and not the process, and systemd kills a process that does not end when told.
        if !matches!(end, End::ConfigChanged) {
            self.notifier.stopping();
        }
        self.farewell().await;
        drop(stop);
        if self.settings.state_dir.is_some() && matches!(end, End::Signal(_)) {
            // The lease's last act is to keep what it has not kept yet; it does not wait long for the disk.
            let _ = lease.await;
        }
        self.rules.stop(&self.netlink).await;
        match end {
            End::Signal(name) => {
                info!("{name}: stopping; the lease stays");
                Ok(())
            }
            End::ConfigChanged => Err(DaemonError::ConfigChanged(Box::new(self.settings))),
            End::Failed(error) => Err(error),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Acquired { subnet, .. } => {
                self.acquired(subnet);
                self.tell_state();
            }
            Notice::Renewed { .. } | Notice::Lapsed { .. } => self.tell_state(),
            Notice::Peers(events) => {
                self.detours.apply(&events);
                if let Some((_, network)) = &mut self.network {
                    network.apply(&events);
                }
                self.hurry();
            }
            Notice::Readdressed { .. } => self.tell_state(),
            Notice::StoreLost { reason } | Notice::StoreStillLost { reason, .. } => {
                self.store_lost = Some(reason);
                self.tell_state();
            }
            Notice::StoreBack { .. } => {
                self.store_lost = None;
                self.tell_state();
            }
            // The log tells these, and packets flow on. Whether a conflict ends the daemon is told by the end of the
            // lease's future (`Ending::LeaseLost`).
            Notice::Reserved { .. }
            | Notice::Revoked { .. }
            | Notice::Lost { .. }
            | Notice::Forgotten { .. }
            | Notice::Conflict { .. }
            | Notice::Outgrown { .. }
            | Notice::Config(_)
            | Notice::Doubted { .. }
            | Notice::Claimed { .. }
            | Notice::TakenOver { .. }
            | Notice::Asked { .. }
            | Notice::Overwritten { .. }
            | Notice::Namesake { .. }
            | Notice::ChangedHands { .. }
            | Notice::OutOfSubnets(_)
            | Notice::Discarded { .. }
            | Notice::Refused { .. }
            | Notice::ManyRefused(_)
            | Notice::Withheld { .. }
            | Notice::StoreReset => {}
        }
    }

    /// Begins to make `subnet` work, which is ours now; [`Running::begin`] follows.
    fn acquired(&mut self, subnet: Ipv4Net) {
        if self.network.as_ref().is_some_and(|(current, _)| *current == subnet) {
            return;
        }
        debug_assert!(self.registering.is_none(), "notices wait while a network is coming up");
        self.detours.acquired(subnet.trunc());
        // The network of a lost subnet goes first: its device must be gone before the next one is made.
        self.network = None;
        let registering = register(Rc::clone(&self.backend), Rc::clone(&self.netlink), subnet);
        self.registering = Some(registering.boxed_local());
    }

    /// Takes over what may change while the network runs.
    fn reload(&mut self, new: &Settings) {
        take_over(new, &mut self.settings, &self.source);
        let endpoints = &self.settings.etcd.endpoints;
        self.detours.set_endpoints(endpoints);
        self.endpoints.send_if_modified(|known| {
            known != endpoints && {
                known.clone_from(endpoints);
                true
            }
        });
        if let Some((_, network)) = &mut self.network {
            network.set_peer_filter(self.settings.engine.peer_filter, &self.netlink);
        }
        self.hurry();
    }

    /// Takes over the network that makes `subnet` work, and tells containers of it.
    async fn begin(&mut self, subnet: Ipv4Net, mut network: Box<dyn Network>) {
        debug_assert!(self.registering.is_none(), "the network was taken from its slot");
        debug_assert!(self.network.is_none(), "a network goes before the next one is made");
        // The filter may have changed since the backend was made.
        network.set_peer_filter(self.settings.engine.peer_filter, &self.netlink);
        // The interface may have moved while the network was coming up over the old one.
        if let Err(error) = network.follow(self.external.external()) {
            warn!("{error}");
        }
        self.network = Some((subnet, network));
        info!("{}", phrases::BACKEND_RUNS);
        self.rules.set(subnet.trunc(), &self.netlink).await;
        self.hurry();
        self.file.want(EnvFile {
            network: self.config.network,
            subnet,
            mtu: self.backend.mtu(),
            ip_masq: self.settings.masq.masquerade,
        });
        self.publish();
    }

    async fn rules_due(&mut self, due: Due) -> Result<(), DaemonError> {
        match due {
            Due::Check => self.rules.check(&self.netlink).await,
            Due::Installed(result) => {
                self.rules.settle(result)?;
                self.publish();
            }
        }
        Ok(())
    }

    /// Writes `subnet.env`, unless it has to wait for the rules.
    fn publish(&mut self) {
        if !self.rules.withheld() {
            self.file.write();
        }
        self.tell_state();
    }

    /// Lets the network write now if it has something to write. Notices come before timers in the loop, so the writes
    /// follow the last event of a burst, and the first snapshot of peers, which comes right after the lease.
    fn hurry(&mut self) {
        self.busy = self.network.as_ref().is_some_and(|(_, network)| network.is_pending());
    }

    fn changed(&mut self, change: &Change) {
        self.external.changed(change);
        self.detours.changed(change);
        let Some((_, network)) = &self.network else { return };
        if network.concerns(change) {
            let pause = network.repair_pause().max(SETTLE);
            self.check_at = self.check_at.min(Instant::now() + pause);
        }
    }

    async fn look_outside(&mut self) {
        match self.external.look(&self.netlink, &self.settings.iface).await {
            Seen::Same => return,
            Seen::News => {}
            Seen::Follow(external) => match self.follow(&external) {
                Ok(()) => self.external.followed(external),
                Err(error) => self.external.refused(&external, &error.to_string()),
            },
        }
        self.tell_state();
    }

    /// Moves backend and lease to `external`; the subnet stays. The next pass over the tables is due at once.
    fn follow(&mut self, external: &External) -> Result<(), BackendError> {
        let backend = self.backend.follow(external)?;
        if let Some((_, network)) = &mut self.network {
            network.follow(external)?;
        }
        let (before, now) = (self.backend.mtu(), backend.mtu());
        if now < before {
            warn!(
                "{} is too narrow for packets of {before} bytes, which containers may send: {now} from now on; \
                 restart flanneld and make containers anew",
                external.name
            );
        }
        self.detours.moved(external);
        // The store is told even if the public IP is fixed: its connections came from the old address.
        let has_moved = external.address != self.external.external().address;
        self.publish.send_if_modified(|published| {
            published.link = external.index;
            published.attrs.public_ip = backend.attrs().public_ip;
            has_moved
        });
        self.backend = backend;
        self.check_at = Instant::now();
        Ok(())
    }

    async fn maintain(&mut self) -> Result<(), DaemonError> {
        let now = Instant::now();
        let Some((_, network)) = &mut self.network else {
            (self.busy, self.check_at) = (false, now + RESYNC);
            return Ok(());
        };
        let look = if now < self.check_at {
            Look::Changes
        } else if network.is_looking() {
            self.check_at = now + SETTLE;
            Look::Changes
        } else {
            self.check_at = now + RESYNC;
            Look::Everything
        };
        let result = network.maintain(&self.netlink, look).await;
        self.busy = matches!(result, Ok(Progress::More));
        debug_assert!(result.is_err() || self.busy == network.is_pending(), "it says what is left to write");
        match result {
            Ok(_) if self.busy => {}
            Ok(_) => {
                let before = std::mem::replace(&mut self.trouble, network.trouble());
                if self.failing.settle() || before != self.trouble {
                    self.tell_state();
                }
            }
            Err(error @ BackendError::Unstable(_)) => return Err(error.into()),
            Err(error) => {
                let text = error.to_string();
                if self.failing.is_news(Instant::now(), &text) {
                    error!("repair failed: {text}; trying again");
                    self.tell_state();
                }
                self.check_at = Instant::now() + RETRY;
            }
        }
        Ok(())
    }

    fn watchdog(&self) {
        if self.is_alive() {
            self.notifier.watchdog();
        }
    }
}

/// Registers the backend, with some patience for a port that another daemon is about to let go.
async fn register(backend: Rc<dyn Backend>, netlink: Rc<Netlink>, subnet: Ipv4Net) -> (Ipv4Net, Registered) {
    let last = Instant::now() + PORT_PATIENCE;
    loop {
        match backend.register(&netlink, subnet.trunc()).await {
            Err(error) if error.may_pass() && Instant::now() < last => sleep(PORT_RETRY).await,
            result => return (subnet, result),
        }
    }
}

/// Waits for the backend that is coming up and empties the slot; waits for ever if the slot is empty.
async fn registered(slot: &mut Option<Registering>) -> (Ipv4Net, Registered) {
    let Some(registering) = slot else { return pending().await };
    let result = registering.await;
    *slot = None;
    result
}

/// When [`Running::maintain`] is due.
fn next_step(busy: bool, check_at: Instant) -> Instant {
    if busy { Instant::now() } else { check_at }
}

/// Waits until a worker has ended by itself; the loop replaces it at once.
async fn worker_ended(network: Option<&(Ipv4Net, Box<dyn Network>)>) {
    match network {
        Some((_, network)) => poll_fn(|context| network.poll_ended(context)).await,
        None => pending().await,
    }
}
