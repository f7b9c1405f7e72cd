//! etcd as a store: both of its APIs, each under flannel's contract.
//!
//! # Theory of operation
//!
//! [`V2`] (the keys API) and [`V3`] (gRPC) keep the contract of [`crate::store`]; [`Auto`] takes the one that holds
//! the config, and [`connect`] makes the [`Store`] that the settings ask for. [`Replaceable`] puts another in its place
//! when the settings have changed.
//!
//! - **Deadlines.** Every request has a deadline at each endpoint. Until one has answered, each address of each endpoint
//!   is tried, one beside the other (`sites`); then calls stay there until it fails.
//!   A write whose answer was lost is *not* repeated elsewhere: it ends in [`Error::Unavailable`], and a new list tells
//!   whether the write happened.
//! - **A refusal is not hammered.** After one, the store is not asked for a time that doubles up to minutes (`gate`). A
//!   changed file of certificates or password ends that time, and so does a store that takes this one's place.
//! - **No answer is trusted.** Its size is limited, and its text is quoted before it is logged.

mod auto;
mod dial;
mod endpoints;
mod files;
mod gate;
mod pem;
mod refusal;
mod replaceable;
mod sites;
mod tls;
mod v2;
mod v3;
mod verify;

use crate::store::Error;
pub use auto::{Auto, Store, StoreWatch, connect};
pub use files::{PIPE_LIMIT, first_read};
pub use replaceable::{Replaceable, ReplaceableWatch};
use std::path::PathBuf;
use std::time::Duration;
pub use v2::{V2, V2Watch};
pub use v3::{V3, V3Watch};

/// The etcd API through which the store is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// The keys API over HTTP. etcd has it up to 3.5; 3.4 and 3.5 need `--enable-v2`.
    V2,
    /// The gRPC API of etcd 3.0 and newer.
    V3,
    /// Both are asked, and the one that holds the config is taken.
    #[default]
    Auto,
}

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The endpoints, which are tried in this order: `http://host:port`, `https://host:port`, or `host:port` for `http`.
    pub endpoints: Vec<String>,
    /// The prefix of all keys, as [`crate::store::keyspace::Keyspace`] takes it.
    pub prefix: String,
    /// The API through which the store is reached.
    pub api: Api,
    /// The CA bundle (PEM) by which the server is verified. It needs no client certificate beside it.
    pub ca_file: Option<PathBuf>,
    /// The client certificate (PEM). It needs [`Settings::key_file`].
    pub cert_file: Option<PathBuf>,
    /// The key of the client certificate (PEM).
    pub key_file: Option<PathBuf>,
    /// The user and where the password is. The password never reaches a log.
    pub credentials: Option<Credentials>,
    /// The deadline of every request except a watch, at each endpoint. [`Settings::TIMEOUT`] suits most.
    pub timeout: Duration,
}

impl Settings {
    /// A deadline that suits most networks: etcd answers in milliseconds, and ends a request itself after 5 to 7 s.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// Whether these settings lead to the same servers in the same way, by the same files and user. Prefix and API are
    /// not looked at.
    fn reaches_as(&self, other: &Settings) -> bool {
        let of = |settings: &Settings| {
            let Settings { endpoints, ca_file, cert_file, key_file, credentials, timeout, .. } =
                settings.clone();
            (endpoints, ca_file, cert_file, key_file, credentials, timeout)
        };
        of(self) == of(other)
    }
}

/// A user of etcd with the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name of the user.
    pub username: String,
    /// Where the password of the user is.
    pub password: Password,
}

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Typed(String),
    /// A file whose first line is the password. It is read for every new connection, and again when the store has
    /// refused the password; a pipe is read once.
    File(PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of a user whose password is in a file.
    pub(super) fn settings(password_file: &std::path::Path) -> Settings {
        let password = Password::File(password_file.to_owned());
        Settings {
            endpoints: vec!["http://127.0.0.1:1".to_owned()],
            prefix: "/n".to_owned(),
            api: Api::Auto,
            ca_file: None,
            cert_file: None,
            key_file: None,
            credentials: Some(Credentials { username: "flannel".to_owned(), password }),
            timeout: Settings::TIMEOUT,
        }
    }
}
