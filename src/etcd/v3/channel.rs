//! The channel to one site: a TCP connection, TLS where the URL asks for it, and HTTP/2 on top.

use super::pings::{self, Pings, Rhythm};
use crate::etcd::Settings;
use crate::etcd::dial::{Link, tcp};
use crate::etcd::endpoints::{Failure, chain, unreached};
use crate::etcd::files::Files;
use crate::etcd::refusal::{NoHttp2, find};
use crate::etcd::sites::Site;
use crate::etcd::tls::{Protocol, Tls, TlsCache};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};

/// How long a server may take to say why it refuses us, once it has closed a connection.
const LISTEN: Duration = Duration::from_secs(1);
/// The type of the frame that a server sends first (RFC 9113 section 3.4, SETTINGS), and where it stands in the frame.
const SETTINGS: u8 = 4;
const TYPE_AT: usize = 3;

/// A channel, and what its server shows of itself.
pub(super) struct Opened {
    pub(super) channel: Channel,
    pub(super) signs: Arc<Signs>,
    /// What knows why a server has refused us after the handshake.
    pub(super) tls: Option<Tls>,
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
    tls: &TlsCache,
    pings: &Pings,
) -> Result<Opened, Closed> {
    let closed = |failure| Closed { failure, is_http1: false };
    let invalid = |error: tonic::transport::Error| closed(unreached(chain(&error), Some(&error)));
    let url = &site.endpoint.url;
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(invalid)?
        .connect_timeout(settings.timeout / 2)
        .http2_keep_alive_interval(pings.after())
        .keep_alive_timeout(pings::ANSWER)
        // etcd treats pings without an open stream as abuse, and closes the connection after the third.
        .keep_alive_while_idle(false);
    let is_tls = url.starts_with("https://");
    let made = is_tls.then(|| tls.get(settings, files, Protocol::Http2)).transpose();
    let tls = made.map_err(|error| closed(Failure::Answered(error)))?;
    // Without a handshake of TLS there is no channel.
    let signs = Arc::new(Signs { spoke: AtomicBool::new(tls.is_some()), ..Signs::default() });
    let (shared, pings) = (Arc::clone(&signs), pings.clone());
    let (over, host, address) = (tls.clone(), site.endpoint.host.clone(), site.address);
    let connector = tower::service_fn(move |_| {
        let (tls, host) = (over.clone(), host.clone());
        // Below TLS, the first bytes are those of its handshake.
        let signs = tls.is_none().then(|| Arc::clone(&shared));
        let rhythm = Rhythm::new(&pings, Instant::now());
        async move {
            let stream = Watched { stream: tcp(address).await?, seen: 0, signs, rhythm };
            let link = match tls {
                Some(tls) => Link::Tls(Box::new(tls.connect(&host, stream).await?)),
                None => Link::Plain(stream),
            };
            io::Result::Ok(TokioIo::new(link))
        }
    });
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(Opened { channel, signs, tls }),
        Err(error) => {
            let is_http1 = find::<NoHttp2>(&error).is_some();
            let text = if is_http1 { without_http2() } else { chain(&error) };
            Err(Closed { failure: unreached(text, Some(&error)), is_http1 })
        }
    }
}

/// Why the server of a broken connection refuses us, if it does.
pub(super) async fn refusal(tls: &Tls, site: &Site) -> Option<String> {
    let stream = timeout(LISTEN, tcp(site.address)).await.ok()?.ok()?;
    tls.why(&site.endpoint.host, stream, LISTEN).await
}

/// The text for a server that does not speak HTTP/2.
pub(super) fn without_http2() -> String {
    "it speaks no HTTP/2, so it has no v3 API (an old etcd, or a proxy for HTTP/1.1 only)".to_owned()
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
