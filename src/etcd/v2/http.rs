//! The requests of the keys API: their URLs, authentication, TLS, and the change to another endpoint.

use super::answer::{self, Answer, Fault, Unusable};
use crate::etcd::Settings;
use crate::etcd::endpoints::{Attempt, Endpoints, Failure, MOST_BYTES, unreached};
use crate::etcd::tls;
use crate::store::{Error, Revision};
use reqwest::{Client, Method, Response, Url};
use std::cell::RefCell;
use std::time::Duration;

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

/// The endpoints and the client that talks to them.
pub(super) struct Http {
    settings: Settings,
    endpoints: Endpoints,
    /// The client and the generation of endpoints that it was made in.
    client: RefCell<Option<(u64, Client)>>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Http {
    pub(super) fn new(settings: Settings) -> Result<Self, Error> {
        let endpoints = Endpoints::new(&settings)?;
        Ok(Self { settings, endpoints, client: RefCell::new(None) })
    }

    /// Notes that the connection is dead: the next request starts at another endpoint if there is one.
    pub(super) fn turn(&self) {
        self.endpoints.turn();
    }

    /// The deadline of a request.
    pub(super) fn timeout(&self) -> Duration {
        self.endpoints.timeout()
    }

    /// How long one poll may bring nothing before it is begun anew.
    pub(super) fn patience(&self) -> Duration {
        self.endpoints.patience()
    }

    /// Sends a request to the first endpoint that answers. `None`: the server has no keys API.
    pub(super) async fn ask(&self, request: &Request) -> Result<Option<Answer>, Error> {
        self.endpoints.ask(async |attempt| whole(self.start(request, attempt).await?).await).await
    }

    /// Sends a request to the first endpoint that answers, which must have the keys API.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Error> {
        self.ask(request).await?.ok_or_else(|| Unusable::NoKeysApi.into())
    }

    /// Starts a long poll. Its body comes later; a refusal comes at once.
    pub(super) async fn poll(&self, request: &Request) -> Result<Result<Response, Fault>, Error> {
        self.endpoints
            .ask(async |attempt| {
                let response = self.start(request, attempt).await?;
                if response.status().is_success() {
                    return Ok(Ok(response));
                }
                match whole(response).await? {
                    Some(Answer::Failed(fault)) => Ok(Err(fault)),
                    None => Err(Failure::Answered(Unusable::NoKeysApi.into())),
                    Some(Answer::Done { .. }) => Err(unreached("a watch without an answer".to_owned(), None)),
                }
            })
            .await
    }

    /// The major version of the server, as `/version` tells it.
    pub(super) async fn server_major(&self) -> Result<u64, Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            etcdserver: String,
        }
        let body = self
            .endpoints
            .ask(async |attempt| {
                let request = self.client()?.get(format!("{}/version", attempt.url));
                let response = request.send().await.map_err(tls::failure)?;
                body(response).await
            })
            .await?;
        let version: Option<Version> = serde_json::from_slice(&body).ok();
        version
            .and_then(|version| version.etcdserver.split('.').next()?.parse().ok())
            .ok_or_else(|| Error::Invalid("the server does not tell its version".to_owned()))
    }

    /// Sends a request and waits for the head of the answer.
    async fn start(&self, request: &Request, attempt: &Attempt<'_>) -> Result<Response, Failure> {
        let url = url(attempt.url, &request.key).map_err(Failure::Answered)?;
        let mut http = self.client()?.request(request.method.clone(), url).query(&request.query);
        if !request.form.is_empty() {
            http = http.form(&request.form);
        }
        if let Some(user) = &self.settings.credentials {
            http = http.basic_auth(&user.username, Some(&user.password));
        }
        if request.method != Method::GET {
            attempt.write_leaves();
        }
        http.send().await.map_err(|error| {
            if error.is_connect() {
                attempt.write_undone();
            }
            tls::failure(error)
        })
    }

    /// The client. If an endpoint has failed since it was made, a new one takes its place.
    fn client(&self) -> Result<Client, Failure> {
        let generation = self.endpoints.generation();
        if let Some((made, client)) = &*self.client.borrow()
            && *made == generation
        {
            return Ok(client.clone());
        }
        let client = tls::http_client(&self.settings).map_err(Failure::Unreached)?;
        *self.client.borrow_mut() = Some((generation, client.clone()));
        Ok(client)
    }
}

/// The URL `<endpoint>/v2/keys<key>`. Characters that a URL cannot hold are escaped.
fn url(endpoint: &str, key: &str) -> Result<Url, Error> {
    let invalid = || Error::Invalid(format!("{endpoint} is no HTTP URL"));
    let mut url = Url::parse(endpoint).map_err(|_| invalid())?;
    url.path_segments_mut()
        .map_err(|()| invalid())?
        .pop_if_empty()
        .extend(["v2", "keys"])
        .extend(key.split('/').filter(|element| !element.is_empty()));
    debug_assert!(url.path().contains("/v2/keys"), "{url} is not below the keys API");
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
    while let Some(chunk) = response.chunk().await.map_err(tls::failure)? {
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
