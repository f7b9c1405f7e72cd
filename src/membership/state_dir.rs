//! The state directory: what must outlive this process, and a reboot too.

use crate::subnet::replace::{FileError, failed, replace};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The mode of a directory that is made: what is in it says which etcd this host talks to.
const DIRECTORY_MODE: u32 = 0o700;
/// The mode of every file in it.
const FILE_MODE: u32 = 0o600;
/// The largest file that is read back. A cache of 10 000 peers has about 2 MB.
const LARGEST: u64 = 64 << 20;

/// The file that proves that the directory can be written.
const PROBE: &str = "probe";

/// The state directory (`--state-dir`).
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Makes the directory if it is absent, and proves that files in it can be written.
    ///
    /// # Errors
    /// The directory cannot be made, is none, or does not let us write.
    pub fn open(path: &Path) -> Result<StateDir, FileError> {
        let absent = !path.exists();
        if absent {
            let mut builder = DirBuilder::new();
            builder
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(path)
                .map_err(failed("cannot create", path))?;
        }
        let is_directory = fs::metadata(path).map_err(failed("cannot read", path))?.is_dir();
        if !is_directory {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed("cannot use", path)(error));
        }
        let state = StateDir { path: path.to_owned() };
        state.tidy();
        match state.write(PROBE, b"") {
            Ok(()) => state.remove(PROBE)?,
            // A disk that is full, broken or read-only is no reason to leave containers without a network.
            Err(error) if is_setting(&error.source) => return Err(error),
            Err(error) => tracing::warn!("{error}: nothing can be kept in the state directory now"),
        }
        Ok(state)
    }

    /// Removes what a run that was killed in the midst of a write has left: a file is written beside its place first,
    /// under a name with the pid. The directory may be shared, so only names of ours count, and of no process that runs.
    fn tidy(&self) {
        let is_left = |name: &String| {
            let Some((file, pid)) = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')) else {
                return false;
            };
            is_ours(file) && pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        };
        for name in self.names().iter().filter(|name| is_left(name)) {
            // It does no harm but to take room.
            let _ = self.remove(name);
        }
    }

    /// Replaces a file of the directory in one step.
    ///
    /// # Errors
    /// The error names the step that failed. The old file is still there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        replace(&self.path.join(name), bytes, FILE_MODE)
    }

    /// Reads a file of the directory; `None` if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read, is no plain file, or is larger than 64 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path.join(name);
        // Without O_NONBLOCK, opening a named pipe would wait for its writer.
        let opened =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("cannot open", &path)(error)),
        };
        let about = file.metadata().map_err(failed("cannot read", &path))?;
        if !about.is_file() || about.len() > LARGEST {
            return Err(failed("cannot use", &path)(io::Error::from(io::ErrorKind::InvalidData)));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).map_err(failed("cannot read", &path))?;
        Ok(Some(bytes))
    }

    /// The names of all files of the directory; none if it cannot be read.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Removes a file of the directory; it need not be there.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("cannot remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a file of this name is one that we write.
fn is_ours(name: &str) -> bool {
    matches!(name, PROBE | "node-id") || (name.starts_with("network") && name.ends_with(".cache"))
}

/// Whether the operator has to mend this: a wrong path, or a directory of somebody else.
fn is_setting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn it_is_made_and_holds_files_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the probe is gone");
        assert_eq!(state.read("x").unwrap(), None);
        state.write("x", b"one").unwrap();
        state.write("x", b"two").unwrap();
        assert_eq!(state.read("x").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("x"))), (0o700, 0o600));
        state.remove("x").unwrap();
        state.remove("x").unwrap();
        // A run that was killed has left a file, another one is writing, and somebody has put others there. No process
        // has the number 4194305 (PID_MAX_LIMIT, include/linux/threads.h).
        let writing = format!(".network-a.cache.{}", std::process::id());
        let of_others = [".bashrc.20240101", ".keep", ".netrc.4194305", "network.cache", writing.as_str()];
        for name in of_others.iter().chain(&[".network.cache.4194305", ".probe.4194305", ".node-id.4194305"])
        {
            fs::write(path.join(name), "").unwrap();
        }
        assert_eq!(StateDir::open(&path).unwrap().read("x").unwrap(), None);
        let mut names = state.names();
        names.sort();
        let mut wanted = of_others;
        wanted.sort_unstable();
        assert_eq!(names, wanted);
    }

    #[test]
    fn a_directory_that_cannot_work_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, start) in [(file.clone(), "cannot use "), (file.join("below"), "cannot create ")] {
            let error = StateDir::open(&path).unwrap_err().to_string();
            assert!(error.starts_with(start) && error.contains("file"), "{error}");
        }
        symlink("/no/such/place", dir.path().join("dangling")).unwrap();
        let error = StateDir::open(&dir.path().join("dangling")).unwrap_err().to_string();
        assert!(error.contains("dangling"), "{error}");
    }

    #[test]
    fn what_is_no_plain_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let pipe = dir.path().join("p");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for name in ["d", "p"] {
            assert!(state.read(name).is_err(), "{name}");
        }
    }
}
