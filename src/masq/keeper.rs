//! The thread that brings the rules in and keeps them in place.

use super::barriers::barriers;
use super::iptables::{Iptables, Placed, remove_unseen};
use super::nftables::Nftables;
use super::{Error, Flavour, Guard, Past, Rules, Settings};
use crate::log::Complaint;
use ipnet::Ipv4Net;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// The switch without which packets between two containers of one bridge never meet the rules. They do not need to,
/// unless something else on the host, such as kube-proxy, translates their addresses.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The time between two searches for tables of others that drop forwarded packets.
const BARRIER_SEARCH: Duration = Duration::from_secs(60);

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
    wants_any: bool,
}

impl Keeper {
    /// Finds the programs and starts the thread, which belongs to the network namespace of the caller. `older` is the
    /// network of an earlier run, if it was another one; `guard` is the UDP port of the overlay, if it has one.
    ///
    /// # Errors
    /// [`Error::Missing`] if masquerading is wanted and there is no program for it; [`Error::Thread`] if the thread does
    /// not start. If only other rules are wanted, a missing program is one warning, since they are on by default.
    pub fn start(
        flavour: Flavour,
        settings: Settings,
        network: Ipv4Net,
        older: Option<Ipv4Net>,
        guard: Option<Guard>,
    ) -> Result<Keeper, Error> {
        let path = std::env::var("PATH").ok();
        let tools =
            Tools { iptables: Iptables::find(path.as_deref()), nftables: Nftables::find(path.as_deref()) };
        let wants_any = settings.masquerade || settings.forward || (settings.guard && guard.is_some());
        let flavour = tools.flavour(flavour, wants_any);
        check_presence(flavour, &settings, !wants_any || tools.has(flavour))?;
        let by_iptables = flavour == Flavour::Iptables && tools.has(flavour);
        if by_iptables && (settings.masquerade || settings.forward) {
            warn_without_bridge_netfilter(Path::new(BRIDGE_NETFILTER));
        }
        let (orders, inbox) = mpsc::channel();
        let older = older.filter(|older| *older != network).into_iter().collect();
        let in_place = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            settings,
            network,
            guard,
            past: Past { networks: older, sweep: true },
            flavour,
            tools,
            is_split: false,
            hidden: Vec::new(),
            wanted: None,
            in_place: Arc::clone(&in_place),
            complaint: Complaint::default(),
            barriers: Complaint::default(),
            search_at: Instant::now(),
        };
        thread::Builder::new()
            .name("fl-masq".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Keeper { orders, in_place, wants_any })
    }

    /// Brings in the rules for this subnet and keeps them. They replace the rules for another subnet. The first call also
    /// removes the rules that an older run or the other flavour has left.
    pub fn set(&self, subnet: Ipv4Net, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        // If the thread has ended, `done` is dropped, and its owner notices that.
        let _ = self.orders.send(Order::Set(subnet, Box::new(done)));
    }

    /// Whether any rule is asked for by the settings.
    #[must_use]
    pub fn wants_any(&self) -> bool {
        self.wants_any
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
    if present {
        return Ok(());
    }
    if settings.masquerade {
        return Err(Error::Missing { program, package });
    }
    warn!(
        "{program} is not here (package {package}): no forward rules and no guard of the overlay's port; where \
         something drops forwarded packets, as Docker does, the overlay's are dropped too"
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

/// The programs of this host.
#[derive(Debug)]
struct Tools {
    iptables: Option<Iptables>,
    nftables: Option<Nftables>,
}

impl Tools {
    fn has(&self, flavour: Flavour) -> bool {
        match flavour {
            Flavour::Iptables => self.iptables.is_some(),
            Flavour::Nftables => self.nftables.is_some(),
        }
    }

    /// The flavour to use: the wanted one, or the other if only its program is here.
    fn flavour(&self, wanted: Flavour, wants_any: bool) -> Flavour {
        let other = wanted.other();
        if self.has(wanted) || !self.has(other) {
            return wanted;
        }
        if wants_any {
            info!("{} is not here: rules go through {}", wanted.program(), other.program());
        }
        other
    }
}

#[derive(Debug)]
struct Worker {
    settings: Settings,
    network: Ipv4Net,
    guard: Option<Guard>,
    /// What is to be removed with the first rules that are brought in.
    past: Past,
    flavour: Flavour,
    tools: Tools,
    /// Whether the tool of the other flavour holds rules of ours, too.
    is_split: bool,
    /// The tables that iptables could not show when we looked last.
    hidden: Vec<&'static str>,
    wanted: Option<Rules>,
    /// What [`Keeper::in_place`] tells.
    in_place: Arc<AtomicBool>,
    /// The failure that goes on, if there is one.
    complaint: Complaint<Instant>,
    /// The tables of others that drop forwarded packets.
    barriers: Complaint<Instant>,
    search_at: Instant,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        loop {
            let is_watched = self.tools.has(self.flavour) && self.wanted.is_some_and(|rules| rules.any());
            let order = if is_watched {
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
        let rules = Rules::new(self.network, subnet, self.guard, &self.settings);
        self.wanted = Some(rules);
        let result = self.ensure(&rules);
        match &result {
            Ok(_) => _ = self.complaint.settle(),
            // Whoever has asked says why. What repairs this later must not take it for the deed of somebody else.
            Err(error) => _ = self.complaint.is_news(Instant::now(), &error.to_string()),
        }
        let changed = result?;
        self.search_barriers();
        let what = match (rules.masquerade, rules.forward) {
            (true, true) => "Masquerade and forward rules",
            (true, false) => "Masquerade rules",
            (false, true) => "Forward rules",
            (false, false) => return Ok(()),
        };
        if self.tools.has(self.flavour) {
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
                if self.complaint.settle() {
                    let how = if changed { "are in place now" } else { "can be checked again" };
                    info!("Masquerade and forward rules {how}");
                } else if changed {
                    warn!("Masquerade or forward rules were changed by somebody; put back");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.complaint.is_news(Instant::now(), &text) {
                    error!("cannot check masquerade and forward rules: {text}; trying again");
                }
            }
        }
        if self.search_at <= Instant::now() {
            self.search_barriers();
        }
    }

    fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        let result = match self.flavour {
            Flavour::Iptables => self.place_by_iptables(rules),
            Flavour::Nftables => self.place_by_nftables(rules),
        };
        let is_placed = result.is_ok() && self.tools.has(self.flavour) && self.wanted.is_some();
        self.in_place.store(is_placed, Ordering::Relaxed);
        let changed = result?;
        // What was left is gone now. Rules of that kind that appear later belong to another program.
        self.past = Past::default();
        Ok(changed)
    }

    /// Writes through iptables. Rules for tables that it cannot show go through nft.
    fn place_by_iptables(&mut self, rules: &Rules) -> Result<bool, Error> {
        let (mut placed, mut changed) = self.place_in_both(rules)?;
        if self.remove_unseen(rules, &placed.hidden)? {
            // What was removed may be all that hid the table.
            placed = self.place_in_both(rules)?.0;
            changed = true;
        }
        if self.is_split && placed.hidden != self.hidden {
            warn!(
                "the table {} of iptables holds rules that nft wrote, so iptables shows nothing of it; our rules \
                 for it are in a table of their own",
                wanted_of(rules, &placed.hidden)
            );
        }
        self.hidden = placed.hidden;
        Ok(changed)
    }

    /// Writes the rules once. Returns what came of iptables, and whether one of the two had something to write.
    fn place_in_both(&mut self, rules: &Rules) -> Result<(Placed, bool), Error> {
        let placed = match &self.tools.iptables {
            Some(iptables) => iptables.ensure(rules, &self.past)?,
            None => Placed::default(),
        };
        say_swept(placed.swept);
        let rest = rules.of_tables(&placed.hidden);
        let (is_first, has_rest) = (self.past.sweep, rest.any());
        let mut changed = placed.changed;
        match &mut self.tools.nftables {
            _ if !(is_first || has_rest || self.is_split) => {}
            None if has_rest => return Err(Error::Hidden { tables: wanted_of(rules, &placed.hidden) }),
            None => {}
            Some(nftables) => match nftables.ensure(&rest, &self.past) {
                Ok(written) if has_rest || self.is_split => changed |= written,
                Ok(true) => info!("Removed rules of the firewall flavour that is not used now"),
                Ok(false) => {}
                Err(error) if has_rest => return Err(error),
                Err(error) => warn_of_unused(&error),
            },
        }
        self.is_split = has_rest;
        Ok((placed, changed))
    }

    /// Removes our chains from tables that iptables cannot show.
    fn remove_unseen(&self, rules: &Rules, tables: &[&str]) -> Result<bool, Error> {
        let Some(nftables) = self.tools.nftables.as_ref().filter(|_| !tables.is_empty()) else {
            return Ok(false);
        };
        let removed = remove_unseen(nftables.program(), tables, rules, &self.past.networks)?;
        if removed {
            info!("Removed rules of ours from iptables' tables by nft, since iptables cannot show them");
        }
        Ok(removed)
    }

    /// Writes through nft. Where iptables' own chain `FORWARD` drops, our accept goes there, too.
    fn place_by_nftables(&mut self, rules: &Rules) -> Result<bool, Error> {
        let is_first = self.past.sweep;
        let placed = match &self.tools.iptables {
            Some(iptables) => iptables.ensure_where_dropped(rules, &self.past),
            // An iptables that was here once may have left its chains.
            None if is_first => Ok(Placed { hidden: Iptables::TABLES.to_vec(), ..Placed::default() }),
            None => Ok(Placed::default()),
        };
        match placed {
            Ok(placed) => {
                say_swept(placed.swept);
                if placed.changed && is_first {
                    info!("iptables' rules of flannel are as this flavour needs them");
                }
                self.hidden = placed.hidden;
            }
            Err(error) if is_first => warn_of_unused(&error),
            Err(_) => {}
        }
        let changed = match &mut self.tools.nftables {
            Some(nftables) => nftables.ensure(rules, &self.past)?,
            None => false,
        };
        Ok(self.remove_unseen(rules, &self.hidden)? || changed)
    }

    /// Names the tables of others that drop what we accept.
    fn search_barriers(&mut self) {
        self.search_at = Instant::now() + BARRIER_SEARCH;
        let Some(rules) = self.wanted.filter(|rules| rules.forward) else { return };
        let Some(nft) = self.tools.nftables.as_ref().map(Nftables::program) else { return };
        let is_shown = self.tools.iptables.is_some() && !self.hidden.contains(&"filter");
        let found = barriers(nft, rules.network, is_shown);
        let text = found.join(", ");
        if text.is_empty() {
            self.barriers.settle();
        } else if self.barriers.is_news(Instant::now(), &text) {
            warn!(
                "forwarded packets of the overlay may be dropped by {text}, and an accept in another table cannot \
                 undo that: accept packets from and to {} there",
                rules.network
            );
        }
    }
}

/// The tables among these of which rules are wanted, as a sentence names them.
fn wanted_of(rules: &Rules, tables: &[&'static str]) -> String {
    let wanted = tables.iter().copied().filter(|table| rules.of_tables(&[table]).any());
    wanted.collect::<Vec<_>>().join(" and ")
}

fn say_swept(count: usize) {
    if count > 0 {
        info!("Removed {count} rules that an older flannel left in POSTROUTING and FORWARD");
    }
}

fn warn_of_unused(error: &Error) {
    warn!("cannot look for rules of the firewall flavour that is not used: {error}");
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
            assert!(check_presence(flavour, &off, true).is_ok());
            assert!(check_presence(flavour, &masquerade, true).is_ok());
            let text = check_presence(flavour, &masquerade, false).unwrap_err().to_string();
            assert!(text.contains("-ip-masq") && text.contains(flavour.package()), "{text}");
        }
    }
}
