//! One network from its start to the control loop: interface, store, config, backend.

use super::changes::Changes;
use super::detours;
use super::external::choose_again;
use super::kept::{self, Begin};
use super::notify::Notifier;
use super::orders::Orders;
use super::reload::take_over;
use super::rules::HostRules;
use super::running::{Parts, Running};
use super::{DaemonError, Settings};
use crate::backend::{self, Backend, Setup};
use crate::iface;
use crate::lease::Manager;
use crate::log::{phrases, quote};
use crate::membership::cache::Cache;
use crate::membership::{Clock, Exchange, NodeNames, Published, Source, StateDir};
use crate::netlink::Netlink;
use crate::subnet::{Config, EnvFile, LeaseAttrs};
use ipnet::Ipv4Net;
use rand::TryRng;
use rand::rngs::SysRng;
use std::pin::pin;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

/// One network whose interface and source of membership are known. Nobody outside this host was asked yet.
pub(super) struct Control {
    settings: Settings,
    name: String,
    notifier: Notifier,
    netlink: Netlink,
    changes: Changes,
    external: iface::External,
    source: Rc<Source>,
    state: Option<StateDir>,
    seed: u64,
}

impl Control {
    /// Chooses the interface and checks the settings of the source. In the mode of several networks each has a name,
    /// and systemd is told nothing of it.
    ///
    /// # Errors
    /// A [`DaemonError`] that no waiting would mend.
    pub(super) async fn start(settings: Settings, name: &str) -> Result<Control, DaemonError> {
        let state = settings.state_dir.as_deref().map(StateDir::open).transpose()?;
        let netlink = Netlink::new()?;
        // The subscription begins before the first look, so that no change is missed.
        let changes = Changes::new(netlink.port())?;
        // A mistake that no waiting would mend ends the start; the choice that counts follows the config.
        let external = iface::choose(&netlink, &settings.iface).await?;
        external.tell();
        let source = Rc::new(Source::etcd(&settings.etcd)?);
        info!("{}: etcd, keys below {}", phrases::MANAGER_CREATED, quote(&settings.etcd.prefix));
        let seed =
            SysRng.try_next_u64().map_err(|error| DaemonError::System("draw a random seed", error.into()))?;
        let notifier = if name.is_empty() { Notifier::OPEN } else { Notifier::CLOSED };
        Ok(Control {
            settings,
            name: name.to_owned(),
            notifier,
            netlink,
            changes,
            external,
            source,
            state,
            seed,
        })
    }

    /// Runs this network until an order stops it or it cannot go on.
    ///
    /// # Errors
    /// The [`DaemonError`] for which it cannot go on.
    pub(super) async fn run(self, orders: &mut Orders) -> Result<(), DaemonError> {
        let Control { mut settings, name, notifier, netlink, mut changes, external, source, state, seed } =
            self;
        notifier.status("waiting for the network config in etcd");
        let names = NodeNames::find(settings.node_id.as_ref(), state.as_ref());
        let us = names.identity(&LeaseAttrs::new(external.public_ip));
        let cache = state.map(|dir| Cache::new(dir, &name, &settings.etcd));
        let clock = Rc::new(Clock::new()); // What was kept ages from here on.
        let kept = cache.as_ref().and_then(|cache| kept::load(cache, &us));
        let mut asked = pin!(source.config(seed));
        let Begin { config, text, kept, former, doubted } = tokio::select! {
            begin = kept::begin(&mut asked, kept, cache.as_ref()) => begin,
            name = orders.wait(&name, notifier, |new| take_over(new, &mut settings, &source)) => {
                info!("{name}: stopping; there was no network config yet");
                return Ok(());
            }
        };
        info!("{}: {}", phrases::CONFIG_FOUND, config.backend.kind);
        let previous = take_place(&netlink, &settings, former, &config).await;
        let (external, backend) = tokio::select! {
            made = backend_over(&netlink, &mut changes, settings.clone(), &external, &config) => made?,
            name = orders.wait(&name, notifier, |new| take_over(new, &mut settings, &source)) => {
                info!("{name}: stopping; the backend was not ready yet");
                return Ok(());
            }
        };
        let rules = HostRules::start(&settings, &config, backend.guard())?;
        notifier.status("waiting for a subnet lease");
        let (detours, mut underlay) =
            detours::start(&netlink, &config, &external, &settings.etcd, previous).await?;
        let us = names.identity(backend.attrs());
        let manager = Manager::new(config.clone(), us, previous, settings.lease, seed)
            .over(underlay.borrow_and_update().clone());
        let manager = kept::fall_back(manager, kept, doubted, clock.now());
        let (keep, failures, endpoints) = kept::keep(cache.clone(), &config, text, &settings.etcd);
        let (notices, inbox) = mpsc::unbounded_channel();
        let (status, held) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let doubt = kept::doubt(asked, doubted.then(|| (config.clone(), cache)));
        let attrs = backend.attrs().clone();
        let (publish, published) = watch::channel(Published { attrs, link: external.index });
        let exchange = Exchange { publish: published, underlay, notices, status };
        let lease = async {
            tokio::select! {
                biased;
                ending = source.run(manager, &clock, exchange, async { drop(stopped.await) }, keep) => ending,
                ending = doubt => ending,
            }
        };
        let running = Running::new(Parts {
            settings,
            name,
            notifier,
            lease: held,
            cache_failures: failures,
            endpoints,
            publish,
            clock: Rc::clone(&clock),
            source: Rc::clone(&source),
            config,
            backend,
            rules,
            netlink,
            changes,
            external,
            detours,
        });
        // What holds the lease is polled by the loop and ends with it; the lease itself stays in the store.
        running.run(orders, inbox, lease, stop).await
    }
}

/// The backend, and the interface that it works over. The wait for the config may have been long, so the interface may be
/// another one by now.
async fn backend_over(
    netlink: &Netlink,
    changes: &mut Changes,
    settings: Settings,
    before: &iface::External,
    config: &Config,
) -> Result<(iface::External, Rc<dyn Backend>), DaemonError> {
    let external = choose_again(netlink, &settings.iface, changes, before).await;
    let engine = &settings.engine;
    let backend = backend::from_config(Setup { config, external: &external, engine, netlink }).await?;
    Ok((external, backend))
}

/// The subnet of an earlier run, if its `subnet.env` is still there and belongs to this network. What is left of another
/// network, which that file names or else the state directory (`former`), is removed.
async fn take_place(
    netlink: &Netlink,
    settings: &Settings,
    former: Option<Ipv4Net>,
    config: &Config,
) -> Option<Ipv4Net> {
    let file = EnvFile::read(&settings.subnet_file).unwrap_or_else(|error| {
        warn!("{error}; doing without");
        None
    });
    let former = file.map(|file| file.network).or(former);
    if let Some(former) = former.filter(|former| *former != config.network) {
        let (changes, error) = netlink.leave_network(former, config.network).await;
        if !changes.is_empty() {
            info!("the network is {} now and was {former}: {changes}", config.network);
        }
        if let Some(error) = error {
            warn!("cannot remove all that is left of the network {former}: {error}");
        }
    }
    file.filter(|file| file.network == config.network).map(|file| file.subnet)
}
