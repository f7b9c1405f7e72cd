//! What the files hold by which a store knows us: certificates, a key, a password.

use super::{Password, Settings};
use crate::store::Error;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest file that is read, in bytes. A bundle of all public authorities is a quarter of it.
const MOST_BYTES: u64 = 1 << 20;

/// How often the files are looked at while the store refuses us.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long a pipe may take at the start.
pub const PIPE_LIMIT: Duration = Duration::from_secs(5);
/// How often a pipe is looked at meanwhile.
const PIPE_LOOK: Duration = Duration::from_millis(10);

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
    content(path, Duration::ZERO).map_err(|error| at_fault(path, error))
}

/// What pipes held, by their paths: a pipe, such as bash's `<(...)`, can be read only once, and a reload makes new
/// settings of the same paths.
static PIPES: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// Reads a file at the start. What comes from a pipe is kept, since it is used again for every connection.
///
/// # Errors
/// It cannot be read, it is too large, or a pipe has brought nothing within [`PIPE_LIMIT`].
pub fn first_read(path: &Path) -> io::Result<()> {
    content(path, PIPE_LIMIT).map(drop)
}

/// The content of a file. A pipe has so long to bring its own, unless it was read before. To open it never blocks.
fn content(path: &Path, patience: Duration) -> io::Result<Vec<u8>> {
    let is_plain = fs::metadata(path).is_ok_and(|about| about.is_file());
    let pipes = || PIPES.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_plain && let Some(kept) = pipes().get(path) {
        return Ok(kept.clone());
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let is_plain = file.metadata()?.is_file();
    let content = drained(file, if is_plain { None } else { Some(Instant::now() + patience) })?;
    if content.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("larger than {MOST_BYTES} bytes")));
    }
    if !is_plain {
        pipes().insert(path.to_owned(), content.clone());
    }
    Ok(content)
}

/// Reads up to the end, and not much more than [`MOST_BYTES`]. What is no plain file may bring its first byte up to
/// `until`; whoever writes to a pipe may open it later than we do.
fn drained(file: File, until: Option<Instant>) -> io::Result<Vec<u8>> {
    let (mut file, mut content) = (file.take(MOST_BYTES + 1), Vec::new());
    loop {
        let is_silent = match file.read_to_end(&mut content) {
            Ok(_) => content.is_empty() && until.is_some(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(error),
        };
        if !is_silent {
            return Ok(content);
        }
        if until.is_none_or(|until| Instant::now() >= until) {
            return Err(io::Error::other("it is no plain file, and nobody has written to it"));
        }
        std::thread::sleep(PIPE_LOOK);
    }
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
            fs::write(&path, content).unwrap();
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
    #[test]
    fn a_pipe_is_read_once_and_never_waited_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let started = Instant::now();
        let Err(Error::Invalid(text)) = Files::read(&settings(&path)) else { panic!("taken") };
        assert!(text.contains("nobody has written to it") && started.elapsed() < PIPE_LIMIT, "{text}");

        let writer = path.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            fs::write(writer, "from a pipe\n").unwrap();
        });
        first_read(&path).unwrap();
        writer.join().unwrap();
        for _ in 0..2 {
            let files = Files::read(&settings(&path)).unwrap();
            assert_eq!(files.password.as_deref(), Some("from a pipe"));
        }
        // A plain file in its place counts.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "from a file\n").unwrap();
        assert_eq!(Files::read(&settings(&path)).unwrap().password.as_deref(), Some("from a file"));
    }
}
