//! The endpoints of one store: which of them a call asks, and when it asks the next.

use super::Settings;
use super::refusal::is_refusal;
use crate::log::quote;
use crate::store::Error;
use std::cell::Cell;
use std::time::Duration;

/// The longest time for which a watch may be silent.
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// A watch may be silent for this many deadlines of a request.
const PATIENCE: u32 = 6;
/// How many seconds a watch may be silent with the default deadline. Keep-alives notice a dead connection earlier.
pub(super) const DEFAULT_PATIENCE: u64 = Settings::TIMEOUT.as_secs() * PATIENCE as u64;
const _: () = assert!(DEFAULT_PATIENCE <= MOST_PATIENCE.as_secs());

/// The endpoints of one store. Calls stay with the endpoint that answered last.
#[derive(Debug)]
pub(super) struct Endpoints {
    urls: Vec<String>,
    current: Cell<usize>,
    generation: Cell<u64>,
    timeout: Duration,
}

/// How an attempt at one endpoint failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The endpoint did not answer. Another one may serve the call, unless the call was a write that may have
    /// happened.
    Unreached(Error),
    /// The endpoint answered, and every other one would give the same answer.
    Answered(Error),
}

/// One attempt at one endpoint.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    /// The URL of the endpoint.
    pub(super) url: &'a str,
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

impl Endpoints {
    /// Takes the endpoints of the settings. A bare `host:port` is taken as `http`.
    ///
    /// # Errors
    /// The list is empty, or a URL is not `http://host:port` or `https://host:port`.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let urls: Vec<String> = settings
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim())
            .filter(|endpoint| !endpoint.is_empty())
            .map(normalised)
            .collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(Error::Invalid("no etcd endpoint is given".to_owned()));
        }
        Ok(Self { urls, current: Cell::new(0), generation: Cell::new(0), timeout: settings.timeout })
    }

    /// The deadline of a request at each endpoint.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How long a watch may bring nothing before it is asked for a sign of life: half a minute with the default
    /// deadline, and a minute at most. The limit holds even when a slow store needs a long deadline, because a watch
    /// that has died unnoticed hides every peer that joins in the meantime.
    pub(super) fn patience(&self) -> Duration {
        self.timeout.saturating_mul(PATIENCE).min(MOST_PATIENCE)
    }

    /// A number that changes whenever an endpoint has failed. A connection of an older generation must not be used any
    /// more, so that the next connection reads certificates and keys again.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Notes that something is wrong with the current endpoint: the next call starts at the endpoint after it.
    pub(super) fn turn(&self) {
        self.current.set((self.current.get() + 1) % self.urls.len());
        self.generation.set(self.generation.get().wrapping_add(1));
        debug_assert!(self.current.get() < self.urls.len());
    }

    /// Tries one endpoint after the other until one answers. Each is tried once, within the deadline.
    pub(super) async fn ask<T>(
        &self,
        call: impl AsyncFn(&Attempt<'_>) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut failures = Vec::with_capacity(self.urls.len());
        for _ in 0..self.urls.len() {
            let url = &self.urls[self.current.get()];
            let attempt = Attempt { url, writing: Cell::new(false) };
            let error = match tokio::time::timeout(self.timeout, call(&attempt)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Failure::Answered(error))) => return Err(error),
                Ok(Err(Failure::Unreached(error))) => error,
                Err(_) => Error::Unavailable(format!("no answer within {:?}", self.timeout)),
            };
            self.turn();
            tracing::debug!(endpoint = %url, %error, "etcd endpoint failed");
            failures.push((url, error));
            if attempt.writing.get() {
                break;
            }
        }
        Err(combined(&failures))
    }
}

/// One error that holds the error of every endpoint. A refusal outweighs silence, because the operator can mend it.
fn combined(failures: &[(&String, Error)]) -> Error {
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
    if failures.iter().any(|(_, error)| matches!(error, Error::Denied(_))) {
        Error::Denied(text)
    } else {
        Error::Unavailable(text)
    }
}

/// The URL of an endpoint with its scheme and without a trailing slash.
fn normalised(endpoint: &str) -> Result<String, Error> {
    let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let url = reqwest::Url::parse(&full)
        .map_err(|error| Error::Invalid(format!("etcd endpoint {endpoint:?}: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        // The message does not repeat the endpoint, since it holds a password.
        return Err(Error::Invalid("an etcd endpoint must not hold a user or a password".to_owned()));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Error::Invalid(format!("etcd endpoint {endpoint:?} is not http://host:port")));
    }
    Ok(full.trim_end_matches('/').to_owned())
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
        assert_eq!(normalised("10.0.0.1:2379").as_deref(), Ok("http://10.0.0.1:2379"));
        assert_eq!(normalised("https://[::1]:2379/").as_deref(), Ok("https://[::1]:2379"));
        for bad in ["ftp://a:1", "unix:///x", "http://"] {
            assert!(matches!(normalised(bad), Err(Error::Invalid(_))), "{bad}");
        }
        let Err(Error::Invalid(text)) = normalised("http://me:secret@host:1") else { panic!("taken") };
        assert!(!text.contains("secret"));
    }

    #[test]
    fn patience_grows_with_the_deadline_to_a_minute() {
        let patience = |timeout| {
            let urls = vec!["http://a:1".to_owned()];
            let (current, generation) = (Cell::new(0), Cell::new(0));
            Endpoints { urls, current, generation, timeout: Duration::from_secs(timeout) }.patience()
        };
        assert_eq!([1, 5, 10, 300].map(|timeout| patience(timeout).as_secs()), [6, 30, 60, 60]);
        assert_eq!(patience(u64::MAX).as_secs(), 60);
    }

    #[test]
    fn a_refusal_outweighs_silence() {
        let (a, b) = ("http://a".to_owned(), "http://b".to_owned());
        let failures = [(&a, Error::Denied("no".to_owned())), (&b, Error::Unavailable("slow".to_owned()))];
        assert_eq!(combined(&failures), Error::Denied("http://a: no; http://b: slow".to_owned()));
        assert_eq!(combined(&failures[1..]), Error::Unavailable("http://b: slow".to_owned()));
    }
}
