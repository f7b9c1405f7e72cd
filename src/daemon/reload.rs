//! SIGHUP: the settings are read again. What a running daemon can take over takes effect, the rest is named.

use super::{Reloaded, Reread, Settings};
use crate::etcd;
use crate::log;
use crate::membership::Source;
use crate::store::Error;
use std::fmt;
use std::rc::Rc;
use tracing::{error, info, warn};

/// Reads the settings again, and says in the log what has come of it.
pub(super) struct Reload(pub(super) Reread);

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

impl Reload {
    /// The settings as they are now; `None` if they cannot be read or make no sense, and then the old ones stay.
    pub(super) fn read(&mut self) -> Option<Rc<Settings>> {
        let Reloaded { settings, applied, stale, remarks } = match (self.0)() {
            Ok(reloaded) => reloaded,
            Err(line) => {
                error!("SIGHUP: {line}; the old settings stay");
                return None;
            }
        };
        // The level first, so that the lines below are logged with the new one.
        log::set_verbosity(settings.log.v);
        let what =
            if applied.is_empty() { "no flag that takes effect now".to_owned() } else { applied.join(", ") };
        info!("SIGHUP: settings, password and TLS files are read again; changed: {what}");
        remarks.iter().for_each(|remark| warn!("{remark}"));
        stale.iter().for_each(|name| warn!("{name} has changed and takes effect at a restart"));
        Some(Rc::new(settings))
    }
}

/// Hands `new` over to a network that runs or comes up: to the source of its leases, and to the settings with which it
/// makes the next device.
pub(super) fn take_over(new: &Settings, settings: &mut Settings, source: &Source) {
    adopt(new, settings, |etcd| source.reload(etcd));
}

/// Takes over from `new` what can change while networks run, and has the store reached by it with `replace`.
pub(super) fn adopt(
    new: &Settings,
    settings: &mut Settings,
    replace: impl FnOnce(&etcd::Settings) -> Result<(), Error>,
) {
    settings.engine.peer_filter = new.engine.peer_filter;
    match replace(&new.etcd) {
        // The prefix and the API take a restart.
        Ok(()) => {
            let (prefix, api) = (settings.etcd.prefix.clone(), settings.etcd.api);
            settings.etcd = etcd::Settings { prefix, api, ..new.etcd.clone() };
        }
        Err(error) => error!("SIGHUP: {error}; etcd is reached as before"),
    }
}
