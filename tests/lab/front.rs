//! A reverse proxy that speaks HTTP/1.1 only, as old balancers do, with hyper and reqwest.

use super::tools::say;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Serves what lies below a path of `target`: `front LISTEN PATH TARGET [CERTIFICATE KEY]`. Everything beside the path
/// is not found.
pub fn run(argv: &[&str]) {
    let [listen, path, target, tls @ ..] = argv else { panic!("front LISTEN PATH TARGET [CERTIFICATE KEY]") };
    let _ = ring::default_provider().install_default();
    let acceptor = match tls {
        [certificate, key] => Some(acceptor(certificate, key)),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.unwrap();
        say("ready");
        let route: &'static (String, String) =
            Box::leak(Box::new((path.trim_end_matches('/').to_owned(), (*target).to_owned())));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    None => serve(stream, route).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, route).await;
                        }
                    }
                }
            });
        }
    });
}

/// TLS that offers HTTP/1.1 and nothing else.
fn acceptor(certificate: &str, key: &str) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, route: &'static (String, String)) {
    let service = service_fn(|request| async move { pass(request, route).await });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Body = http_body_util::combinators::UnsyncBoxBody<hyper::body::Bytes, reqwest::Error>;

async fn pass(
    request: Request<Incoming>,
    (path, target): &(String, String),
) -> Result<Response<Body>, reqwest::Error> {
    let asked = request.uri().path_and_query().unwrap().as_str();
    let Some(below) = asked.strip_prefix(path.as_str()).filter(|below| below.starts_with('/')) else {
        let body = StreamBody::new(stream::empty()).boxed_unsync();
        return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(body).unwrap());
    };
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut onward = client.request(request.method().clone(), format!("{target}{below}"));
    for (name, value) in request.headers() {
        if !matches!(name.as_str(), "host" | "connection" | "content-length") {
            onward = onward.header(name, value);
        }
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = onward.body(body).send().await?;
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if !matches!(name.as_str(), "connection" | "transfer-encoding") {
            response = response.header(name, value);
        }
    }
    let body = stream::unfold(answer, async |mut answer| {
        let chunk = answer.chunk().await.transpose()?;
        Some((chunk.map(Frame::data), answer))
    });
    Ok(response.body(StreamBody::new(body).boxed_unsync()).unwrap())
}
