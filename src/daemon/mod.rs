//! The composition root: it joins the rooms of the control path, whose backend `udp` runs the packet path; start,
//! signals, stop.
//!
//! The control thread (`fl-ctl`) runs everything here on one current-thread runtime; packets are carried by the
//! engine's own threads and never wait for it. The order of start is flannel's: interface → config → backend →
//! lease → rules → `subnet.env` → `READY=1`, but the file waits for the rules only if masquerading was asked for. What
//! takes long (rules, commands, a port in use) runs beside the control loop, which goes on renewing the lease,
//! following the peers and obeying signals. A stop keeps the lease, `subnet.env` and the rules, so that the next
//! start gets the same subnet and containers keep their way out; the TUN device goes with the process.

mod changes;
mod control;
mod detours;
mod external;
mod kept;
mod networks;
mod notify;
mod orders;
mod place;
mod publish;
mod reload;
mod rules;
mod running;
mod samples;
pub mod settings;
mod signals;
mod underlay;

pub use place::PlaceError;
pub use settings::{Networks, Reloaded, Reread, Settings, StatusAddress};

use control::Control;
use orders::Orders;
use signals::Signals;

use crate::backend::BackendError;
use crate::iface::ChoiceError;
use crate::log::phrases;
use crate::subnet::FileError;
use crate::{masq, netlink, status, store};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// How far off a timer is set that should not fire: a year.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why the daemon ended other than by a signal. [`DaemonError::exit_code`] says with which code the process ends.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system refused a signal handler, a thread, the runtime or a random seed.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    /// The kernel's tables could not be read or followed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The state directory cannot be used.
    #[error("{0}; mend that, or leave out --state-dir (without it there is no start while etcd is away)")]
    StateDir(#[from] FileError),
    /// No external interface could be chosen.
    #[error("{phrase}: {0}", phrase = phrases::NO_INTERFACE)]
    Interface(#[from] ChoiceError),
    /// The store's settings can never work.
    #[error("{phrase}: {0}", phrase = phrases::NO_SUBNET_MANAGER)]
    Store(#[from] store::Error),
    /// The backend does not work here.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Masquerade rules were asked for and could not be installed at start.
    #[error("Failed to set up masquerade rules: {0}")]
    Masquerade(#[from] masq::Error),
    /// The status server's address could not be bound.
    #[error("cannot serve health on {0}: {1}")]
    Status(StatusAddress, io::Error),
    /// The subnet file would be written where nobody can write or find it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Somebody else owns our subnet.
    #[error("{}. Shutting down daemon.", phrases::LEASE_REVOKED)]
    LeaseLost,
    /// Our lease is gone, and the network config has no place for the subnet.
    #[error("the network config has no place for the subnet any more; the next start takes another one")]
    Outgrown,
    /// The network config was changed while the store could not be reached, and the network ran with the old one. The
    /// settings are those that it ran with in the end, since SIGHUP may have changed some.
    #[error("the network config is not the one in the state directory any more; starting anew with it")]
    ConfigChanged(Box<Settings>),
    /// Another living host has our public IP or our node id. The text names both, and a remedy.
    #[error("{0}")]
    Claimed(String),
    /// The control thread panicked.
    #[error("the control thread panicked")]
    Panicked,
}

impl DaemonError {
    /// The code with which the process ends: 3 if another living host is who we are, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Claimed(_) => 3,
            _ => 1,
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT (then `Ok`), or until it cannot go on. After such a signal the process ends
/// within a second, or ten with `--cleanup-on-exit`. A stop that hangs ends the process in `signals`, and this function
/// then never returns.
///
/// On SIGHUP it takes over what `reread` says has changed.
///
/// # Errors
/// The [`DaemonError`] for which it cannot go on.
pub fn run(settings: Settings, reread: Reread) -> Result<(), DaemonError> {
    let signals = signals::catch(settings.masq.cleanup_on_exit)?;
    let thread = std::thread::Builder::new()
        .name("fl-ctl".to_owned())
        .spawn(move || control_thread(settings, signals, reread))
        .map_err(|error| DaemonError::System("start the control thread", error))?;
    thread.join().unwrap_or(Err(DaemonError::Panicked))
}

fn control_thread(settings: Settings, signals: Signals, reread: Reread) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| DaemonError::System("start the control thread's runtime", error))?;
    // Tasks that libraries spawn (connections) may run as long as the runtime: none of them holds what we own.
    let tasks = tokio::task::LocalSet::new();
    let result = tasks.block_on(&runtime, async {
        match &settings.networks {
            Some(networks) => place::check_directory(&networks.dir)?,
            None => place::check_file(&settings.subnet_file)?,
        }
        let asks = match &settings.status {
            Some(address) => Some(serve_status(address).await?),
            None => None,
        };
        let mut orders = Orders::of_process(signals, asks, reread);
        match settings.networks.clone() {
            Some(several) => networks::run(settings, several, orders).await,
            None => one_network(settings, &mut orders).await,
        }
    });
    drop(tasks);
    if result.is_ok() {
        tracing::info!("{}", phrases::EXITING);
    }
    // `drop` would wait for look-ups of names, and a silent name server takes many seconds.
    runtime.shutdown_background();
    result
}

/// Runs the one network of the usual mode, and starts it anew if its config is another one than it began with.
async fn one_network(mut settings: Settings, orders: &mut Orders) -> Result<(), DaemonError> {
    loop {
        match Control::start(settings.clone(), "").await?.run(orders).await {
            Err(error @ DaemonError::ConfigChanged(_)) => {
                tracing::warn!("{error}");
                if let DaemonError::ConfigChanged(newest) = error {
                    settings = *newest;
                }
            }
            result => return result,
        }
    }
}

/// Serves on the first address that the name means; as in Go, an IPv4 address comes before an IPv6 address.
async fn serve_status(address: &StatusAddress) -> Result<mpsc::Receiver<status::Ask>, DaemonError> {
    let failed = |error| DaemonError::Status(address.clone(), error);
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await.map_err(failed)?;
    let first = found.min_by_key(|one| !one.is_ipv4());
    let first = first.ok_or_else(|| failed(io::Error::other("the name has no address")))?;
    let (bound, asks) = status::serve(first).map_err(failed)?;
    tracing::info!("Serving /healthz, /readyz and /metrics on http://{bound}");
    Ok(asks)
}
