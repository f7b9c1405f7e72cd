//! What has changed between two network configs, and what of that a running daemon can take over.

use super::Config;

/// The fields in which a newer config differs from the one that runs, as flannel spells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Fields that only say which subnet is leased next. The subnet that is held stays.
    pub live: Vec<&'static str>,
    /// Fields that only a restart takes over.
    pub restart: Vec<&'static str>,
}

impl Drift {
    /// Compares a newer config with the one that runs.
    #[must_use]
    pub fn between(running: &Config, newer: &Config) -> Drift {
        let named = |pairs: &[(&'static str, bool)]| {
            pairs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect::<Vec<_>>()
        };
        Drift {
            live: named(&[
                ("SubnetLen", running.subnet_len != newer.subnet_len),
                ("SubnetMin", running.subnet_min != newer.subnet_min),
                ("SubnetMax", running.subnet_max != newer.subnet_max),
            ]),
            restart: named(&[
                ("Network", running.network != newer.network),
                ("Backend", running.backend != newer.backend),
                ("EnableNFTables", running.enable_nftables != newer.enable_nftables),
            ]),
        }
    }

    /// Whether the configs say the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(from: &str, to: &str) -> Drift {
        let config = |text: &str| Config::parse(text).unwrap();
        Drift::between(&config(from), &config(to))
    }

    #[test]
    fn fields_are_named_and_spelling_is_none() {
        let base = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":8285}}"#;
        let same = r#"{ "SubnetLen": 24, "network": "10.5.0.0/16", "Backend": {"Type":"udp","Port":8285} }"#;
        assert!(drift(base, same).is_empty());
        let pool = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","Backend":{"Type":"udp","Port":8285}}"#;
        assert_eq!(drift(base, pool), Drift { live: vec!["SubnetMin"], restart: vec![] });
        let port = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":8286}}"#;
        assert_eq!(drift(base, port), Drift { live: vec![], restart: vec!["Backend"] });
        let network = drift(base, r#"{"Network":"10.6.0.0/16","EnableNFTables":true}"#);
        assert_eq!(network.restart, ["Network", "Backend", "EnableNFTables"]);
    }
}
