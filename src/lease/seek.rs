//! No subnet yet: which one to ask for.
//!
//! The order is flannel's: a lease of our PublicIP, the subnet of the last run, a random free one. To lose a race is
//! no error: we list again and pick again.

use super::challenge::{Challenge, Sign, Verdict};
use super::delays::Delays;
use super::identity::{Claim, Identity};
use super::{How, Notice};
use crate::log::Complaint;
use crate::store::{Entry, Listing};
use crate::subnet::allocate::{self, OutOfSubnets};
use crate::subnet::{Config, SubnetKey, overlap};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The search for a subnet. It rests while we have one.
#[derive(Debug)]
pub(super) struct Seek {
    config: Config,
    /// The subnet that we had last.
    previous: Option<Ipv4Net>,
    /// When the next list is due.
    at: Duration,
    /// The list that the call under way rests on.
    list: Option<Listing>,
    /// How many writes in a row found the key not as listed.
    races: u32,
    /// How many leases of ours were given up because their subnets hold an address of this host.
    conflicts: u64,
    /// What was said about a pool without a free subnet.
    full: Complaint<Duration>,
    /// The leases that look like ours and may be another living host's, and how far we are with asking.
    challenges: Vec<Challenge>,
    /// Take such leases without asking.
    force_takeover: bool,
}

/// What the manager is to do.
#[derive(Debug)]
pub(super) enum Step {
    /// Tell the daemon something.
    Say(Notice),
    /// Create this key.
    Create(SubnetKey),
    /// Write this key anew, if it is as it was listed.
    Update(Entry),
    /// Delete this key, if it is as it was listed, for this reason.
    Delete { held: Entry, reason: String },
    /// Ask the link who has this address.
    Probe(Ipv4Addr),
    /// Write into this lease, if it is as it was listed, that we ask whether its owner lives.
    Ask(Entry),
    /// Do nothing any more: another living host is who we are.
    Stop,
    /// This lease is ours. Follow the peers from the list on.
    Take { entry: Entry, how: How, listing: Listing },
}

impl Seek {
    /// A search that begins at once, with a list.
    pub(super) fn new(config: Config, previous: Option<Ipv4Net>, force_takeover: bool) -> Self {
        // Tools write any address of a subnet into `subnet.env`. Ours is the one before it if that can be leased.
        let previous = previous.map(|net| if config.fits(net) { net } else { net.trunc() });
        Self {
            config,
            previous,
            at: Duration::ZERO,
            list: None,
            races: 0,
            conflicts: 0,
            full: Complaint::default(),
            challenges: Vec::new(),
            force_takeover,
        }
    }

    /// The subnets to choose from are others now.
    pub(super) fn take_from(&mut self, config: Config) {
        debug_assert!(config.network == self.config.network, "one run has one network");
        self.config = config;
    }

    /// When the next list is due.
    pub(super) fn due(&self) -> Duration {
        self.at
    }

    /// The store is back: a list that waits for later is sent at this time.
    pub(super) fn hurry(&mut self, at: Duration) {
        if self.list.is_none() {
            self.at = self.at.min(at);
        }
    }

    /// We publish something else from now on, so what was asked of others is asked anew where it still has to be.
    pub(super) fn republish(&mut self) {
        self.challenges.clear();
    }

    /// Begins again: somebody else has the subnet that we had.
    pub(super) fn restart(&mut self, now: Duration) {
        self.previous = None;
        self.again(now);
    }

    /// If nobody has this subnet, it comes first.
    pub(super) fn prefer(&mut self, subnet: Ipv4Net) {
        self.previous = Some(subnet);
    }

    /// The search is over: this subnet is ours.
    pub(super) fn settled(&mut self, subnet: Ipv4Net) {
        debug_assert!(!self.is_writing(), "{subnet} is ours while a write for another is under way");
        self.previous = Some(subnet);
        self.races = 0;
        self.full.settle();
        self.challenges.clear();
    }

    /// A call got no answer. Whether a write happened is open, so the next call is a list.
    pub(super) fn failed(&mut self, at: Duration) {
        self.again(at);
    }

    /// The answer took longer than the lease lives. A list will show whether it is still there.
    pub(super) fn too_late(&mut self, now: Duration, delays: &mut Delays) {
        self.again(now + delays.before_look());
    }

    fn again(&mut self, at: Duration) {
        self.at = at;
        self.list = None;
    }

    /// Takes the next step with a list.
    pub(super) fn choose(
        &mut self,
        now: Duration,
        listing: Listing,
        us: &Identity,
        delays: &mut Delays,
    ) -> Vec<Step> {
        let mut listing = listing;
        let rivals: Vec<&Entry> = listing.entries.iter().filter(|entry| us.claim(entry).is_some()).collect();
        self.challenges.retain(|challenge| rivals.iter().any(|rival| challenge.is_to(rival)));
        let own: Vec<&Entry> = listing.entries.iter().filter(|entry| us.is_surely(entry)).collect();
        // With a lease that is surely ours, one of our name elsewhere is left to whoever has it.
        let is_settled = own.iter().any(|entry| self.misfit(entry.key, us).is_none());
        let is_doubtful = |rival: &&&Entry| !(is_settled && us.claim(rival) == Some(Claim::Name));
        if !self.force_takeover
            && let Some(steps) =
                rivals.iter().filter(is_doubtful).find_map(|rival| self.challenge(now, rival, us))
        {
            return steps;
        }
        // What is surely ours comes first, then what nobody defends.
        let mine: Vec<&Entry> = own.into_iter().chain(rivals).collect();
        let usable = |entry: &&&Entry| self.misfit(entry.key, us).is_none();
        let previous = |entry: &&&Entry| Some(entry.key.ipv4) == self.previous && us.is_surely(entry);
        let reuse = mine.iter().filter(usable).find(previous).or_else(|| mine.iter().find(usable));
        // A reservation that does not fit is the operator's, not ours to delete.
        let misfit = mine.iter().filter(|entry| entry.lease.is_some());
        let misfit = misfit.filter_map(|entry| Some(((*entry).clone(), self.misfit(entry.key, us)?))).next();
        let step = if let Some(entry) = reuse {
            let entry = (*entry).clone();
            if entry.lease.is_none() && entry.attrs == *us.attrs() {
                // The reservation says what we would write, so there is nothing to write.
                return vec![Step::Take { entry, how: How::Reused, listing }];
            }
            Step::Update(entry)
        } else if let Some((held, reason)) = misfit {
            self.conflicts += u64::from(us.objection(held.key.subnet()).is_some());
            // If it can be deleted, the search goes on with this list.
            listing.entries.retain(|entry| entry.key != held.key);
            Step::Delete { held, reason }
        } else {
            match self.free_subnet(&listing, us, delays) {
                Ok(subnet) => Step::Create(SubnetKey::v4(subnet)),
                Err(full) => return self.out_of_subnets(now, full, delays).into_iter().collect(),
            }
        };
        self.at = Duration::MAX;
        self.list = Some(listing);
        vec![step]
    }

    /// Goes on with the challenge to the owner of this lease. `None`: it has given no sign of life.
    fn challenge(&mut self, now: Duration, rival: &Entry, us: &Identity) -> Option<Vec<Step>> {
        let claim = us.claim(rival)?;
        let known = self.challenges.iter().position(|challenge| challenge.is_to(rival));
        let index = known.unwrap_or_else(|| {
            self.challenges.push(Challenge::new(now, rival, us, claim));
            self.challenges.len() - 1
        });
        let challenge = &mut self.challenges[index];
        let mut steps = Vec::new();
        if known.is_none() {
            let (doubted, patience) = (challenge.rival(), challenge.patience());
            steps.push(Step::Say(Notice::Doubted { rival: doubted, patience }));
            if claim == Claim::Address {
                steps.push(Step::Probe(rival.attrs.public_ip));
            }
        }
        match challenge.look(now, rival) {
            Verdict::Silent => return None,
            Verdict::Look(at) => self.again(at),
            Verdict::Ask(held) => {
                self.at = Duration::MAX;
                steps.push(Step::Ask(held));
            }
            Verdict::Lives => {
                let (rival, sign) = (challenge.rival(), Sign::Written);
                steps.extend([Step::Say(Notice::Claimed { rival, sign }), Step::Stop]);
            }
        }
        Some(steps)
    }

    /// The link has answered who has this address: somebody with that MAC, or nobody.
    pub(super) fn probed(&mut self, now: Duration, address: Ipv4Addr, mac: Option<String>) -> Vec<Step> {
        let Some(challenge) = self.challenges.iter_mut().find(|challenge| challenge.awaits(address)) else {
            return Vec::new();
        };
        let Some(mac) = mac else {
            challenge.unanswered();
            self.again(now);
            return Vec::new();
        };
        let (rival, sign) = (challenge.rival(), Sign::Arp(mac));
        vec![Step::Say(Notice::Claimed { rival, sign }), Step::Stop]
    }

    /// Why a lease of our PublicIP cannot be used; `None` if it can.
    fn misfit(&self, key: SubnetKey, us: &Identity) -> Option<String> {
        match key.ipv6 {
            Some(_) => Some("it is of a dual-stack node, which this daemon does not serve yet".to_owned()),
            None => self.config.misfit(key.ipv4).or_else(|| us.objection(key.subnet())),
        }
    }

    /// How many leases of ours were given up because their subnets hold an address of this host.
    pub(super) fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// Whether a write is under way that rests on a list.
    pub(super) fn is_writing(&self) -> bool {
        self.list.is_some()
    }

    /// A subnet that overlaps no lease and holds no outer address: not of this host, of another one, or of the store.
    /// The bridge of the last run may still have the subnet of that run.
    fn free_subnet(
        &self,
        listing: &Listing,
        us: &Identity,
        delays: &mut Delays,
    ) -> Result<Ipv4Net, OutOfSubnets> {
        let mut taken = taken(listing);
        let leases = taken.len();
        let is_free = |subnet: Ipv4Net, taken: &[Ipv4Net]| {
            self.config.fits(subnet) && !taken.iter().any(|net| overlap(*net, subnet))
        };
        let network = self.config.network;
        let peers = listing.entries.iter().map(|entry| entry.attrs.public_ip);
        let outer = peers.chain(us.underlay().others.iter().copied()).filter(|ip| network.contains(ip));
        taken.extend(outer.map(Ipv4Net::from));
        let harmless = |subnet: &Ipv4Net| is_free(*subnet, &taken) && us.objection(*subnet).is_none();
        if let Some(subnet) = self.previous.filter(harmless) {
            return Ok(subnet);
        }
        let own = us.underlay().host.iter().map(|own| own.net.addr()).filter(|ip| network.contains(ip));
        taken.extend(own.map(Ipv4Net::from));
        let addresses = taken.len() - leases;
        let picked = allocate::pick(&self.config, &taken, delays.rng());
        let subnet = picked.map_err(|full| OutOfSubnets { leases, addresses, ..full })?;
        debug_assert!(is_free(subnet, &taken), "{subnet} was picked beside {taken:?}");
        Ok(subnet)
    }

    fn out_of_subnets(&mut self, now: Duration, full: OutOfSubnets, delays: &mut Delays) -> Option<Step> {
        let is_news = self.full.is_news(now, "");
        self.again(now + delays.before_look());
        is_news.then_some(Step::Say(Notice::OutOfSubnets(full)))
    }

    /// The answer to [`Step::Create`]; `None`: the key is there already.
    pub(super) fn created(
        &mut self,
        now: Duration,
        created: Option<Entry>,
        delays: &mut Delays,
    ) -> Option<Step> {
        let subnet = created.as_ref().map(|entry| entry.key.ipv4);
        let how = if subnet == self.previous { How::Previous } else { How::Fresh };
        self.written(now, created, how, delays)
    }

    /// The answer to [`Step::Update`] or [`Step::Ask`]; `None`: the key is not as it was listed.
    pub(super) fn updated(
        &mut self,
        now: Duration,
        updated: Option<Entry>,
        delays: &mut Delays,
    ) -> Option<Step> {
        // A question does not rest on a list, and every other write does.
        let is_question = self.list.is_none();
        let asking = self.challenges.iter_mut().find(|challenge| is_question && challenge.is_asking());
        if let (Some(challenge), Some(entry)) = (asking, &updated) {
            self.at = challenge.asked(now, entry.revision);
            return None;
        }
        self.written(now, updated, How::Reused, delays)
    }

    fn written(
        &mut self,
        now: Duration,
        written: Option<Entry>,
        how: How,
        delays: &mut Delays,
    ) -> Option<Step> {
        match (self.list.take(), written) {
            (Some(listing), Some(entry)) => Some(Step::Take { entry, how, listing }),
            // Somebody was faster, or the write was meant for the subnet that we had before.
            (None, _) | (_, None) => {
                self.lost_race(now, delays);
                None
            }
        }
    }

    /// The answer to [`Step::Delete`].
    pub(super) fn deleted(
        &mut self,
        now: Duration,
        deleted: bool,
        us: &Identity,
        delays: &mut Delays,
    ) -> Vec<Step> {
        match self.list.take() {
            Some(listing) if deleted => self.choose(now, listing, us, delays),
            Some(_) | None => {
                self.lost_race(now, delays);
                Vec::new()
            }
        }
    }

    /// Somebody was faster. Many hosts may start at once; a short random wait that grows keeps them from listing
    /// in step.
    fn lost_race(&mut self, now: Duration, delays: &mut Delays) {
        self.races += 1;
        let longest = Duration::from_millis(10 << self.races.min(5));
        self.again(now + delays.up_to(longest));
    }
}

/// The subnets of a list that cannot be created. A key with a bad value is one of them.
fn taken(listing: &Listing) -> Vec<Ipv4Net> {
    let readable = listing.entries.iter().map(|entry| entry.key);
    let unreadable = listing.skipped.iter().filter_map(|skip| skip.key.parse::<SubnetKey>().ok());
    readable.chain(unreadable).map(|key| key.ipv4).collect()
}
