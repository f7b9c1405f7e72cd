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
    /// This host's subnet, masked. The file holds its first address (base + 1), the one for a bridge.
    pub subnet: Ipv4Net,
    /// Bytes that fit into one packet of the overlay.
    pub mtu: u32,
    /// Whether this daemon masquerades what leaves the overlay, so that others need not.
    pub ip_masq: bool,
}

/// Writing or reading failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}", path = path.display())]
pub struct EnvFileError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl EnvFile {
    /// The text, byte for byte as flannel writes it.
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

    /// Replaces the file in one step: a reader sees the old text or the new, also after a power cut.
    /// The directory is made if absent (0755); the file's mode is 0644 whatever the umask.
    ///
    /// # Errors
    /// The step that failed and the path that it failed on. The old file is then still there.
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
            // The rename itself lives in the directory.
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
        });
        if written.is_err() {
            // The error above is what matters; a stray dot file harms nobody.
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

    /// Reads a file back, to ask for the same subnet again. `None` if there is no such file or it does
    /// not hold the four values whole, one of each: half a file could name a subnet that never was.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, EnvFileError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("cannot read", path)(e)),
        }
    }

    /// The four values from a dotenv text: `KEY=value` lines, with or without `export` and quotes; the
    /// last of several wins; comments and other keys are ignored. `None` unless all four are good. A
    /// comma list, which dual-stack tools write, is not.
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

/// A file that was not there before. The name can be guessed, and whoever else may write to the directory could put
/// a link there to a file of ours: `O_EXCL` follows none and takes no file that is there. One that an earlier run of
/// the same pid left (in a container that is every run) is removed, and of a link only the link.
fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
}

/// The value that `line` gives to `name`, if it does.
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

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EnvFileError + use<'a> {
    move |source| EnvFileError { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
