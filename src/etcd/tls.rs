//! Certificates and keys as their files hold them at this moment, and the HTTP client that uses them.

use super::Settings;
use super::endpoints::{DEFAULT_PATIENCE, Failure, chain, unreached};
use super::files::Files;
use super::sites::Site;
use crate::store::Error;
use reqwest::{Certificate, Client, Identity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::time::Duration;

/// The TCP keep-alive of a long poll: the silence before the first probe, the spacing of probes, and their count.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 2);
const _: () =
    assert!(KEEP_ALIVE.0.as_secs() + KEEP_ALIVE.1.as_secs() * (KEEP_ALIVE.2 as u64) < DEFAULT_PATIENCE);

/// Reads the files of the settings and makes sure that connections can be made with them.
///
/// # Errors
/// [`Error::Invalid`], which names the file and the cause.
pub(super) fn check(settings: &Settings) -> Result<(), Error> {
    check_certificates(&Files::read(settings)?)
}

/// Refuses files whose certificates cannot be read. The gRPC library would refuse them in the same words, but
/// by a type that only it can name.
pub(super) fn check_certificates(files: &Files) -> Result<(), Error> {
    let certificates = files.ca.iter().chain(files.identity.iter().map(|(certificate, _)| certificate));
    for pem in certificates {
        if CertificateDer::pem_slice_iter(pem).any(|certificate| certificate.is_err()) {
            return Err(Error::Invalid("transport error: Error parsing TLS certificate.".to_owned()));
        }
    }
    Ok(())
}

/// Makes an HTTP client for one site. It uses no proxy: the store of a control plane is near, and gRPC uses none either.
pub(super) fn http_client(settings: &Settings, files: &Files, site: &Site) -> Result<Client, Error> {
    // This fails if a provider is installed already, and then that one serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (first, spacing, count) = KEEP_ALIVE;
    let mut builder = Client::builder()
        .no_proxy()
        .resolve(&site.endpoint.host, site.address)
        .connect_timeout(settings.timeout / 2)
        .tcp_keepalive(first)
        .tcp_keepalive_interval(spacing)
        .tcp_keepalive_retries(count);
    let invalid = |error: reqwest::Error| Error::Invalid(format!("etcd certificates: {}", text(error)));
    if let Some(ca) = &files.ca {
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(ca).map_err(invalid)?);
    } else if !settings.endpoints.iter().any(|url| url.contains("https://")) {
        // No endpoint uses TLS. Without this line, a system without roots, such as a small container, would fail here.
        builder = builder.tls_certs_only([]);
    }
    if let Some((cert, key)) = &files.identity {
        let both = [cert.as_slice(), b"\n", key].concat();
        builder = builder.identity(Identity::from_pem(&both).map_err(invalid)?);
    }
    builder.build().map_err(invalid)
}

/// The text of an error and its causes, without the URL, which the caller names.
pub(super) fn text(error: reqwest::Error) -> String {
    chain(&error.without_url())
}

/// The meaning of an error of the HTTP client for the attempt that met it.
pub(super) fn failure(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    unreached(chain(&error), Some(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_cannot_be_read_is_refused() {
        let check = |text: &str| {
            check_certificates(&Files { ca: Some(text.as_bytes().to_vec()), ..Files::default() })
        };
        let (begin, end) = ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n");
        for text in ["", "no PEM at all", &format!("{begin}AAAA\n{end}")] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in [format!("{begin}!!!!\n{end}"), format!("{begin}AAAA\n")] {
            assert!(matches!(check(&text), Err(Error::Invalid(_))), "{text}");
        }
    }
}
