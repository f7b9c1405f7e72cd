//! The gRPC connection, of which there is one at a time: connecting, authenticating, and telling errors apart.
//!
//! `etcd-client` can hold several endpoints, but it balances over them blindly: while one of them is closed, a quarter
//! of the calls fail (`findings/etcd_client_closed_endpoint.sh`). Its own token refresh does not know "revision of auth
//! store is old". So each client gets one site, and a failure replaces the whole client: the certificates are read
//! again and the user is authenticated again.

use super::channel::{self, Closed, Opened};
use super::pings::Pings;
use crate::etcd::Settings;
use crate::etcd::endpoints::{Attempt, Endpoints, Failure, Opener, causes, chain, unreached};
use crate::etcd::files::Files;
use crate::etcd::gate::{Cost, Gate};
use crate::etcd::sites::Site;
use crate::etcd::tls::TlsCache;
use crate::log::quote;
use crate::store::Error;
use etcd_client::{
    Channel, Client, ConnectOptions, Error as ClientError, GetOptions, LeaseTimeToLiveOptions,
};
use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// gRPC status codes (grpc.io, "Status codes and their use in gRPC").
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Opens clients, each for one site.
struct Clients {
    settings: Settings,
    /// What the files held when they were used last.
    files: RefCell<Files>,
    /// A key that we may read. Reading it shows whether a site serves.
    probe: String,
    tls: TlsCache,
    pings: Pings,
    /// Whether a server of this store has ever spoken HTTP/2.
    speaks_http2: Cell<bool>,
    /// How many sites have shown that they do not speak HTTP/2, during the last call.
    without_http2: Cell<usize>,
    /// How many sites have closed a connection without a word, during the last call.
    hung_up: Cell<usize>,
}

impl Opener for Clients {
    type Made = Client;

    /// Connects, and reads a key without a user: a server that serves answers or refuses. An authentication is dear to
    /// etcd, so only the site that wins is asked for one.
    async fn open(&self, site: &Site) -> Result<Client, Failure> {
        let files = self.read_files()?;
        let Opened { channel, signs, tls } =
            match channel::open(site, &self.settings, &files, &self.tls, &self.pings).await {
                Ok(opened) => opened,
                Err(Closed { failure, is_http1 }) => {
                    self.without_http2.set(self.without_http2.get() + usize::from(is_http1));
                    return Err(failure);
                }
            };
        let options = ConnectOptions::new().with_require_leader(true);
        let mut client =
            Client::from_channel(Channel::Tonic(channel), Some(options)).await.map_err(failure)?;
        let keys_only = GetOptions::new().with_keys_only();
        if let Err(error) = client.get(self.probe.clone(), Some(keys_only)).await
            && let Failure::Unreached(error) = failure(error)
        {
            self.hung_up.set(self.hung_up.get() + usize::from(!signs.spoke.load(Ordering::Relaxed)));
            if signs.is_http1.load(Ordering::Relaxed) {
                self.without_http2.set(self.without_http2.get() + 1);
                return Err(unreached(channel::without_http2(), None));
            }
            let refusal = match &tls {
                Some(tls) => channel::refusal(tls, site).await,
                None => None,
            };
            return Err(Failure::Unreached(refusal.map_or(error, Error::Denied)));
        }
        self.speaks_http2.set(true);
        Ok(client)
    }

    async fn enter(&self, client: &Client) -> Result<(), Failure> {
        let files = self.read_files()?;
        let Some((name, password)) = files.user(&self.settings) else {
            return Ok(());
        };
        match client.clone().update_user(Some((name.to_owned(), password.to_owned()))).await {
            // As in etcd's own client, naming a user is no error where authentication is off.
            Err(error) if error.to_string().contains("authentication is not enabled") => Ok(()),
            other => other.map_err(failure),
        }
    }
}

impl Clients {
    /// The files as they are at this moment.
    fn read_files(&self) -> Result<Files, Failure> {
        // Another endpoint would not mend a file.
        let files = Files::read(&self.settings).map_err(Failure::Answered)?;
        self.files.replace(files.clone());
        Ok(files)
    }
}

/// The connection to the store, made when it is needed.
#[derive(Debug)]
pub(super) struct Connection {
    endpoints: Endpoints<Clients>,
    gate: Gate,
}

impl Connection {
    pub(super) fn new(settings: Settings, probe: String, tls: TlsCache) -> Result<Self, Error> {
        let opener = Clients {
            settings: settings.clone(),
            files: RefCell::default(),
            probe,
            tls,
            pings: Pings::default(),
            speaks_http2: Cell::new(false),
            without_http2: Cell::new(0),
            hung_up: Cell::new(0),
        };
        Ok(Self { endpoints: Endpoints::new(&settings, opener)?, gate: Gate::new() })
    }

    /// Whether every site that the last call has tried has shown that it does not speak HTTP/2. One that is silent may
    /// have the v3 API.
    pub(super) fn has_no_http2(&self) -> bool {
        let (clients, tried) = (self.endpoints.opener(), self.endpoints.unreached());
        tried > 0 && clients.without_http2.get() == tried && !clients.speaks_http2.get()
    }

    /// Whether a site that the last call has tried does not speak HTTP/2, or has hung up on it.
    pub(super) fn lacks_http2(&self) -> bool {
        let clients = self.endpoints.opener();
        clients.without_http2.get() + clients.hung_up.get() > 0 && !clients.speaks_http2.get()
    }

    /// Whether every site that the last call has tried has shown that it does not speak HTTP/2, or has closed the
    /// connection upon the first bytes of it, without a word. A server for HTTP/1.1 may do that, and so may a server that
    /// is about to stop.
    pub(super) fn hung_up(&self) -> bool {
        let (clients, tried) = (self.endpoints.opener(), self.endpoints.unreached());
        let refusing = clients.without_http2.get() + clients.hung_up.get();
        tried > 0 && refusing == tried && !clients.speaks_http2.get()
    }

    /// The deadline of a request at each endpoint.
    pub(super) fn timeout(&self) -> Duration {
        self.endpoints.timeout()
    }

    /// How long a watch may bring nothing before it is asked for a sign of life.
    pub(super) fn patience(&self) -> Duration {
        self.endpoints.patience()
    }

    /// Gives up the connection: the next call makes another.
    pub(super) fn renew(&self) {
        self.endpoints.renew();
    }

    /// Notes that what was made in this generation is dead: the next call makes a new connection, at another site if
    /// there is one.
    pub(super) fn fail(&self, generation: u64) {
        self.endpoints.fail(generation);
    }

    /// Waits until what was made in this generation is dead.
    pub(super) async fn replaced(&self, generation: u64) {
        self.endpoints.replaced(generation).await;
    }

    /// Waits until the files hold something else, and gives up the connection that was made with what they held.
    pub(super) async fn admission(&self) {
        Files::changed(&self.endpoints.opener().settings).await;
        self.endpoints.renew();
    }

    /// Makes a call at the first site that answers. If the token is refused, it is replaced once and the call is
    /// repeated. This is safe for writes too, because etcd refuses a token before it writes.
    pub(super) async fn call<T>(
        &self,
        call: impl AsyncFn(&mut Client, &Attempt<'_>) -> Result<T, ClientError>,
    ) -> Result<T, Error> {
        let clients = self.endpoints.opener();
        self.gate.pass(Instant::now(), &clients.settings)?;
        clients.without_http2.set(0);
        clients.hung_up.set(0);
        // Whether what failed last took a handshake or a password. What a valid token may not do costs etcd nothing.
        let costly = Cell::new(true);
        let result = self
            .endpoints
            .ask(async |client, attempt| {
                let mut client = client.clone();
                costly.set(false);
                let result = match call(&mut client, attempt).await {
                    Err(error) if is_stale_token(&error) => {
                        attempt.write_undone();
                        costly.set(true);
                        clients.enter(&client).await?;
                        call(&mut client, attempt).await
                    }
                    other => other,
                };
                let result = result.map_err(failure);
                // The next site may refuse the connection.
                costly.set(costly.get() || matches!(result, Err(Failure::Unreached(_))));
                result
            })
            .await;
        match &result {
            Err(Error::Denied(reason)) if costly.get() => {
                let (files, cost) = (clients.files.borrow().clone(), Cost::of(self.endpoints.unreached()));
                self.gate.close(Instant::now(), reason, files, cost);
            }
            Ok(_) => self.gate.accepted(),
            Err(_) => {}
        }
        result
    }

    /// Revokes a lease if no key hangs on it.
    pub(super) async fn revoke_if_unused(&self, id: i64) -> Result<(), Error> {
        self.call(async |client, _| {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            let lease = client.lease_time_to_live(id, Some(options)).await?;
            if lease.ttl() > 0 && lease.keys().is_empty() {
                client.lease_revoke(id).await?;
            }
            Ok(())
        })
        .await
    }
}

/// Whether the token has expired, or users or roles have changed since it was issued. A watch reports a bad token as
/// "permission denied", so a watch that is denied is tried once more as well.
fn is_stale_token(error: &ClientError) -> bool {
    let text = error.to_string();
    let stale = text.contains("invalid auth token") || text.contains("revision of auth store is old");
    stale || (matches!(error, ClientError::WatchError(_)) && text.contains("permission denied"))
}

/// The meaning of an error of `etcd-client` for a call.
pub(super) fn failure(error: ClientError) -> Failure {
    match &error {
        ClientError::GRpcStatus(status) => {
            let text = quote(status.message());
            match i32::from(status.code()) {
                code::UNAUTHENTICATED | code::PERMISSION_DENIED => Failure::Answered(Error::Denied(text)),
                code::INVALID_ARGUMENT if text.contains("auth") || text.contains("user") => {
                    Failure::Answered(Error::Denied(text))
                }
                // Every member refuses writes until an operator makes room and disarms the alarm.
                code::RESOURCE_EXHAUSTED if text.contains("database space exceeded") => {
                    Failure::Answered(Error::Denied(text))
                }
                code::OUT_OF_RANGE if text.contains("compacted") => Failure::Answered(Error::Compacted),
                code::INVALID_ARGUMENT | code::FAILED_PRECONDITION | code::UNIMPLEMENTED => {
                    Failure::Answered(Error::Invalid(text))
                }
                // The etcd lease ended between its grant and the put, so nothing was written.
                code::NOT_FOUND => Failure::Answered(Error::Unavailable(text)),
                // The text that a status prints of itself would hold its source in Rust's debug form.
                _ => {
                    let cause = status.source();
                    unreached(causes(format!("{text} ({:?})", status.code()), cause), cause)
                }
            }
        }
        ClientError::WatchError(text) if text.contains("permission denied") || text.contains("auth") => {
            Failure::Answered(Error::Denied(quote(text)))
        }
        ClientError::InvalidArgs(text) => Failure::Answered(Error::Invalid(quote(text))),
        ClientError::TransportError(error) => unreached(chain(error), Some(error)),
        other => unreached(quote(&other.to_string()), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::endpoints::seconds;
    use std::io::{self, ErrorKind};

    #[test]
    fn a_ttl_is_rounded_up_to_a_second() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1500)), 2);
        assert_eq!(seconds(Duration::from_secs(86_400)), 86_400);
    }

    #[test]
    fn what_a_server_says_fits_on_a_line() {
        let odd = format!("permission denied or auth\r\nuser \x1b[2J{}", "x".repeat(1 << 20));
        let kinds =
            [ErrorKind::InvalidInput, ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::Other];
        let statuses = kinds.map(|kind| ClientError::GRpcStatus(io::Error::new(kind, odd.as_str()).into()));
        let errors = [ClientError::WatchError(odd.clone()), ClientError::InvalidArgs(odd.clone())];
        for error in statuses.into_iter().chain(errors) {
            let (Failure::Answered(error) | Failure::Unreached(error)) = failure(error);
            let text = error.to_string();
            assert!(text.contains(r"auth\r\nuser \u{1b}[2Jx") && text.len() < 300, "{text:.300}");
        }
    }

    #[test]
    fn refusals_are_told_from_silence() {
        let denied = failure(ClientError::WatchError("etcdserver: permission denied".to_owned()));
        assert!(matches!(denied, Failure::Answered(Error::Denied(_))));
        let lost = failure(ClientError::WatchError("channel closed".to_owned()));
        assert!(matches!(lost, Failure::Unreached(Error::Unavailable(_))));
    }
}
