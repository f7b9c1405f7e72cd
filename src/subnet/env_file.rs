//! `subnet.env`: what container runtimes and CNI plugins read to learn this host's subnet.

use super::replace::{FileError, directory, failed, replace, write_in_place};
use ipnet::Ipv4Net;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// How the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// In one step.
    Whole,
    /// Into the file that was there, so that a reader may have seen a part of it.
    InPlace,
}

/// The four values of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvFile {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// This host's subnet as its key spells it. The file holds the address after that, which a bridge takes.
    pub subnet: Ipv4Net,
    /// The size of the largest packet of the overlay, in bytes.
    pub mtu: u32,
    /// Whether this daemon masquerades what leaves the overlay, so that no other program has to.
    pub ip_masq: bool,
}

impl EnvFile {
    /// The text of the file, byte for byte as flannel writes it.
    pub fn text(&self) -> String {
        let after = |base: Ipv4Addr| Ipv4Addr::from(u32::from(base).saturating_add(1));
        let (net, next) = (self.subnet, after(self.subnet.addr()));
        let first = if net.contains(&next) { next } else { after(net.network()) };
        let text = format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            first,
            self.subnet.prefix_len(),
            self.mtu,
            self.ip_masq
        );
        debug_assert_eq!(
            Self::parse(&text).map(|file| file.subnet.trunc()),
            Some(net.trunc()),
            "what we write can be read back"
        );
        text
    }

    /// Replaces the file in one step: a reader sees either the old text or the new, even after a power cut.
    /// An absent directory is made with mode 0755; the file has mode 0644 whatever the umask.
    ///
    /// A single file that is mounted into a container cannot be replaced, nor can one in a directory that is read-only;
    /// it is written in place.
    ///
    /// # Errors
    /// The error names the step that failed and its path. If the new text is not in place, the old file still is.
    pub fn write(&self, path: &Path) -> Result<Written, FileError> {
        let dir = directory(path);
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("cannot create", dir))?;
        let text = self.text();
        match replace(path, text.as_bytes(), 0o644) {
            // The first error names the cause where there is no file that could be written in place.
            Err(error) if error.is_of_the_directory() => {
                write_in_place(path, text.as_bytes()).map(|()| Written::InPlace).map_err(|_| error)
            }
            result => result.map(|()| Written::Whole),
        }
    }

    /// Reads a file back, so that the daemon can ask for the same subnet again. `None` if there is no such file, or if
    /// it does not hold all four values: half a file could name a subnet that never existed.
    ///
    /// # Errors
    /// The file exists but cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
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
        let bridge: Ipv4Net = value("FLANNEL_SUBNET")?.parse().ok()?;
        let before = Ipv4Addr::from(u32::from(bridge.addr()).saturating_sub(1));
        let base = if bridge.contains(&before) { before } else { bridge.network() };
        Some(Self {
            network: network.trunc(),
            subnet: Ipv4Net::new(base, bridge.prefix_len()).ok()?,
            mtu: value("FLANNEL_MTU")?.parse().ok()?,
            ip_masq: value("FLANNEL_IPMASQ")?.parse().ok()?,
        })
    }
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

#[cfg(test)]
mod tests;
