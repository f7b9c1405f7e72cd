//! `subnet.env`: what container runtimes and CNI plugins read to learn this host's subnet.

use ipnet::Ipv4Net;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The four values of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvFile {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// This host's subnet, masked. The file holds its first address (base + 1), which a bridge takes.
    pub subnet: Ipv4Net,
    /// The size of the largest packet of the overlay, in bytes.
    pub mtu: u32,
    /// Whether this daemon masquerades what leaves the overlay, so that no other program has to.
    pub ip_masq: bool,
}

/// Why the file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}", path = path.display())]
pub struct EnvFileError {
    /// The step that failed, for instance `cannot replace`.
    pub action: &'static str,
    /// The path that the step was about.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: io::Error,
}

impl EnvFile {
    /// The text of the file, byte for byte as flannel writes it.
    pub fn text(&self) -> String {
        let first = Ipv4Addr::from(u32::from(self.subnet.network()).saturating_add(1));
        let text = format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            first,
            self.subnet.prefix_len(),
            self.mtu,
            self.ip_masq
        );
        debug_assert_eq!(Self::parse(&text), Some(*self), "what we write can be read back");
        text
    }

    /// Replaces the file in one step: a reader sees either the old text or the new, even after a power cut.
    /// An absent directory is made with mode 0755; the file has mode 0644 whatever the umask.
    ///
    /// # Errors
    /// The error names the step that failed and its path. If the new text is not in place, the old file still is.
    pub fn write(&self, path: &Path) -> Result<(), EnvFileError> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("cannot create", dir))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        let file = create_anew(&temporary).map_err(failed("cannot create", &temporary))?;
        let written = self.write_temporary(file, &temporary).and_then(|()| {
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

    fn write_temporary(&self, mut file: File, path: &Path) -> Result<(), EnvFileError> {
        file.set_permissions(fs::Permissions::from_mode(0o644))
            .and_then(|()| file.write_all(self.text().as_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(failed("cannot write", path))
    }

    /// Reads a file back, so that the daemon can ask for the same subnet again. `None` if there is no such file, or if
    /// it does not hold all four values: half a file could name a subnet that never existed.
    ///
    /// # Errors
    /// The file exists but cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, EnvFileError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("cannot read", path)(e)),
        }
    }

    /// Reads the four values from a text of `KEY=value` lines, with or without `export` and quotes. The last of several
    /// wins; comments and other keys are ignored. `None` unless all four values are good. A list with commas, as
    /// dual-stack tools write it, is not a good value.
    fn parse(text: &str) -> Option<Self> {
        let value = |name| text.lines().rev().find_map(|line| assignment(line, name));
        let network: Ipv4Net = value("FLANNEL_NETWORK")?.parse().ok()?;
        let subnet: Ipv4Net = value("FLANNEL_SUBNET")?.parse().ok()?;
        Some(Self {
            network: network.trunc(),
            subnet: subnet.trunc(),
            mtu: value("FLANNEL_MTU")?.parse().ok()?,
            ip_masq: value("FLANNEL_IPMASQ")?.parse().ok()?,
        })
    }
}

/// Creates a file that did not exist before. Its name can be guessed, and whoever may write to the directory could put
/// a link to a file of ours there; `O_EXCL` neither follows a link nor opens a file that exists. A file that an earlier
/// run with the same pid left behind (in a container, every run has the same) is removed first. Of a link, only the
/// link itself is removed.
fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
}

/// The value that `line` gives to `name`, if the line assigns it.
fn assignment<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once('=')?;
    if key.trim() != name {
        return None;
    }
    let value = value.trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    Some(unquoted.unwrap_or(value))
}

/// Makes the error of a step from the error of the operating system.
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EnvFileError + use<'a> {
    move |source| EnvFileError { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
