//! The watch over gRPC.
//!
//! HTTP/2 pings notice a dead connection after 15 s. Progress requests notice a server that is alive but stuck: once a
//! server has answered one, a later one without an answer ends the watch. etcd before 3.4 does not know such requests,
//! so there only the pings help. etcd 3.5 and newer answers none on a watch that begins at a revision of the future, even
//! the very next one; so each watch begins at the revision that is known already, and the changes of that are left out.
//!
//! A watch that is resumed begins at a write that etcd has to tell again: see [`Seen`]. etcd tells the past within 100 ms
//! (`syncWatchersLoop`), and answers a progress request only after it; so such an answer shows that there is no more.

use super::connection::{Connection, failure};
use super::{decoded, unsigned};
use crate::etcd::endpoints::{Failure, MOST_BYTES};
use crate::store::keyspace::{self, Keyspace};
use crate::store::{Change, Error, Revision, Seen, Shown, Watch};
use etcd_client::{Client, Error as ClientError, Event, EventType, WatchOptions, WatchResponse, WatchStream};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A store that tells nothing is asked this often whether there is something to tell.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A running watch over gRPC.
#[derive(Debug)]
pub struct V3Watch {
    connection: Rc<Connection>,
    keys: Keyspace,
    stream: WatchStream,
    /// The revision that is known already.
    known: Revision,
    /// The generation of the connection that carries the watch.
    generation: u64,
    /// The time at which silence is acted on.
    deadline: Instant,
    /// Whether a progress request waits for its answer.
    asked: bool,
    /// Whether this server has answered a progress request before.
    answers: bool,
    /// What was told while the watch was resumed.
    news: Vec<Change>,
    /// The error that ended the watch.
    over: Option<Error>,
}

impl V3Watch {
    /// Starts a watch for all changes after `revision`.
    pub(super) async fn open(
        connection: Rc<Connection>,
        keys: Keyspace,
        revision: Revision,
    ) -> Result<Self, Error> {
        let at_least = super::signed(revision);
        Self::start(connection, keys, revision, at_least).await
    }

    /// Starts a watch for all changes after those that were seen, once etcd has told those again.
    pub(super) async fn resume(
        connection: Rc<Connection>,
        keys: Keyspace,
        seen: &Seen,
    ) -> Result<Self, Error> {
        let at_least = super::signed(seen.to());
        let mut watch = Self::start(connection, keys, seen.from(), at_least).await?;
        // The change at the first revision is to be told, too.
        watch.known = seen.from().saturating_sub(1);
        let news = match watch.recognize(seen).await {
            Ok(news) => news,
            Err(error) => return Err(watch.fail(error)),
        };
        (watch.known, watch.news) = (seen.to(), news);
        watch.deadline = Instant::now();
        Ok(watch)
    }

    /// Starts a watch at a revision that is known, in a store that has come at least so far.
    async fn start(
        connection: Rc<Connection>,
        keys: Keyspace,
        revision: Revision,
        at_least: i64,
    ) -> Result<Self, Error> {
        let directory = format!("{}/", keys.leases());
        // etcd takes 0 for "from now on".
        let from = super::signed(revision.max(1));
        let (generation, stream) = connection
            .call(async |client, attempt| {
                Ok((attempt.generation, start(client, &directory, from, at_least).await?))
            })
            .await?;
        Ok(Self {
            connection,
            keys,
            stream: stream?,
            known: revision,
            generation,
            deadline: Instant::now(),
            asked: false,
            answers: false,
            news: Vec::new(),
            over: None,
        })
    }

    /// Waits until etcd has told all that was seen, and returns what it has told beyond that.
    async fn recognize(&mut self, seen: &Seen) -> Result<Vec<Change>, Error> {
        let (mut told, mut ask_at) = (Vec::new(), Instant::now() + ASK_EVERY);
        let until = Instant::now() + self.connection.patience();
        loop {
            match seen.compare(&told) {
                Shown::All(count) => return Ok(told.split_off(count)),
                Shown::Other => return Err(Error::Compacted),
                Shown::Part => {}
            }
            match timeout_at(ask_at.min(until), self.stream.message()).await {
                // A busy store tells late, and one before 3.4 does not say that it has nothing to tell.
                Err(_) if Instant::now() >= until => return Err(Error::Compacted),
                Err(_) => {
                    self.stream.request_progress().await.map_err(ended)?;
                    ask_at = Instant::now() + ASK_EVERY;
                }
                Ok(Ok(Some(response))) => {
                    let has_caught_up = response.events().is_empty()
                        && response.header().is_some_and(|header| unsigned(header.revision()) >= seen.to());
                    told.extend(self.changes(&response)?);
                    if has_caught_up {
                        return Err(Error::Compacted);
                    }
                }
                Ok(Ok(None)) => return Err(Error::Unavailable("etcd ended the watch".to_owned())),
                Ok(Err(error)) => return Err(ended(error)),
            }
        }
    }

    /// Ends the watch. After silence, the next call makes another connection.
    fn fail(&mut self, error: Error) -> Error {
        if matches!(error, Error::Unavailable(_)) {
            self.connection.fail(self.generation);
        }
        self.over = Some(error.clone());
        error
    }

    /// Acts on silence: asks for a sign of life, or ends the watch if one was asked for in vain.
    async fn silent(&mut self) -> Result<(), Error> {
        if self.asked && self.answers {
            return Err(Error::Unavailable("the watch gives no sign of life".to_owned()));
        }
        self.stream.request_progress().await.map_err(ended)?;
        self.asked = true;
        self.deadline = Instant::now() + self.grace();
        Ok(())
    }

    /// How long the server may take to give a sign of life.
    fn grace(&self) -> Duration {
        if self.answers { self.connection.timeout() } else { self.connection.patience() }
    }

    /// The changes that a message brings. A sign of life brings none.
    fn changes(&mut self, response: &WatchResponse) -> Result<Vec<Change>, Error> {
        if response.compact_revision() != 0 {
            return Err(Error::Compacted);
        }
        if response.canceled() {
            let reason = response.cancel_reason().to_owned();
            return Err(ended(ClientError::WatchError(reason)));
        }
        self.answers |= self.asked && response.events().is_empty();
        self.asked = false;
        self.deadline = Instant::now() + self.connection.patience();
        let is_news = |event: &&Event| event.kv().is_none_or(|kv| unsigned(kv.mod_revision()) > self.known);
        Ok(response.events().iter().filter(is_news).filter_map(|event| change(&self.keys, event)).collect())
    }

    /// Makes one step, which may bring no change.
    async fn step(&mut self) -> Result<Vec<Change>, Error> {
        match timeout_at(self.deadline, self.stream.message()).await {
            Err(_) => self.silent().await.map(|()| Vec::new()),
            Ok(Ok(Some(response))) => self.changes(&response),
            Ok(Ok(None)) => Err(Error::Unavailable("etcd ended the watch".to_owned())),
            Ok(Err(error)) => Err(ended(error)),
        }
    }
}

impl Watch for V3Watch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        if !self.news.is_empty() {
            return Ok(std::mem::take(&mut self.news));
        }
        loop {
            match self.step().await {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => return Ok(changes),
                Err(error) => return Err(self.fail(error)),
            }
        }
    }
}

/// Starts the watch and waits until etcd confirms it. The inner error is the final answer of the store. After the outer
/// one, a new token or another endpoint may help.
async fn start(
    client: &mut Client,
    directory: &str,
    from: i64,
    at_least: i64,
) -> Result<Result<WatchStream, Error>, ClientError> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
    let mut watch = client.watch_client().max_decoding_message_size(MOST_BYTES);
    let mut stream = watch.watch(directory, Some(options)).await?;
    let Some(first) = stream.message().await? else {
        return Err(ClientError::WatchError("etcd ended the watch at once".to_owned()));
    };
    if first.compact_revision() != 0 {
        return Ok(Err(Error::Compacted));
    }
    // A token that has expired, or a lack of permission, is told by a watch that is created and cancelled at once.
    if first.canceled() {
        return Err(ClientError::WatchError(first.cancel_reason().to_owned()));
    }
    // etcd accepts a revision that it has not reached yet, and then is silent until it reaches it. After a restore from
    // an older state that would hide every change until then.
    if first.header().is_some_and(|header| header.revision() < at_least) {
        return Ok(Err(Error::Compacted));
    }
    Ok(Ok(stream))
}

/// Waits until one key was written or deleted after `revision`, or until the store no longer knows what happened since.
/// It asks for no sign of life of its own, which would double what idle nodes ask of etcd: the watch of the leases does,
/// and when that gives the connection up, this one ends too.
pub(super) async fn wait_for_change(connection: &Connection, key: &str, revision: i64) -> Result<(), Error> {
    let options = WatchOptions::new().with_start_revision(revision + 1);
    let opened = connection.call(async |client, attempt| {
        let mut stream = client.watch_client().watch(key, Some(options.clone())).await?;
        match stream.message().await? {
            Some(first) if first.canceled() && first.compact_revision() == 0 => {
                Err(ClientError::WatchError(first.cancel_reason().to_owned()))
            }
            Some(first) => Ok((stream, first, attempt.generation)),
            None => Err(ClientError::WatchError("etcd ended the watch at once".to_owned())),
        }
    });
    let (mut stream, mut message, generation) = opened.await?;
    while message.events().is_empty() && message.compact_revision() == 0 {
        let next = tokio::select! {
            next = stream.message() => next,
            () = connection.replaced(generation) => {
                return Err(Error::Unavailable("the connection was given up".to_owned()));
            }
        };
        match next {
            Ok(Some(next)) if !next.canceled() || next.compact_revision() != 0 => message = next,
            Ok(_) => return Err(Error::Unavailable("etcd ended the watch".to_owned())),
            Err(error) => return Err(ended(error)),
        }
    }
    Ok(())
}

/// The change that an event tells of, if it tells of one.
fn change(keys: &Keyspace, event: &Event) -> Option<Change> {
    let kv = event.kv()?;
    if event.event_type() == EventType::Put {
        return Some(decoded(keys, kv).map_or_else(Change::Skipped, Change::Set));
    }
    let key = String::from_utf8_lossy(kv.key());
    let revision = unsigned(kv.mod_revision());
    // A key that names no subnet was never reported as a lease, so its end is not reported either.
    keyspace::subnet(keys.name(&key)?).ok().map(|key| Change::Gone { key, revision })
}

/// The error by which the watch ends.
fn ended(error: ClientError) -> Error {
    match failure(error) {
        Failure::Unreached(error) | Failure::Answered(error) => error,
    }
}
