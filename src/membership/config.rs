//! The config of the network after the start: it is looked at whenever the store says that it may have changed.

use crate::store::{Backoff, Error, Registry, chance};
use crate::subnet::Config;
use ipnet::Ipv4Net;
use std::time::Duration;

/// The least time between two looks.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// The most time between two looks at a store that tells of no change.
const MOST_PAUSE: Duration = Duration::from_secs(600);
/// The longest time between two looks at a store that does not answer. The lease asks more often, and a new config is
/// in no hurry; all nodes of a network ask a store that comes back.
const MOST_BACKOFF: Duration = Duration::from_secs(15);
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
    let mut rng = chance();
    let mut backoff = Backoff::new(MOST_BACKOFF);
    loop {
        let waited = tokio::time::timeout(MOST_PAUSE, registry.config_changed()).await;
        match waited {
            Ok(Ok(())) => backoff.reset(),
            // The store said nothing; what it has to say is asked for below, once it may answer again.
            Ok(Err(_)) => tokio::time::sleep(LEAST_PAUSE + backoff.next(&mut rng)).await,
            Err(_) => tokio::time::sleep(LEAST_PAUSE).await,
        }
        let now = match registry.config().await {
            Ok(text) => Seen::Text(text),
            Err(Error::NotFound(_)) => Seen::Nothing,
            Err(_) => {
                tokio::time::sleep(LEAST_PAUSE + backoff.next(&mut rng)).await;
                continue;
            }
        };
        if seen.as_ref() == Some(&now) {
            tokio::time::sleep(LEAST_PAUSE).await;
            continue;
        }
        let config = match &now {
            Seen::Text(text) => {
                Config::parse_for(registry.generation(), text).map_err(|error| error.to_string())
            }
            Seen::Nothing => Err("the network config was deleted".to_owned()),
        };
        return (now, config);
    }
}

/// The newest config, if it has no place for this subnet of `network` any more. A config that is gone or makes no sense
/// is no reason to give a subnet up.
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
