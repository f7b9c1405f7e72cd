//! The gRPC connection, of which there is one at a time: connecting, authenticating, and telling errors apart.
//!
//! `etcd-client` can hold several endpoints, but it balances over them blindly, and its own token refresh does not know
//! "revision of auth store is old". So each client gets one endpoint, and a failure replaces the whole client: the
//! certificates are read again and the user is authenticated again.

use crate::etcd::Settings;
use crate::etcd::endpoints::{Attempt, DEFAULT_PATIENCE, Endpoints, Failure, causes, chain, unreached};
use crate::etcd::tls::{self, Pem};
use crate::log::quote;
use crate::store::Error;
use etcd_client::{
    Certificate, Client, ConnectOptions, Error as ClientError, GetOptions, Identity, LeaseTimeToLiveOptions,
    TlsOptions,
};
use std::cell::RefCell;
use std::error::Error as _;
use std::time::Duration;

/// An HTTP/2 ping is sent after this much silence on the connection.
const PING_AFTER: Duration = Duration::from_secs(10);
/// The connection is dead if no answer to a ping comes within this time.
const PING_ANSWER: Duration = Duration::from_secs(5);
const _: () = assert!(PING_AFTER.as_secs() + PING_ANSWER.as_secs() < DEFAULT_PATIENCE);

/// gRPC status codes (grpc.io, "Status codes and their use in gRPC").
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// The connection to the store, made when it is needed.
pub(super) struct Connection {
    settings: Settings,
    /// A key that we may read. Reading it shows whether a new connection works.
    probe: String,
    endpoints: Endpoints,
    /// The client and the generation of endpoints that it was made in.
    client: RefCell<Option<(u64, Client)>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(settings: Settings, probe: String) -> Result<Self, Error> {
        let endpoints = Endpoints::new(&settings)?;
        Ok(Self { settings, probe, endpoints, client: RefCell::new(None) })
    }

    /// The deadline of a request at each endpoint.
    pub(super) fn timeout(&self) -> Duration {
        self.endpoints.timeout()
    }

    /// How long a watch may bring nothing before it is asked for a sign of life.
    pub(super) fn patience(&self) -> Duration {
        self.endpoints.patience()
    }

    /// Notes that the connection is dead: the next call makes a new one, at another endpoint if there is one.
    pub(super) fn turn(&self) {
        self.endpoints.turn();
    }

    /// Makes a call at the first endpoint that answers. If the token is refused, it is replaced once and the call is
    /// repeated. This is safe for writes too, because etcd refuses a token before it writes.
    pub(super) async fn call<T>(
        &self,
        call: impl AsyncFn(&mut Client, &Attempt<'_>) -> Result<T, ClientError>,
    ) -> Result<T, Error> {
        self.endpoints
            .ask(async |attempt| {
                let mut client = self.client(attempt.url).await?;
                match call(&mut client, attempt).await {
                    Err(error) if is_stale_token(&error) => {
                        attempt.write_undone();
                        self.client.borrow_mut().take();
                        let mut client = self.client(attempt.url).await?;
                        call(&mut client, attempt).await
                    }
                    other => other,
                }
                .map_err(failure)
            })
            .await
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

    /// The client at this endpoint. If there is none of this generation, a new one is made.
    async fn client(&self, url: &str) -> Result<Client, Failure> {
        let generation = self.endpoints.generation();
        let present = self.client.borrow().clone();
        if let Some((made, client)) = present
            && made == generation
        {
            return Ok(client);
        }
        let mut client = connect(url, &self.settings).await?;
        // The client connects with its first request. This one may be repeated, which a write may not.
        let options = GetOptions::new().with_keys_only();
        if let Err(error) = client.get(self.probe.clone(), Some(options)).await
            && let Failure::Unreached(error) = failure(error)
        {
            return Err(self.reason(url).await.unwrap_or(Failure::Unreached(error)));
        }
        *self.client.borrow_mut() = Some((generation, client.clone()));
        Ok(client)
    }
}

impl Connection {
    /// Asks why a server has closed a TLS connection. hyper often keeps the alert from a gRPC call, but hands it to a
    /// plain HTTP request. `None` if such a request succeeds or cannot be made.
    async fn reason(&self, url: &str) -> Option<Failure> {
        if !url.starts_with("https://") {
            return None;
        }
        let client = tls::http_client(&self.settings).ok()?;
        let error = client.get(format!("{url}/version")).send().await.err()?;
        Some(tls::failure(error))
    }
}

/// Makes a client for this endpoint and authenticates the user, if the settings name one.
async fn connect(url: &str, settings: &Settings) -> Result<Client, Failure> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(settings.timeout / 2)
        .with_keep_alive(PING_AFTER, PING_ANSWER)
        // etcd treats pings without an open stream as abuse, and closes the connection after the third.
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    if url.starts_with("https://") {
        let pem = Pem::read(settings).map_err(Failure::Unreached)?;
        pem.check()?;
        options = options.with_tls(tls_options(pem));
    }
    let Some(credentials) = &settings.credentials else {
        return Client::connect([url], Some(options)).await.map_err(failure);
    };
    let with_user = options.clone().with_user(&credentials.username, &credentials.password);
    match Client::connect([url], Some(with_user)).await {
        // As in etcd's own client, naming a user is no error where authentication is off.
        Err(error) if error.to_string().contains("authentication is not enabled") => {
            Client::connect([url], Some(options)).await.map_err(failure)
        }
        other => other.map_err(failure),
    }
}

fn tls_options(pem: Pem) -> TlsOptions {
    let options = match pem.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_native_roots(),
    };
    match pem.identity {
        Some((cert, key)) => options.identity(Identity::from_pem(cert, key)),
        None => options,
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
