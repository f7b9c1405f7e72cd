//! What reaches a control loop from outside its network: signals, questions of monitors, the watchdog's clock.

use super::notify::{self, Notifier};
use super::signals::Signals;
use crate::report::State;
use crate::status::Ask;
use std::future::pending;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// One of them.
#[derive(Debug)]
pub(super) enum Order {
    /// Stop; the text says who wants it.
    Stop(&'static str),
    /// Print the counters.
    Report,
    /// Say how things are.
    Ask(Ask),
    /// Tell systemd that we live, if we do.
    Watchdog,
}

/// Where they come from.
#[derive(Debug)]
pub(super) enum Orders {
    /// From the process itself.
    Process {
        /// SIGTERM, SIGINT, SIGUSR1.
        signals: Signals,
        /// From the status server, if there is one.
        asks: Option<mpsc::Receiver<Ask>>,
        /// Half the time that systemd waits, if it does.
        watchdog: Option<Interval>,
    },
    /// From the loop that runs several networks.
    Networks(mpsc::UnboundedReceiver<Order>),
}

impl Orders {
    /// The process's own.
    pub(super) fn of_process(signals: Signals, asks: Option<mpsc::Receiver<Ask>>) -> Orders {
        let watchdog = notify::watchdog_interval().map(|period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Orders::Process { signals, asks, watchdog }
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Order {
        match self {
            Orders::Process { signals, asks, watchdog } => tokio::select! {
                Some(name) = signals.stop.recv() => Order::Stop(name),
                Some(()) = signals.report.recv() => Order::Report,
                Some(ask) = optional(asks.as_mut().map(mpsc::Receiver::recv)) => Order::Ask(ask),
                _ = optional(watchdog.as_mut().map(Interval::tick)) => Order::Watchdog,
            },
            Orders::Networks(channel) => channel.recv().await.unwrap_or(Order::Stop("end of the daemon")),
        }
    }

    /// Obeys, as a network that has not come up yet, until one asks us to stop.
    pub(super) async fn wait(&mut self, network: &str, notifier: Notifier) -> &'static str {
        loop {
            match self.next().await {
                Order::Stop(name) => return name,
                Order::Report => {}
                Order::Ask(ask) => ask.answer(vec![waiting(network)]),
                Order::Watchdog => notifier.watchdog(),
            }
        }
    }
}

/// A network that has not come up yet.
pub(super) fn waiting(name: &str) -> State {
    State { network: name.to_owned(), alive: true, ..State::default() }
}

/// Never, if there is nothing to wait for.
async fn optional<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
