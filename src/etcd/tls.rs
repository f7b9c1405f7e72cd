//! Certificates and keys, as the files hold them at this moment.

use super::{Error, Settings};
use std::path::Path;

/// The PEM text of the files in [`Settings`]. It is read again for every new connection, so that
/// replaced files take effect without a restart.
pub(super) struct Pem {
    /// CA bundle; `None` leaves the verification to the system's roots.
    pub(super) ca: Option<Vec<u8>>,
    /// Client certificate and key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Pem {
    /// # Errors
    /// [`Error::Unavailable`] if a file cannot be read (it may be just being replaced), and
    /// [`Error::Invalid`] if only one of certificate and key is named.
    pub(super) fn read(settings: &Settings) -> Result<Self, Error> {
        let ca = settings.ca_file.as_deref().map(read).transpose()?;
        let identity = match (settings.cert_file.as_deref(), settings.key_file.as_deref()) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            _ => return Err(Error::Invalid("etcd client certificate and key go together".to_owned())),
        };
        Ok(Self { ca, identity })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Unavailable(format!("{}: {error}", path.display())))
}
