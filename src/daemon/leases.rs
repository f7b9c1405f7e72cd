//! Runs the lease machine over a store: makes its calls, feeds it the watch and the time, writes the log
//! lines that users search for, and passes its notices on.
//!
//! One task on the control thread. A call, the watch and a timer wait side by side; the machine decides.
//! An outage of the store ends nothing here.

use crate::lease::{Call, How, Input, Manager, Notice, OnLost, Output, Reply, Status};
use crate::log::Complaint;
use crate::store::Backoff;
use crate::store::{Error, Registry, Watch};
use crate::subnet::{Config, Event, Lease};
use futures_util::future::LocalBoxFuture;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

/// The machine's clock: it counts while the machine sleeps, as the store's does.
///
/// `/proc/uptime` is the kernel's boot-time clock in steps of 10 ms, rounded down, which is the safe side
/// for a deadline. Where there is no `/proc`, a clock that stands still in suspend has to do.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    boot: Option<Duration>,
}

impl Clock {
    /// Starts to count.
    #[allow(clippy::new_without_default)] // two clocks are not the same clock
    pub fn new() -> Self {
        Self { start: Instant::now(), boot: uptime() }
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        let slept = self.boot.zip(uptime()).map(|(boot, now)| now.saturating_sub(boot));
        // The two agree to 10 ms unless the machine has slept, and this one has no steps.
        let awake = self.start.elapsed();
        match slept {
            Some(slept) if slept > awake + Duration::from_millis(20) => slept,
            _ => awake,
        }
    }
}

fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Why [`run`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Asked to. The lease stays in the store.
    Stopped,
    /// Somebody else owns our subnet and the policy is [`OnLost::Exit`]: exit non-zero.
    LeaseLost,
}

/// Waits for the network config: for the store, for the key, for a text that makes sense. Never gives up;
/// says why it waits at once, on every new reason and once a minute.
pub async fn fetch_config<R: Registry>(registry: &R, seed: u64) -> Config {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut silent = Backoff::new(Duration::from_secs(5));
    // A store that answers is asked every second, as flannel does: the operator is about to put the config.
    let mut answering = Backoff::new(Duration::from_secs(1));
    let mut complaint = Complaint::default();
    loop {
        let result = registry.config().await;
        let pause = match result {
            Err(Error::Unavailable(_)) => silent.next(&mut rng),
            _ => answering.next(&mut rng),
        };
        let (reason, kind) = match result {
            Ok(text) => match Config::parse(&text) {
                Ok(config) => return config,
                Err(e) => (e.to_string(), e.to_string()),
            },
            // Its text may differ from one attempt to the next.
            Err(e @ Error::Unavailable(_)) => (e.to_string(), String::new()),
            Err(e) => (e.to_string(), e.to_string()),
        };
        if complaint.is_news(tokio::time::Instant::now(), &kind) {
            error!("Couldn't fetch network config: {reason}; trying again");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Runs `manager` until `stop` is ready or the lease is lost for good. Every notice goes to `notices`, in
/// order; `status` always holds the last state.
pub async fn run<R: Registry>(
    registry: &R,
    mut manager: Manager,
    clock: &Clock,
    notices: mpsc::UnboundedSender<Notice>,
    status: watch::Sender<Option<Status>>,
    stop: impl Future<Output = ()>,
) -> Ending {
    let mut stop = pin!(stop);
    let mut call: Option<LocalBoxFuture<'_, Input>> = None;
    let mut feed = Feed::<R>::Off;
    let mut input = Input::Tick;
    loop {
        let now = clock.now();
        let outputs: VecDeque<Output> = manager.handle(now, input).into();
        status.send_replace(Some(manager.status()));
        for output in outputs {
            match output {
                Output::Call(wanted) => call = Some(Box::pin(make(registry, wanted))),
                Output::Watch { from } => feed = Feed::Starting(Box::pin(registry.watch(from))),
                Output::Notice(notice) => {
                    log(&notice, now);
                    let fatal = matches!(notice, Notice::Conflict { then: OnLost::Exit, .. });
                    // Nobody listens any more: the daemon is about to stop us.
                    let _ = notices.send(notice);
                    if fatal {
                        return Ending::LeaseLost;
                    }
                }
            }
        }
        let wait = manager.wake_at().map(|at| at.saturating_sub(clock.now()));
        input = tokio::select! {
            biased;
            () = &mut stop => return Ending::Stopped,
            reply = running(&mut call) => reply,
            input = feed.next() => input,
            () = sleep(wait) => Input::Tick,
        };
    }
}

/// The call's answer; the slot is free then. Never, if there is no call.
async fn running(slot: &mut Option<LocalBoxFuture<'_, Input>>) -> Input {
    let Some(call) = slot else { return std::future::pending().await };
    let input = call.await;
    *slot = None;
    input
}

/// A timer for at most a minute, since the kernel's timers stand still in suspend and the machine's clock
/// does not.
async fn sleep(wait: Option<Duration>) {
    tokio::time::sleep(wait.unwrap_or(Duration::MAX).min(Duration::from_secs(60))).await;
}

async fn make<R: Registry>(registry: &R, call: Call) -> Input {
    Input::Reply(match call {
        Call::List => Reply::Listed(registry.list().await),
        Call::Create { key, attrs, ttl } => Reply::Created(registry.create(key, &attrs, ttl).await),
        Call::Update { held, attrs, ttl } => Reply::Updated(registry.update(&held, &attrs, ttl).await),
        Call::Delete { held } => Reply::Deleted(registry.delete(&held).await),
    })
}

/// The watch, from asking for it to its end.
enum Feed<'a, R: Registry> {
    Off,
    Starting(LocalBoxFuture<'a, Result<R::Watch, Error>>),
    Running(R::Watch),
}

impl<R: Registry> Feed<'_, R> {
    /// Cancel-safe: a future that is dropped half-way goes on with the next call.
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
        match result {
            Ok(changes) => Input::Changes(changes),
            Err(e) => {
                *self = Feed::Off;
                Input::WatchFailed(e)
            }
        }
    }
}

/// The log, in flannel's words where it has some.
fn log(notice: &Notice, now: Duration) {
    match notice {
        Notice::Acquired { subnet, how, deadline } => {
            let how = match how {
                How::Reused => "found by our public IP",
                How::Previous => "the one of the last run",
                How::Fresh => "new",
                How::Regained => "regained",
            };
            info!("Lease acquired: {subnet} ({how}), expiration: {}", Expiration(*deadline, now));
        }
        Notice::Renewed { deadline, .. } => {
            info!("Lease renewed, new expiration: {}", Expiration(*deadline, now));
        }
        Notice::Reserved { subnet } => info!("Lease of {subnet} is a reservation now: no expiration"),
        Notice::Revoked { subnet } => {
            warn!("Lease has been revoked: somebody deleted {subnet}; trying to get it back");
        }
        Notice::Lost { subnet } => {
            error!(
                "Lease of {subnet} expired before it could be renewed, or the store has forgotten its renewal; \
                 forwarding on, trying to get it back"
            );
        }
        Notice::Conflict { subnet, owner, then } => {
            let then = match then {
                OnLost::Exit => "shutting down",
                OnLost::Keep => "forwarding on with it, as --on-lease-lost=keep says",
                OnLost::Reacquire => "taking another one",
            };
            error!("Lease has been revoked: {subnet} belongs to {owner} now; {then}");
        }
        Notice::OutOfSubnets(full) => error!("Failed to acquire a subnet: {full}; trying again"),
        Notice::Peers(events) => events.iter().for_each(log_peer),
        Notice::Refused { key, reason } => warn!("Ignoring lease {key}: {reason}"),
        Notice::Withheld { count } => {
            warn!("The store has lost {count} leases at once; keeping those peers until a second look");
        }
        Notice::StoreReset => warn!("The store's history begins anew: was it restored?"),
        Notice::StoreLost { reason } => warn!("Lost the store: {reason}; forwarding on, trying again"),
        Notice::StoreStillLost { reason, since } => {
            warn!("Still no store after {} s: {reason}", since.as_secs());
        }
        Notice::StoreBack { after } => info!("The store is back after {:.1} s", after.as_secs_f64()),
    }
}

fn log_peer(event: &Event) {
    match event {
        Event::Added(Lease { subnet, attrs }) => info!("Subnet added: {subnet} via {}", attrs.public_ip),
        Event::Removed(Lease { subnet, attrs }) => info!("Subnet removed: {subnet} via {}", attrs.public_ip),
    }
}

/// A deadline of the machine's clock as a date, `2026-01-31 23:59:59 UTC`.
struct Expiration(Option<Duration>, Duration);

impl fmt::Display for Expiration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Some(deadline), now) = self else { return f.write_str("never") };
        let date = SystemTime::now() + deadline.saturating_sub(*now);
        let seconds = date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Year, month and day of a day since 1970-01-01, by Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + z / 146_097 * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
