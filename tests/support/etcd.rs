//! The part that every etcd of the tests has in common, whether it runs on loopback for `etcd_*` or in the netns lab.
#![allow(dead_code, reason = "each user of this uses its own part")]

use std::path::{Path, PathBuf};

/// A release of etcd that the tests run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Release {
    /// The one that is installed; it serves both APIs. Debian bookworm has 3.4.
    #[default]
    Installed,
    /// etcd 3.5, the last with the v2 API.
    V3_5,
    /// etcd 3.6, the first without the v2 API.
    V3_6,
    /// etcd 3.7, the newest one.
    V3_7,
}

impl Release {
    /// The releases that `tests/parts/build.sh` builds.
    pub(crate) const BUILT: [Self; 3] = [Self::V3_5, Self::V3_6, Self::V3_7];

    /// Whether it can serve the v2 API.
    pub(crate) fn has_v2(self) -> bool {
        matches!(self, Self::Installed | Self::V3_5)
    }

    /// The path of its program.
    pub(crate) fn program(self) -> PathBuf {
        let folder = match self {
            Self::Installed => return "etcd".into(),
            Self::V3_5 => "etcd-3.5.35",
            Self::V3_6 => "etcd-3.6.16",
            Self::V3_7 => "etcd-3.7.3",
        };
        // The parts lie beside the folder that cargo gives to tests, in `target/`.
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("parts").join(folder)
    }
}

/// The command line of an etcd that is alone and serves every API that it has.
pub(crate) fn command_line(release: Release, client_url: &str, peer_url: &str, data: &Path) -> Vec<String> {
    let cluster = format!("one={peer_url}");
    let data = data.display().to_string();
    let pairs = [
        ("--name", "one"),
        ("--data-dir", &data),
        ("--listen-client-urls", client_url),
        ("--advertise-client-urls", client_url),
        ("--listen-peer-urls", peer_url),
        ("--initial-advertise-peer-urls", peer_url),
        ("--initial-cluster", &cluster),
    ];
    let mut words = vec![release.program().display().to_string()];
    if release.has_v2() {
        words.push("--enable-v2=true".to_owned());
    }
    words.extend(pairs.map(|(flag, value)| format!("{flag}={value}")));
    words
}

/// Whether an answer of `/health` says that etcd serves.
pub(crate) fn serves(health: &str) -> bool {
    health.contains("\"true\"")
}
