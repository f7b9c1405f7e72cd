//! The lines in the log about a lease's life, in flannel's words where flannel has some.

use crate::lease::{ConfigNews, How, Manager, Notice, OnLost};
use crate::log::phrases;
use crate::subnet::{Event, Lease, LeaseAttrs};
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::{error, info, warn};

/// More peers than these, in one notice, share a line.
const MOST_LINES: usize = 50;

/// What to do about two hosts with one NodeID.
const COPY: &str = "two hosts have one node id; if one is a copy of the other, remove the file node-id from the copy's \
                    state directory, or give it a --node-id of its own";

/// What the lines tell besides the notice itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The time on the machine's clock.
    pub(super) now: Duration,
    /// The address that peers send to.
    pub(super) public_ip: Ipv4Addr,
    /// When the lease is to be renewed, on the same clock.
    pub(super) renew_at: Option<Duration>,
}

impl Facts {
    /// What `manager` tells at this time of its clock.
    pub(super) fn of(manager: &Manager, now: Duration) -> Facts {
        Facts { now, public_ip: manager.public_ip(), renew_at: manager.renew_at() }
    }
}

/// Writes a notice to the log.
pub(super) fn log(notice: &Notice, facts: &Facts) {
    let now = facts.now;
    match notice {
        Notice::Acquired { subnet, how, deadline } => {
            if *how == How::Reused {
                info!("{} ({subnet}) for current IP ({}), reusing", phrases::LEASE_FOUND, facts.public_ip);
            }
            let how = origin(*how);
            let until = Expiration(*deadline, now);
            info!("{}: {subnet} ({how}), expiration: {until}", phrases::LEASE_ACQUIRED);
            log_wait(facts);
        }
        Notice::Renewed { deadline, .. } => {
            info!("{}: {}", phrases::LEASE_RENEWED, Expiration(*deadline, now));
            log_wait(facts);
        }
        Notice::Readdressed { subnet, public_ip } => {
            info!("Lease of {subnet} says {public_ip} now; peers send there");
        }
        Notice::Reserved { subnet } => info!("Lease of {subnet} is a reservation now: no expiration"),
        Notice::Revoked { subnet } => {
            warn!("Lease of {subnet} was deleted by somebody; trying to get it back");
        }
        Notice::Lost { subnet } => {
            error!(
                "Lease of {subnet} expired before it could be renewed, or the store has forgotten its renewal; \
                 forwarding on, trying to get it back"
            );
        }
        Notice::Lapsed { subnet } => error!(
            "Lease of {subnet} was kept by an earlier run and has ended before the store answered: not forwarding, \
             since another host may own it by now"
        ),
        Notice::Forgotten { subnet } => log_forgotten(*subnet),
        Notice::Conflict { subnet, owner, node, then } => {
            let owner = LeaseAttrs { node_id: node.clone(), ..LeaseAttrs::new(*owner) };
            log_conflict(*subnet, &owner, *then);
        }
        Notice::Outgrown { subnet, then } => {
            let then = match then {
                OnLost::Exit | OnLost::Keep => "shutting down, so that the next start takes the new config",
                OnLost::Reacquire => "taking another one",
            };
            error!("Lease of {subnet} is gone, and the network config has no place for it any more; {then}");
        }
        Notice::Config(news) => log_config(news),
        Notice::Doubted { .. }
        | Notice::Claimed { .. }
        | Notice::TakenOver { .. }
        | Notice::Asked { .. }
        | Notice::Overwritten { .. }
        | Notice::Namesake { .. }
        | Notice::ChangedHands { .. } => log_rival(notice),
        Notice::OutOfSubnets(full) => error!("Failed to acquire a subnet: {full}; trying again"),
        Notice::Discarded { key, reason } => {
            warn!("Discarding our lease {key}, and taking another subnet: {reason}");
        }
        Notice::Peers(events) => log_peers(events),
        Notice::Refused { .. } | Notice::ManyRefused(_) => log_refused(notice),
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

/// Writes that another host has our subnet, and what follows.
fn log_conflict(subnet: Ipv4Net, owner: &LeaseAttrs, then: OnLost) {
    let then = match then {
        OnLost::Exit => "shutting down",
        OnLost::Keep => "forwarding on with it, as --on-lease-lost=keep says",
        OnLost::Reacquire => "taking another one",
    };
    error!("{}: {subnet} belongs to {} now; {then}", phrases::LEASE_REVOKED, Node(owner));
}

/// How we came by a subnet, in words.
fn origin(how: How) -> &'static str {
    match how {
        How::Reused => "found by our public IP",
        How::Previous => "the one of the last run",
        How::Cached => "kept by an earlier run; the store has not confirmed it yet",
        How::Fresh => "new",
        How::Regained => "regained",
    }
}

fn log_forgotten(subnet: Ipv4Net) {
    info!(
        "Forgetting the lease of {subnet} in the state directory: the store has no such lease for this host"
    );
}

/// Writes a line for a key that is left alone, or one line for many that names some.
fn log_refused(notice: &Notice) {
    let ignored = |key: &str, reason: &str| warn!("Ignoring lease {key}: {reason}");
    match notice {
        Notice::Refused { key, reason } => ignored(key, reason),
        Notice::ManyRefused(all) if tracing::enabled!(tracing::Level::DEBUG) => {
            all.iter().for_each(|(key, reason)| ignored(key, reason));
        }
        Notice::ManyRefused(all) => {
            let named = all.iter().take(3).map(|(key, reason)| format!("{key} ({reason})"));
            let named = named.collect::<Vec<_>>().join(", ");
            warn!("Ignoring {} leases: {named} and others (with -v=1 each has a line)", all.len());
        }
        _ => {}
    }
}

/// Writes a notice about the network config in the store.
fn log_config(news: &ConfigNews) {
    match news {
        ConfigNews::Applied(fields) => {
            info!(
                "The network config has changed: {} counts from now on for subnets that are leased; this host's \
                 subnet stays",
                fields.join(", ")
            );
        }
        ConfigNews::Drifted(fields) => {
            warn!(
                "The network config has changed: {} differs from what runs here; restart flanneld to take it over",
                fields.join(", ")
            );
        }
        ConfigNews::Unusable(reason) => {
            warn!("The network config cannot be used any more: {reason}; going on with the one that runs");
        }
        ConfigNews::Restored => info!("The network config says again what runs here"),
    }
}

fn log_wait(facts: &Facts) {
    if let Some(at) = facts.renew_at {
        info!("{} {} to renew lease", phrases::RENEWAL_WAITS, GoDuration(at.saturating_sub(facts.now)));
    }
}

/// A duration in whole seconds as Go prints it, `22h59m59s`.
struct GoDuration(Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{rest}s"),
            (0, _) => write!(f, "{minutes}m{rest}s"),
            _ => write!(f, "{hours}h{minutes}m{rest}s"),
        }
    }
}

/// Writes a line for each of a few peers, and one line for many: the first list of a large network.
fn log_peers(events: &[Event]) {
    if events.len() <= MOST_LINES || tracing::enabled!(tracing::Level::DEBUG) {
        return events.iter().for_each(log_peer);
    }
    let added = events.iter().filter(|event| matches!(event, Event::Added(_))).count();
    for (count, phrase) in [(added, phrases::SUBNET_ADDED), (events.len() - added, phrases::SUBNET_REMOVED)] {
        if count > 0 {
            info!("{phrase}: {count} at once (with -v=1 each has a line)");
        }
    }
}

/// Writes a notice about hosts that are told apart by their NodeID.
fn log_rival(notice: &Notice) {
    match notice {
        Notice::Doubted { rival, patience } => warn!(
            "{rival}; waiting up to {} s for a sign of life of that host before taking the lease",
            patience.as_secs()
        ),
        Notice::TakenOver { subnet, from } => {
            warn!(
                "Took over the lease of {subnet} from {}: no sign of life, or --force-takeover",
                Node(from)
            );
        }
        Notice::Asked { subnet, by } => warn!(
            "node {by} asks whether we live: it is started with our public IP or node id, and wants the lease of \
             {subnet}; answering"
        ),
        Notice::Overwritten { subnet, by } => {
            let is_namesake = by.node_id.as_ref().is_some_and(|node| !node.is_of_machine());
            let remedy = if is_namesake { COPY } else { "end one of the two, or give it another address" };
            error!(
                "another flanneld writes our lease of {subnet} as its own, as {}; taking it back: {remedy}",
                Node(by)
            );
        }
        Notice::Namesake { subnet, by } => {
            error!("{subnet} is leased to our node id under another public IP, as {}: {COPY}", Node(by));
        }
        Notice::ChangedHands { subnet, from, to } => {
            info!("Lease of {subnet} has changed hands: from {} to {}", Node(from), Node(to));
        }
        // The daemon says that a lease is claimed when it ends for it.
        _ => {}
    }
}

fn log_peer(event: &Event) {
    match event {
        Event::Added(Lease { subnet, attrs }) => {
            info!("{}: {subnet} via {}", phrases::SUBNET_ADDED, attrs.public_ip);
        }
        Event::Removed(Lease { subnet, attrs }) => {
            info!("{}: {subnet} via {}", phrases::SUBNET_REMOVED, attrs.public_ip);
        }
    }
}

/// A host by its PublicIP, and by its NodeID if it has published one.
struct Node<'a>(&'a LeaseAttrs);

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.public_ip)?;
        match &self.0.node_id {
            Some(node) => write!(f, " (node {node})"),
            None => Ok(()),
        }
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
    debug_assert!((1..=12).contains(&month) && (1..=31).contains(&day), "{month}-{day}");
    (year_of_era + z / 146_097 * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn dates_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_484), (2026, 1, 31));
        let printed = |seconds| GoDuration(Duration::from_secs(seconds)).to_string();
        assert_eq!([0, 59, 60, 3600, 82_799].map(printed), ["0s", "59s", "1m0s", "1h0m0s", "22h59m59s"]);
        assert_eq!(Expiration(None, Duration::ZERO).to_string(), "never");
        let text = Expiration(Some(Duration::from_secs(9)), Duration::from_secs(4)).to_string();
        assert!(text.len() == 23 && text.ends_with(" UTC"), "{text}");
    }
}
