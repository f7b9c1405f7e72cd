//! What a network knew of its store, kept in the state directory, so that the next start can do without the store.
//!
//! Theory of operation. While this host holds its lease, `Keeper` keeps the network config, the lease with the time
//! that it has left, and the peers, in one file for each network. At the next start [`Cache::load`] reads the file. It
//! gives back all of it or the reason why none of it may be used ([`Refusal`]): a file that is damaged, in another
//! format, of another host or another store, or whose lease has ended. A file that is in order is used only if the
//! store does not answer, and only until it does; the store's word then replaces all of it.
//!
//! The file is text: a line with the format's number, a line of JSON, a line for each peer, and a checksum over all of
//! that. A lease that is gone takes its file along, so whoever finds a file finds a lease that was held.
//!
//! | file | |
//! |---|---|
//! | `mod` | the value, its text, and whose it is |
//! | `moment` | how much of the lease is left, by the clocks |
//! | `keeper` | when the file is written |

mod keeper;
mod moment;
#[cfg(test)]
mod tests;

pub use keeper::Keep;
pub(super) use keeper::Keeper;
pub use moment::Moment;

use super::StateDir;
use crate::etcd;
use crate::lease::{Cached, Identity};
use crate::store::{Entry, keyspace};
use crate::subnet::{Config, ConfigError, FileError, Generation, LeaseAttrs, SubnetKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// The first word of the file.
const MAGIC: &str = "flanneld-cache";
/// The number of the format. A change of any line is another number.
const VERSION: u32 = 1;
/// How many endpoints from before a SIGHUP are kept.
const MOST_FORMER: usize = 16;
/// What the last line, with the checksum in hexadecimal, takes: eight digits and the end of the line.
const SUM_LENGTH: usize = 9;

/// The cache of one network in the state directory.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: StateDir,
    file: String,
    origin: Origin,
}

/// Whose file it is: which host wrote it, and which store it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    prefix: String,
    api: String,
    endpoints: Vec<String>,
    /// A checksum of `/etc/machine-id`; the id itself is not for the eyes of others.
    machine: u32,
}

/// What a file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The network config.
    pub config: Config,
    /// The text of the network config.
    pub text: String,
    /// Our key as the store last had it.
    pub entry: Entry,
    /// How long the lease lives from now on; `None` for a reservation.
    pub left: Option<Duration>,
    /// The leases of the peers.
    pub peers: Vec<Entry>,
    /// How long ago the file was written.
    pub age: Duration,
    /// How far the wall clock was set since, in seconds, if it was.
    pub stepped: Option<i64>,
}

impl Contents {
    /// Whether the lease is one of this host, as far as the file tells: by its NodeID, or by the public IP if one of the
    /// two has none or has one that others may share. A lease of another public IP may be a copy's by now, so the lease
    /// machine asks before it writes it.
    ///
    /// # Errors
    /// [`Refusal::Foreign`] names what differs on both sides.
    pub fn check_host(&self, us: &Identity) -> Result<(), Refusal> {
        if us.owns(&self.entry) {
            return Ok(());
        }
        let (there, here) = (&self.entry.attrs, us.attrs());
        Err(match (&there.node_id, &here.node_id) {
            (Some(there), Some(here)) if there != here => foreign("host, by its node id", there, here),
            _ => foreign("host, by its public IP", &there.public_ip, &here.public_ip),
        })
    }

    /// The same on the lease machine's clock, which now shows `now`.
    pub fn at(self, now: Duration) -> Cached {
        Cached { entry: self.entry, deadline: self.left.map(|left| now + left), peers: self.peers }
    }
}

/// Why a file may not be used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file was written in another format.
    #[error("its format is number {0}, and this version reads {VERSION}")]
    Format(String),
    /// The bytes are not those that were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The file was written by another host or for another store.
    #[error("it is of another {what}: {there}, and here it is {here}")]
    Foreign {
        /// The flag or property that differs.
        what: &'static str,
        /// The value in the file.
        there: String,
        /// The value of this daemon.
        here: String,
    },
    /// The network config in it cannot be used by this version.
    #[error("its {0}")]
    Config(#[from] ConfigError),
    /// The lease has ended.
    #[error("its lease ended {0:.0?} ago")]
    Ended(Duration),
    /// The clocks do not tell how much time has passed.
    #[error("{0}")]
    Clock(&'static str),
}

fn damaged(reason: impl ToString) -> Refusal {
    Refusal::Damaged(reason.to_string())
}

fn foreign(what: &'static str, there: &dyn ToString, here: &dyn ToString) -> Refusal {
    Refusal::Foreign { what, there: there.to_string(), here: here.to_string() }
}

/// The second line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    saved: Moment,
    origin: Origin,
    config: String,
    /// 2 or 3: the generation of flannel by whose rules the config was read.
    generation: u8,
    key: String,
    value: String,
    revision: u64,
    lease: Option<u64>,
    left_ms: Option<u64>,
    peers: usize,
}

impl Cache {
    /// The cache of the network of that name in `dir`; the one network of the usual mode has the empty name.
    pub fn new(dir: StateDir, name: &str, store: &etcd::Settings) -> Cache {
        let file = if name.is_empty() { "network.cache".to_owned() } else { format!("network-{name}.cache") };
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let origin = Origin {
            prefix: store.prefix.clone(),
            api: format!("{:?}", store.api).to_lowercase(),
            endpoints: store.endpoints.clone(),
            machine: crc32fast::hash(machine.trim().as_bytes()),
        };
        Cache { dir, file, origin }
    }

    /// The names of the networks that have a file in `dir`, without that of the usual mode.
    #[must_use]
    pub fn networks(dir: &StateDir) -> BTreeSet<String> {
        let network =
            |file: &String| file.strip_prefix("network-")?.strip_suffix(".cache").map(str::to_owned);
        dir.names().iter().filter_map(network).collect()
    }

    /// The file's name in the state directory.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The store is reached at these endpoints from now on. What is written then may be used by a start with one of
    /// them, or with one of those before. Returns whether any is new.
    pub(super) fn reached_at(&mut self, endpoints: &[String]) -> bool {
        if self.origin.endpoints.starts_with(endpoints) {
            return false;
        }
        let before = std::mem::replace(&mut self.origin.endpoints, endpoints.to_vec());
        let others = before.into_iter().filter(|one| !endpoints.contains(one)).take(MOST_FORMER);
        self.origin.endpoints.extend(others);
        true
    }

    /// Reads the file; `None` if there is none. [`Contents::check_host`] is left to the caller.
    ///
    /// # Errors
    /// The [`Refusal`] says why nothing of it may be used.
    pub fn load(&self, now: &Moment) -> Result<Option<Contents>, Refusal> {
        match self.dir.read(&self.file)? {
            Some(bytes) => decode(&bytes, &self.origin, now).map(Some),
            None => Ok(None),
        }
    }

    /// Replaces the file.
    fn write(&self, bytes: &[u8]) -> Result<(), FileError> {
        self.dir.write(&self.file, bytes)
    }

    /// Removes the file, if there is one.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove(&self) -> Result<(), FileError> {
        self.dir.remove(&self.file)
    }
}

/// The file's bytes for this state.
fn encode<'a>(
    saved: Moment,
    origin: &Origin,
    (config, generation): (&str, Generation),
    (entry, left): (&Entry, Option<Duration>),
    peers: impl ExactSizeIterator<Item = (SubnetKey, &'a LeaseAttrs)>,
) -> Vec<u8> {
    let head = Head {
        saved,
        origin: origin.clone(),
        config: config.to_owned(),
        generation: match generation {
            Generation::V2 => 2,
            Generation::V3 => 3,
        },
        key: entry.key.to_string(),
        value: entry.value.clone(),
        revision: entry.revision,
        lease: entry.lease,
        left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        peers: peers.len(),
    };
    // JSON of such fields cannot fail, and has no line break in it.
    let head = serde_json::to_string(&head).unwrap_or_default();
    let mut text = format!("{MAGIC} {VERSION}\n{head}\n");
    for (key, attrs) in peers {
        let _ = writeln!(text, "{key} {}", attrs.encode(Generation::V3));
    }
    let sum = crc32fast::hash(text.as_bytes());
    let _ = writeln!(text, "{sum:08x}");
    text.into_bytes()
}

/// Reads what [`encode`] wrote.
fn decode(bytes: &[u8], origin: &Origin, now: &Moment) -> Result<Contents, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(damaged)?;
    let format = text.split('\n').next().and_then(|line| line.strip_prefix(MAGIC)?.strip_prefix(' '));
    match format {
        None => return Err(damaged("it does not begin as a cache does")),
        Some(format) if format != VERSION.to_string() => {
            let is_number = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_digit());
            return Err(if is_number { Refusal::Format(format.to_owned()) } else { damaged("no format") });
        }
        Some(_) => {}
    }
    let cut = text.len().checked_sub(SUM_LENGTH).filter(|cut| text.is_char_boundary(*cut));
    let (body, sum) = text.split_at(cut.ok_or_else(|| damaged("it is too short"))?);
    if sum != format!("{:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(damaged("the checksum is another one"));
    }
    let mut lines = body.lines().skip(1);
    let head: Head = serde_json::from_str(lines.next().unwrap_or_default()).map_err(damaged)?;
    let peers: Vec<Entry> = lines.map(peer).collect::<Result<_, _>>()?;
    if peers.len() != head.peers {
        return Err(damaged(format!("{} peers instead of {}", peers.len(), head.peers)));
    }
    same_origin(&head.origin, origin)?;
    let entry = keyspace::entry(&head.key, &head.value, head.revision, head.lease)
        .map_err(|skipped| damaged(skipped.reason))?;
    if entry.lease.is_some() != head.left_ms.is_some() {
        return Err(damaged("its lease has an end and is a reservation"));
    }
    let generation = match head.generation {
        2 => Generation::V2,
        3 => Generation::V3,
        other => return Err(damaged(format!("generation {other}"))),
    };
    let config = Config::parse_for(generation, &head.config)?;
    if !config.fits(entry.key.ipv4) {
        return Err(damaged("its subnet is not of its network"));
    }
    let passed = head.saved.until(now)?;
    let left = passed.left(head.left_ms.map(Duration::from_millis))?;
    let (age, stepped) = (passed.time, passed.stepped);
    Ok(Contents { config, text: head.config, entry, left, peers, age, stepped })
}

fn peer(line: &str) -> Result<Entry, Refusal> {
    let (key, value) = line.split_once(' ').ok_or_else(|| damaged("a line is no peer"))?;
    keyspace::entry(key, value, 0, None).map_err(|skipped| damaged(skipped.reason))
}

/// The host and the port of an endpoint: how it is spelled beside them says nothing of the store behind it.
fn place(endpoint: &str) -> String {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    place.to_ascii_lowercase()
}

/// Whether a file of `there` may be used by `here`. Of the endpoints one has to be the same: members come and go. Which
/// cluster it is nobody can tell while the store is away; when it answers, its leases count.
fn same_origin(there: &Origin, here: &Origin) -> Result<(), Refusal> {
    if there.prefix != here.prefix {
        return Err(foreign("--etcd-prefix", &there.prefix, &here.prefix));
    }
    if there.api != here.api {
        return Err(foreign("--etcd-api", &there.api, &here.api));
    }
    let places: BTreeSet<String> = here.endpoints.iter().map(|one| place(one)).collect();
    if !there.endpoints.iter().any(|one| places.contains(&place(one))) {
        return Err(foreign("etcd", &there.endpoints.join(","), &here.endpoints.join(",")));
    }
    if there.machine != here.machine {
        let sum = |machine| format!("{machine:08x}");
        return Err(foreign(
            "host, by the checksum of its machine id",
            &sum(there.machine),
            &sum(here.machine),
        ));
    }
    Ok(())
}
