//! What reaches a control loop from outside its network: signals, questions of monitors, the watchdog's clock.

use super::notify::{self, Notifier};
use super::reload::Reload;
use super::signals::Signals;
use super::{Reread, Settings};
use crate::report::State;
use crate::status::Ask;
use std::future::pending;
use std::rc::Rc;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// One order or question to a control loop.
#[derive(Debug)]
pub(super) enum Order {
    /// Stop the network; the text says who wants it.
    Stop(&'static str),
    /// Print the counters to stderr.
    Report,
    /// Take over these settings as far as a running network can.
    Reload(Rc<Settings>),
    /// Answer how things are.
    Ask(Ask),
    /// Tell systemd that we live, if we do.
    Watchdog,
}

/// Where a control loop's orders come from.
#[derive(Debug)]
pub(super) enum Orders {
    /// The process itself gives them.
    Process {
        /// The signals SIGTERM, SIGINT, SIGUSR1 and SIGHUP.
        signals: Signals,
        /// Reads the settings again.
        reread: Reload,
        /// The questions of the status server, if there is one.
        asks: Option<mpsc::Receiver<Ask>>,
        /// A clock of half the time that systemd's watchdog waits, if it is set.
        watchdog: Option<Interval>,
    },
    /// The loop that runs several networks gives them.
    Networks(mpsc::UnboundedReceiver<Order>),
}

impl Orders {
    /// The orders that reach the process itself.
    pub(super) fn of_process(signals: Signals, asks: Option<mpsc::Receiver<Ask>>, reread: Reread) -> Orders {
        let watchdog = notify::watchdog_interval().map(|period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Orders::Process { signals, reread: Reload(reread), asks, watchdog }
    }

    /// Waits for the next order. Cancel-safe.
    pub(super) async fn next(&mut self) -> Order {
        match self {
            Orders::Process { signals, reread, asks, watchdog } => loop {
                break tokio::select! {
                    Some(name) = signals.stop.recv() => Order::Stop(name),
                    Some(()) = signals.report.recv() => Order::Report,
                    Some(()) = signals.reload.recv() => match reread.read() {
                        Some(settings) => Order::Reload(settings),
                        None => continue,
                    },
                    Some(ask) = optional(asks.as_mut().map(mpsc::Receiver::recv)) => Order::Ask(ask),
                    _ = optional(watchdog.as_mut().map(Interval::tick)) => Order::Watchdog,
                };
            },
            Orders::Networks(channel) => channel.recv().await.unwrap_or(Order::Stop("end of the daemon")),
        }
    }

    /// Obeys on behalf of a network that has not come up yet, until an order stops it; returns who wanted that. New
    /// settings go to `reload`.
    pub(super) async fn wait(
        &mut self,
        network: &str,
        notifier: Notifier,
        mut reload: impl FnMut(&Settings),
    ) -> &'static str {
        loop {
            match self.next().await {
                Order::Stop(name) => return name,
                Order::Report => {}
                Order::Reload(settings) => reload(&settings),
                Order::Ask(ask) => ask.answer(vec![waiting(network)]),
                Order::Watchdog => notifier.watchdog(),
            }
        }
    }
}

/// The state of a network that has not come up yet.
pub(super) fn waiting(name: &str) -> State {
    State { network: name.to_owned(), alive: true, ..State::default() }
}

/// Waits for `future`; for ever if there is none.
async fn optional<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
