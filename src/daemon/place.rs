//! Where subnet files go. The sandbox of a unit may make a place read-only, or private to the unit. Then the daemon ends
//! at once: otherwise `systemctl start` would wait without end for a file that can never be written, or the file would
//! lie where Docker does not find it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why subnet files cannot go where the settings say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    /// The file system is read-only there.
    #[error(
        "cannot write {0}: the file system is read-only there; under systemd put it below /run, or name its directory \
         in a drop-in as ReadWritePaths="
    )]
    ReadOnly(PathBuf),
    /// The directory is the unit's own `/tmp` or `/var/tmp`.
    #[error(
        "nobody would find {0}: the unit has a private /tmp (PrivateTmp=yes); put it below /run, or set PrivateTmp=no \
         in a drop-in"
    )]
    PrivateTmp(PathBuf),
}

/// Checks the place of a subnet file. What may pass (a missing mount, a full disk) is no error here: the daemon goes on
/// and tries to write until it can.
pub(super) fn check_file(path: &Path) -> Result<(), PlaceError> {
    // A file that is mounted by itself can be written where nothing beside it can.
    let is_writable = || File::options().write(true).open(path).is_ok();
    check(path, path.parent().unwrap_or(path), is_writable)
}

/// Checks the directory of several subnet files, in the same way.
pub(super) fn check_directory(dir: &Path) -> Result<(), PlaceError> {
    check(dir, dir, || false)
}

/// Checks `path`, which the settings name, by a new file in `dir`; there is none if `path` is writable as it is.
fn check(path: &Path, dir: &Path, is_writable: impl Fn() -> bool) -> Result<(), PlaceError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_private(path, &mounts) {
        return Err(PlaceError::PrivateTmp(path.to_owned()));
    }
    if is_writable() {
        return Ok(());
    }
    let probe = dir.join(format!(".flanneld-{}", std::process::id()));
    let tried = fs::create_dir_all(dir).and_then(|()| File::create_new(&probe));
    match tried {
        Ok(_) => drop(fs::remove_file(&probe)),
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem && is_in_a_unit() => {
            return Err(PlaceError::ReadOnly(path.to_owned()));
        }
        Err(_) => {}
    }
    Ok(())
}

/// Whether systemd has started us in a unit, whose sandbox no waiting opens (`INVOCATION_ID`, systemd.exec(5)).
fn is_in_a_unit() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
}

/// Whether `path` lies in a directory that systemd has made for this unit alone. `mounts` has the form of
/// `/proc/self/mountinfo` (proc(5)): the fourth field is the mounted directory, the fifth where it is mounted.
fn is_private(path: &Path, mounts: &str) -> bool {
    let fields = mounts.lines().map(|line| line.split(' ').skip(3));
    let mut mounts = fields.filter_map(|mut fields| Some((fields.next()?, fields.next()?)));
    mounts.any(|(root, at)| root.contains("/systemd-private-") && path.starts_with(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_tmp_is_told_from_a_common_one() {
        let common = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:26 / /tmp rw - tmpfs tmpfs rw\n";
        let private = format!(
            "{common}31 30 0:26 /systemd-private-5c-flanneld.service-x/tmp /tmp rw shared:1 - tmpfs tmpfs rw\n"
        );
        let file = Path::new("/tmp/flannel/subnet.env");
        assert!(is_private(file, &private) && !is_private(file, common) && !is_private(file, ""));
        for elsewhere in ["/run/flannel/subnet.env", "/tmpfs/subnet.env", "subnet.env"] {
            assert!(!is_private(Path::new(elsewhere), &private), "{elsewhere}");
        }
    }

    #[test]
    fn a_place_that_can_be_written_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("new/subnet.env");
        assert_eq!(check_file(&place), Ok(()));
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 0);
        let several = dir.path().join("several");
        assert_eq!(check_directory(&several), Ok(()));
        assert_eq!(fs::read_dir(&several).unwrap().count(), 0);
        // This place is no read-only one, only one where no file can be.
        assert_eq!(check_file(Path::new("/proc/version/subnet.env")), Ok(()));
    }
}
