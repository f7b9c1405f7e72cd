//! The thread that brings the rules in and keeps them in place.

use super::iptables::Iptables;
use super::nftables::Nftables;
use super::{Error, Flavour, Rules, Settings};
use crate::log::Complaint;
use ipnet::Ipv4Net;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;
use tracing::{error, info, warn};

/// The switch without which packets between two containers of one bridge never meet the rules. They do not need to,
/// unless something else on the host, such as kube-proxy, translates their addresses.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A function that the thread of the keeper calls once with the result of an order.
type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What the thread is asked to do.
enum Order {
    Set(Ipv4Net, Done),
    Clean(Done),
}

/// A handle to the thread, which is named `fl-masq`. Dropping it ends the thread; the rules stay.
#[derive(Debug)]
pub struct Keeper {
    orders: mpsc::Sender<Order>,
    in_place: Arc<AtomicBool>,
}

impl Keeper {
    /// Finds the programs and starts the thread, which belongs to the network namespace of the caller. `older` is the
    /// network of an earlier run, if it was another one.
    ///
    /// # Errors
    /// [`Error::Missing`] if masquerading is wanted and there is no program for it; [`Error::Thread`] if the thread does
    /// not start. If only forward rules are wanted, a missing program is one warning, since they are on by default.
    pub fn start(
        flavour: Flavour,
        settings: Settings,
        network: Ipv4Net,
        older: Option<Ipv4Net>,
    ) -> Result<Keeper, Error> {
        let path = std::env::var("PATH").ok();
        let tool = Tool::find(flavour, path.as_deref());
        let unused = Tool::find(flavour.other(), path.as_deref());
        check_presence(flavour, &settings, tool.is_some())?;
        if flavour == Flavour::Iptables && tool.is_some() && (settings.masquerade || settings.forward) {
            warn_without_bridge_netfilter(Path::new(BRIDGE_NETFILTER));
        }
        let (orders, inbox) = mpsc::channel();
        let older = older.filter(|older| *older != network).into_iter().collect();
        let in_place = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            settings,
            network,
            older,
            tool,
            unused,
            wanted: None,
            in_place: Arc::clone(&in_place),
            complaint: Complaint::default(),
        };
        thread::Builder::new()
            .name("fl-masq".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Keeper { orders, in_place })
    }

    /// Brings in the rules for this subnet and keeps them. They replace the rules for another subnet. The first call also
    /// removes the rules that an older run or the other flavour has left.
    pub fn set(&self, subnet: Ipv4Net, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        // If the thread has ended, `done` is dropped, and its owner notices that.
        let _ = self.orders.send(Order::Set(subnet, Box::new(done)));
    }

    /// Whether the rules were as they should be when the thread looked last. Without a program they never are.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.in_place.load(Ordering::Relaxed)
    }

    /// Removes our rules, until the next [`Keeper::set`].
    pub fn clean(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let _ = self.orders.send(Order::Clean(Box::new(done)));
    }
}

/// Refuses to start without a program if masquerading is wanted, and warns if only forward rules are.
fn check_presence(flavour: Flavour, settings: &Settings, present: bool) -> Result<(), Error> {
    let (program, package) = (flavour.program(), flavour.package());
    if present || !(settings.masquerade || settings.forward) {
        return Ok(());
    }
    if settings.masquerade {
        return Err(Error::Missing { program, package });
    }
    warn!(
        "{program} is not here (package {package}): no forward rules; where something drops forwarded packets, \
         as Docker does, the overlay's are dropped too"
    );
    Ok(())
}

fn warn_without_bridge_netfilter(path: &Path) {
    if !path.exists() {
        warn!(
            "{} is missing (module br_netfilter): iptables does not see packets within one bridge",
            path.display()
        );
    }
}

impl Flavour {
    fn other(self) -> Flavour {
        match self {
            Flavour::Iptables => Flavour::Nftables,
            Flavour::Nftables => Flavour::Iptables,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Flavour::Iptables => Iptables::PROGRAM,
            Flavour::Nftables => Nftables::PROGRAM,
        }
    }
}

#[derive(Debug)]
enum Tool {
    Iptables(Iptables),
    Nftables(Nftables),
}

impl Tool {
    fn find(flavour: Flavour, path: Option<&str>) -> Option<Tool> {
        match flavour {
            Flavour::Iptables => Iptables::find(path).map(Tool::Iptables),
            Flavour::Nftables => Nftables::find(path).map(Tool::Nftables),
        }
    }

    /// Brings the rules in, and returns whether something had to be written.
    fn ensure(&mut self, rules: &Rules, older: &[Ipv4Net]) -> Result<bool, Error> {
        match self {
            Tool::Iptables(iptables) => iptables.ensure(rules, older),
            Tool::Nftables(nftables) => nftables.ensure(rules, older),
        }
    }
}

#[derive(Debug)]
struct Worker {
    settings: Settings,
    network: Ipv4Net,
    older: Vec<Ipv4Net>,
    tool: Option<Tool>,
    /// The tool of the other flavour, until it has removed the rules of that flavour.
    unused: Option<Tool>,
    wanted: Option<Rules>,
    /// What [`Keeper::in_place`] tells.
    in_place: Arc<AtomicBool>,
    /// The failure that goes on, if there is one.
    complaint: Complaint<Instant>,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        loop {
            let watched = self.tool.is_some() && self.wanted.is_some_and(|rules| rules.any());
            let order = if watched {
                inbox.recv_timeout(self.settings.resync)
            } else {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match order {
                Ok(Order::Set(subnet, done)) => done(self.set(subnet)),
                Ok(Order::Clean(done)) => done(self.clean()),
                Err(RecvTimeoutError::Timeout) => self.resync(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn set(&mut self, subnet: Ipv4Net) -> Result<(), Error> {
        let rules = Rules::new(self.network, subnet, &self.settings);
        if let Some(mut unused) = self.unused.take() {
            match unused.ensure(&rules.none(), &self.older) {
                Ok(true) => info!("Removed rules of the firewall flavour that is not used now"),
                Ok(false) => {}
                Err(error) => {
                    warn!("cannot look for rules of the firewall flavour that is not used: {error}");
                }
            }
        }
        self.wanted = Some(rules);
        let changed = self.ensure(&rules)?;
        let what = match (rules.masquerade, rules.forward) {
            (true, true) => "Masquerade and forward rules",
            (true, false) => "Masquerade rules",
            (false, true) => "Forward rules",
            (false, false) => return Ok(()),
        };
        if self.tool.is_some() {
            let how = if changed { "installed" } else { "are in place" };
            info!("{what} for {subnet} in {} {how}", self.network);
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<(), Error> {
        let Some(rules) = self.wanted.take() else { return Ok(()) };
        if self.ensure(&rules.none())? {
            info!("Removed masquerade and forward rules");
        }
        Ok(())
    }

    /// Compares the rules with what is there, and puts back what others have changed.
    fn resync(&mut self) {
        let Some(rules) = self.wanted else { return };
        match self.ensure(&rules) {
            Ok(changed) => {
                if changed {
                    warn!("Masquerade or forward rules were changed by somebody; put back");
                }
                if self.complaint.settle() {
                    info!("Masquerade and forward rules can be checked again");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.complaint.is_news(Instant::now(), &text) {
                    error!("cannot check masquerade and forward rules: {text}; trying again");
                }
            }
        }
    }

    fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        let Some(tool) = &mut self.tool else { return Ok(false) };
        let result = tool.ensure(rules, &self.older);
        self.in_place.store(result.is_ok() && self.wanted.is_some(), Ordering::Relaxed);
        let changed = result?;
        // The rules of the older network are gone now. Rules that appear for it later belong to another program.
        self.older.clear();
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masquerading_is_refused_without_a_program() {
        let settings = Settings::default();
        let masquerade = Settings { masquerade: true, ..settings };
        let off = Settings { forward: false, ..settings };
        for flavour in [Flavour::Iptables, Flavour::Nftables] {
            assert!(check_presence(flavour, &settings, false).is_ok());
            assert!(check_presence(flavour, &off, false).is_ok());
            assert!(check_presence(flavour, &masquerade, true).is_ok());
            let text = check_presence(flavour, &masquerade, false).unwrap_err().to_string();
            assert!(text.contains("-ip-masq") && text.contains(flavour.package()), "{text}");
        }
    }
}
