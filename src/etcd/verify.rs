//! Whether a server's certificate is accepted: where OpenSSL and Go's `crypto/tls` differ, Go's verdict counts. And what
//! is wrong with a certificate, as the end of a sentence.

use crate::log::quote;
use openssl::error::ErrorStack;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509VerifyFlags, X509VerifyParam};
use openssl::x509::{
    X509, X509ExtendedKeyUsage, X509NameEntryRef, X509NameRef, X509Ref, X509StoreContext, X509StoreContextRef,
};
use std::cmp::Ordering;
use std::net::IpAddr;

/// OpenSSL's level for keys of 80 bits of security, so RSA of 1024 bits, which Go takes too. Debian's default is 2, for
/// RSA of 2048 bits. Neither takes SHA-1 in a signature.
pub(super) const SECURITY_LEVEL: u8 = 1;

/// Whether Go accepts what OpenSSL refuses. `trusted` are the certificates of the CA file.
///
/// - For OpenSSL the key usage of a CA forbids its use as a server's certificate. For Go only the extended key usage
///   counts.
/// - For OpenSSL a CA whose extended key usage is "any" issues no servers' certificates.
/// - OpenSSL takes the first CA with the issuer's name, and Go the one whose key has signed.
pub(super) fn is_fit(context: &X509StoreContextRef, trusted: &[X509]) -> bool {
    let Some(certificate) = context.current_cert() else {
        return false;
    };
    match context.error().as_raw() {
        fault::INVALID_PURPOSE if context.error_depth() == 0 => is_for_servers(certificate),
        fault::INVALID_PURPOSE => {
            let usage = certificate.extended_key_usage();
            usage.is_some_and(|usage| usage.contains(X509ExtendedKeyUsage::ANYEKU))
        }
        fault::BAD_SIGNATURE => trusted
            .iter()
            .filter(|anchor| has_signed(anchor, certificate) && is_for_servers(anchor))
            .any(|anchor| leads_to(context, anchor).unwrap_or(false)),
        _ => false,
    }
}

/// Whether the extended key usage of a certificate lets it stand for, or issue, a server's certificate.
fn is_for_servers(certificate: &X509Ref) -> bool {
    let wanted = X509ExtendedKeyUsage::SSL_SERVER | X509ExtendedKeyUsage::ANYEKU;
    certificate.extended_key_usage().is_none_or(|usage| usage.intersects(wanted))
}

/// Whether `anchor` has the name of the certificate's issuer, and its key has signed it.
fn has_signed(anchor: &X509, certificate: &X509Ref) -> bool {
    let is_named = anchor.subject_name().try_cmp(certificate.issuer_name()).is_ok_and(Ordering::is_eq);
    is_named && anchor.public_key().and_then(|key| certificate.verify(&key)).unwrap_or(false)
}

/// Whether the server's chain is good if this certificate alone is trusted. The names and the purposes of the chain are
/// looked at by the verification that asks.
fn leads_to(context: &X509StoreContextRef, anchor: &X509) -> Result<bool, ErrorStack> {
    let Some(chain) = context.chain() else {
        return Ok(false);
    };
    let Some(server) = chain.get(0) else {
        return Ok(false);
    };
    let mut between = Stack::new()?;
    for certificate in chain.iter().skip(1) {
        between.push(certificate.to_owned())?;
    }
    let mut param = X509VerifyParam::new()?;
    param.set_auth_level(SECURITY_LEVEL.into());
    param.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let mut store = X509StoreBuilder::new()?;
    store.set_param(&param)?;
    store.add_cert(anchor.clone())?;
    let store = store.build();
    X509StoreContext::new()?.init(&store, server, &between, X509StoreContextRef::verify_cert)
}

/// Errors of a verification (OpenSSL, `X509_STORE_CTX_get_error(3)`).
mod fault {
    pub(super) const BAD_SIGNATURE: i32 = 7;
    pub(super) const NO_ISSUER: [i32; 5] = [2, 18, 19, 20, 21];
    pub(super) const NOT_YET_VALID: i32 = 9;
    pub(super) const EXPIRED: i32 = 10;
    pub(super) const INVALID_PURPOSE: i32 = 26;
    pub(super) const OTHER_NAME: i32 = 62;
    pub(super) const OTHER_ADDRESS: i32 = 64;
}

/// What is wrong with the certificate that a verification has come to, as the end of a sentence.
pub(super) fn verdict(context: &X509StoreContextRef, host: &str, trusted: &str) -> String {
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
        fault::BAD_SIGNATURE => format!(
            "{trusted} hold a certificate with the name of its issuer {}, but its key has not signed it",
            name(certificate.issuer_name())
        ),
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
