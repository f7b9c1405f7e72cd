//! The control loop: notices of the lease, changes in the kernel's tables, signals and a slow timer meet here.

use super::leases::{self, Clock, Ending};
use super::notify::Notifier;
use super::orders::{self, Order, Orders};
use super::rules::HostRules;
use super::{DaemonError, Settings};
use crate::backend::{Backend, BackendError, Network};
use crate::iface;
use crate::lease::{Manager, Notice, Status};
use crate::netlink::{Monitor, Netlink};
use crate::subnet::{Config, EnvFile};
use crate::{etcd, netlink, status};
use ipnet::Ipv4Net;
use rand::TryRng;
use rand::rngs::SysRng;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

/// How often the kernel's tables are compared with ours although nothing was announced.
const RESYNC: Duration = Duration::from_secs(30);
/// Announcements come in bursts (a deleted device takes its addresses along): wait for the end of one.
const SETTLE: Duration = Duration::from_millis(50);
/// After a repair that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a port in use is tried again, and how often. Below the second that a stop may take.
const PORT_PATIENCE: Duration = Duration::from_millis(900);
const PORT_RETRY: Duration = Duration::from_millis(50);
/// A failure that stays the same is said again after this long.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// One network, started as far as nothing outside is needed: interface, store.
pub(super) struct Control {
    settings: Settings,
    name: String,
    notifier: Notifier,
    netlink: Netlink,
    monitor: Monitor,
    external: iface::External,
    store: etcd::Store,
    seed: u64,
}

/// Why the loop ended.
enum End {
    Signal(&'static str),
    LeaseLost,
}

impl Control {
    /// Chooses the interface and checks the store's settings. In the mode of several networks each has a name,
    /// and systemd hears nothing of it.
    ///
    /// # Errors
    /// [`DaemonError`]: nothing that waiting could mend.
    pub(super) async fn start(settings: Settings, name: &str) -> Result<Control, DaemonError> {
        let netlink = Netlink::new()?;
        // From before the first look, so that no change is missed.
        let monitor = Monitor::new()?;
        let external = iface::choose(&netlink, &settings.iface).await?;
        let store = etcd::connect(&settings.etcd)?;
        let seed =
            SysRng.try_next_u64().map_err(|error| DaemonError::System("draw a random seed", error.into()))?;
        let notifier = if name.is_empty() { Notifier::OPEN } else { Notifier::CLOSED };
        Ok(Control { settings, name: name.to_owned(), notifier, netlink, monitor, external, store, seed })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub(super) async fn run(self, orders: &mut Orders) -> Result<(), DaemonError> {
        let Control { settings, name, notifier, netlink, monitor, external, store, seed } = self;
        notifier.status("waiting for the network config in etcd");
        let config = tokio::select! {
            config = leases::fetch_config(&store, seed) => config,
            name = orders.wait(&name, notifier) => {
                info!("{name}: stopping; there was no network config yet");
                return Ok(());
            }
        };
        info!("Found network config - Backend type: {}", config.backend.kind);
        let backend = tokio::select! {
            backend = Backend::from_config(&config, &external, &settings.engine, &netlink) => backend?,
            name = orders.wait(&name, notifier) => {
                info!("{name}: stopping; the backend was not ready yet");
                return Ok(());
            }
        };
        let rules = HostRules::start(&settings, &config)?;
        notifier.status("waiting for a subnet lease");
        let previous = previous_subnet(&settings, &config);
        let manager = Manager::new(config.clone(), backend.attrs().clone(), previous, settings.lease, seed);
        let (notices, inbox) = mpsc::unbounded_channel();
        let (status, held) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let clock = Rc::new(Clock::new());
        let stop_asked = async {
            let _ = stopped.await;
        };
        let lease = leases::run(&store, manager, &clock, notices, status, stop_asked);
        let running = Running {
            settings,
            name,
            notifier,
            lease: held,
            clock: Rc::clone(&clock),
            config,
            backend,
            rules,
            netlink,
            monitor,
            network: None,
            announced: false,
            check_at: Instant::now() + RESYNC,
            failing: None,
        };
        // Dropping `stop` at the end of the loop ends the lease's task; the lease itself stays.
        running.run(orders, inbox, lease, stop).await
    }
}

/// The subnet of an earlier run, if its `subnet.env` is still there and of this network.
fn previous_subnet(settings: &Settings, config: &Config) -> Option<Ipv4Net> {
    match EnvFile::read(&settings.subnet_file) {
        Ok(Some(file)) if file.network == config.network => Some(file.subnet),
        Ok(_) => None,
        Err(error) => {
            warn!("{error}; doing without");
            None
        }
    }
}

/// The daemon at work.
struct Running {
    settings: Settings,
    name: String,
    notifier: Notifier,
    /// The lease as of the machine's last step, on `clock`.
    lease: watch::Receiver<Option<Status>>,
    clock: Rc<Clock>,
    config: Config,
    backend: Backend,
    rules: HostRules,
    netlink: Netlink,
    monitor: Monitor,
    network: Option<(Ipv4Net, Network)>,
    /// Whether systemd was told that we are ready.
    announced: bool,
    check_at: Instant,
    /// Why the last repair failed, and when that was said.
    failing: Option<(Instant, String)>,
}

impl Running {
    async fn run(
        mut self,
        orders: &mut Orders,
        mut inbox: mpsc::UnboundedReceiver<Notice>,
        lease: impl Future<Output = Ending>,
        _stop: oneshot::Sender<()>,
    ) -> Result<(), DaemonError> {
        let mut lease = std::pin::pin!(lease);
        let end = loop {
            tokio::select! {
                biased;
                order = orders.next() => match order {
                    Order::Stop(name) => break End::Signal(name),
                    Order::Report => self.report().await,
                    Order::Ask(ask) => ask.answer(vec![self.health().await]),
                    Order::Watchdog => self.watchdog(),
                },
                Some(notice) = inbox.recv() => self.notice(notice).await?,
                ending = &mut lease => match ending {
                    Ending::LeaseLost => break End::LeaseLost,
                    Ending::Stopped => break End::Signal("stop"),
                },
                change = self.monitor.next() => self.changed(change)?,
                () = sleep_until(self.check_at) => self.maintain().await?,
                () = sleep_until(self.rules.check_at()) => self.rules.check(&self.netlink).await,
            }
        };
        self.notifier.stopping();
        self.report().await;
        self.rules.stop(&self.netlink).await;
        match end {
            End::Signal(name) => {
                info!("{name}: stopping; the lease stays");
                Ok(())
            }
            End::LeaseLost => Err(DaemonError::LeaseLost),
        }
    }

    async fn notice(&mut self, notice: Notice) -> Result<(), DaemonError> {
        match notice {
            Notice::Acquired { subnet, .. } => self.acquired(subnet).await?,
            Notice::Peers(events) => {
                if let Some((_, network)) = &mut self.network {
                    network.apply(&events);
                }
                self.hurry();
            }
            Notice::StoreLost { reason } => {
                self.notifier.status(&format!("forwarding without etcd: {reason}"));
            }
            Notice::StoreBack { .. } => self.tell_state(),
            _ => {}
        }
        Ok(())
    }

    /// A subnet is ours: make it work, then say so.
    async fn acquired(&mut self, subnet: Ipv4Net) -> Result<(), DaemonError> {
        if self.network.as_ref().is_some_and(|(current, _)| *current == subnet) {
            return Ok(());
        }
        // Of the subnet that was lost; its device must go before the next one is made.
        self.network = None;
        let network = self.register(subnet).await?;
        self.network = Some((subnet, network));
        self.rules.set(subnet, &self.netlink).await?;
        self.hurry();
        let file = EnvFile {
            network: self.config.network,
            subnet,
            mtu: self.backend.mtu(),
            ip_masq: self.settings.masq.masquerade,
        };
        file.write(&self.settings.subnet_file)?;
        info!("Wrote subnet file to {}", self.settings.subnet_file.display());
        self.tell_state();
        Ok(())
    }

    /// Registers the backend, with some patience for a port that another daemon is about to let go.
    async fn register(&self, subnet: Ipv4Net) -> Result<Network, BackendError> {
        let last = Instant::now() + PORT_PATIENCE;
        loop {
            match self.backend.register(&self.netlink, subnet).await {
                Err(error) if error.may_pass() && Instant::now() < last => sleep(PORT_RETRY).await,
                result => return result,
            }
        }
    }

    /// The tables are written as soon as no notice waits: after the last event of a burst, and after the first
    /// snapshot of peers, which comes right after the lease.
    fn hurry(&mut self) {
        if self.network.as_ref().is_some_and(|(_, network)| network.is_pending()) {
            self.check_at = Instant::now();
        }
    }

    fn tell_state(&mut self) {
        let Some((subnet, _)) = &self.network else { return };
        let text = format!("{} backend, subnet {subnet}", self.config.backend.kind);
        if self.announced {
            self.notifier.status(&text);
        } else {
            self.notifier.ready(&text);
            self.announced = true;
        }
    }

    fn changed(&mut self, change: Result<netlink::Change, netlink::Error>) -> Result<(), DaemonError> {
        let concerns = match change {
            Ok(change) => self.network.as_ref().is_some_and(|(_, network)| network.concerns(&change)),
            Err(error) => {
                warn!("{error}; subscribing again");
                self.monitor = Monitor::new()?;
                true
            }
        };
        if concerns {
            self.check_at = self.check_at.min(Instant::now() + SETTLE);
        }
        Ok(())
    }

    async fn maintain(&mut self) -> Result<(), DaemonError> {
        self.check_at = Instant::now() + RESYNC;
        let Some((_, network)) = &mut self.network else { return Ok(()) };
        match network.maintain(&self.netlink).await {
            Ok(()) => {
                self.failing = None;
                Ok(())
            }
            Err(error @ BackendError::Unstable(_)) => Err(error.into()),
            Err(error) => {
                let (now, text) = (Instant::now(), error.to_string());
                let said = self.failing.as_ref();
                if !said.is_some_and(|(at, last)| *last == text && now < *at + SAY_EVERY) {
                    error!("repair failed: {text}; trying again");
                    self.failing = Some((now, text));
                }
                self.check_at = now + RETRY;
                Ok(())
            }
        }
    }

    /// For monitors.
    async fn health(&mut self) -> status::Network {
        let lease = *self.lease.borrow();
        let report = match &self.network {
            Some((_, network)) => network.report(&self.netlink).await,
            None => String::new(),
        };
        let left = lease.and_then(|lease| lease.deadline).map(|at| at.saturating_sub(self.clock.now()));
        status::Network {
            alive: self.is_alive(),
            ready: self.network.is_some(),
            backend: self.config.backend.kind.clone(),
            leased: lease.is_some_and(|lease| lease.subnet.is_some()),
            lease_expiry: left.and_then(|left| SystemTime::now().checked_add(left)),
            etcd_up: lease.is_some_and(|lease| !lease.store_out),
            report,
            ..orders::waiting(&self.name)
        }
    }

    fn watchdog(&mut self) {
        if self.is_alive() {
            self.notifier.watchdog();
        }
    }

    /// No worker has ended by itself; one that has is replaced at once.
    fn is_alive(&mut self) -> bool {
        let alive = self.network.as_ref().is_none_or(|(_, network)| network.is_alive());
        if !alive {
            self.check_at = self.check_at.min(Instant::now() + SETTLE);
        }
        alive
    }

    /// Counters, to stderr: they are for the eyes of whoever sent the signal, not for the log's format.
    async fn report(&self) {
        if let Some((_, network)) = &self.network {
            let name = if self.name.is_empty() { String::new() } else { format!("network {}\n", self.name) };
            eprint!("{name}{}", network.report(&self.netlink).await);
        }
    }
}
