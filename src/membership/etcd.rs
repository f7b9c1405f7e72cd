//! Membership from etcd: one task on the control thread runs the lease machine over a store. It makes the machine's
//! calls, feeds it the watch and the time, and passes its notices on.
//!
//! A call, the watch and a timer wait side by side; the machine decides. An outage of the store ends nothing here.

use super::cache::Keeper;
use super::{Clock, Ending, Exchange, config, link, told};
use crate::lease::{Basis, Call, Input, Manager, Notice, OnLost, Output, Reply};
use crate::log::{Complaint, phrases};
use crate::store::{Backoff, Error, Registry, Revision, Seen, Watch};
use crate::subnet::Config;
use futures_util::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::Duration;
use tracing::error;

/// The longest back-off while the store is silent.
const SILENT_BACKOFF: Duration = Duration::from_secs(5);
/// The longest back-off while the store answers. flannel asks every second: the operator is about to put the config.
const ANSWERING_BACKOFF: Duration = Duration::from_secs(1);
const _: () = assert!(ANSWERING_BACKOFF.as_millis() < SILENT_BACKOFF.as_millis());
/// How long the end waits for the disk. A stop has a second for all it does.
pub(super) const LAST_WRITE: Duration = Duration::from_millis(200);
/// The longest sleep of the lease machine.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Waits for the network config: for the store, for the key, for a text that makes sense. It never gives up. It logs
/// why it waits at once, on every new reason and once a minute.
pub(super) async fn fetch_config<R: Registry>(registry: &R, seed: u64) -> (Config, String) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut silent = Backoff::new(SILENT_BACKOFF);
    let mut answering = Backoff::new(ANSWERING_BACKOFF);
    let mut complaint = Complaint::default();
    loop {
        let result = registry.config().await;
        let pause = match result {
            Err(Error::Unavailable(_)) => silent.next(&mut rng),
            _ => answering.next(&mut rng),
        };
        let (reason, kind) = match result {
            Ok(text) => match Config::parse_for(registry.generation(), &text) {
                Ok(config) => return (config, text),
                Err(e) => (e.to_string(), e.to_string()),
            },
            // The text of an outage may differ from one attempt to the next.
            Err(e @ Error::Unavailable(_)) => (e.to_string(), String::new()),
            Err(e) => (e.to_string(), e.to_string()),
        };
        if complaint.is_news(tokio::time::Instant::now(), &kind) {
            error!("{}: {reason}; trying again", phrases::CONFIG_UNAVAILABLE);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Something that brings an input, while it is under way.
type Slot<'a> = Option<LocalBoxFuture<'a, Input>>;

/// Runs `manager` until `stop` is ready or the lease is lost for good. `keeper` keeps what the store has said for the
/// next start.
pub(super) async fn run<R: Registry>(
    registry: &R,
    mut manager: Manager,
    clock: &Clock,
    exchange: Exchange,
    stop: impl Future<Output = ()>,
    mut keeper: Option<Keeper>,
) -> Ending {
    let Exchange { mut publish, mut underlay, notices, status } = exchange;
    let mut stop = pin!(stop);
    let (mut call, mut admission, mut probed): (Slot<'_>, Slot<'_>, Slot<'_>) = (None, None, None);
    let mut feed = Feed::<R>::Off;
    let mut config: LocalBoxFuture<'_, _> = Box::pin(config::changed(registry, None));
    let mut input = Input::Tick;
    loop {
        let now = clock.now();
        let outputs: VecDeque<Output> = manager.handle(now, input).into();
        status.send_replace(Some(manager.status()));
        await_admission(&mut admission, registry, manager.status().read_only);
        for output in outputs {
            match output {
                Output::Call(wanted) => {
                    debug_assert!(call.is_none(), "the machine makes one call at a time");
                    call = Some(Box::pin(make(registry, manager.network(), wanted)));
                }
                Output::Watch { from, seen } => feed = Feed::Starting(Box::pin(watch(registry, from, seen))),
                Output::Probe(address) => probed = Some(Box::pin(probe(publish.borrow().link, address))),
                Output::Notice(notice) => {
                    told::log(&notice, &told::Facts::of(&manager, now));
                    note(&mut keeper, &manager, &notice);
                    let ending = ending(&notice);
                    // If nobody listens any more, the daemon is about to stop us.
                    let _ = notices.send(notice);
                    if let Some(ending) = ending {
                        finish(&mut keeper, &manager, now).await;
                        return ending;
                    }
                }
            }
        }
        input = tokio::select! {
            biased;
            () = &mut stop => {
                finish(&mut keeper, &manager, clock.now()).await;
                return Ending::Stopped;
            }
            Ok(()) = publish.changed() => {
                // A connection from an address that the host has lost is silent, and a call on it takes seconds to fail.
                registry.reconnect();
                (call, feed) = (None, Feed::Off);
                config = Box::pin(config::changed(registry, None));
                Input::Publish(publish.borrow_and_update().attrs.clone())
            }
            Ok(()) = underlay.changed() => Input::Underlay(underlay.borrow_and_update().clone()),
            reply = running(&mut call) => reply,
            input = running(&mut admission) => input,
            input = feed.next() => input,
            (seen, newer) = &mut config => {
                config = Box::pin(config::changed(registry, Some(seen)));
                Input::Config(newer)
            }
            answer = running(&mut probed) => answer,
            () = due(&mut keeper) => {
                keeper.iter_mut().for_each(|keeper| keeper.save(&manager, clock.now()));
                Input::Tick
            }
            () = sleep(manager.wake_at().map(|at| at.saturating_sub(clock.now()))) => Input::Tick,
        };
    }
}

/// How the run ends with this notice, if it does.
fn ending(notice: &Notice) -> Option<Ending> {
    match notice {
        Notice::Conflict { then: OnLost::Exit, .. } => Some(Ending::LeaseLost),
        Notice::Outgrown { then: OnLost::Exit, .. } => Some(Ending::Outgrown),
        Notice::Claimed { rival, sign } => {
            Some(Ending::Claimed(format!("{rival}; {sign}. {}", rival.remedy())))
        }
        _ => None,
    }
}

/// Takes note of what is to be kept. What stands in the file already is not written again on its own word.
fn note(keeper: &mut Option<Keeper>, manager: &Manager, notice: &Notice) {
    if let Some(keeper) = keeper.as_mut().filter(|_| manager.status().basis == Basis::Store) {
        keeper.note(notice);
    }
}

/// Waits beside the rest for the store to let us write, as long as it does not.
fn await_admission<'a, R: Registry>(slot: &mut Slot<'a>, registry: &'a R, is_read_only: bool) {
    let wait = || -> LocalBoxFuture<'a, Input> {
        Box::pin(async {
            registry.admission().await;
            Input::Admission
        })
    };
    *slot = slot.take().filter(|_| is_read_only).or_else(|| is_read_only.then(wait));
}

/// Waits until something is to be kept; for ever if nothing is kept.
async fn due(keeper: &mut Option<Keeper>) {
    match keeper {
        Some(keeper) => keeper.due().await,
        None => std::future::pending().await,
    }
}

/// Keeps what is not kept yet, for as long as a stop may wait for a slow disk.
async fn finish(keeper: &mut Option<Keeper>, manager: &Manager, now: Duration) {
    if let Some(keeper) = keeper {
        let _ = tokio::time::timeout(LAST_WRITE, keeper.finish(manager, now)).await;
    }
}

/// Waits for what is in the slot and empties it; waits for ever if there is nothing.
async fn running(slot: &mut Slot<'_>) -> Input {
    let Some(call) = slot else { return std::future::pending().await };
    let input = call.await;
    *slot = None;
    input
}

/// Asks the link who has this address.
async fn probe(link: u32, address: Ipv4Addr) -> Input {
    Input::Probed { address, mac: link::who_has(link, address).await }
}

/// Waits for at most a minute, since the kernel's timers stand still in suspend and the machine's clock does not.
async fn sleep(wait: Option<Duration>) {
    tokio::time::sleep(wait.unwrap_or(Duration::MAX).min(LONGEST_SLEEP)).await;
}

/// Makes a call. `network` is the one that runs.
async fn make<R: Registry>(registry: &R, network: Ipv4Net, call: Call) -> Input {
    if let Call::Create { key, again: true, .. } = &call {
        match config::outgrown(registry, network, key.ipv4).await {
            Ok(None) => {}
            Ok(Some(newest)) => return Input::Reply(Reply::Outgrown(newest)),
            Err(error) => return Input::Reply(Reply::Created(Err(error))),
        }
    }
    Input::Reply(match call {
        Call::List => Reply::Listed(registry.list().await),
        Call::Create { key, attrs, ttl, .. } => Reply::Created(registry.create(key, &attrs, ttl).await),
        Call::Update { held, attrs, ttl } => Reply::Updated(registry.update(&held, &attrs, ttl).await),
        Call::Delete { held } => Reply::Deleted(registry.delete(&held).await),
    })
}

/// Starts a watch. With `seen`, the store has to show that it has made those changes.
async fn watch<R: Registry>(registry: &R, from: Revision, seen: Option<Seen>) -> Result<R::Watch, Error> {
    match seen {
        None => registry.watch(from).await,
        Some(seen) => registry.resume(&seen).await,
    }
}

/// The watch, from asking for it to its end.
enum Feed<'a, R: Registry> {
    Off,
    Starting(LocalBoxFuture<'a, Result<R::Watch, Error>>),
    Running(R::Watch),
}

impl<R: Registry> Feed<'_, R> {
    /// Waits for the next input. Cancel-safe: a future that is dropped half-way goes on with the next call.
    async fn next(&mut self) -> Input {
        let result = match self {
            Feed::Off => return std::future::pending().await,
            Feed::Starting(start) => match start.await {
                Ok(watch) => {
                    *self = Feed::Running(watch);
                    return Input::WatchStarted;
                }
                Err(e) => Err(e),
            },
            Feed::Running(watch) => watch.next().await,
        };
        debug_assert!(
            result.is_err() || matches!(self, Feed::Running(_)),
            "only a watch that runs tells changes"
        );
        match result {
            Ok(changes) => Input::Changes(changes),
            Err(e) => {
                *self = Feed::Off;
                Input::WatchFailed(e)
            }
        }
    }
}

#[cfg(test)]
mod tests;
