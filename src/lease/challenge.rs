//! Another host may live on a lease that looks like ours: ask, before we take it.
//!
//! Two hosts with one PublicIP would overwrite each other's lease for ever, and peers would send to whichever host the
//! link prefers. So a lease that may be another living host's is taken only after that host gave no sign of life: it
//! does not answer ARP for our address, and it does not write its lease anew within [`Challenge::patience`] although we
//! have asked it to, in the value of the lease (`AskedBy`). Peers see nothing of that, flannel's neither.
//!
//! The link is not asked about an address that is not ours: whoever has it may have nothing to do with the lease.

use super::identity::{Claim, Identity};
use crate::store::{Entry, Revision};
use crate::subnet::{LeaseAttrs, SubnetKey};
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How long the owner of our address has for a sign of life. It may be waiting for a store that was away.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(60);
/// How long the owner of our NodeID has. It is this host itself, unless somebody copied its disk.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
/// An answer to ARP comes within this time or not at all. The driver takes less.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// The first look at the store after the question comes after this time; each next one takes twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(1200);
// A host that lives answers within a second, so the shorter patience has room for two looks.
const _: () = assert!(FIRST_LOOK.as_millis() * 3 < NAME_PATIENCE.as_millis());

/// A lease whose owner may live, and how far we are with asking.
#[derive(Debug)]
pub(super) struct Challenge {
    key: SubnetKey,
    rival: Rival,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The link was asked who has the address. The answer comes before `until`.
    Probing { until: Duration },
    /// The question is on its way into the store, or its answer was lost.
    Asking,
    /// The question stands in the store since `asked`.
    Waiting { asked: Revision, since: Duration, next: Duration },
    /// The owner gave no sign of life; the key is as it was at this revision.
    Silent { at: Revision },
}

/// A lease that may be another living host's, and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// The subnet of the lease.
    pub subnet: Ipv4Net,
    /// What its owner has published.
    pub owner: LeaseAttrs,
    /// What we publish.
    pub ours: LeaseAttrs,
    /// In what it looks like ours.
    pub claim: Claim,
}

/// How the owner of a lease has shown that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// It has written the lease anew when it was asked.
    Written,
    /// This MAC answered ARP for its PublicIP.
    Arp(String),
}

/// Who the other host is: the sentence names both.
impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subnet, owner, ours, claim } = self;
        let name = |attrs: &LeaseAttrs| attrs.node_id.as_ref().map_or("none".to_owned(), ToString::to_string);
        let (theirs, own) = (name(owner), name(ours));
        match claim {
            Claim::Address => write!(
                f,
                "{subnet} is leased to our public IP {} under another node id, {theirs} (ours is {own})",
                ours.public_ip
            ),
            Claim::Name => write!(
                f,
                "{subnet} is leased to our node id {own} under another public IP, {} (ours is {})",
                owner.public_ip, ours.public_ip
            ),
        }
    }
}

impl Rival {
    /// What an operator can do about it if the other host lives.
    pub fn remedy(&self) -> &'static str {
        match self.claim {
            Claim::Address => {
                "Give one of the two hosts another address, or take the lease with --force-takeover"
            }
            Claim::Name => {
                "If one host is a copy of the other, remove the file node-id from the copy's state directory, or give it \
                 a --node-id of its own; or take the lease with --force-takeover"
            }
        }
    }
}

/// How it is known that the other host lives.
impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written => f.write_str("it writes its lease anew"),
            Self::Arp(mac) => write!(f, "{mac} answers ARP for that address"),
        }
    }
}

/// What follows from a look at the store.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Write the question into this lease.
    Ask(Entry),
    /// Look again at this time.
    Look(Duration),
    /// The owner has written its lease anew, so it lives.
    Lives,
    /// The owner is gone: the lease is ours as it stands.
    Silent,
}

impl Challenge {
    /// A challenge to the owner of `entry`, which begins with a question to the link if the address is ours.
    pub(super) fn new(now: Duration, entry: &Entry, us: &Identity, claim: Claim) -> Self {
        let owner = LeaseAttrs { asked_by: None, ..entry.attrs.clone() };
        let rival = Rival { subnet: entry.key.ipv4, owner, ours: us.attrs().clone(), claim };
        let stage = match claim {
            Claim::Address => Stage::Probing { until: now + PROBE_LIMIT },
            Claim::Name => Stage::Asking,
        };
        Self { key: entry.key, rival, stage }
    }

    /// Whom the challenge is to.
    pub(super) fn rival(&self) -> Box<Rival> {
        Box::new(self.rival.clone())
    }

    /// Whether the challenge is to the owner of this entry.
    pub(super) fn is_to(&self, entry: &Entry) -> bool {
        let owner = &self.rival.owner;
        self.key == entry.key
            && owner.public_ip == entry.attrs.public_ip
            && owner.node_id == entry.attrs.node_id
    }

    /// How long the owner has for a sign of life.
    pub(super) fn patience(&self) -> Duration {
        match self.rival.claim {
            Claim::Address => ADDRESS_PATIENCE,
            Claim::Name => NAME_PATIENCE,
        }
    }

    /// The link has answered that nobody has the address, or it could not be asked: the store comes next.
    pub(super) fn unanswered(&mut self) {
        debug_assert!(matches!(self.stage, Stage::Probing { .. }), "the link was not asked: {self:?}");
        self.stage = Stage::Asking;
    }

    /// Whether the link was asked about this address and has not answered yet.
    pub(super) fn awaits(&self, address: Ipv4Addr) -> bool {
        self.rival.owner.public_ip == address && matches!(self.stage, Stage::Probing { .. })
    }

    /// Whether the next answer to a write is the answer to the question.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking)
    }

    /// The question stands in the store since this revision.
    pub(super) fn asked(&mut self, now: Duration, asked: Revision) -> Duration {
        self.stage = Stage::Waiting { asked, since: now, next: FIRST_LOOK };
        now + FIRST_LOOK
    }

    /// What a list shows: `entry` is the lease as it now is.
    pub(super) fn look(&mut self, now: Duration, entry: &Entry) -> Verdict {
        debug_assert!(self.is_to(entry), "{entry:?} is not what {self:?} is about");
        let patience = self.patience();
        match &mut self.stage {
            Stage::Probing { until } if now < *until => Verdict::Look(*until),
            // A question that stands is never written over, so whoever has asked, the answer is to all.
            Stage::Probing { .. } | Stage::Asking if entry.attrs.asked_by.is_some() => {
                Verdict::Look(self.asked(now, entry.revision))
            }
            Stage::Waiting { asked, .. } | Stage::Silent { at: asked } if entry.revision > *asked => {
                Verdict::Lives
            }
            Stage::Waiting { asked, since, next } if entry.revision == *asked => {
                let end = *since + patience;
                if now >= end {
                    self.stage = Stage::Silent { at: entry.revision };
                    return Verdict::Silent;
                }
                *next *= 2;
                Verdict::Look((now + *next).min(end))
            }
            Stage::Silent { at } if entry.revision == *at => Verdict::Silent,
            // Nobody has asked yet, or the store was restored and has forgotten it.
            Stage::Probing { .. } | Stage::Asking | Stage::Waiting { .. } | Stage::Silent { .. } => {
                self.stage = Stage::Asking;
                Verdict::Ask(entry.clone())
            }
        }
    }
}
