//! TLS towards etcd, by OpenSSL: who is trusted, what we show, and a sentence for every refusal.
//!
//! What a server or a client may show is decided as Go's `crypto/tls` decides, since that is what flannel, etcd and etcdctl
//! use: any certificate of the CA file is an anchor, also a server's own; only `subjectAltName` names a server; RSA keys
//! have 1024 bits at least; SHA-1 signs nothing; a TLS of 1.2 at least.

use super::Settings;
use super::files::Files;
use super::pem::{self, reason};
use super::refusal::{NO_APPLICATION_PROTOCOL, NoHttp2, Refused, alert_in, is_refusal, of_alert};
use crate::log::quote;
use crate::store::Error;
use openssl::error::ErrorStack;
use openssl::ssl::{self, Ssl, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use openssl::x509::{
    X509ExtendedKeyUsage, X509NameEntryRef, X509NameRef, X509Ref, X509StoreContextRef, X509VerifyResult,
};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

/// OpenSSL's level for keys of 80 bits of security, so RSA of 1024 bits, which Go takes too. Debian's default is 2, for
/// RSA of 2048 bits. Neither takes SHA-1 in a signature.
const SECURITY_LEVEL: u32 = 1;

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

/// What connections to one store have in common: the trusted certificates and our own, as the files held them.
#[derive(Clone)]
pub(super) struct Tls {
    connector: SslConnector,
    protocol: Protocol,
    shown: Arc<Shown>,
}

/// What a refusal has to name.
#[derive(Debug, Default)]
struct Shown {
    /// The CA file, or where the system's certificates are.
    trusted: String,
    /// The file of our certificate, and when that ends.
    identity: Option<String>,
    /// The last refusal, by either side. HTTP/2 hands on the text of an error but not the error itself.
    refusal: Mutex<Option<String>>,
}

impl Shown {
    fn refuse(&self, reason: String) -> io::Error {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        io::Error::new(io::ErrorKind::PermissionDenied, Refused(reason))
    }
}

/// Reads the files of the settings and makes sure that connections can be made with them.
///
/// # Errors
/// [`Error::Invalid`], which names the file and the cause.
pub(super) fn check(settings: &Settings) -> Result<(), Error> {
    Tls::new(settings, &Files::read(settings)?, Protocol::Http2).map(drop)
}

impl Tls {
    /// Takes the files. `files` are those that `settings` names.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the file and the cause.
    pub(super) fn new(settings: &Settings, files: &Files, protocol: Protocol) -> Result<Self, Error> {
        let failed = |error: ErrorStack| Error::Invalid(format!("OpenSSL: {}", reason(&error)));
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
        builder.set_security_level(SECURITY_LEVEL);
        builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(failed)?;
        builder.set_alpn_protos(protocol.offer()).map_err(failed)?;
        let mut shown = Shown { trusted: "the system's certificates".to_owned(), ..Shown::default() };
        if let (Some(path), Some(text)) = (&settings.ca_file, &files.ca) {
            let (trusted, broken) = pem::bundle(path, text)?;
            if let Some(broken) = broken {
                tracing::warn!("{broken}; going on with the others");
            }
            let mut store = X509StoreBuilder::new().map_err(failed)?;
            for certificate in trusted {
                store.add_cert(certificate).map_err(failed)?;
            }
            builder.set_cert_store(store.build());
            shown.trusted = format!("{} (--etcd-cafile)", path.display());
        }
        builder.cert_store_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(failed)?;
        let paths = settings.cert_file.as_deref().zip(settings.key_file.as_deref());
        if let (Some((cert_path, key_path)), Some((cert, key))) = (paths, &files.identity) {
            let chain = pem::chain(cert_path, cert)?;
            let key = pem::key(key_path, key)?;
            let (first, rest) =
                chain.split_first().ok_or_else(|| Error::Invalid("no certificate".to_owned()))?;
            let fault = |cause: String| super::files::at_fault(cert_path, cause);
            let public = first
                .public_key()
                .map_err(|error| fault(format!("its key is unknown: {}", reason(&error))))?;
            if !public.public_eq(&key) {
                return Err(fault(format!(
                    "the key in {} is not that of this certificate",
                    key_path.display()
                )));
            }
            let unfit = |error: ErrorStack| fault(format!("TLS cannot use it: {}", reason(&error)));
            builder.set_certificate(first).map_err(unfit)?;
            for certificate in rest {
                builder.add_extra_chain_cert(certificate.clone()).map_err(unfit)?;
            }
            builder.set_private_key(&key).map_err(unfit)?;
            shown.identity = Some(format!("{} (valid until {})", cert_path.display(), first.not_after()));
        }
        Ok(Self { connector: builder.build(), protocol, shown: Arc::new(shown) })
    }

    /// The last refusal of a connection, by either side; taking it forgets it.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.shown.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Shakes hands with `host`, a name or an address, over a connection.
    ///
    /// # Errors
    /// The error holds a [`Refused`] if one side does not accept the other's certificate, and [`NoHttp2`] if the server
    /// does not offer that.
    pub(super) async fn connect<S>(&self, host: &str, stream: S) -> io::Result<Encrypted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let fault = Arc::new(Mutex::new(None));
        let ssl = self.configured(host, Arc::clone(&fault)).map_err(io::Error::other)?;
        let mut stream = SslStream::new(ssl, stream).map_err(io::Error::other)?;
        if let Err(error) = Pin::new(&mut stream).connect().await {
            if let Some(fault) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(self.shown.refuse(format!("the server's certificate {fault}")));
            }
            return Err(self.meaning(error));
        }
        let agreed = stream.ssl().selected_alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(b"h2") {
            return Err(io::Error::other(NoHttp2));
        }
        Ok(Encrypted { stream, shown: Arc::clone(&self.shown) })
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
        let mut config = self.connector.configure()?;
        // The crate would let a CN name the server.
        config.set_verify_hostname(false);
        let param = config.param_mut();
        param.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT);
        match host.parse::<IpAddr>() {
            Ok(address) => param.set_ip(address)?,
            Err(_) => param.set_host(host)?,
        }
        let (wanted, shown) = (host.to_owned(), Arc::clone(&self.shown));
        config.set_verify_callback(SslVerifyMode::PEER, move |accepted, context| {
            if !accepted && !is_fit(context) {
                let verdict = verdict(context, &wanted, &shown.trusted);
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
                return false;
            }
            context.set_error(X509VerifyResult::OK);
            true
        });
        config.into_ssl(host)
    }

    /// The error of a handshake that did not fail over the server's certificate.
    fn meaning(&self, error: ssl::Error) -> io::Error {
        if let Some(alert) = error.ssl_error().and_then(alert_in) {
            return match of_alert(alert, self.shown.identity.as_deref()) {
                Some(reason) => self.shown.refuse(reason),
                None if alert == NO_APPLICATION_PROTOCOL => io::Error::other(NoHttp2),
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

/// Whether OpenSSL refuses a certificate that Go accepts. For OpenSSL the key usage of a CA forbids its use as a server's
/// certificate. For Go only the extended key usage counts.
fn is_fit(context: &X509StoreContextRef) -> bool {
    let of_usage = context.error().as_raw() == fault::INVALID_PURPOSE && context.error_depth() == 0;
    let for_servers = X509ExtendedKeyUsage::SSL_SERVER | X509ExtendedKeyUsage::ANYEKU;
    let usage = |certificate: &X509Ref| {
        certificate.extended_key_usage().is_none_or(|usage| usage.intersects(for_servers))
    };
    of_usage && context.current_cert().is_some_and(usage)
}

/// Errors of a verification (OpenSSL, `X509_STORE_CTX_get_error(3)`).
mod fault {
    pub(super) const NO_ISSUER: [i32; 5] = [2, 18, 19, 20, 21];
    pub(super) const NOT_YET_VALID: i32 = 9;
    pub(super) const EXPIRED: i32 = 10;
    pub(super) const INVALID_PURPOSE: i32 = 26;
    pub(super) const OTHER_NAME: i32 = 62;
    pub(super) const OTHER_ADDRESS: i32 = 64;
}

/// What is wrong with the certificate that a verification has come to, as the end of a sentence.
fn verdict(context: &X509StoreContextRef, host: &str, trusted: &str) -> String {
    let error = context.error();
    let Some(certificate) = context.current_cert() else {
        return format!("is refused: {}", error.error_string());
    };
    let cause = match error.as_raw() {
        code if fault::NO_ISSUER.contains(&code) => {
            let issuer = name(certificate.issuer_name());
            format!(
                "{trusted} hold neither it nor a certificate that has signed it (issuer {issuer}; {})",
                error.error_string()
            )
        }
        fault::NOT_YET_VALID => format!("it is valid only from {} on", certificate.not_before()),
        fault::EXPIRED => format!("it has expired at {}", certificate.not_after()),
        fault::OTHER_NAME | fault::OTHER_ADDRESS => match names(certificate) {
            Some(names) => format!("it is not for {host} but for {names}"),
            None => format!(
                "it does not name {host}: it has no subjectAltName, and the CN alone does not count, as in Go since 1.15"
            ),
        },
        _ => error.error_string().to_owned(),
    };
    let place = if context.error_depth() == 0 { "" } else { "chain: " };
    format!("is refused: {place}{}: {cause}", name(certificate.subject_name()))
}

/// A distinguished name, such as `CN=etcd, O=org`.
fn name(name: &X509NameRef) -> String {
    let part = |entry: &X509NameEntryRef| {
        let value = entry.data().to_string().unwrap_or_else(|_| "?".to_owned());
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    };
    quote(&name.entries().map(part).collect::<Vec<_>>().join(", "))
}

/// The names and addresses in a certificate's `subjectAltName`.
fn names(certificate: &X509Ref) -> Option<String> {
    let names = certificate.subject_alt_names()?;
    let address = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => IpAddr::from([a, b, c, d]).to_string(),
        _ => <[u8; 16]>::try_from(bytes)
            .map_or_else(|_| "?".to_owned(), |octets| IpAddr::from(octets).to_string()),
    };
    let shown: Vec<_> = names
        .iter()
        .filter_map(|name| name.dnsname().map(str::to_owned).or_else(|| name.ipaddress().map(address)))
        .collect();
    Some(quote(&shown.join(", ")))
}

/// A connection over TLS.
pub(super) struct Encrypted<S> {
    stream: SslStream<S>,
    shown: Arc<Shown>,
}

impl<S> Encrypted<S> {
    /// Takes note of the refusal that an error of the connection tells. With TLS 1.3 the server looks at our certificate
    /// after the handshake, so its refusal comes in place of its first answer.
    fn noted(&self, error: io::Error) -> io::Error {
        let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<ssl::Error>());
        let alert = of_tls.and_then(ssl::Error::ssl_error).and_then(alert_in);
        match alert.and_then(|alert| of_alert(alert, self.shown.identity.as_deref())) {
            Some(reason) => self.shown.refuse(reason),
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
    use openssl::x509::X509;
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
        let tls = Tls::new(&settings, &files, Protocol::Http1).unwrap();
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
