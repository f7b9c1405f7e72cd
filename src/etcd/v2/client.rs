//! The HTTP/1.1 client of the keys API: requests to one site, redirects, and bodies in chunks.

use crate::etcd::dial::{Link, tcp};
use crate::etcd::endpoints::{Failure, chain, unreached};
use crate::etcd::refusal::{NoHttp1, find};
use crate::etcd::sites::Site;
use crate::etcd::tls::Tls;
use crate::store::Error;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client as Legacy};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;
use url::Url;

/// The most redirects that are followed for one request.
const MOST_REDIRECTS: usize = 10;

/// A client for one site. It uses no proxy: the store of a control plane is near, and gRPC uses none either.
#[derive(Clone)]
pub(super) struct Client(Legacy<Connector, Full<Bytes>>);

/// A request that is being put together.
pub(super) struct RequestBuilder {
    client: Client,
    method: Method,
    url: Url,
    form: Option<String>,
    authorization: Option<String>,
}

/// An answer whose head has come.
pub(super) struct Response(hyper::Response<Incoming>);

/// Why a request has failed.
#[derive(Debug)]
pub(super) enum HttpError {
    Client(legacy::Error),
    Body(hyper::Error),
    Other(String),
}

impl HttpError {
    /// Whether there was no connection, so that nothing was sent.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_connect())
    }

    /// Whether there was a server that does not speak HTTP/1.1: it does not offer it, or it closed the connection on a
    /// request, or it answered in another protocol.
    pub(super) fn breaks_http1(&self) -> bool {
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        // A server of HTTP/2 may speak before it is asked, which hyper has no name for.
        let is_other = !self.is_connect()
            && find::<hyper::Error>(self).is_some()
            && find::<io::Error>(self).is_none_or(is_reset);
        is_other || find::<NoHttp1>(self).is_some()
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Body(error) => error.fmt(f),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl StdError for HttpError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Client(error) => error.source(),
            Self::Body(error) => error.source(),
            Self::Other(_) => None,
        }
    }
}

/// The text of an error and its causes.
pub(super) fn text(error: &HttpError) -> String {
    chain(error)
}

/// The meaning of an error for the attempt that met it.
pub(super) fn failure(error: HttpError) -> Failure {
    unreached(chain(&error), Some(&error))
}

/// Makes TLS when a connection needs it.
type MakeTls = Arc<dyn Fn() -> Result<Tls, Error> + Send + Sync>;

impl Client {
    /// A client whose connections have `limit` to be made.
    pub(super) fn new(
        site: &Site,
        tls: impl Fn() -> Result<Tls, Error> + Send + Sync + 'static,
        limit: Duration,
    ) -> Self {
        let endpoint = &site.endpoint;
        let (host, port, address) = (endpoint.host.clone(), endpoint.port, site.address);
        let tls: MakeTls = Arc::new(tls);
        Self(Legacy::builder(TokioExecutor::new()).build(Connector { host, port, address, limit, tls }))
    }

    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        RequestBuilder { client: self.clone(), method, url, form: None, authorization: None }
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.request(Method::GET, url)
    }
}

impl RequestBuilder {
    /// Adds pairs to the URL.
    pub(super) fn query(mut self, pairs: &[(&'static str, String)]) -> Self {
        if !pairs.is_empty() {
            self.url.query_pairs_mut().extend_pairs(pairs);
        }
        self
    }

    /// Sends pairs as the body.
    pub(super) fn form(mut self, pairs: &[(&'static str, String)]) -> Self {
        self.form = Some(url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish());
        self
    }

    pub(super) fn basic_auth(mut self, name: &str, password: &str) -> Self {
        let pair = openssl::base64::encode_block(format!("{name}:{password}").as_bytes());
        self.authorization = Some(format!("Basic {pair}"));
        self
    }

    /// Sends the request and waits for the head of its answer. Redirects are followed; the user's name goes to no other
    /// server.
    pub(super) async fn send(self) -> Result<Response, HttpError> {
        let other = |error: &dyn fmt::Display| HttpError::Other(error.to_string());
        let (mut url, origin) = (self.url.clone(), self.url.origin());
        for _ in 0..=MOST_REDIRECTS {
            let uri: Uri = url.as_str().parse().map_err(|error| other(&error))?;
            let mut request = Request::builder().method(self.method.clone()).uri(uri);
            if self.form.is_some() {
                request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            }
            if let Some(user) = self.authorization.as_ref().filter(|_| url.origin() == origin) {
                request = request.header(AUTHORIZATION, user);
            }
            let body = Full::new(Bytes::from(self.form.clone().unwrap_or_default()));
            let request = request.body(body).map_err(|error| other(&error))?;
            let response = self.client.0.request(request).await.map_err(HttpError::Client)?;
            let Some(target) = self.redirected(&url, &response) else { return Ok(Response(response)) };
            url = target;
        }
        Err(HttpError::Other(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// Where a redirect leads. The older kinds of redirects are followed for reads alone.
    fn redirected(&self, from: &Url, response: &hyper::Response<Incoming>) -> Option<Url> {
        let of_all =
            matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        let of_reads = matches!(response.status(), StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND);
        let followed = of_all || (of_reads && self.method == Method::GET);
        let target = response.headers().get(LOCATION).filter(|_| followed)?;
        let target = from.join(target.to_str().ok()?).ok()?;
        matches!(target.scheme(), "http" | "https").then_some(target)
    }
}

impl Response {
    pub(super) fn status(&self) -> StatusCode {
        self.0.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// The next part of the body; `None` at its end. Dropping the future loses nothing.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        while let Some(frame) = self.0.body_mut().frame().await {
            if let Ok(data) = frame.map_err(HttpError::Body)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// Makes connections to the site, and to where it redirects.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    address: SocketAddr,
    limit: Duration,
    tls: MakeTls,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Link<TcpStream>>> {
        let is_tls = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = if host == self.host && port == self.port {
            tcp(self.address).await?
        } else {
            let mut found = tokio::net::lookup_host((host, port)).await?;
            tcp(found.next().ok_or_else(|| io::Error::other(format!("{host} has no address")))?).await?
        };
        if !is_tls {
            return Ok(TokioIo::new(Link::Plain(stream)));
        }
        let tls = (self.tls)().map_err(io::Error::other)?;
        Ok(TokioIo::new(Link::Tls(Box::new(tls.connect(host, stream).await?))))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Link<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let limit = connector.limit;
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"));
            timeout(limit, connector.connect(uri)).await.map_err(late)?
        })
    }
}

impl Connection for Link<TcpStream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
