//! The watch over the keys API: a long poll for each event.
//!
//! The server keeps 1000 events of the whole store. A network where nothing happens, in a store where
//! much happens, would fall out of that window; so a poll that has brought nothing for a while is begun
//! anew from the index that its own header told. This skips nothing: etcd writes that header
//! (`X-Etcd-Index`) after it has searched its history up to that index for our prefix, and under the
//! same lock begins to wait for what comes later.

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
    /// `waitIndex` of the next poll.
    next: Revision,
    poll: Option<Poll>,
    /// What ended the watch.
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
    pub(super) async fn open(http: Rc<Http>, keys: Keyspace, revision: Revision) -> Result<Self, Error> {
        let mut watch = Self { http, keys, next: revision.saturating_add(1), poll: None, over: None };
        watch.begin().await?;
        Ok(watch)
    }

    async fn begin(&mut self) -> Result<(), Error> {
        let request = Request::wait(self.keys.leases(), self.next);
        let response = self.http.poll(&request).await?.map_err(Error::from)?;
        // The store is younger than what we have seen of it: it was restored from an older state.
        if http::index(&response).is_some_and(|index| index.saturating_add(1) < self.next) {
            return Err(Error::Compacted);
        }
        self.poll = Some(Poll { response, body: Vec::new(), until: Instant::now() + self.http.patience() });
        Ok(())
    }

    /// One step; no change is no end. Dropped at any await, it leaves the poll or the index in place.
    async fn step(&mut self) -> Result<Option<Change>, Error> {
        let Some(poll) = &mut self.poll else { return self.begin().await.map(|()| None) };
        match tokio::time::timeout_at(poll.until, poll.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                // An event is on its way: what is left of it has a request's time.
                poll.until = Instant::now() + self.http.timeout();
                http::append(&mut poll.body, &chunk).map(|()| None)
            }
            Ok(Ok(None)) => self.finish(),
            Ok(Err(error)) => Err(Error::Unavailable(text(error))),
            Err(_) if poll.body.is_empty() => self.finish(),
            Err(_) => Err(Error::Unavailable("etcd stopped in the middle of an event".to_owned())),
        }
    }

    /// The end of a poll: an event, or nothing (etcd ends a poll itself after some minutes).
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

/// What an event means, if anything.
fn change(keys: &Keyspace, action: &str, node: &Node) -> Result<Option<Change>, Error> {
    let gone = matches!(action, "delete" | "expire" | "compareAndDelete");
    let Some(name) = keys.name(&node.key) else {
        // The directory or one above it: everything in it went without an event of its own.
        return if gone { Err(Error::Compacted) } else { Ok(None) };
    };
    if gone {
        let revision = node.modified_index;
        return Ok(keyspace::subnet(name).ok().map(|key| Change::Gone { key, revision }));
    }
    Ok(Some(decoded(keys, node).map_or_else(Change::Skipped, Change::Set)))
}
