//! What the operator decides about leases.

use std::time::Duration;

/// The TTL of a lease, which is flannel's.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long before its end a lease is renewed: the default of flannel's `--subnet-lease-renew-margin`.
pub const DEFAULT_RENEW_MARGIN: Duration = Duration::from_secs(60 * 60);

// `Settings::default` takes both as they are, without the checks of `Settings::new`.
const _: () = assert!(DEFAULT_RENEW_MARGIN.as_secs() < DEFAULT_TTL.as_secs());

/// What to do once somebody else owns our subnet ([`Notice::Conflict`](super::Notice::Conflict)). A lease that is merely
/// not held for now ([`Notice::Lost`](super::Notice::Lost)) is none of it: forwarding goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLost {
    /// Stop and exit non-zero, so that the unit restarts us. flannel since v0.8 stops too, but with code 0.
    #[default]
    Exit,
    /// Keep forwarding with the old subnet, and take the lease back as soon as it is free.
    Keep,
    /// Take another subnet in the same process, as flannel up to v0.7 did.
    Reacquire,
}

impl std::str::FromStr for OnLost {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text {
            "exit" => Ok(Self::Exit),
            "keep" => Ok(Self::Keep),
            "reacquire" => Ok(Self::Reacquire),
            other => Err(SettingsError::OnLost(other.to_owned())),
        }
    }
}

/// Why settings cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The TTL is shorter than a second, and etcd counts whole seconds.
    #[error("the lease TTL must be 1 s or more, not {0:?}")]
    Ttl(Duration),
    /// With a margin as long as the TTL, the lease would be renewed all the time.
    #[error("the renew margin {margin:?} must be shorter than the lease TTL {ttl:?}")]
    Margin {
        /// The margin as given.
        margin: Duration,
        /// The TTL as given or by default.
        ttl: Duration,
    },
    /// The text is none of the three words of [`OnLost`].
    #[error("{0:?} is none of exit, keep, reacquire")]
    OnLost(String),
}

/// What the operator decides about leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    ttl: Duration,
    renew_margin: Duration,
    /// What to do once somebody else owns our subnet.
    pub on_lost: OnLost,
    /// Take a lease that looks like ours without asking whether its owner lives.
    pub force_takeover: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: DEFAULT_TTL,
            renew_margin: DEFAULT_RENEW_MARGIN,
            on_lost: OnLost::default(),
            force_takeover: false,
        }
    }
}

impl Settings {
    /// `renew_margin`: how long before its end a lease is renewed. Without it, 60 minutes, or half the TTL if
    /// that is shorter.
    ///
    /// # Errors
    /// The TTL is under a second, or the margin is not shorter than the TTL.
    pub fn new(
        ttl: Duration,
        renew_margin: Option<Duration>,
        on_lost: OnLost,
    ) -> Result<Self, SettingsError> {
        if ttl < Duration::from_secs(1) {
            return Err(SettingsError::Ttl(ttl));
        }
        let margin = renew_margin.unwrap_or(DEFAULT_RENEW_MARGIN.min(ttl / 2));
        if margin >= ttl {
            return Err(SettingsError::Margin { margin, ttl });
        }
        Ok(Self { ttl, renew_margin: margin, on_lost, force_takeover: false })
    }

    /// How long a lease lives without renewal.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How long before its end a lease is renewed; shorter than the TTL.
    pub(crate) fn renew_margin(&self) -> Duration {
        self.renew_margin
    }

    /// The renewals of many hosts are spread over this time before the margin begins: half the margin, so that those of
    /// a few hosts cover a quarter of it, or half of what comes before the margin, if that is less.
    pub(crate) fn renew_spread(&self) -> Duration {
        (self.renew_margin / 2).min((self.ttl - self.renew_margin) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_shorter_than_the_ttl() {
        let seconds = Duration::from_secs;
        let default = Settings::new(DEFAULT_TTL, None, OnLost::Exit).unwrap();
        assert_eq!(default, Settings::default());
        assert_eq!(Settings::new(seconds(5), None, OnLost::Keep).unwrap().renew_margin(), seconds(5) / 2);
        assert!(Settings::new(seconds(5), Some(seconds(5)), OnLost::Exit).is_err());
        assert!(Settings::new(Duration::from_millis(999), None, OnLost::Exit).is_err());
        assert_eq!("reacquire".parse(), Ok(OnLost::Reacquire));
        assert!("fence".parse::<OnLost>().is_err());
    }
}
