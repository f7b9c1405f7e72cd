//! Whether a connection has failed because one side does not accept the other's certificate, and what to say of it.

use openssl::error::ErrorStack;
use std::error::Error;
use std::fmt;
use std::io;

/// The number of OpenSSL's part for TLS among its error codes (`ERR_LIB_SSL` in its `err.h`).
const LIBRARY: i32 = 20;
/// What OpenSSL adds to the number of an alert to make its reason code (`SSL_AD_REASON_OFFSET` in its `ssl.h`).
const OFFSET: i32 = 1000;
/// The alert of a server that does not offer our protocol (RFC 7301 section 3.2).
pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;
/// The alerts by which a server says that it does not accept our certificate, or that it misses one (RFC 8446 section 6.2).
const ALERTS: [(u8, &str); 10] = [
    (40, "handshake failure"),
    (41, "no certificate"),
    (42, "bad certificate"),
    (43, "unsupported certificate"),
    (44, "certificate revoked"),
    (45, "certificate expired"),
    (46, "certificate unknown"),
    (48, "unknown certificate authority"),
    (51, "decrypt error"),
    (116, "certificate required"),
];

/// The refusal of a certificate, by us or by the server, with a sentence that says why.
#[derive(Debug)]
pub(super) struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Refused {}

/// The server does not offer HTTP/2.
#[derive(Debug)]
pub(super) struct NoHttp2;

impl fmt::Display for NoHttp2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not offer HTTP/2")
    }
}

impl Error for NoHttp2 {}

/// The server does not offer HTTP/1.1.
#[derive(Debug)]
pub(super) struct NoHttp1;

impl fmt::Display for NoHttp1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not offer HTTP/1.1")
    }
}

impl Error for NoHttp1 {}

/// The alert of TLS that an error of OpenSSL tells of.
pub(super) fn alert_in(stack: &ErrorStack) -> Option<u8> {
    let of_tls = stack.errors().iter().filter(|error| error.library_code() == LIBRARY);
    of_tls.filter_map(|error| u8::try_from(error.reason_code() - OFFSET).ok()).next()
}

/// The sentence for an alert by which a server refuses us; `None` for other alerts. `identity` names our certificate.
pub(super) fn of_alert(alert: u8, identity: Option<&str>) -> Option<String> {
    let (_, name) = ALERTS.iter().find(|(number, _)| *number == alert)?;
    Some(match identity {
        Some(identity) => format!("the server refuses the client certificate {identity}: alert \"{name}\""),
        None => format!(
            "the server asks for a client certificate, or shares no cipher with us: alert \"{name}\" \
             (--etcd-certfile and --etcd-keyfile name one)"
        ),
    })
}

/// The first error of this type among an error and its causes.
pub(super) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // `source` of an I/O error passes over the error that it holds.
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Whether the error, or one of its causes, is the refusal of a certificate.
pub(super) fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    find::<Refused>(error).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_below_other_errors() {
        let wrapped = |error: io::Error| io::Error::other(io::Error::other(error));
        let refusal = io::Error::new(io::ErrorKind::PermissionDenied, Refused("no".to_owned()));
        assert!(is_refusal(&wrapped(refusal)));
        assert!(!is_refusal(&wrapped(io::Error::other("the server's certificate is refused"))));
        assert!(find::<NoHttp2>(&wrapped(io::Error::other(NoHttp2))).is_some());
    }

    #[test]
    fn an_alert_is_a_refusal_or_not() {
        let ours = of_alert(45, Some("/c (valid until May)")).unwrap();
        assert_eq!(
            ours,
            "the server refuses the client certificate /c (valid until May): alert \"certificate expired\""
        );
        assert!(of_alert(116, None).unwrap().contains("--etcd-certfile"));
        assert_eq!(of_alert(80, None), None);
    }
}
