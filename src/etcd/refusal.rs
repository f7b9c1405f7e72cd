//! Whether a connection has failed because one side does not accept the other's certificate.
//!
//! The libraries wrap the error of rustls in errors of their own. This file unwraps it and decides by its variant,
//! so that no server can decide by the words that it sends.

use rustls::{AlertDescription, Error as TlsError, PeerIncompatible};
use std::error::Error;
use std::io;

/// The alerts by which a server says that it does not accept our certificate, or that it misses one.
const ALERTS: [AlertDescription; 12] = [
    AlertDescription::HandshakeFailure,
    AlertDescription::NoCertificate,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::CertificateUnobtainable,
    AlertDescription::BadCertificateStatusResponse,
    AlertDescription::BadCertificateHashValue,
    AlertDescription::CertificateRequired,
];

/// Whether the error, or one of its causes, is the refusal of a certificate.
pub(super) fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<TlsError>() {
            return is_tls_refusal(error);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) if is_alert_as_text(inner) => return true,
            // `source` of an I/O error passes over the error that it holds.
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Whether an error of rustls tells of a certificate that is not accepted. A broken message does not: it may be about a
/// certificate, too, but other files would not mend it.
fn is_tls_refusal(error: &TlsError) -> bool {
    match error {
        TlsError::InvalidCertificate(_)
        | TlsError::InvalidCertRevocationList(_)
        | TlsError::NoCertificatesPresented
        | TlsError::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => true,
        TlsError::AlertReceived(alert) => ALERTS.contains(alert),
        _ => false,
    }
}

/// Whether an error is one of [`ALERTS`] as h2 hands it on. h2 keeps only the kind and the text of an I/O error
/// (`Io` in its `src/proto/error.rs`), so the type is lost for an alert that arrives on an HTTP/2 connection. With
/// TLS 1.3 that is where a server refuses our certificate. The text is the one that rustls gives to that alert.
fn is_alert_as_text(error: &(dyn Error + 'static)) -> bool {
    let text = error.to_string();
    ALERTS.iter().any(|alert| TlsError::AlertReceived(*alert).to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, InvalidMessage};

    /// An error as tokio-rustls and hyper-rustls wrap it.
    fn wrapped(error: TlsError) -> io::Error {
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn a_refusal_is_found_below_the_libraries_errors() {
        let refusals = [
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer),
            TlsError::NoCertificatesPresented,
            TlsError::AlertReceived(AlertDescription::CertificateRequired),
            TlsError::AlertReceived(AlertDescription::HandshakeFailure),
        ];
        for refusal in refusals {
            assert!(is_refusal(&refusal) && is_refusal(&wrapped(refusal.clone())), "{refusal}");
        }
        let others = [
            TlsError::AlertReceived(AlertDescription::InternalError),
            TlsError::InvalidMessage(InvalidMessage::CertificatePayloadTooLarge),
            TlsError::General("certificate".to_owned()),
        ];
        for other in others {
            assert!(!is_refusal(&wrapped(other.clone())), "{other}");
        }
    }

    #[test]
    fn an_alert_is_known_by_the_text_that_h2_keeps() {
        for alert in ALERTS {
            let text = wrapped(TlsError::AlertReceived(alert)).to_string();
            assert!(is_refusal(&io::Error::new(io::ErrorKind::InvalidData, text)), "{alert:?}");
        }
        for text in ["received fatal alert: InternalError", "x509: certificate signed by unknown authority"] {
            assert!(!is_refusal(&io::Error::other(text)), "{text}");
        }
    }
}
