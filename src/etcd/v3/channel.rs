//! The channel to one site: a TCP connection, TLS where the URL asks for it, and HTTP/2 on top.

use super::pings::{self, Pings, Rhythm};
use crate::etcd::Settings;
use crate::etcd::endpoints::{Failure, chain, unreached};
use crate::etcd::files::Files;
use crate::etcd::sites::Site;
use crate::etcd::tls;
use etcd_client::{Certificate, Identity, TlsOptions};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, Error as TlsError};
use socket2::{SockRef, TcpKeepalive};
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// The TCP keep-alive: the silence before the first probe, the spacing of probes, and their count. It notices a dead
/// host even where [`super::connection`] has to send its pings rarely.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 2);
/// The type of the frame that a server sends first (RFC 9113 section 3.4, SETTINGS), and where it stands in the frame.
const SETTINGS: u8 = 4;
const TYPE_AT: usize = 3;

/// A channel, and what its server shows of itself.
pub(super) struct Opened {
    pub(super) channel: Channel,
    pub(super) signs: Arc<Signs>,
}

/// What a server shows by its first bytes.
#[derive(Default)]
pub(super) struct Signs {
    /// They are not HTTP/2's.
    pub(super) is_http1: AtomicBool,
    /// There are some.
    pub(super) spoke: AtomicBool,
}

/// Why there is no channel.
pub(super) struct Closed {
    pub(super) failure: Failure,
    /// Whether the server has shown that it does not speak HTTP/2.
    pub(super) is_http1: bool,
}

/// Connects to the site.
pub(super) async fn open(
    site: &Site,
    settings: &Settings,
    files: &Files,
    pings: &Pings,
) -> Result<Opened, Closed> {
    let closed = |failure| Closed { failure, is_http1: false };
    let invalid = |error: tonic::transport::Error| closed(unreached(chain(&error), Some(&error)));
    let url = &site.endpoint.url;
    let mut endpoint = Endpoint::from_shared(url.clone())
        .map_err(invalid)?
        .connect_timeout(settings.timeout / 2)
        .http2_keep_alive_interval(pings.after())
        .keep_alive_timeout(pings::ANSWER)
        // etcd treats pings without an open stream as abuse, and closes the connection after the third.
        .keep_alive_while_idle(false);
    let is_tls = url.starts_with("https://");
    if is_tls {
        tls::check_certificates(files).map_err(|error| closed(Failure::Answered(error)))?;
        endpoint = endpoint.tls_config(tls_options(files)).map_err(invalid)?;
    }
    // Without a handshake of TLS there is no channel.
    let signs = Arc::new(Signs { spoke: AtomicBool::new(is_tls), ..Signs::default() });
    let (address, shared, pings) = (site.address, Arc::clone(&signs), pings.clone());
    let connector = tower::service_fn(move |_| {
        // Below TLS, the first bytes are those of its handshake.
        let signs = (!is_tls).then(|| Arc::clone(&shared));
        let rhythm = Rhythm::new(&pings, Instant::now());
        async move { connect(address, signs, rhythm).await }
    });
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(Opened { channel, signs }),
        Err(error) => {
            let is_http1 = lacks_http2(&error);
            let text = if is_http1 { without_http2() } else { chain(&error) };
            Err(Closed { failure: unreached(text, Some(&error)), is_http1 })
        }
    }
}

/// The text for a server that does not speak HTTP/2.
pub(super) fn without_http2() -> String {
    "it speaks no HTTP/2, so it has no v3 API (an old etcd, or a proxy for HTTP/1.1 only)".to_owned()
}

async fn connect(
    address: SocketAddr,
    signs: Option<Arc<Signs>>,
    rhythm: Rhythm,
) -> io::Result<TokioIo<Watched>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (first, spacing, count) = KEEP_ALIVE;
    let keep_alive = TcpKeepalive::new().with_time(first).with_interval(spacing).with_retries(count);
    SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
    Ok(TokioIo::new(Watched { stream, seen: 0, signs, rhythm }))
}

fn tls_options(files: &Files) -> TlsOptions {
    let options = match &files.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_native_roots(),
    };
    match &files.identity {
        Some((cert, key)) => options.identity(Identity::from_pem(cert, key)),
        None => options,
    }
}

/// Whether a TLS connection has failed because the server offers no HTTP/2: by the alert of RFC 7301, or by tonic's own
/// error, whose type is private.
fn lacks_http2(error: &tonic::transport::Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = next {
        let refused = TlsError::AlertReceived(AlertDescription::NoApplicationProtocol);
        if error.downcast_ref::<TlsError>() == Some(&refused)
            || error.to_string() == "HTTP/2 was not negotiated."
        {
            return true;
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // `source` of an I/O error passes over the error that it holds.
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// A TCP connection that looks at what the server sends. If its first bytes are not the head of HTTP/2's first frame, it
/// does not speak HTTP/2.
struct Watched {
    stream: TcpStream,
    /// How many bytes have come, up to the type of the first frame.
    seen: usize,
    /// Where the findings go; `None` if nobody wants them.
    signs: Option<Arc<Signs>>,
    rhythm: Rhythm,
}

impl Watched {
    fn look(&mut self, bytes: &[u8]) {
        if let Some(signs) = &self.signs {
            signs.spoke.store(true, Ordering::Relaxed);
        }
        if let Some(kind) = bytes.get(TYPE_AT.saturating_sub(self.seen)).filter(|_| self.seen <= TYPE_AT)
            && *kind != SETTINGS
            && let Some(signs) = &self.signs
        {
            signs.is_http1.store(true, Ordering::Relaxed);
        }
        self.seen = self.seen.saturating_add(bytes.len());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.rhythm.dropped(Instant::now());
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let (bytes, now) = (&buf.filled()[before..], Instant::now());
        if bytes.is_empty() {
            self.rhythm.closed(now);
        } else {
            self.rhythm.heard(now, bytes.len());
            self.look(bytes);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
