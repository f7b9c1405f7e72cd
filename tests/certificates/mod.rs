//! Certificates and keys that plain openssl commands make, as operators make them.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The extensions of a server's certificate for the loopback address.
pub(crate) const SERVER: &str = "subjectAltName=IP:127.0.0.1,DNS:localhost";
/// The extensions of an authority.
pub(crate) const AUTHORITY: &str = "basicConstraints=critical,CA:TRUE";

/// A folder of certificates and keys: `NAME.pem` and `NAME.key`.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs openssl in the folder, with blank-separated words.
    pub(crate) fn openssl(&self, words: &str) {
        let output =
            Command::new("openssl").args(words.split_whitespace()).current_dir(self.0.path()).output();
        let output = output.expect("install the Debian package openssl");
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Puts files behind each other, with a comment before each.
    pub(crate) fn join(&self, into: &str, names: &[&str]) -> PathBuf {
        let text: String =
            names.iter().map(|name| format!("# this is {name}\n{}\n", self.read(name))).collect();
        self.write(into, text)
    }

    /// Makes a key: `rsa:2048`, `ec:P-256` or `ed25519`.
    pub(crate) fn key(&self, name: &str, kind: &str) {
        let kind = match kind.split_once(':') {
            Some(("rsa", bits)) => format!("RSA -pkeyopt rsa_keygen_bits:{bits}"),
            Some((_, curve)) => format!("EC -pkeyopt ec_paramgen_curve:{curve}"),
            None => kind.to_owned(),
        };
        self.openssl(&format!("genpkey -algorithm {kind} -out {name}.key"));
    }

    /// Makes a certificate that its own key signs.
    pub(crate) fn own(&self, name: &str, kind: &str, extensions: &[&str]) {
        self.key(name, kind);
        let extensions: String = extensions.iter().map(|e| format!(" -addext {e}")).collect();
        let subject = format!("-subj /O=test/CN={name}");
        self.openssl(&format!(
            "req -x509 -new -key {name}.key -days 2 {subject} -out {name}.pem -config /dev/null{extensions}"
        ));
    }

    /// Makes a certificate that another signs. Without extensions its version is 1. `more` goes to `openssl x509`.
    pub(crate) fn signed(&self, name: &str, kind: &str, by: &str, extensions: &[&str], more: &str) {
        self.key(name, kind);
        self.openssl(&format!(
            "req -new -key {name}.key -subj /O=test/CN={name} -out {name}.csr -config /dev/null"
        ));
        self.write("extensions", extensions.join("\n"));
        let file = if extensions.is_empty() { "" } else { "-extfile extensions" };
        let days = if more.contains("-days") { "" } else { "-days 2" };
        let signer = format!("-CA {by}.pem -CAkey {by}.key -CAcreateserial {days} {file} {more}");
        self.openssl(&format!("x509 -req -in {name}.csr -out {name}.pem {signer}"));
    }
}

/// A flag with a path.
pub(crate) fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
