//! The config of the network after the start: it is looked at whenever the store says that it may have changed.

use crate::store::{Error, Registry};
use crate::subnet::Config;
use ipnet::Ipv4Net;
use std::time::Duration;

/// The least time between two looks.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// The most time between two looks at a store that tells of no change.
const MOST_PAUSE: Duration = Duration::from_secs(600);
const _: () = assert!(LEAST_PAUSE.as_secs() < MOST_PAUSE.as_secs());

/// What stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// A config with this text.
    Text(String),
    /// There is no config.
    Nothing,
}

/// Waits until the store holds something else than `seen`.
pub(super) async fn changed<R: Registry>(registry: &R, seen: Option<Seen>) -> (Seen, Result<Config, String>) {
    loop {
        let waited = tokio::time::timeout(MOST_PAUSE, registry.config_changed()).await;
        if !matches!(waited, Ok(Ok(()))) {
            // After an error the store says nothing; what it has to say is asked for below.
            tokio::time::sleep(LEAST_PAUSE).await;
        }
        let now = match registry.config().await {
            Ok(text) => Some(Seen::Text(text)),
            Err(Error::NotFound(_)) => Some(Seen::Nothing),
            Err(_) => None,
        };
        let Some(now) = now.filter(|now| seen.as_ref() != Some(now)) else {
            tokio::time::sleep(LEAST_PAUSE).await;
            continue;
        };
        let config = match &now {
            Seen::Text(text) => {
                Config::parse_for(registry.generation(), text).map_err(|error| error.to_string())
            }
            Seen::Nothing => Err("the network config was deleted".to_owned()),
        };
        return (now, config);
    }
}

/// The newest config, if it has no place for this subnet of `network` any more. A config that is gone or makes no sense is no reason
/// to give a subnet up.
///
/// # Errors
/// The store does not answer.
pub(super) async fn outgrown<R: Registry>(
    registry: &R,
    network: Ipv4Net,
    subnet: Ipv4Net,
) -> Result<Option<Config>, Error> {
    let text = match registry.config().await {
        Ok(text) => text,
        Err(Error::NotFound(_) | Error::Invalid(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let newest = Config::parse_for(registry.generation(), &text).ok();
    Ok(newest.filter(|config| config.network != network || !config.fits(subnet)))
}
