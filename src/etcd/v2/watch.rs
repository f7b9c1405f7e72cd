//! The watch over the keys API: a long poll for each event.
//!
//! The server keeps 1000 events of the whole store. The watch of a quiet network in a busy store would fall out of that
//! window. So a poll that has brought nothing for a while is begun anew, from the index that its own header told. This
//! skips no event: etcd writes that header (`X-Etcd-Index`) after it has searched its history up to that index for our
//! prefix, and begins to wait for later events under the same lock.

use super::answer::{self, Answer, Node};
use super::decoded;
use super::http::{self, Http, Request};
use crate::etcd::tls::text;
use crate::store::keyspace::{self, Keyspace};
use crate::store::{Change, Error, Revision, Watch};
use reqwest::{Response, StatusCode};
use std::rc::Rc;
use tokio::time::Instant;

/// A running watch over the keys API.
#[derive(Debug)]
pub struct V2Watch {
    http: Rc<Http>,
    keys: Keyspace,
    /// The `waitIndex` of the next poll.
    next: Revision,
    poll: Option<Poll>,
    /// The error that ended the watch.
    over: Option<Error>,
}

/// A poll that is under way.
#[derive(Debug)]
struct Poll {
    response: Response,
    body: Vec<u8>,
    until: Instant,
}

impl V2Watch {
    /// Starts a watch for all changes after `revision`.
    pub(super) async fn open(http: Rc<Http>, keys: Keyspace, revision: Revision) -> Result<Self, Error> {
        let mut watch = Self { http, keys, next: revision.saturating_add(1), poll: None, over: None };
        watch.begin().await?;
        Ok(watch)
    }

    /// Starts the next poll.
    async fn begin(&mut self) -> Result<(), Error> {
        let request = Request::wait(self.keys.leases(), self.next);
        let response = self.http.poll(&request).await?.map_err(Error::from)?;
        // The store has not reached the index that we have seen of it: it was restored from an older state.
        if http::index(&response).is_some_and(|index| index.saturating_add(1) < self.next) {
            return Err(Error::Compacted);
        }
        self.poll = Some(Poll { response, body: Vec::new(), until: Instant::now() + self.http.patience() });
        Ok(())
    }

    /// Makes one step, which may bring no change. When its future is dropped, the poll and the index stay in place.
    async fn step(&mut self) -> Result<Option<Change>, Error> {
        let Some(poll) = &mut self.poll else { return self.begin().await.map(|()| None) };
        match tokio::time::timeout_at(poll.until, poll.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                // An event is on its way. The rest of it has as much time as a request.
                poll.until = Instant::now() + self.http.timeout();
                http::append(&mut poll.body, &chunk).map(|()| None)
            }
            Ok(Ok(None)) => self.finish(),
            Ok(Err(error)) => Err(Error::Unavailable(text(error))),
            Err(_) if poll.body.is_empty() => self.finish(),
            Err(_) => Err(Error::Unavailable("etcd stopped in the middle of an event".to_owned())),
        }
    }

    /// Ends a poll with its event, if it brought one. etcd itself ends a poll after some minutes without an event.
    fn finish(&mut self) -> Result<Option<Change>, Error> {
        let Some(poll) = self.poll.take() else { return Ok(None) };
        let searched = http::index(&poll.response);
        if poll.body.trim_ascii().is_empty() {
            self.next = self.next.max(searched.map_or(0, |index| index.saturating_add(1)));
            return Ok(None);
        }
        match answer::read(StatusCode::OK, searched, &poll.body)? {
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
                    if matches!(error, Error::Unavailable(_)) {
                        self.http.turn();
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
