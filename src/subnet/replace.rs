//! Replacing a file in one step: a reader sees either the old bytes or the new, even after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}", path = path.display())]
pub struct FileError {
    /// The step that failed, for instance `cannot replace`.
    pub action: &'static str,
    /// The path that the step was about.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: io::Error,
}

impl FileError {
    /// Whether the file itself may be written though it cannot be replaced: it is a mount point of its own (rename(2),
    /// EBUSY), or lies in a directory that is read-only or not ours.
    #[must_use]
    pub fn is_of_the_directory(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EBUSY | libc::EROFS | libc::EACCES | libc::EPERM))
    }
}

/// Writes `bytes` beside `path`, brings them to the disk, and renames them into its place. The file has `mode`, whatever
/// the umask.
///
/// # Errors
/// The error names the step that failed and its path. If the new bytes are not in place, the old file still is.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = directory(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let file = create_anew(&temporary, mode).map_err(failed("cannot create", &temporary))?;
    let written = write_temporary(file, &temporary, bytes, mode).and_then(|()| {
        fs::rename(&temporary, path).map_err(failed("cannot replace", path))?;
        // The rename is a change of the directory, so the directory has to reach the disk as well.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
    });
    if written.is_err() {
        // The caller gets the first error. A dot file that stays behind does no harm.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes `bytes` into the file at `path` itself. A reader may see a part of them, so this is for a file that nobody can
/// replace: a single file that is mounted into a container cannot be renamed over.
///
/// # Errors
/// The error names the path. The file may hold a part of the new bytes.
pub fn write_in_place(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("cannot write in place", path))
}

/// The directory that holds the file of that path.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn write_temporary(mut file: File, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    file.set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .map_err(failed("cannot write", path))
}

/// Creates a file that did not exist before. Its name can be guessed, and whoever may write to the directory could put
/// a link to a file of ours there; `O_EXCL` neither follows a link nor opens a file that exists. A file that an earlier
/// run with the same pid left behind (in a container, every run has the same) is removed first. Of a link, only the
/// link itself is removed.
fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Makes the error of a step from the error of the operating system.
pub fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + use<'a> {
    move |source| FileError { action, path: path.to_owned(), source }
}
