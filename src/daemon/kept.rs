//! The start of a network when its store may be away: from what an earlier run has kept, if the store is silent.
//!
//! The store is asked first, and for [`PATIENCE`] nothing else happens. If it tells the config by then, only the lease
//! machine may still fall back on what was kept, and only if the config is the same. If it does not, the network begins
//! with what was kept, and the question goes on beside it: a config that turns out to be another one ends the network,
//! which is then started anew, so it never runs on a part of what was kept.

use crate::etcd;
use crate::lease::{Identity, Manager};
use crate::log::phrases;
use crate::membership::Ending;
use crate::membership::cache::{Cache, Contents, Keep, Moment};
use crate::subnet::Config;
use ipnet::Ipv4Net;
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

/// How long the store may take before a network begins without it.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);

/// What a network begins with.
pub(super) struct Begin {
    pub(super) config: Config,
    pub(super) text: String,
    /// What an earlier run has kept, if it may be used.
    pub(super) kept: Option<Contents>,
    /// The network of what an earlier run has kept, whether it may be used or not.
    pub(super) former: Option<Ipv4Net>,
    /// Whether the config is what an earlier run has kept too: the store has still to confirm it.
    pub(super) doubted: bool,
}

/// Reads what an earlier run has kept. If it may not be used, the log says why.
pub(super) fn load(cache: &Cache, us: &Identity) -> Option<Contents> {
    let result = cache.load(&Moment::now());
    let result = result.and_then(|kept| match kept {
        Some(kept) => kept.check_host(us).map(|()| Some(kept)),
        None => Ok(None),
    });
    match result {
        Ok(kept) => {
            if let Some(seconds) = kept.as_ref().and_then(|kept| kept.stepped) {
                warn!("the wall clock was set by {seconds} s since {} was written", cache.file());
            }
            kept
        }
        Err(refusal) => {
            warn!("not using {} of the state directory: {refusal}; waiting for etcd", cache.file());
            None
        }
    }
}

/// Waits for the config; for a short time if there is one that was kept. What `cache` has of another config goes.
pub(super) async fn begin(
    asked: impl Future<Output = (Config, String)>,
    kept: Option<Contents>,
    cache: Option<&Cache>,
) -> Begin {
    let Some(kept) = kept else {
        let (config, text) = asked.await;
        return Begin { config, text, kept: None, former: None, doubted: false };
    };
    let former = Some(kept.config.network);
    tokio::select! {
        biased;
        (config, text) = asked => {
            let is_same = kept.config == config;
            if !is_same {
                info!("what the state directory has is of an older network config: not used");
                forget(cache);
            }
            Begin { config, text, kept: Some(kept).filter(|_| is_same), former, doubted: false }
        }
        () = sleep(PATIENCE) => {
            warn!(
                "{}: no answer yet. Starting from the state directory: {} with {} peers, as of {:.0?} ago",
                phrases::CONFIG_UNAVAILABLE,
                kept.entry.key.ipv4,
                kept.peers.len(),
                kept.age,
            );
            let (config, text) = (kept.config.clone(), kept.text.clone());
            Begin { config, text, kept: Some(kept), former, doubted: true }
        }
    }
}

/// The machine, which may fall back on what was kept: at once if the store has not told the config either. `now` is the
/// time of a clock that began to count when what was kept was read.
pub(super) fn fall_back(manager: Manager, kept: Option<Contents>, doubted: bool, now: Duration) -> Manager {
    let Some(kept) = kept else { return manager };
    let patience = if doubted { Duration::ZERO } else { PATIENCE };
    manager.with_cached(kept.at(Duration::ZERO), now + patience)
}

/// What is to be kept of a network with that config and its text, if there is a place for it; with it the count of the
/// writes that fail, and the way to say that etcd is reached at other endpoints.
pub(super) fn keep(
    cache: Option<Cache>,
    config: &Config,
    text: String,
    etcd: &etcd::Settings,
) -> (Option<Keep>, Rc<Cell<u64>>, watch::Sender<Vec<String>>) {
    let (told, endpoints) = watch::channel(etcd.endpoints.clone());
    let failures = Rc::new(Cell::new(0));
    let (generation, count) = (config.generation, Rc::clone(&failures));
    let keep = cache.map(|cache| Keep { cache, endpoints, config: text, generation, failures: count });
    (keep, failures, told)
}

/// Waits until the store tells another config than the one that was kept; for ever without a doubt.
pub(super) async fn doubt(
    asked: impl Future<Output = (Config, String)>,
    kept: Option<(Config, Option<Cache>)>,
) -> Ending {
    let Some((config, cache)) = kept else { return pending().await };
    let (now, _) = asked.await;
    if now == config {
        info!("etcd has the network config of the state directory");
        return pending().await;
    }
    forget(cache.as_ref());
    Ending::ConfigChanged
}

/// Removes what no start may use any more, since etcd has said otherwise.
fn forget(cache: Option<&Cache>) {
    if let Some(Err(error)) = cache.map(Cache::remove) {
        warn!("{error}");
    }
}
