//! What the files hold by which a store knows us: certificates, a key, a password.

use super::{Password, Settings};
use crate::store::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// The largest file that is read, in bytes. A bundle of all public authorities is a quarter of it.
const MOST_BYTES: u64 = 1 << 20;

/// How often the files are looked at while the store refuses us.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The files of [`Settings`] as they are at this moment. They are read again for every new connection, so that
/// replaced files take effect without a restart.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// The CA bundle. `None` leaves the verification to the system's roots.
    pub(super) ca: Option<Vec<u8>>,
    /// The client certificate and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The password, whether it comes from a file or was typed.
    pub(super) password: Option<String>,
}

/// Shows no content, since that is secret.
impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the file and the cause: it cannot be read, it is too large, it holds no password;
    /// or the settings name only one of certificate and key.
    pub(super) fn read(settings: &Settings) -> Result<Self, Error> {
        let ca = settings.ca_file.as_deref().map(read).transpose()?;
        let identity = match (settings.cert_file.as_deref(), settings.key_file.as_deref()) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            _ => return Err(Error::Invalid("etcd client certificate and key go together".to_owned())),
        };
        let credentials = settings.credentials.as_ref();
        let password = credentials.map(|credentials| credentials.password.read()).transpose()?;
        Ok(Self { ca, identity, password })
    }

    /// Waits until the files of the settings hold something else than they do now.
    pub(super) async fn changed(settings: &Settings) {
        let before = Self::read(settings);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if Self::read(settings) != before {
                return;
            }
        }
    }

    /// The user of the settings with the password.
    pub(super) fn user<'a>(&'a self, settings: &'a Settings) -> Option<(&'a str, &'a str)> {
        Some((settings.credentials.as_ref()?.username.as_str(), self.password.as_deref()?))
    }
}

impl Password {
    /// The password, from its file if it is in one.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the file and the cause.
    pub fn read(&self) -> Result<String, Error> {
        match self {
            Self::Typed(password) => Ok(password.clone()),
            Self::File(path) => first_line(path),
        }
    }
}

/// An error that names the file.
pub(super) fn at_fault(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("{}: {cause}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| at_fault(path, error))?;
    file.take(MOST_BYTES + 1).read_to_end(&mut content).map_err(|error| at_fault(path, error))?;
    if content.len() as u64 > MOST_BYTES {
        return Err(at_fault(path, format_args!("larger than {MOST_BYTES} bytes")));
    }
    Ok(content)
}

/// The password in a file: its first line.
fn first_line(path: &Path) -> Result<String, Error> {
    let text = String::from_utf8(read(path)?).map_err(|_| at_fault(path, "the password is not UTF-8"))?;
    match text.lines().next().unwrap_or_default() {
        "" => Err(at_fault(path, "the first line, which is the password, is empty")),
        password => Ok(password.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::tests::settings;

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            Files::read(&settings(&path)).map(|files| files.password.unwrap())
        };
        assert_eq!(read(b"secret word\nmore").as_deref(), Ok("secret word"));
        assert_eq!(read(b"secret\r\n").as_deref(), Ok("secret"));
        let large = vec![b'a'; 2 << 20];
        for (content, cause) in
            [(b"".as_slice(), "empty"), (b"\nx", "empty"), (b"\xff\n", "UTF-8"), (&large, "larger")]
        {
            let Err(Error::Invalid(text)) = read(content) else { panic!("taken") };
            assert!(text.contains(path.to_str().unwrap()) && text.contains(cause), "{text}");
        }
        let Err(Error::Invalid(text)) = Files::read(&settings(directory.path())) else { panic!("taken") };
        assert!(text.contains("Is a directory"), "{text}");
        assert!(!format!("{:?}", Files::default()).contains("password"));
    }
}
