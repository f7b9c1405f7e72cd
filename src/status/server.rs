//! The HTTP server takes one request a connection, bounded in number, size and time.

use super::{Ask, PATIENCE, metrics};
use crate::report::State;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};

/// How many connections are served at once. Further ones wait in the listener's queue until one of these ends.
const CONNECTIONS: usize = 64;
/// The longest time from accept to close, whatever the other end does.
const LIMIT: Duration = Duration::from_secs(5);
/// The time for the request's line and headers. It is less than [`LIMIT`], so that a slow client gets its 408.
const HEADER_LIMIT: Duration = Duration::from_secs(3);
/// The most bytes of the request's line and headers (8 KiB is hyper's least).
const HEADER_BYTES: usize = 8192;
const _: () = assert!(HEADER_LIMIT.as_millis() < LIMIT.as_millis(), "a slow client gets its 408");
// A client that was just in time still gets the control loop's answer, or its silence.
const _: () = assert!(HEADER_LIMIT.as_millis() + PATIENCE.as_millis() <= LIMIT.as_millis());
const _: () = assert!(HEADER_BYTES >= 8192, "hyper takes no less");
/// The pause after an accept that failed; most likely the process is out of descriptors.
const RETRY: Duration = Duration::from_millis(200);
const _: () = assert!(RETRY.as_millis() < PATIENCE.as_millis());

/// Binds `address` and serves on a thread of its own until the receiver of the questions is dropped.
///
/// # Errors
/// The address cannot be bound, or the thread not started.
pub fn serve(address: SocketAddr) -> io::Result<(SocketAddr, mpsc::Receiver<Ask>)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (asks, questions) = mpsc::channel(CONNECTIONS);
    std::thread::Builder::new().name("fl-status".to_owned()).spawn(move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = accept(&listener, &asks) => {}
                    () = asks.closed() => {}
                },
                Err(error) => tracing::error!(%error, "no status server"),
            }
        });
    })?;
    Ok((bound, questions))
}

async fn accept(listener: &TcpListener, asks: &mpsc::Sender<Ask>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve_one(stream, asks.clone(), slot))),
            Err(error) => {
                tracing::debug!(%error, "status server: accept failed");
                sleep(RETRY).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, asks: mpsc::Sender<Ask>, _slot: OwnedSemaphorePermit) {
    let service = service_fn(|request: Request<Incoming>| answer(request.uri().path().to_owned(), &asks));
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_header_size(HEADER_BYTES)
        .max_buf_size(HEADER_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LIMIT, connection).await {
        Ok(Ok(())) => {}
        // A client that went away or was cut off is no fault of ours.
        Ok(Err(error)) => tracing::debug!(%error, "status server"),
        Err(_) => tracing::debug!("status server: a connection took too long"),
    }
}

async fn answer(path: String, asks: &mpsc::Sender<Ask>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match path.as_str() {
        "/healthz" => healthz(ask(asks).await.as_deref()),
        "/readyz" => readyz(ask(asks).await.as_deref()),
        "/metrics" => match ask(asks).await {
            Some(networks) => {
                response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::text(&networks))
            }
            None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
        },
        _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    })
}

/// The text of `/healthz` and `/metrics` when the control loop does not answer.
const SILENT: &str = "flanneld's control loop does not answer";

fn healthz(networks: Option<&[State]>) -> Response<Full<Bytes>> {
    match networks {
        Some(networks) if networks.iter().all(|network| network.alive) => {
            plain(StatusCode::OK, "flanneld is running")
        }
        Some(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "a worker of flanneld has ended"),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

fn readyz(networks: Option<&[State]>) -> Response<Full<Bytes>> {
    let networks = networks.unwrap_or_default();
    if !networks.is_empty() && networks.iter().all(|network| network.ready) {
        let mut text = "flanneld is ready".to_owned();
        for State { network, degraded, .. } in networks {
            let Some(reason) = degraded else { continue };
            let of = if network.is_empty() { String::new() } else { format!("network {network} ") };
            text += &format!("; degraded: {of}{reason}");
        }
        return plain(StatusCode::OK, text);
    }
    let hindered =
        networks.iter().filter_map(|network| Some((&network.network, network.hindrance.as_ref()?)));
    let reasons: Vec<String> = hindered
        .map(
            |(name, reason)| {
                if name.is_empty() { reason.clone() } else { format!("network {name} {reason}") }
            },
        )
        .collect();
    if reasons.is_empty() {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet");
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("flanneld is not ready: {}", reasons.join("; ")))
}

/// The control loop's answer, if it comes in time.
async fn ask(asks: &mpsc::Sender<Ask>) -> Option<Vec<State>> {
    let (ask, answer) = Ask::new();
    let exchange = async {
        asks.send(ask).await.ok()?;
        answer.await.ok()
    };
    timeout(PATIENCE, exchange).await.ok().flatten()
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
