//! `subnet.env` is written as soon as the subnet works, and tried again while it cannot be written. Packets flow
//! meanwhile; only those who need the file have to wait.

use super::NEVER;
use crate::log::{Complaint, phrases};
use crate::subnet::{EnvFile, Written};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// The wait after a failure to write the file.
const RETRY: Duration = Duration::from_secs(1);
const _: () = assert!(RETRY.as_secs() < NEVER.as_secs());

/// The subnet file, and what it should say.
#[derive(Debug)]
pub(super) struct SubnetFile {
    path: PathBuf,
    wanted: Option<EnvFile>,
    written: bool,
    retry_at: Instant,
    complaint: Complaint<Instant>,
    /// Whether it was said that the file cannot be replaced whole.
    in_place_said: bool,
}

impl SubnetFile {
    pub(super) fn new(path: PathBuf) -> SubnetFile {
        let retry_at = Instant::now() + NEVER;
        let complaint = Complaint::default();
        SubnetFile { path, wanted: None, written: false, retry_at, complaint, in_place_said: false }
    }

    /// Sets what the next [`SubnetFile::write`] writes.
    pub(super) fn want(&mut self, file: EnvFile) {
        (self.wanted, self.written) = (Some(file), false);
    }

    /// Whether the file says what it should.
    pub(super) fn is_written(&self) -> bool {
        debug_assert!(!self.written || self.wanted.is_some(), "only what was wanted is written");
        debug_assert!(!self.written || self.complaint.text().is_none(), "a written file has no trouble");
        self.written
    }

    /// Why the file could not be written; `None` if it could.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.complaint.text()
    }

    /// The time at which another [`SubnetFile::write`] is due.
    pub(super) fn retry_at(&self) -> Instant {
        self.retry_at
    }

    /// Writes the file, if it does not say yet what it should.
    pub(super) fn write(&mut self) {
        self.retry_at = Instant::now() + NEVER;
        let Some(file) = self.wanted.filter(|_| !self.written) else { return };
        match file.write(&self.path) {
            Ok(how) => {
                if how == Written::InPlace && !std::mem::replace(&mut self.in_place_said, true) {
                    warn!(
                        "{} cannot be replaced, since it is a mount point or its directory is read-only; it is written \
                         in place, and a reader may see half of it; mount its directory instead",
                        self.path.display()
                    );
                }
                self.written = true;
                self.complaint.settle();
                info!("{} {}", phrases::SUBNET_FILE_WRITTEN, self.path.display());
            }
            Err(error) => {
                self.retry_at = Instant::now() + RETRY;
                let text = error.to_string();
                if self.complaint.is_news(Instant::now(), &text) {
                    error!("Failed to write subnet file: {text}; not ready, trying again");
                }
            }
        }
    }
}
