//! The network config in the store against the one that runs.

use super::ConfigNews;
use crate::subnet::{Config, Drift};
use ipnet::Ipv4Net;

/// What the store's config says since we look at it.
#[derive(Debug)]
pub(super) struct Standing {
    /// The config that runs. Its bounds of subnets follow the store.
    running: Config,
    /// What was said last; `None` if the store says what runs.
    said: Option<ConfigNews>,
}

impl Standing {
    pub(super) fn new(running: Config) -> Self {
        Self { running, said: None }
    }

    /// The network of the config that runs.
    pub(super) fn network(&self) -> Ipv4Net {
        self.running.network
    }

    /// Whether the store's config asks for what does not run.
    pub(super) fn has_drifted(&self) -> bool {
        self.said.is_some()
    }

    /// Whether a restart is needed before a subnet of this config can be used.
    pub(super) fn is_another_network(&self, config: &Config) -> bool {
        config.network != self.running.network
    }

    /// Takes a new state of the store's config, or the reason why there is none that can be used. Returns the config
    /// from which the next subnet is taken, if it changes, and what is to be said.
    pub(super) fn news(&mut self, newer: Result<Config, String>) -> (Option<Config>, Vec<ConfigNews>) {
        let newer = match newer {
            Ok(newer) => newer,
            Err(reason) => return (None, self.stands(Some(ConfigNews::Unusable(reason)))),
        };
        let drift = Drift::between(&self.running, &newer);
        let is_same_network = !self.is_another_network(&newer);
        let mut news = Vec::new();
        let mut pool = None;
        if is_same_network && !drift.live.is_empty() {
            let Config { subnet_len, subnet_min, subnet_max, .. } = newer;
            self.running = Config { subnet_len, subnet_min, subnet_max, ..self.running.clone() };
            pool = Some(self.running.clone());
            news.push(ConfigNews::Applied(drift.live));
        }
        let fields = drift.restart;
        let standing = (!fields.is_empty()).then_some(ConfigNews::Drifted(fields));
        news.extend(self.stands(standing));
        (pool, news)
    }

    /// Notes how the store's config stands, and says so if that is new.
    fn stands(&mut self, standing: Option<ConfigNews>) -> Vec<ConfigNews> {
        if standing == self.said {
            return Vec::new();
        }
        let news = standing.clone().unwrap_or(ConfigNews::Restored);
        self.said = standing;
        vec![news]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> Result<Config, String> {
        Ok(Config::parse(&format!(r#"{{"Network":"10.5.0.0/16"{rest}}}"#)).unwrap())
    }

    #[test]
    fn bounds_are_taken_over_and_the_rest_is_told_once() {
        let mut standing = Standing::new(config("").unwrap());
        assert_eq!(standing.news(config("")), (None, vec![]));
        let (pool, news) = standing.news(config(r#","SubnetMax":"10.5.9.0""#));
        assert_eq!(pool.unwrap().subnet_max.to_string(), "10.5.9.0");
        assert_eq!(news, [ConfigNews::Applied(vec!["SubnetMax"])]);
        assert!(!standing.has_drifted());

        let vxlan = r#","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}"#;
        let (pool, news) = standing.news(config(vxlan));
        assert_eq!((pool, news), (None, vec![ConfigNews::Drifted(vec!["Backend"])]));
        assert!(standing.has_drifted());
        assert_eq!(standing.news(config(vxlan)), (None, vec![]), "said once");
        let reason = || "no JSON".to_owned();
        assert_eq!(standing.news(Err(reason())).1, [ConfigNews::Unusable(reason())]);
        assert_eq!(standing.news(config(r#","SubnetMax":"10.5.9.0""#)).1, [ConfigNews::Restored]);
        assert!(!standing.has_drifted());
    }

    #[test]
    fn bounds_of_another_network_are_not_taken_over() {
        let mut standing = Standing::new(config("").unwrap());
        let other = Ok(Config::parse(r#"{"Network":"10.6.0.0/16"}"#).unwrap());
        assert_eq!(standing.news(other), (None, vec![ConfigNews::Drifted(vec!["Network"])]));
    }
}
