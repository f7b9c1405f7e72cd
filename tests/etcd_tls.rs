//! TLS as operators have it: certificates that plain openssl commands make, over both APIs. Each is accepted as Go's
//! `crypto/tls` accepts it, which etcdctl shows beside us, or refused with a sentence.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod certificates;
mod support;

use certificates::{AUTHORITY, Folder, SERVER, flag};
use flanneld::etcd::{Api, Settings, connect};
use flanneld::store::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Etcd, Options, failure, is_denied, run, store, works};

const BOTH: [Api; 2] = [Api::V2, Api::V3];

/// An etcd whose certificate is `server.pem`, and that wants certificates of clients if `clients` names an authority.
fn tls_etcd(folder: &Folder, clients: Option<&Path>, curl: Vec<String>) -> Etcd {
    let mut flags =
        vec![flag("cert-file", &folder.path("server.pem")), flag("key-file", &folder.path("server.key"))];
    if let Some(authority) = clients {
        flags.extend(["--client-cert-auth".to_owned(), flag("trusted-ca-file", authority)]);
    }
    Etcd::with(Options {
        flags,
        tls: true,
        curl: [vec!["--insecure".to_owned()], curl].concat(),
        ..Options::default()
    })
}

/// Whether Go accepts the server and the server accepts Go: etcdctl is written in it.
fn go_works(etcd: &Etcd, settings: &Settings) -> bool {
    let files = [("cacert", &settings.ca_file), ("cert", &settings.cert_file), ("key", &settings.key_file)];
    let flags = files.iter().filter_map(|(name, path)| Some(flag(name, path.as_ref()?)));
    let limits = ["--dial-timeout=3s", "--command-timeout=3s"];
    let mut etcdctl = Command::new("etcdctl");
    etcdctl.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", etcd.url())).args(flags).args(limits);
    etcdctl.args(["get", "key"]).output().unwrap().status.success()
}

/// Makes files in a folder.
type Make = fn(&Folder);

/// One server's certificate: what makes it, and what a refusal says. `server.pem` is what the server shows, `ca.pem` what
/// the client trusts.
type Row = (&'static str, Make, &'static [&'static str]);

/// A server and an authority of one kind of key.
fn pair(folder: &Folder, kind: &str) {
    folder.own("ca", kind, &[AUTHORITY]);
    folder.signed("server", kind, "ca", &[SERVER], "");
}

/// A server whose one certificate is its own authority.
fn alone(folder: &Folder, extensions: &[&str]) {
    folder.own("server", "rsa:2048", extensions);
    folder.join("ca.pem", &["server.pem"]);
}

/// An authority of the name of `ca`, with another key.
fn namesake(folder: &Folder) {
    folder.key("old", "ec:P-256");
    folder.openssl(&format!(
        "req -x509 -new -key old.key -days 2 -subj /O=test/CN=ca -out old.pem -config /dev/null -addext {AUTHORITY}"
    ));
}

/// What a server's certificate says if it does not tell which of several keys of its issuer has signed it.
const NO_KEY_NAMED: &str = "authorityKeyIdentifier=none";

const ACCEPTED: &[&str] = &[];

const SERVERS: &[Row] = &[
    ("one certificate as server and authority", |f| alone(f, &[SERVER, AUTHORITY]), ACCEPTED),
    ("one certificate that is no authority", |f| alone(f, &[SERVER, "basicConstraints=CA:FALSE"]), ACCEPTED),
    (
        "one certificate that may only sign",
        |f| alone(f, &[SERVER, AUTHORITY, "keyUsage=critical,keyCertSign"]),
        ACCEPTED,
    ),
    ("P-521", |f| pair(f, "ec:P-521"), ACCEPTED),
    ("P-384", |f| pair(f, "ec:P-384"), ACCEPTED),
    ("RSA 1024", |f| pair(f, "rsa:1024"), ACCEPTED),
    ("Ed25519", |f| pair(f, "ed25519"), ACCEPTED),
    (
        "an authority of version 1",
        |f| {
            f.key("ca", "rsa:2048");
            f.openssl("req -new -key ca.key -subj /CN=old -out ca.csr -config /dev/null");
            f.openssl("x509 -req -in ca.csr -signkey ca.key -days 2 -out ca.pem");
            f.signed("server", "rsa:2048", "ca", &[SERVER], "");
        },
        ACCEPTED,
    ),
    (
        "an intermediate in the server's file",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("middle", "ec:P-256", "ca", &[AUTHORITY], "");
            f.signed("leaf", "ec:P-256", "middle", &[SERVER], "");
            f.join("server.pem", &["leaf.pem", "middle.pem"]);
            std::fs::copy(f.path("leaf.key"), f.path("server.key")).unwrap();
        },
        ACCEPTED,
    ),
    (
        "the intermediate alone is trusted",
        |f| {
            f.own("root", "ec:P-256", &[AUTHORITY]);
            f.signed("ca", "ec:P-256", "root", &[AUTHORITY], "");
            f.signed("server", "ec:P-256", "ca", &[SERVER], "");
        },
        ACCEPTED,
    ),
    (
        "a bundle of several with comments",
        |f| {
            pair(f, "ec:P-256");
            f.own("other", "rsa:2048", &[AUTHORITY]);
            f.openssl("x509 -in ca.pem -text -out text.pem");
            f.join("ca.pem", &["other.pem", "text.pem"]);
        },
        ACCEPTED,
    ),
    (
        "a rotated authority, the old one first",
        |f| {
            namesake(f);
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &[SERVER, NO_KEY_NAMED], "");
            f.join("ca.pem", &["old.pem", "ca.pem"]);
        },
        ACCEPTED,
    ),
    (
        "a rotated authority above an intermediate",
        |f| {
            namesake(f);
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("middle", "ec:P-256", "ca", &[AUTHORITY, NO_KEY_NAMED], "");
            f.signed("leaf", "ec:P-256", "middle", &[SERVER], "");
            f.join("ca.pem", &["old.pem", "ca.pem"]);
            f.join("server.pem", &["leaf.pem", "middle.pem"]);
            std::fs::copy(f.path("leaf.key"), f.path("server.key")).unwrap();
        },
        ACCEPTED,
    ),
    (
        "another key than that of the trusted authority of its name",
        |f| {
            namesake(f);
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &[SERVER, NO_KEY_NAMED], "");
            f.join("ca.pem", &["old.pem"]);
        },
        &["O=test, CN=server", "with the name of its issuer O=test, CN=ca, but its key has not signed it"],
    ),
    (
        "a rotated authority that has expired",
        |f| {
            namesake(f);
            f.key("ca", "ec:P-256");
            f.openssl("req -new -key ca.key -subj /O=test/CN=ca -out ca.csr -config /dev/null");
            f.write("authority", AUTHORITY);
            f.openssl("x509 -req -in ca.csr -signkey ca.key -days -1 -extfile authority -out ca.pem");
            f.signed("server", "ec:P-256", "ca", &[SERVER, NO_KEY_NAMED], "");
            f.join("ca.pem", &["old.pem", "ca.pem"]);
        },
        &["is refused"],
    ),
    (
        "a rotated authority that is none",
        |f| {
            namesake(f);
            f.own("ca", "ec:P-256", &["basicConstraints=critical,CA:FALSE"]);
            f.signed("server", "ec:P-256", "ca", &[SERVER, NO_KEY_NAMED], "");
            f.join("ca.pem", &["old.pem", "ca.pem"]);
        },
        &["is refused"],
    ),
    (
        "an authority for any extended usage",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY, "extendedKeyUsage=anyExtendedKeyUsage"]);
            f.signed("server", "ec:P-256", "ca", &[SERVER], "");
        },
        ACCEPTED,
    ),
    (
        "an intermediate for any extended usage",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("middle", "ec:P-256", "ca", &[AUTHORITY, "extendedKeyUsage=anyExtendedKeyUsage"], "");
            f.signed("leaf", "ec:P-256", "middle", &[SERVER], "");
            f.join("server.pem", &["leaf.pem", "middle.pem"]);
            std::fs::copy(f.path("leaf.key"), f.path("server.key")).unwrap();
        },
        ACCEPTED,
    ),
    (
        "an authority for clients only",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY, "extendedKeyUsage=clientAuth"]);
            f.signed("server", "ec:P-256", "ca", &[SERVER], "");
        },
        &["is refused", "purpose"],
    ),
    (
        "a name without subjectAltName",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &["basicConstraints=CA:FALSE"], "");
        },
        &["CN=server", "no subjectAltName", "Go since 1.15"],
    ),
    (
        "another address",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &["subjectAltName=IP:192.0.2.1,DNS:etcd"], "");
        },
        &["not for 127.0.0.1 but for 192.0.2.1, etcd"],
    ),
    (
        "expired",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &[SERVER], "-days -1");
        },
        &["CN=server", "has expired at"],
    ),
    (
        "signed with SHA-1",
        |f| {
            f.own("ca", "rsa:2048", &[AUTHORITY]);
            f.signed("server", "rsa:2048", "ca", &[SERVER], "-sha1");
        },
        &["is refused"],
    ),
    (
        "for clients only",
        |f| {
            f.own("ca", "ec:P-256", &[AUTHORITY]);
            f.signed("server", "ec:P-256", "ca", &[SERVER, "extendedKeyUsage=clientAuth"], "");
        },
        &["is refused", "purpose"],
    ),
    (
        "an unknown authority",
        |f| {
            pair(f, "ec:P-256");
            f.own("ca", "ec:P-256", &[AUTHORITY]);
        },
        &[
            "ca.pem (--etcd-cafile)",
            "hold neither it nor a certificate that has signed it",
            "issuer O=test, CN=ca",
        ],
    ),
];

#[test]
fn servers_are_accepted_as_by_go_or_refused_in_a_sentence() {
    for (name, make, refusal) in SERVERS {
        let folder = Folder::new();
        make(&folder);
        let etcd = tls_etcd(&folder, None, Vec::new());
        for api in BOTH {
            let mut settings = etcd.settings(api, "/n");
            settings.ca_file = Some(folder.path("ca.pem"));
            if api == Api::V3 {
                assert_eq!(go_works(&etcd, &settings), refusal.is_empty(), "{name}: Go thinks otherwise");
            }
            let store = store(&settings);
            if refusal.is_empty() {
                run(async {
                    let listed = flanneld::store::Registry::list(&store).await;
                    assert!(listed.is_ok(), "{name}, {api:?}: {listed:?}");
                    works(&store).await;
                });
                continue;
            }
            let error = run(failure(&store, Duration::from_secs(4)));
            let text = error.to_string();
            let says = refusal.iter().all(|part| text.contains(part));
            assert!(is_denied(&error) && says, "{name}, {api:?}: {error:?}");
        }
    }
}

#[test]
fn without_a_ca_file_the_systems_certificates_decide() {
    let folder = Folder::new();
    pair(&folder, "ec:P-256");
    let etcd = tls_etcd(&folder, None, Vec::new());
    for api in BOTH {
        let error = run(failure(&store(&etcd.settings(api, "/n")), Duration::from_secs(4)));
        assert!(is_denied(&error) && error.to_string().contains("the system's certificates"), "{error:?}");
    }
}

/// Keys and certificates of clients: what makes `client.pem` and `client.key`, signed by `ca`.
const CLIENTS: &[(&str, Make)] = &[
    ("version 1", |f| f.signed("client", "rsa:2048", "ca", &[], "")),
    ("P-521", |f| f.signed("client", "ec:P-521", "ca", &["keyUsage=digitalSignature"], "")),
    ("P-384", |f| f.signed("client", "ec:P-384", "ca", &["keyUsage=digitalSignature"], "")),
    ("RSA 1024", |f| f.signed("client", "rsa:1024", "ca", &["extendedKeyUsage=clientAuth"], "")),
    ("Ed25519", |f| f.signed("client", "ed25519", "ca", &["extendedKeyUsage=clientAuth"], "")),
    ("PKCS #1", |f| {
        f.signed("client", "rsa:2048", "ca", &[], "");
        f.openssl("rsa -in client.key -traditional -out client.key");
        assert!(f.read("client.key").contains("BEGIN RSA PRIVATE KEY"));
    }),
    ("SEC 1 after its parameters", |f| {
        f.signed("client", "ec:P-256", "ca", &[], "");
        f.openssl("ecparam -name prime256v1 -out parameters");
        f.openssl("ec -in client.key -out sec1");
        f.join("client.key", &["parameters", "sec1"]);
        assert!(f.read("client.key").contains("BEGIN EC PARAMETERS"));
    }),
    ("an intermediate in the file, with text", |f| {
        f.signed("middle", "ec:P-256", "ca", &[AUTHORITY], "");
        f.signed("leaf", "ec:P-256", "middle", &["extendedKeyUsage=clientAuth"], "");
        f.openssl("x509 -in leaf.pem -text -out text.pem");
        f.join("client.pem", &["text.pem", "middle.pem"]);
        std::fs::copy(f.path("leaf.key"), f.path("client.key")).unwrap();
    }),
];

/// An authority, a server that wants its clients' certificates, and an administrator's certificate for curl.
fn mutual() -> (Folder, Etcd) {
    let folder = Folder::new();
    pair(&folder, "rsa:2048");
    folder.signed("admin", "rsa:2048", "ca", &["extendedKeyUsage=clientAuth"], "");
    let curl = [
        "--cert",
        folder.path("admin.pem").to_str().unwrap(),
        "--key",
        folder.path("admin.key").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let etcd = tls_etcd(&folder, Some(&folder.path("ca.pem")), curl.to_vec());
    (folder, etcd)
}

fn client(etcd: &Etcd, folder: &Folder, api: Api) -> Settings {
    let mut settings = etcd.settings(api, "/n");
    settings.ca_file = Some(folder.path("ca.pem"));
    settings.cert_file = Some(folder.path("client.pem"));
    settings.key_file = Some(folder.path("client.key"));
    settings
}

#[test]
fn clients_of_every_kind_are_let_in() {
    let (folder, etcd) = mutual();
    for (name, make) in CLIENTS {
        make(&folder);
        for api in BOTH {
            let settings = client(&etcd, &folder, api);
            assert!(go_works(&etcd, &settings), "{name}: Go thinks otherwise");
            let store = connect(&settings).unwrap_or_else(|error| panic!("{name}: {error}"));
            run(async {
                let listed = flanneld::store::Registry::list(&store).await;
                assert!(listed.is_ok(), "{name}, {api:?}: {listed:?}");
                works(&store).await;
            });
        }
    }
}

#[test]
fn one_certificate_serves_as_server_authority_and_client() {
    let folder = Folder::new();
    alone(&folder, &[SERVER, AUTHORITY]);
    let file = |name: &str| folder.path(name).display().to_string();
    let curl = vec!["--cert".to_owned(), file("server.pem"), "--key".to_owned(), file("server.key")];
    let etcd = tls_etcd(&folder, Some(&folder.path("server.pem")), curl);
    for api in BOTH {
        let mut settings = client(&etcd, &folder, api);
        (settings.cert_file, settings.key_file) =
            (Some(folder.path("server.pem")), Some(folder.path("server.key")));
        assert!(go_works(&etcd, &settings));
        run(works(&store(&settings)));
    }
}

/// The files hold the certificate of a stranger at first, then one that has expired. The same store takes the right one.
#[test]
fn a_refused_client_is_named_and_let_in_when_its_files_are_replaced() {
    let (folder, etcd) = mutual();
    folder.own("stranger", "rsa:2048", &[AUTHORITY]);
    for api in BOTH {
        let mut settings = client(&etcd, &folder, api);
        (settings.cert_file, settings.key_file) = (None, None);
        let error = run(failure(&store(&settings), Duration::from_secs(4)));
        assert!(is_denied(&error) && error.to_string().contains("--etcd-certfile"), "{error:?}");

        folder.signed("client", "rsa:2048", "stranger", &[], "");
        let store = store(&client(&etcd, &folder, api));
        let named = |error: Error| {
            let text = error.to_string();
            let says = text.contains("refuses the client certificate") && text.contains("client.pem");
            assert!(is_denied(&error) && says, "{api:?}: {error:?}");
        };
        named(run(failure(&store, Duration::from_secs(4))));
        folder.signed("client", "rsa:2048", "ca", &[], "-days -1");
        named(run(failure(&store, Duration::from_secs(4))));
        folder.signed("client", "rsa:2048", "ca", &[], "");
        run(works(&store));
    }
}

/// Files that are at fault: what makes them, the one that is named, and the cause.
const FAULTS: &[(Make, &str, &str)] = &[
    (
        |f| f.openssl("pkcs8 -topk8 -in good.key -out client.key -passout pass:x"),
        "client.key",
        "the key is encrypted",
    ),
    (
        |f| f.openssl("rsa -in good.key -traditional -aes128 -passout pass:x -out client.key"),
        "client.key",
        "the key is encrypted",
    ),
    (|f| drop(f.write("client.key", f.read("good.key").replace("END", "DNE"))), "client.key", "no END line"),
    (|f| drop(f.write("client.key", f.read("good.key").replace('M', "!"))), "client.key", "cannot be read"),
    (|f| drop(f.write("client.key", "")), "client.key", "the file is empty"),
    (|f| drop(f.write("client.key", f.read("good.pem"))), "client.key", "swapped"),
    (|f| drop(f.write("client.key", "hello")), "client.key", "no private key"),
    (|f| f.key("client", "rsa:2048"), "client.pem", "is not that of this certificate"),
    (|f| std::fs::remove_file(f.path("client.key")).unwrap(), "client.key", "No such file"),
    (|f| drop(f.write("client.pem", f.read("good.key"))), "client.pem", "no certificate in it"),
    (|f| drop(f.write("client.pem", f.read("good.pem").replace("END", "DNE"))), "client.pem", "no END line"),
    (
        |f| drop(f.write("ca.pem", f.read("good.pem").replace('M', "!"))),
        "ca.pem",
        "block 1 is no certificate",
    ),
    (|f| drop(f.write("ca.pem", "\n")), "ca.pem", "the file is empty"),
    (|f| drop(f.write("ca.pem", [0x30, 0x82, 1, 2])), "ca.pem", "it must be PEM"),
    (
        |f| {
            std::fs::remove_file(f.path("ca.pem")).unwrap();
            std::fs::create_dir(f.path("ca.pem")).unwrap();
        },
        "ca.pem",
        "Is a directory",
    ),
];

#[test]
fn files_at_fault_are_named_at_the_start() {
    for (spoil, file, cause) in FAULTS {
        let folder = Folder::new();
        folder.own("good", "rsa:2048", &[SERVER]);
        for (from, to) in [("good.pem", "ca.pem"), ("good.pem", "client.pem"), ("good.key", "client.key")] {
            std::fs::copy(folder.path(from), folder.path(to)).unwrap();
        }
        let mut settings = support::settings(vec!["https://127.0.0.1:1".to_owned()], Api::Auto, "/n");
        settings.ca_file = Some(folder.path("ca.pem"));
        (settings.cert_file, settings.key_file) =
            (Some(folder.path("client.pem")), Some(folder.path("client.key")));
        connect(&settings).unwrap();
        spoil(&folder);
        let named: PathBuf = folder.path(file);
        match connect(&settings) {
            Err(Error::Invalid(text)) => {
                let says = text.contains(named.to_str().unwrap()) && text.contains(cause);
                assert!(says && !text.contains(char::is_control), "{cause}: {text}");
            }
            other => panic!("{cause}: {other:?}"),
        }
    }
}
