//! etcd as a store: both of its APIs, each under flannel's contract.
//!
//! # Theory of operation
//!
//! [`V2`] (the keys API) and [`V3`] (gRPC) keep the contract of [`crate::store`]; [`Auto`] takes the one that holds
//! the config, and [`connect`] makes the [`Store`] that the settings ask for.
//!
//! - **Deadlines.** Every request has one at each endpoint, and the next endpoint is asked when one is
//!   silent. A write whose answer was lost is *not* repeated elsewhere: it ends in
//!   [`Error::Unavailable`], and a new list tells what came of it.
//! - **Nothing is believed.** Answers have a largest size, and what they say is quoted.

mod auto;
mod endpoints;
mod refusal;
mod tls;
mod v2;
mod v3;

use crate::store::Error;
pub use auto::{Auto, Store, StoreWatch, connect};
use std::path::PathBuf;
use std::time::Duration;
pub use v2::{V2, V2Watch};
pub use v3::{V3, V3Watch};

/// Which etcd API to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// The keys API over HTTP; etcd up to 3.5, and only with `--enable-v2`.
    V2,
    /// gRPC.
    V3,
    /// Ask both and take the one that holds the config.
    #[default]
    Auto,
}

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http://host:port` or `https://host:port` (a bare `host:port` is `http`); tried in turn.
    pub endpoints: Vec<String>,
    /// Key prefix, normalised to one leading and no trailing slash.
    pub prefix: String,
    /// Which API to speak.
    pub api: Api,
    /// CA bundle (PEM); enough on its own to verify the server.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM), together with [`Settings::key_file`].
    pub cert_file: Option<PathBuf>,
    /// Client key (PEM).
    pub key_file: Option<PathBuf>,
    /// User and password; the password never reaches a log.
    pub credentials: Option<Credentials>,
    /// Deadline of every request but the watch, at each endpoint; see [`Settings::TIMEOUT`].
    pub timeout: Duration,
}

impl Settings {
    /// A deadline that suits most: etcd answers in milliseconds, and gives up on itself after 5 to 7 s.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
