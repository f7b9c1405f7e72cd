//! The requests of the keys API: their URLs, authentication, TLS, and the change to another endpoint.

use super::answer::{self, Answer, Fault, Unusable};
use super::client::{self, Client, RequestBuilder, Response};
use crate::etcd::Settings;
use crate::etcd::endpoints::{Attempt, Endpoints, Failure, MOST_BYTES, Opener, unreached};
use crate::etcd::files::Files;
use crate::etcd::gate::{Cost, Gate};
use crate::etcd::sites::Site;
use crate::etcd::tls::{Protocol, TlsCache};
use crate::store::{Error, Revision};
use hyper::Method;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// One request to the keys API.
#[derive(Debug)]
pub(super) struct Request {
    method: Method,
    key: String,
    query: Vec<(&'static str, String)>,
    form: Vec<(&'static str, String)>,
}

impl Request {
    /// A linearizable read of a key.
    pub(super) fn get(key: String, recursive: bool) -> Self {
        let query = vec![
            ("quorum", "true".to_owned()),
            ("recursive", recursive.to_string()),
            ("sorted", "false".to_owned()),
        ];
        Self { method: Method::GET, key, query, form: Vec::new() }
    }

    /// A long poll for the first event at or after `index`.
    pub(super) fn wait(key: String, index: Revision) -> Self {
        let query = vec![
            ("recursive", "true".to_owned()),
            ("wait", "true".to_owned()),
            ("waitIndex", index.to_string()),
        ];
        Self { method: Method::GET, key, query, form: Vec::new() }
    }

    /// A write that happens only under these conditions.
    pub(super) fn put(
        key: String,
        conditions: Vec<(&'static str, String)>,
        form: Vec<(&'static str, String)>,
    ) -> Self {
        debug_assert!(!conditions.is_empty(), "every write is conditional");
        Self { method: Method::PUT, key, query: conditions, form }
    }

    /// A deletion that happens only under these conditions.
    pub(super) fn delete(key: String, conditions: Vec<(&'static str, String)>) -> Self {
        debug_assert!(!conditions.is_empty(), "every write is conditional");
        Self { method: Method::DELETE, key, query: conditions, form: Vec::new() }
    }
}

/// A client for one site, and what the files held when it was made.
#[derive(Clone)]
struct Made {
    client: Client,
    files: Files,
}

/// Opens HTTP clients, each for one site.
#[derive(Debug)]
struct Clients {
    settings: Settings,
    /// A key that shows whether a site serves: a linearizable read of it needs a leader.
    probe: String,
    /// What the files held when they were used last.
    files: RefCell<Files>,
    tls: TlsCache,
    heard: Heard,
}

/// What sites have shown of themselves.
#[derive(Debug, Default)]
struct Heard {
    /// Whether one has ever had the keys API.
    has_keys: Cell<bool>,
    /// How many of the last call had no keys API.
    without_keys: Cell<usize>,
    /// Whether one of the last call has answered in HTTP/1.1.
    spoke: Cell<bool>,
    /// Whether one of the last call has closed the connection on a request, or answered in another protocol.
    broke: Cell<bool>,
}

impl Heard {
    /// A call begins.
    fn begin(&self) {
        self.without_keys.set(0);
        self.spoke.set(false);
        self.broke.set(false);
    }

    /// This site has no keys API, and another one may have it.
    fn no_keys(&self) -> Failure {
        self.without_keys.set(self.without_keys.get() + 1);
        Failure::Unreached(Unusable::NoKeysApi.into())
    }
}

impl Opener for Clients {
    type Made = Made;

    async fn open(&self, site: &Site) -> Result<Made, Failure> {
        // Another endpoint would not mend a file.
        let files = Files::read(&self.settings).map_err(Failure::Answered)?;
        self.files.replace(files.clone());
        let (cache, settings, held) = (self.tls.clone(), self.settings.clone(), files.clone());
        // Only an endpoint of https, or a redirect to one, needs the certificates.
        let tls = move || cache.get(&settings, &held, Protocol::Http1);
        if site.endpoint.url.starts_with("https://") {
            // A file at fault is named now, and not taken for a server that cannot be reached.
            tls().map_err(Failure::Answered)?;
        }
        let client = Client::new(site, tls, self.settings.timeout / 2);
        let made = Made { client, files };
        let probe = Request::get(self.probe.clone(), false);
        let response = request(&made, &site.endpoint.url, &self.settings, &probe)?;
        let response = response.send().await.map_err(|error| {
            self.heard.broke.set(self.heard.broke.get() || error.breaks_http1());
            client::failure(error)
        })?;
        self.heard.spoke.set(true);
        match whole(response).await {
            // Every request would be refused like this one, and each refusal costs etcd the hash of a password.
            Err(failure @ (Failure::Unreached(_) | Failure::Answered(Error::Denied(_)))) => Err(failure),
            Ok(None) => Err(self.heard.no_keys()),
            Ok(Some(_)) => {
                self.heard.has_keys.set(true);
                Ok(made)
            }
            // A refusal is an answer too.
            Err(Failure::Answered(_)) => Ok(made),
        }
    }

    async fn enter(&self, _: &Made) -> Result<(), Failure> {
        Ok(())
    }
}

/// The endpoints and the clients that talk to them.
#[derive(Debug)]
pub(super) struct Http {
    endpoints: Endpoints<Clients>,
    /// What keeps refused reads from being repeated too often. A refused read closes the way for writes too.
    reads: Gate,
    /// The same for writes: a user who may only read can still follow the peers.
    writes: Gate,
}

impl Http {
    pub(super) fn new(settings: Settings, probe: String, tls: TlsCache) -> Result<Self, Error> {
        let clients = Clients {
            settings: settings.clone(),
            probe,
            files: RefCell::default(),
            tls,
            heard: Heard::default(),
        };
        let endpoints = Endpoints::new(&settings, clients)?;
        Ok(Self { endpoints, reads: Gate::new(), writes: Gate::new() })
    }

    /// Makes a call, unless the store has just refused us.
    async fn guarded<T>(
        &self,
        request: &Request,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let clients = self.endpoints.opener();
        let now = Instant::now();
        let mut gate = &self.reads;
        gate.pass(now, &clients.settings)?;
        if request.method != Method::GET {
            gate = &self.writes;
            gate.pass(now, &clients.settings)?;
        }
        clients.heard.begin();
        let result = call.await;
        match &result {
            Err(Error::Denied(reason)) => {
                let (files, cost) = (clients.files.borrow().clone(), Cost::of(self.endpoints.unreached()));
                gate.close(Instant::now(), reason, files, cost);
                // The next client reads the files again.
                self.endpoints.renew();
            }
            Err(Error::Unavailable(_) | Error::Invalid(_)) => {}
            _ => gate.accepted(),
        }
        result
    }

    /// Gives up the connection: the next call makes another.
    pub(super) fn renew(&self) {
        self.endpoints.renew();
    }

    /// Waits until the files hold something else, and gives up the connection that was made with what they held.
    pub(super) async fn admission(&self) {
        Files::changed(&self.endpoints.opener().settings).await;
        self.endpoints.renew();
    }

    /// Notes that what was opened in this generation is dead: the next request starts at another site if there is one.
    pub(super) fn fail(&self, generation: u64) {
        self.endpoints.fail(generation);
    }

    /// A number that changes whenever the site in use has failed.
    pub(super) fn generation(&self) -> u64 {
        self.endpoints.generation()
    }

    /// The deadline of a request.
    pub(super) fn timeout(&self) -> Duration {
        self.endpoints.timeout()
    }

    /// How long one poll may bring nothing before it is begun anew.
    pub(super) fn patience(&self) -> Duration {
        self.endpoints.patience()
    }

    /// Whether the sites of the last call speak another protocol than HTTP/1.1, those that answer at all.
    pub(super) fn has_no_http1(&self) -> bool {
        let heard = &self.endpoints.opener().heard;
        heard.broke.get() && !heard.spoke.get()
    }

    /// Sends a request to the first site that has the keys API. `None`: no server has it.
    pub(super) async fn ask(&self, request: &Request) -> Result<Option<Answer>, Error> {
        let heard = &self.endpoints.opener().heard;
        let call =
            async |made: &Made, attempt: &Attempt<'_>| match whole(self.start(made, request, attempt).await?)
                .await?
            {
                Some(answer) => Ok(answer),
                None => {
                    attempt.write_undone();
                    Err(heard.no_keys())
                }
            };
        let result = self.guarded(request, self.endpoints.ask(call)).await;
        let is_read = request.method == Method::GET;
        let never_seen = heard.without_keys.get() > 0 && !heard.has_keys.get();
        match result {
            // Whether a write has happened is open.
            Err(Error::Unavailable(_)) if is_read && never_seen => Ok(None),
            other => other.map(Some),
        }
    }

    /// Sends a request to the first site that answers, which must have the keys API.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Error> {
        self.ask(request).await?.ok_or_else(|| Unusable::NoKeysApi.into())
    }

    /// Sends a long poll and waits for the head of its answer, which a proxy may withhold until there is an event. The
    /// body comes later; a refusal comes instead of it. `sent` learns the generation as soon as the poll is on its way.
    pub(super) async fn poll(
        &self,
        request: &Request,
        sent: &Cell<Option<u64>>,
    ) -> Result<Result<Response, Fault>, Error> {
        let call = async |made: &Made, attempt: &Attempt<'_>| {
            sent.set(Some(attempt.generation));
            let response = self.start(made, request, attempt).await?;
            if response.status().is_success() {
                return Ok(Ok(response));
            }
            match whole(response).await? {
                Some(Answer::Failed(fault)) => Ok(Err(fault)),
                None => Err(self.endpoints.opener().heard.no_keys()),
                Some(Answer::Done { .. }) => Err(unreached("a watch without an answer".to_owned(), None)),
            }
        };
        self.guarded(request, self.endpoints.ask_for(self.patience() + self.timeout(), call)).await
    }

    /// The index of the store, by a read that needs the quorum.
    pub(super) async fn quorum_index(&self, key: String) -> Result<Revision, Error> {
        match self.send(&Request::get(key, false)).await? {
            Answer::Done { index: Some(index), .. } => Ok(index),
            Answer::Done { .. } => Err(Error::Invalid("an answer without X-Etcd-Index".to_owned())),
            Answer::Failed(Fault { code: answer::fault::NO_KEY, index, .. }) => Ok(index),
            Answer::Failed(fault) => Err(fault.into()),
        }
    }

    /// The major version of the server, as `/version` tells it.
    pub(super) async fn server_major(&self) -> Result<u64, Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            etcdserver: String,
        }
        let body = self
            .endpoints
            .ask(async |made, attempt| {
                let request = made.client.get(root(attempt.url, ["version"]).map_err(Failure::Answered)?);
                let response = request.send().await.map_err(client::failure)?;
                body(response).await
            })
            .await?;
        let version: Option<Version> = serde_json::from_slice(&body).ok();
        version
            .and_then(|version| version.etcdserver.split('.').next()?.parse().ok())
            .ok_or_else(|| Error::Invalid("the server does not tell its version".to_owned()))
    }

    /// Sends a request and waits for the head of the answer.
    async fn start(&self, made: &Made, wanted: &Request, attempt: &Attempt<'_>) -> Result<Response, Failure> {
        let http = request(made, attempt.url, &self.endpoints.opener().settings, wanted)?;
        if wanted.method != Method::GET {
            attempt.write_leaves();
        }
        http.send().await.map_err(|error| {
            if error.is_connect() {
                attempt.write_undone();
            }
            client::failure(error)
        })
    }
}

/// The request of HTTP that asks this endpoint for what is wanted.
fn request(
    made: &Made,
    endpoint: &str,
    settings: &Settings,
    wanted: &Request,
) -> Result<RequestBuilder, Failure> {
    let url = url(endpoint, &wanted.key).map_err(Failure::Answered)?;
    let mut http = made.client.request(wanted.method.clone(), url).query(&wanted.query);
    if !wanted.form.is_empty() {
        http = http.form(&wanted.form);
    }
    if let Some((name, password)) = made.files.user(settings) {
        http = http.basic_auth(name, password);
    }
    Ok(http)
}

/// The URL `<endpoint>/v2/keys<key>`. Characters that a URL cannot hold are escaped.
fn url(endpoint: &str, key: &str) -> Result<Url, Error> {
    let elements = key.split('/').filter(|element| !element.is_empty());
    let url = root(endpoint, ["v2", "keys"].into_iter().chain(elements))?;
    debug_assert!(url.path().contains("/v2/keys"), "{url} is not below the keys API");
    Ok(url)
}

/// A URL below the endpoint, which may have a path itself.
fn root<'a>(endpoint: &str, elements: impl IntoIterator<Item = &'a str>) -> Result<Url, Error> {
    let invalid = || Error::Invalid(format!("{endpoint} is no HTTP URL"));
    let mut url = Url::parse(endpoint).map_err(|_| invalid())?;
    url.path_segments_mut().map_err(|()| invalid())?.pop_if_empty().extend(elements);
    Ok(url)
}

/// Reads the whole answer. `None`: the server has no keys API.
async fn whole(response: Response) -> Result<Option<Answer>, Failure> {
    let status = response.status();
    let index = index(&response);
    let body = body(response).await?;
    match answer::read(status, index, &body) {
        Ok(Answer::Failed(fault)) if status.is_server_error() => {
            Err(Failure::Unreached(Error::Unavailable(Error::from(fault).to_string())))
        }
        Ok(Answer::Failed(fault)) if fault.code == answer::fault::UNAUTHENTICATED => {
            Err(Failure::Answered(fault.into()))
        }
        Ok(answer) => Ok(Some(answer)),
        Err(Unusable::NoKeysApi) => Ok(None),
        Err(Unusable::Failed(error @ Error::Unavailable(_))) => Err(Failure::Unreached(error)),
        Err(Unusable::Failed(error)) => Err(Failure::Answered(error)),
    }
}

/// The index of the store when it began to answer (`X-Etcd-Index`).
pub(super) fn index(response: &Response) -> Option<Revision> {
    response.headers().get("x-etcd-index")?.to_str().ok()?.parse().ok()
}

/// Reads the body of an answer, within its limit.
async fn body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(client::failure)? {
        append(&mut body, &chunk).map_err(Failure::Answered)?;
    }
    Ok(body)
}

/// Adds a chunk to a body, within its limit.
pub(super) fn append(body: &mut Vec<u8>, chunk: &[u8]) -> Result<(), Error> {
    if body.len() + chunk.len() > MOST_BYTES {
        return Err(Error::Invalid(format!("an answer of more than {MOST_BYTES} bytes")));
    }
    body.extend_from_slice(chunk);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn urls_hold_any_key() {
        let url = |endpoint, key| super::url(endpoint, key).map(String::from);
        let dual = url("http://h:1", "/a/subnets/10.1.5.0-24&fc00::-64");
        assert_eq!(dual.as_deref(), Ok("http://h:1/v2/keys/a/subnets/10.1.5.0-24&fc00::-64"));
        assert_eq!(
            url("http://h:1/", "/a b/%?/config").as_deref(),
            Ok("http://h:1/v2/keys/a%20b/%25%3F/config")
        );
    }
}
