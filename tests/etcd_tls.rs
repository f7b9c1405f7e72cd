//! TLS: the server is verified, the client shows its certificate, and replaced files take effect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::Api;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Etcd, Options, failure, free_port, is_denied, run, store, works};

const BOTH: [Api; 2] = [Api::V2, Api::V3];

/// A CA whose certificates and keys are files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", free_port()));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Makes a certificate and its key, in `<name>.pem` and `<name>.key`.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let pair = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&pair, &self.issuer).unwrap();
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, cert.pem()).unwrap();
        std::fs::write(&files.1, pair.serialize_pem()).unwrap();
        files
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// An etcd that clients reach over TLS, with a certificate of their own if `mutual`.
fn tls_etcd(authority: &Authority, mutual: bool) -> Etcd {
    let (cert, key) = authority.sign("server");
    let mut flags = vec![flag("cert-file", &cert), flag("key-file", &key)];
    let mut curl = vec!["--cacert".to_owned(), authority.ca().display().to_string()];
    if mutual {
        flags.extend(["--client-cert-auth".to_owned(), flag("trusted-ca-file", &authority.ca())]);
        let (cert, key) = authority.sign("admin");
        curl.extend(["--cert".to_owned(), cert.display().to_string()]);
        curl.extend(["--key".to_owned(), key.display().to_string()]);
    }
    Etcd::with(Options { flags, tls: true, curl, ..Options::default() })
}

#[test]
fn tls_with_nothing_but_a_ca() {
    let authority = Authority::new();
    let etcd = tls_etcd(&authority, false);
    let stranger = Authority::new();
    run(async {
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.ca_file = Some(authority.ca());
            works(&store(&settings)).await;
            // Neither the roots of the system nor another CA knows this server.
            for ca in [None, Some(stranger.ca())] {
                settings.ca_file = ca;
                let error = failure(&store(&settings), Duration::from_secs(4)).await;
                assert!(is_denied(&error) && error.to_string().contains("certificate"), "{error:?}");
            }
        }
    });
}

#[test]
fn tls_with_client_certificates_that_are_replaced() {
    let authority = Authority::new();
    let etcd = tls_etcd(&authority, true);
    let stranger = Authority::new();
    run(async {
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.ca_file = Some(authority.ca());
            let error = failure(&store(&settings), Duration::from_secs(4)).await;
            assert!(is_denied(&error), "{error:?}");

            // The files hold the certificate of a stranger at first. The same store takes the new one later.
            let (theirs, their_key) = stranger.sign("client");
            let (ours, our_key) = authority.sign("client");
            let (cert, key) = (authority.file("current.pem"), authority.file("current.key"));
            std::fs::copy(theirs, &cert).unwrap();
            std::fs::copy(their_key, &key).unwrap();
            settings.cert_file = Some(cert.clone());
            settings.key_file = Some(key.clone());
            let store = store(&settings);
            let error = failure(&store, Duration::from_secs(4)).await;
            assert!(is_denied(&error), "{error:?}");
            std::fs::copy(ours, &cert).unwrap();
            std::fs::copy(our_key, &key).unwrap();
            works(&store).await;
        }
    });
}
