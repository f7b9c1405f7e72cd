//! The endpoints of one store: which of them a call asks, and when it asks the next.

use super::Settings;
use super::refusal::is_refusal;
pub(super) use super::sites::Failure;
use super::sites::{self, Endpoint, Failures, Site};
use crate::log::quote;
use crate::store::Error;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// The longest time for which a watch may be silent.
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// A watch may be silent for this many deadlines of a request.
const PATIENCE: u32 = 6;
/// How many seconds a watch may be silent with the default deadline. Keep-alives notice a dead connection earlier.
pub(super) const DEFAULT_PATIENCE: u64 = Settings::TIMEOUT.as_secs() * PATIENCE as u64;
const _: () = assert!(DEFAULT_PATIENCE <= MOST_PATIENCE.as_secs());

/// What a store needs to use a site.
pub(super) trait Opener {
    /// A connection, or what makes connections to one site.
    type Made: Clone;
    /// Connects and makes the site show by an answer that it serves. This is tried at several sites at once, so it
    /// is cheap for the server, and it changes nothing.
    async fn open(&self, site: &Site) -> Result<Self::Made, Failure>;
    /// Makes the connection that was opened first fit for calls.
    async fn enter(&self, made: &Self::Made) -> Result<(), Failure>;
}

/// The endpoints of one store. Calls stay with the site that answered last.
pub(super) struct Endpoints<O: Opener> {
    opener: O,
    endpoints: Vec<Rc<Endpoint>>,
    /// The site in use; `None` until a call has found one that answers.
    live: RefCell<Option<Live<O::Made>>>,
    /// The site that failed last. The one after it is tried first.
    failed: RefCell<Option<Site>>,
    generation: watch::Sender<u64>,
    /// How many sites the last call has tried, if it found none that serves.
    unreached: Cell<usize>,
    /// Held while sites are tried, so that calls that begin together open one connection.
    opening: Mutex<()>,
    timeout: Duration,
}

impl<O: Opener> std::fmt::Debug for Endpoints<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (endpoints, generation) = (&self.endpoints, &self.generation);
        let mut form = f.debug_struct("Endpoints");
        form.field("endpoints", endpoints).field("generation", &*generation.borrow()).finish_non_exhaustive()
    }
}

/// A site that has answered.
#[derive(Clone)]
struct Live<M> {
    site: Site,
    made: M,
    generation: u64,
}

/// One attempt at one site.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    /// The URL of the endpoint.
    pub(super) url: &'a str,
    /// The generation in which the attempt is made.
    pub(super) generation: u64,
    /// True from the moment before a write is sent. From then on the write may have happened, even without an answer.
    writing: Cell<bool>,
}

impl Attempt<'_> {
    /// Notes that a write is about to be sent.
    pub(super) fn write_leaves(&self) {
        self.writing.set(true);
    }

    /// Notes that the write was refused or was never sent, so that it did not happen.
    pub(super) fn write_undone(&self) {
        self.writing.set(false);
    }
}

impl<O: Opener> Endpoints<O> {
    /// Takes the endpoints of the settings. A bare `host:port` is taken as `http`.
    ///
    /// # Errors
    /// The list is empty, or a URL is not `http://host:port` or `https://host:port`.
    pub(super) fn new(settings: &Settings, opener: O) -> Result<Self, Error> {
        let endpoints: Vec<Rc<Endpoint>> = settings
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim())
            .filter(|endpoint| !endpoint.is_empty())
            .map(|endpoint| parsed(endpoint).map(Rc::new))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::Invalid("no etcd endpoint is given".to_owned()));
        }
        let (live, failed, opening) = (RefCell::new(None), RefCell::new(None), Mutex::new(()));
        let (generation, unreached, timeout) = (watch::Sender::new(0), Cell::new(0), settings.timeout);
        Ok(Self { opener, endpoints, live, failed, generation, unreached, opening, timeout })
    }

    /// What opens the sites.
    pub(super) fn opener(&self) -> &O {
        &self.opener
    }

    /// How many sites the last call has tried, if it found none that serves: also names without an address. 0 if one
    /// has answered.
    pub(super) fn unreached(&self) -> usize {
        self.unreached.get()
    }

    /// The error of a call that found no site that serves.
    fn in_vain(&self, failures: &Failures) -> Error {
        self.unreached.set(failures.len());
        combined(failures)
    }

    /// The deadline of a request at each site.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How long a watch may bring nothing before it is asked for a sign of life: half a minute with the default
    /// deadline, and a minute at most. The limit holds even when a slow store needs a long deadline, because a watch
    /// that has died unnoticed hides every peer that joins in the meantime.
    pub(super) fn patience(&self) -> Duration {
        patience(self.timeout)
    }

    /// A number that changes whenever the site in use has failed. What was made in an older generation must not be
    /// used any more, so that certificates and keys are read again.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Waits until what was made in this generation must not be used any more.
    pub(super) async fn replaced(&self, generation: u64) {
        let mut present = self.generation.subscribe();
        // It cannot fail: the sender is ours.
        let _ = present.wait_for(|present| *present != generation).await;
    }

    /// Notes that what was made in this generation has failed: the next call opens another site if there is one. A
    /// failure that is told late, when another site is in use already, changes nothing.
    pub(super) fn fail(&self, generation: u64) {
        if generation != self.generation() {
            return;
        }
        self.generation.send_replace(generation.wrapping_add(1));
        if let Some(live) = self.live.take() {
            self.failed.replace(Some(live.site));
        }
    }

    /// Gives up the site in use, which need not have failed: the next call opens one anew.
    pub(super) fn renew(&self) {
        self.generation.send_modify(|generation| *generation = generation.wrapping_add(1));
        self.live.take();
    }

    /// Makes a call at the first site that answers. Each site is tried once, within the deadline.
    pub(super) async fn ask<T>(
        &self,
        call: impl AsyncFn(&O::Made, &Attempt<'_>) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        self.ask_for(self.timeout, call).await
    }

    /// Makes a call as [`Endpoints::ask`] does, with another deadline for the answer to the call.
    pub(super) async fn ask_for<T>(
        &self,
        deadline: Duration,
        call: impl AsyncFn(&O::Made, &Attempt<'_>) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let (mut failures, mut tried) = (Failures::new(), Vec::new());
        self.unreached.set(0);
        loop {
            let live = self.live(&tried, &mut failures).await?;
            let attempt = Attempt {
                url: &live.site.endpoint.url,
                generation: live.generation,
                writing: Cell::new(false),
            };
            let error = match tokio::time::timeout(deadline, call(&live.made, &attempt)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Failure::Answered(error))) => return Err(error),
                Ok(Err(Failure::Unreached(error))) => error,
                Err(_) => Error::Unavailable(format!("no answer within {deadline:?}")),
            };
            tracing::debug!(endpoint = %live.site, %error, "etcd endpoint failed");
            failures.push((live.site.to_string(), error));
            self.fail(live.generation);
            if attempt.writing.get() {
                return Err(self.in_vain(&failures));
            }
            tried.push(live.site);
        }
    }

    /// The site in use, or the first other than those in `tried` that answers.
    async fn live(&self, tried: &[Site], failures: &mut Failures) -> Result<Live<O::Made>, Error> {
        let present = || self.live.borrow().clone().filter(|live| !tried.contains(&live.site));
        if let Some(live) = present() {
            return Ok(live);
        }
        let _turn = self.opening.lock().await;
        if let Some(live) = present() {
            return Ok(live);
        }
        let mut tried = tried.to_vec();
        loop {
            let failed = self.failed.borrow().clone();
            let open = async |site: &Site| self.opener.open(site).await;
            let (site, made) =
                sites::race(&self.endpoints, &tried, failed.as_ref(), self.timeout, failures, open)
                    .await
                    .map_err(|answer| answer.unwrap_or_else(|| self.in_vain(failures)))?;
            let error = match tokio::time::timeout(self.timeout, self.opener.enter(&made)).await {
                Ok(Ok(())) => {
                    let live = Live { site, made, generation: self.generation() };
                    self.live.replace(Some(live.clone()));
                    return Ok(live);
                }
                Ok(Err(Failure::Answered(error))) => return Err(error),
                Ok(Err(Failure::Unreached(error))) => error,
                Err(_) => Error::Unavailable(format!("no answer within {:?}", self.timeout)),
            };
            failures.push((site.to_string(), error));
            tried.push(site);
        }
    }
}

fn patience(timeout: Duration) -> Duration {
    timeout.saturating_mul(PATIENCE).min(MOST_PATIENCE)
}

/// One error that holds the error of every endpoint. It is a refusal only if all are: an endpoint that is silent may serve
/// again at any moment, and must not be left alone as long as one that refuses.
fn combined(failures: &[(String, Error)]) -> Error {
    debug_assert!(!failures.is_empty(), "there is at least one endpoint, and each that was asked failed");
    let reason = |error: &Error| match error {
        Error::Unavailable(reason) | Error::Denied(reason) | Error::Invalid(reason) => reason.clone(),
        other => other.to_string(),
    };
    let text = failures
        .iter()
        .map(|(url, error)| format!("{url}: {}", reason(error)))
        .collect::<Vec<_>>()
        .join("; ");
    if failures.iter().all(|(_, error)| matches!(error, Error::Denied(_))) {
        Error::Denied(text)
    } else {
        Error::Unavailable(text)
    }
}

/// An endpoint of the settings.
fn parsed(endpoint: &str) -> Result<Endpoint, Error> {
    let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let Ok(url) = url::Url::parse(&full) else {
        // The message does not repeat the endpoint: what cannot be read may hold a password.
        return Err(Error::Invalid("an etcd endpoint is no URL".to_owned()));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Invalid("an etcd endpoint must not hold a user or a password".to_owned()));
    }
    let (Some(host), Some(port), "http" | "https") =
        (url.host_str(), url.port_or_known_default(), url.scheme())
    else {
        return Err(Error::Invalid(format!("etcd endpoint {endpoint:?} is not http://host:port")));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Endpoint { url: full.trim_end_matches('/').to_owned(), host, port })
}

/// The size of the largest answer that is read, in bytes. Some 10^5 leases fit.
pub(super) const MOST_BYTES: usize = 64 << 20;
const _: () =
    assert!(MOST_BYTES / 100_000 >= 512, "a lease with its attributes and its JSON takes half a kB");

/// A TTL in whole seconds. It is never 0, since that would make a permanent key.
pub(super) fn seconds(ttl: Duration) -> u64 {
    let whole = (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1);
    debug_assert!(Duration::from_secs(whole) >= ttl, "a key never ends before its TTL");
    whole
}

/// An error and its causes, in one line. Each of them may repeat what the server sent, so each is quoted.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    causes(quote(&error.to_string()), error.source())
}

/// A text, followed by the causes that it does not name itself.
pub(super) fn causes(mut text: String, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(cause) = source {
        let cause_text = quote(&cause.to_string());
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The failure of a connection, with the text that tells of it. It is a refusal if one side does not accept the
/// certificate of the other; anything else counts as silence.
pub(super) fn unreached(reason: String, cause: Option<&(dyn std::error::Error + 'static)>) -> Failure {
    match cause {
        Some(cause) if is_refusal(cause) => Failure::Unreached(Error::Denied(reason)),
        _ => Failure::Unreached(Error::Unavailable(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let place = |text| parsed(text).map(|e| (e.url, e.host, e.port));
        let wanted = |url: &str, host: &str, port| Ok((url.to_owned(), host.to_owned(), port));
        assert_eq!(place("10.0.0.1:2379"), wanted("http://10.0.0.1:2379", "10.0.0.1", 2379));
        assert_eq!(place("https://[::1]:2379/"), wanted("https://[::1]:2379", "::1", 2379));
        assert_eq!(place("https://front/etcd/"), wanted("https://front/etcd", "front", 443));
        for bad in ["ftp://a:1", "unix:///x", "http://"] {
            assert!(matches!(parsed(bad), Err(Error::Invalid(_))), "{bad}");
        }
        for bad in ["http://me:secret@host:1", "http://me:secret@ho st:1"] {
            let Err(Error::Invalid(text)) = parsed(bad) else { panic!("taken") };
            assert!(!text.contains("secret"));
        }
    }

    #[test]
    fn patience_grows_with_the_deadline_to_a_minute() {
        let seconds = |timeout| patience(Duration::from_secs(timeout)).as_secs();
        assert_eq!([1, 5, 10, 300].map(seconds), [6, 30, 60, 60]);
        assert_eq!(seconds(u64::MAX), 60);
    }

    #[test]
    fn only_refusals_make_a_refusal() {
        let (a, b) = ("http://a".to_owned(), "http://b".to_owned());
        let failures = [(a, Error::Denied("no".to_owned())), (b, Error::Unavailable("slow".to_owned()))];
        assert_eq!(combined(&failures), Error::Unavailable("http://a: no; http://b: slow".to_owned()));
        assert_eq!(combined(&failures[..1]), Error::Denied("http://a: no".to_owned()));
    }
}
