//! The watch over the keys API: a long poll for each event.
//!
//! The server keeps 1000 events of the whole store. The watch of a quiet network in a busy store would fall out of that
//! window. So a poll that has brought nothing for a while is begun anew, from the index that its own header told. This
//! skips no event: etcd writes that header (`X-Etcd-Index`) after it has searched its history up to that index for our
//! prefix, and begins to wait for later events under the same lock.
//!
//! Silence is no proof of life: a member that has lost its quorum goes on to hold polls and learns of nothing. So
//! before a poll is begun anew, a read that needs the quorum asks whether the store serves, and where it does. The same
//! read follows a poll whose head does not come: proxies, such as etcd 2's own, withhold it until there is an event.

use super::answer::{self, Answer, Fault, Node};
use super::client::{Response, text};
use super::decoded;
use super::http::{self, Http, Request};
use crate::store::keyspace::{self, Keyspace};
use crate::store::{Change, Error, Revision, Watch};
use futures_util::future::LocalBoxFuture;
use hyper::StatusCode;
use std::cell::Cell;
use std::rc::Rc;
use tokio::time::{Instant, timeout_at};

/// The head of an answer is late after this part of a request's deadline: a second with the default one.
const LATE_HEAD: u32 = 5;

/// A running watch over the keys API.
pub struct V2Watch {
    http: Rc<Http>,
    keys: Keyspace,
    /// The `waitIndex` of the next poll.
    next: Revision,
    poll: Option<Poll>,
    /// The read that asks whether the store serves, while it is under way.
    check: Option<LocalBoxFuture<'static, Result<Revision, Error>>>,
    /// The error that ended the watch.
    over: Option<Error>,
}

impl std::fmt::Debug for V2Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("V2Watch").field("keys", &self.keys).field("next", &self.next).finish_non_exhaustive()
    }
}

/// A poll that is under way.
enum Poll {
    /// Its head has not come.
    Sent {
        head: LocalBoxFuture<'static, Result<Result<Response, Fault>, Error>>,
        /// The generation in which it was sent, once it was.
        generation: Rc<Cell<Option<u64>>>,
        /// Whether the store has shown that it serves, so that somebody in between withholds the head.
        withheld: bool,
        until: Instant,
    },
    /// Its head has come.
    Answered { response: Response, generation: Option<u64>, body: Vec<u8>, until: Instant },
}

impl Poll {
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Sent { generation, .. } => generation.get(),
            Self::Answered { generation, .. } => *generation,
        }
    }
}

impl V2Watch {
    /// Starts a watch for all changes after `revision`.
    pub(super) async fn open(http: Rc<Http>, keys: Keyspace, revision: Revision) -> Result<Self, Error> {
        let next = revision.saturating_add(1);
        let mut watch = Self { http, keys, next, poll: None, check: None, over: None };
        // None of these steps brings a change.
        while !matches!(watch.poll, Some(Poll::Answered { .. } | Poll::Sent { withheld: true, .. })) {
            watch.step().await?;
        }
        Ok(watch)
    }

    /// Starts the next poll.
    fn begin(&mut self) {
        let request = Request::wait(self.keys.leases(), self.next);
        let (http, generation) = (Rc::clone(&self.http), Rc::new(Cell::new(None)));
        let sent = Rc::clone(&generation);
        let head = Box::pin(async move { http.poll(&request, &sent).await });
        let until = Instant::now() + self.http.timeout() / LATE_HEAD;
        self.poll = Some(Poll::Sent { head, generation, withheld: false, until });
    }

    /// Makes one step, which may bring no change. When its future is dropped, the poll and the index stay in place.
    async fn step(&mut self) -> Result<Option<Change>, Error> {
        if self.check.is_some() {
            return self.step_beside_check().await;
        }
        match &mut self.poll {
            None => self.begin(),
            Some(Poll::Sent { head, generation, until, .. }) => match timeout_at(*until, head).await {
                Ok(answer) => {
                    let (response, generation) = (answer?.map_err(Error::from)?, generation.get());
                    self.answered(response, generation)?;
                }
                Err(_) => self.ask(),
            },
            Some(Poll::Answered { response, body, until, .. }) => {
                match timeout_at(*until, response.chunk()).await {
                    Ok(Ok(Some(chunk))) => {
                        // An event is on its way. The rest of it has as much time as a request.
                        *until = Instant::now() + self.http.timeout();
                        http::append(body, &chunk)?;
                    }
                    Ok(Ok(None)) => return self.finish(),
                    Ok(Err(error)) => return Err(Error::Unavailable(text(&error))),
                    Err(_) if body.is_empty() => self.ask(),
                    Err(_) => {
                        return Err(Error::Unavailable("etcd stopped in the middle of an event".to_owned()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Waits for the answer to the check or for the head of the poll, whichever comes first. A poll that is not sent yet
    /// opens a connection, and the check waits until that has succeeded or failed: both have to go on.
    async fn step_beside_check(&mut self) -> Result<Option<Change>, Error> {
        let Some(check) = &mut self.check else { return Ok(None) };
        let Some(Poll::Sent { head, generation, .. }) = &mut self.poll else {
            let index = check.await;
            self.check = None;
            return self.checked(index?);
        };
        tokio::select! {
            biased;
            answer = head => {
                let (response, generation) = (answer?.map_err(Error::from)?, generation.get());
                self.check = None;
                self.answered(response, generation)?;
                Ok(None)
            }
            index = check => {
                self.check = None;
                self.checked(index?)
            }
        }
    }

    /// Takes the head of an answer.
    fn answered(&mut self, response: Response, generation: Option<u64>) -> Result<(), Error> {
        self.reached(http::index(&response))?;
        let until = Instant::now() + self.http.patience();
        self.poll = Some(Poll::Answered { response, generation, body: Vec::new(), until });
        Ok(())
    }

    /// Starts to ask whether the store serves.
    fn ask(&mut self) {
        let (http, config) = (Rc::clone(&self.http), self.keys.config());
        self.check = Some(Box::pin(async move { http.quorum_index(config).await }));
    }

    /// Acts on the index that the store has now. A poll that a sick member holds is given up: the read has found
    /// another one. So is one that has been silent for long.
    fn checked(&mut self, index: Revision) -> Result<Option<Change>, Error> {
        self.reached(Some(index))?;
        let generation = self.http.generation();
        match &mut self.poll {
            Some(Poll::Sent { withheld, until, generation: sent, .. })
                if !*withheld && sent.get() == Some(generation) =>
            {
                *withheld = true;
                *until = Instant::now() + self.http.patience();
                Ok(None)
            }
            Some(Poll::Answered { .. }) => self.finish(),
            _ => {
                self.poll = None;
                Ok(None)
            }
        }
    }

    /// Checks that the store has reached the index that we have seen of it. If not, it was restored from an older state.
    fn reached(&self, index: Option<Revision>) -> Result<(), Error> {
        match index {
            Some(index) if index.saturating_add(1) < self.next => Err(Error::Compacted),
            _ => Ok(()),
        }
    }

    /// Ends a poll with its event, if it brought one. etcd itself ends a poll after some minutes without an event.
    fn finish(&mut self) -> Result<Option<Change>, Error> {
        let Some(Poll::Answered { response, body, .. }) = self.poll.take() else { return Ok(None) };
        let searched = http::index(&response);
        if body.trim_ascii().is_empty() {
            self.next = self.next.max(searched.map_or(0, |index| index.saturating_add(1)));
            return Ok(None);
        }
        match answer::read(StatusCode::OK, searched, &body)? {
            Answer::Done { action, node, .. } => {
                self.next = self.next.max(node.modified_index.saturating_add(1));
                change(&self.keys, &action, &node)
            }
            Answer::Failed(fault) => Err(fault.into()),
        }
    }
}

impl Watch for V2Watch {
    async fn next(&mut self) -> Result<Vec<Change>, Error> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        loop {
            match self.step().await {
                Ok(Some(change)) => return Ok(vec![change]),
                Ok(None) => {}
                Err(error) => {
                    let generation = self.poll.as_ref().and_then(Poll::generation);
                    if let (Error::Unavailable(_), Some(generation)) = (&error, generation) {
                        self.http.fail(generation);
                    }
                    self.over = Some(error.clone());
                    return Err(error);
                }
            }
        }
    }
}

/// The change that an event tells of, if it tells of one.
fn change(keys: &Keyspace, action: &str, node: &Node) -> Result<Option<Change>, Error> {
    let gone = matches!(action, "delete" | "expire" | "compareAndDelete");
    let Some(name) = keys.name(&node.key) else {
        // The directory of the leases, or one above it, was deleted: its keys went without events of their own.
        return if gone { Err(Error::Compacted) } else { Ok(None) };
    };
    if gone {
        let revision = node.modified_index;
        return Ok(keyspace::subnet(name).ok().map(|key| Change::Gone { key, revision }));
    }
    Ok(Some(decoded(keys, node).map_or_else(Change::Skipped, Change::Set)))
}
