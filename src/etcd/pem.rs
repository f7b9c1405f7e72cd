//! Certificates and keys in files of PEM blocks (RFC 7468), each accepted as Go's `crypto/tls` accepts it, or refused
//! with a sentence that names the file and the cause.

use super::files::at_fault;
use crate::store::Error;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;
use std::path::Path;

const CERTIFICATE: &str = "CERTIFICATE";
const ENCRYPTED_KEY: &str = "ENCRYPTED PRIVATE KEY";
/// What the labels of all private keys end in. `EC PARAMETERS`, which openssl writes before a key, is no key.
const KEY: &str = "PRIVATE KEY";

/// One block of a file. What stands between the blocks is comment.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Its number in the file, from 1 on.
    number: usize,
    label: String,
    /// The block with its first and its last line. `None`: it has no last line.
    text: Option<String>,
}

impl Block {
    /// Whether a passphrase protects the key in it: by PKCS #8, or by the older header of RFC 1421.
    fn is_encrypted(&self) -> bool {
        let header =
            |text: &String| text.lines().any(|l| l.starts_with("Proc-Type:") && l.contains("ENCRYPTED"));
        self.label == ENCRYPTED_KEY || self.text.as_ref().is_some_and(header)
    }
}

fn blocks(pem: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(pem);
    let mut blocks: Vec<Block> = Vec::new();
    // The block that is being read.
    let mut open: Option<(String, String)> = None;
    let broken = |blocks: &mut Vec<Block>, open: Option<(String, String)>| {
        let number = blocks.len() + 1;
        blocks.extend(open.map(|(label, _)| Block { number, label, text: None }));
    };
    for line in text.lines().map(str::trim_end) {
        let marked = |word: &str| line.strip_prefix("-----")?.strip_prefix(word)?.strip_suffix("-----");
        if let Some(label) = marked("BEGIN ") {
            broken(&mut blocks, open.replace((label.to_owned(), format!("{line}\n"))));
            continue;
        }
        let Some((label, content)) = &mut open else { continue };
        content.push_str(line);
        content.push('\n');
        if marked("END ").is_some_and(|end| end == label) {
            let (label, content) = (std::mem::take(label), std::mem::take(content));
            blocks.push(Block { number: blocks.len() + 1, label, text: Some(content) });
            open = None;
        }
    }
    broken(&mut blocks, open);
    blocks
}

/// The reason of an error of OpenSSL, without its place in OpenSSL's source.
pub(super) fn reason(error: &ErrorStack) -> String {
    // The last error is the outermost one; the first tells more.
    let first = error.errors().first().and_then(openssl::error::Error::reason);
    first.map_or_else(|| "OpenSSL does not say why".to_owned(), str::to_owned)
}

/// The certificates in a file, and what is wrong with a block that could not be read.
fn certificates(path: &Path, pem: &[u8]) -> Result<(Vec<X509>, Option<Error>), Error> {
    let blocks = blocks(pem);
    let (mut found, mut broken) = (Vec::new(), None);
    for block in blocks.iter().filter(|block| block.label == CERTIFICATE) {
        let read = match &block.text {
            Some(text) => X509::from_pem(text.as_bytes()).map_err(|error| reason(&error)),
            None => Err("it has no END line".to_owned()),
        };
        match read {
            Ok(certificate) => found.push(certificate),
            Err(cause) => {
                let block = format_args!("block {} is no certificate: {cause}", block.number);
                broken = broken.or_else(|| Some(at_fault(path, block)));
            }
        }
    }
    if !found.is_empty() {
        return Ok((found, broken));
    }
    Err(broken.unwrap_or_else(|| match blocks.first() {
        Some(block) => at_fault(path, format_args!("no certificate in it, but a block {:?}", block.label)),
        None if pem.trim_ascii().is_empty() => at_fault(path, "the file is empty"),
        None => at_fault(path, "no certificate in it (it must be PEM: -----BEGIN CERTIFICATE-----)"),
    }))
}

/// The certificates of a CA bundle. Like Go, it passes over a block that cannot be read, as long as there is another; what
/// is wrong with it is returned beside them.
pub(super) fn bundle(path: &Path, pem: &[u8]) -> Result<(Vec<X509>, Option<Error>), Error> {
    certificates(path, pem)
}

/// A certificate and the intermediate ones after it.
pub(super) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<X509>, Error> {
    match certificates(path, pem)? {
        (_, Some(broken)) => Err(broken),
        (chain, None) => Ok(chain),
    }
}

/// The first private key in a file: PKCS #8, PKCS #1 or SEC 1.
pub(super) fn key(path: &Path, pem: &[u8]) -> Result<PKey<Private>, Error> {
    let blocks = blocks(pem);
    let Some(block) = blocks.iter().find(|block| block.label.ends_with(KEY)) else {
        return Err(match blocks.first() {
            Some(block) if block.label == CERTIFICATE => {
                at_fault(path, "a certificate, but no private key: are the two files swapped?")
            }
            Some(block) => {
                at_fault(path, format_args!("no private key in it, but a block {:?}", block.label))
            }
            None if pem.trim_ascii().is_empty() => at_fault(path, "the file is empty"),
            None => at_fault(path, "no private key in it (it must be PEM: -----BEGIN PRIVATE KEY-----)"),
        });
    };
    if block.is_encrypted() {
        let remedy = "the key is encrypted, and there is nobody to type its passphrase; write it in the clear with \
                      `openssl pkey -in OLD -out NEW`";
        return Err(at_fault(path, remedy));
    }
    let Some(text) = &block.text else { return Err(at_fault(path, "the private key has no END line")) };
    // Without a callback OpenSSL would ask at the terminal.
    PKey::private_key_from_pem_callback(text.as_bytes(), |_| Ok(0))
        .map_err(|error| at_fault(path, format_args!("the private key cannot be read: {}", reason(&error))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_between_comments() {
        let text = "a comment\n-----BEGIN A-----\nx\n-----END A-----\r\nmore\n-----BEGIN B-----\n-----BEGIN C D-----\ny";
        let found: Vec<_> =
            blocks(text.as_bytes()).into_iter().map(|b| (b.number, b.label, b.text)).collect();
        let a = "-----BEGIN A-----\nx\n-----END A-----\n".to_owned();
        let named = |number, label: &str, text| (number, label.to_owned(), text);
        assert_eq!(found, [named(1, "A", Some(a)), named(2, "B", None), named(3, "C D", None)]);
        assert_eq!(blocks(b""), []);
    }

    #[test]
    fn an_encrypted_key_is_known_by_its_label_or_its_header() {
        let key = |label: &str, header: &str| {
            let text = format!("-----BEGIN {label}-----\n{header}\nAAAA\n-----END {label}-----\n");
            key(Path::new("/k"), text.as_bytes()).unwrap_err().to_string()
        };
        let header = "Proc-Type: 4,ENCRYPTED";
        for text in [key("RSA PRIVATE KEY", header), key("ENCRYPTED PRIVATE KEY", "")] {
            assert!(text.starts_with("/k: the key is encrypted"), "{text}");
        }
        assert!(key("PRIVATE KEY", "").contains("cannot be read"));
    }
}
