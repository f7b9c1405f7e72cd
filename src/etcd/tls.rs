//! TLS towards etcd, by OpenSSL: who is trusted, what we show, and a sentence for every refusal.
//!
//! What a server or a client may show is decided as Go's `crypto/tls` decides, since that is what flannel, etcd and etcdctl
//! use: any certificate of the CA file is an anchor, also a server's own; only `subjectAltName` names a server; RSA keys
//! have 1024 bits at least; SHA-1 signs nothing; a TLS of 1.2 at least.

use super::Settings;
use super::files::Files;
use super::pem::{self, reason};
use super::refusal::{NO_APPLICATION_PROTOCOL, NoHttp1, NoHttp2, Refused, alert_in, is_refusal, of_alert};
use super::verify::{SECURITY_LEVEL, is_fit, verdict};
use crate::store::Error;
use openssl::error::ErrorStack;
use openssl::ssl::{
    self, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use openssl::x509::{X509, X509VerifyResult};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

/// The ciphers of TLS 1.2: OpenSSL's without those that are broken, or that would need no certificate.
const CIPHERS: &str = "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK";

/// The protocol that is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// Its name in ALPN (RFC 7301), as a list of one.
    fn offer(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"\x08http/1.1",
            Self::Http2 => b"\x02h2",
        }
    }
}

/// The TLS of one store, made anew only when the files hold something else: to load certificates takes milliseconds, and
/// an outage brings an attempt at every site again and again. Clones share it.
#[derive(Clone, Default)]
pub(super) struct TlsCache(Arc<Mutex<Option<Loaded>>>);

/// What was loaded, and what it led to.
type Loaded = (Files, Result<Made, Error>);

impl std::fmt::Debug for TlsCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsCache").finish_non_exhaustive()
    }
}

impl TlsCache {
    /// TLS for the connections to one site. `files` are those that `settings` names.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the file and the cause.
    pub(super) fn get(&self, settings: &Settings, files: &Files, protocol: Protocol) -> Result<Tls, Error> {
        // A password is no part of TLS.
        let files = Files { password: None, ..files.clone() };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &*kept {
            Some((known, made)) if *known == files => made.clone(),
            _ => {
                let made = Made::new(settings, &files);
                *kept = Some((files, made.clone()));
                made
            }
        };
        Ok(Tls { made: made?, protocol, refusal: Refusal::default() })
    }
}

/// What all connections of one store have in common: the trusted certificates and our own, as the files held them.
#[derive(Clone)]
struct Made {
    context: SslContext,
    shown: Arc<Shown>,
}

/// TLS for the connections to one site.
#[derive(Clone)]
pub(super) struct Tls {
    made: Made,
    protocol: Protocol,
    refusal: Refusal,
}

/// What a refusal has to name, and what decides on one.
#[derive(Default)]
struct Shown {
    /// The CA file, or where the system's certificates are.
    trusted: String,
    /// The certificates of the CA file.
    anchors: Vec<X509>,
    /// The file of our certificate, and when that ends.
    identity: Option<String>,
}

/// The last refusal, by either side. HTTP/2 hands on the text of an error but not the error itself.
#[derive(Clone, Default)]
struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    fn refuse(&self, reason: String) -> io::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        io::Error::new(io::ErrorKind::PermissionDenied, Refused(reason))
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Made {
    fn new(settings: &Settings, files: &Files) -> Result<Self, Error> {
        let failed = |error: ErrorStack| Error::Invalid(format!("OpenSSL: {}", reason(&error)));
        let mut builder = SslContext::builder(SslMethod::tls_client()).map_err(failed)?;
        builder.set_options(SslOptions::ALL | SslOptions::NO_COMPRESSION);
        builder.set_mode(
            SslMode::AUTO_RETRY | SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE,
        );
        builder.set_security_level(SECURITY_LEVEL.into());
        builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(failed)?;
        builder.set_cipher_list(CIPHERS).map_err(failed)?;
        builder.set_verify(SslVerifyMode::PEER);
        let mut shown = Shown { trusted: "the system's certificates".to_owned(), ..Shown::default() };
        if let (Some(path), Some(text)) = (&settings.ca_file, &files.ca) {
            let (trusted, broken) = pem::bundle(path, text)?;
            if let Some(broken) = broken {
                tracing::warn!("{broken}; going on with the others");
            }
            let mut store = X509StoreBuilder::new().map_err(failed)?;
            for certificate in &trusted {
                store.add_cert(certificate.clone()).map_err(failed)?;
            }
            builder.set_cert_store(store.build());
            (shown.trusted, shown.anchors) = (format!("{} (--etcd-cafile)", path.display()), trusted);
        } else {
            builder.set_default_verify_paths().map_err(failed)?;
        }
        builder.cert_store_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(failed)?;
        let paths = settings.cert_file.as_deref().zip(settings.key_file.as_deref());
        if let (Some(paths), Some((cert, key))) = (paths, &files.identity) {
            shown.identity = Some(show(&mut builder, paths, cert, key)?);
        }
        Ok(Self { context: builder.build(), shown: Arc::new(shown) })
    }
}

/// Makes the client's certificate and key what we show to servers. Returns what a refusal says of it.
fn show(
    builder: &mut SslContextBuilder,
    (cert_path, key_path): (&Path, &Path),
    cert: &[u8],
    key: &[u8],
) -> Result<String, Error> {
    let chain = pem::chain(cert_path, cert)?;
    let key = pem::key(key_path, key)?;
    let (first, rest) = chain.split_first().ok_or_else(|| Error::Invalid("no certificate".to_owned()))?;
    let fault = |cause: String| super::files::at_fault(cert_path, cause);
    let public =
        first.public_key().map_err(|error| fault(format!("its key is unknown: {}", reason(&error))))?;
    if !public.public_eq(&key) {
        return Err(fault(format!("the key in {} is not that of this certificate", key_path.display())));
    }
    let unfit = |error: ErrorStack| fault(format!("TLS cannot use it: {}", reason(&error)));
    builder.set_certificate(first).map_err(unfit)?;
    for certificate in rest {
        builder.add_extra_chain_cert(certificate.clone()).map_err(unfit)?;
    }
    builder.set_private_key(&key).map_err(unfit)?;
    Ok(format!("{} (valid until {})", cert_path.display(), first.not_after()))
}

impl Tls {
    /// The last refusal of a connection, by either side; taking it forgets it.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.refusal.take()
    }

    /// Shakes hands with `host`, a name or an address, over a connection.
    ///
    /// # Errors
    /// The error holds a [`Refused`] if one side does not accept the other's certificate, and [`NoHttp2`] or [`NoHttp1`]
    /// if the server does not offer that.
    pub(super) async fn connect<S>(&self, host: &str, stream: S) -> io::Result<Encrypted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let fault = Arc::new(Mutex::new(None));
        let ssl = self.configured(host, Arc::clone(&fault)).map_err(io::Error::other)?;
        let mut stream = SslStream::new(ssl, stream).map_err(io::Error::other)?;
        if let Err(error) = Pin::new(&mut stream).connect().await {
            if let Some(fault) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(self.refusal.refuse(format!("the server's certificate {fault}")));
            }
            return Err(self.meaning(error));
        }
        let agreed = stream.ssl().selected_alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(b"h2") {
            return Err(io::Error::other(NoHttp2));
        }
        Ok(Encrypted { stream, shown: Arc::clone(&self.made.shown), refusal: self.refusal.clone() })
    }

    /// The refusal that a server has for us. It is asked when a connection broke without a word: a server sends the alert
    /// after its own handshake and closes, and what we write meanwhile can make the kernel drop the alert. So this
    /// connection only listens. `None` if the server has nothing to say within `limit`.
    pub(super) async fn why<S>(&self, host: &str, stream: S, limit: Duration) -> Option<String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(refusal) = self.take_refusal() {
            return Some(refusal);
        }
        let listened = async {
            let mut link = self.connect(host, stream).await?;
            // HTTP/2 lets the server speak first.
            link.read_u8().await
        };
        let _ = tokio::time::timeout(limit, listened).await;
        self.take_refusal()
    }

    /// A handshake to come with this host.
    fn configured(&self, host: &str, fault: Arc<Mutex<Option<String>>>) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.made.context)?;
        ssl.set_alpn_protos(self.protocol.offer())?;
        let param = ssl.param_mut();
        param.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT);
        match host.parse::<IpAddr>() {
            Ok(address) => param.set_ip(address)?,
            Err(_) => {
                param.set_host(host)?;
                ssl.set_hostname(host)?;
            }
        }
        let (wanted, shown) = (host.to_owned(), Arc::clone(&self.made.shown));
        ssl.set_verify_callback(SslVerifyMode::PEER, move |accepted, context| {
            if !accepted && !is_fit(context, &shown.anchors) {
                let verdict = verdict(context, &wanted, &shown.trusted);
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
                return false;
            }
            context.set_error(X509VerifyResult::OK);
            true
        });
        Ok(ssl)
    }

    /// The error of a handshake that did not fail over the server's certificate.
    fn meaning(&self, error: ssl::Error) -> io::Error {
        if let Some(alert) = error.ssl_error().and_then(alert_in) {
            return match of_alert(alert, self.made.shown.identity.as_deref()) {
                Some(reason) => self.refusal.refuse(reason),
                None if alert == NO_APPLICATION_PROTOCOL => match self.protocol {
                    Protocol::Http1 => io::Error::other(NoHttp1),
                    Protocol::Http2 => io::Error::other(NoHttp2),
                },
                None => io::Error::other(format!("the server ends the TLS handshake with alert {alert}")),
            };
        }
        match error.ssl_error() {
            Some(stack) => {
                io::Error::other(format!("no TLS handshake ({}); does the server speak TLS?", reason(stack)))
            }
            None => error.into_io_error().unwrap_or_else(|error| match error.code() {
                ssl::ErrorCode::SYSCALL | ssl::ErrorCode::ZERO_RETURN => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection in the TLS handshake",
                ),
                _ => io::Error::other(error),
            }),
        }
    }
}

/// A connection over TLS.
pub(super) struct Encrypted<S> {
    stream: SslStream<S>,
    shown: Arc<Shown>,
    refusal: Refusal,
}

impl<S> Encrypted<S> {
    /// Takes note of the refusal that an error of the connection tells. With TLS 1.3 the server looks at our certificate
    /// after the handshake, so its refusal comes in place of its first answer.
    fn noted(&self, error: io::Error) -> io::Error {
        let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<ssl::Error>());
        let alert = of_tls.and_then(ssl::Error::ssl_error).and_then(alert_in);
        match alert.and_then(|alert| of_alert(alert, self.shown.identity.as_deref())) {
            Some(reason) => self.refusal.refuse(reason),
            None => error,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        Poll::Ready(result.map_err(|error| self.noted(error)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Encrypted<S> {
    /// The cause of a failed write. A server that refuses us sends an alert and closes; if a write meets the closed
    /// connection first, the alert is still there to be read.
    fn explained(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let mut byte = [0; 1];
        match Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(told)) => {
                let told = self.noted(told);
                if is_refusal(&told) { told } else { error }
            }
            _ => error,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(result.map_err(|error| self.explained(cx, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(result.map_err(|error| self.explained(cx, error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::pkey::{PKey, Private};
    use openssl::ssl::SslAcceptor;
    use std::net::TcpListener;
    use std::process::Command;

    /// A certificate for these names that is its own authority, made by openssl.
    fn made(names: &str) -> (Vec<u8>, PKey<Private>) {
        let directory = tempfile::tempdir().unwrap();
        let line = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=it -config /dev/null \
                    -out pem -keyout key -addext";
        let mut openssl = Command::new("openssl");
        openssl
            .current_dir(directory.path())
            .args(line.split_whitespace())
            .arg(format!("subjectAltName={names}"));
        assert!(openssl.output().unwrap().status.success());
        let read = |name| std::fs::read(directory.path().join(name)).unwrap();
        (read("pem"), PKey::private_key_from_pem(&read("key")).unwrap())
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let (pem, key) = made("DNS:*.example.test");
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_certificate(&X509::from_pem(&pem).unwrap()).unwrap();
        acceptor.set_private_key(&key).unwrap();
        let (acceptor, listener) = (acceptor.build(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(4).flatten() {
                drop(acceptor.accept(stream));
            }
        });
        let mut settings = crate::etcd::tests::settings("unused".as_ref());
        settings.ca_file = Some("/the/ca".into());
        let files = Files { ca: Some(pem), ..Files::default() };
        let tls = TlsCache::default().get(&settings, &files, Protocol::Http1).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connect = |host: &str| {
            runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                tls.connect(host, stream).await.map(drop).map_err(|error| error.to_string())
            })
        };
        assert_eq!(connect("etcd.example.test"), Ok(()));
        for host in ["a.b.example.test", "example.test", "127.0.0.1"] {
            let error = connect(host).unwrap_err();
            assert!(error.contains(&format!("is not for {host} but for *.example.test")), "{error}");
            assert_eq!(tls.take_refusal(), Some(error));
        }
        server.join().unwrap();
    }
}
