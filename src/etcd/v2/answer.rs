//! The answers of the keys API.

use crate::log::quote;
use crate::store::{Error, Revision};
use hyper::StatusCode;
use serde::Deserialize;

/// Error codes of the keys API (etcd `api/v2error`).
pub(super) mod fault {
    pub(in crate::etcd::v2) const NO_KEY: u32 = 100;
    pub(in crate::etcd::v2) const COMPARE_FAILED: u32 = 101;
    pub(in crate::etcd::v2) const EXISTS: u32 = 105;
    pub(in crate::etcd::v2) const UNAUTHENTICATED: u32 = 110;
    pub(in crate::etcd::v2) const INDEX_CLEARED: u32 = 401;
}

/// The text that tells of a server without the keys API.
const NO_KEYS_API: &str = "this server has no keys API: etcd 3.6 and newer has no v2 API, and 3.4 \
    and 3.5 need --enable-v2=true";

/// A key or directory with its content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    /// The whole path of the key. The root has none.
    #[serde(default)]
    pub(super) key: String,
    pub(super) value: Option<String>,
    #[serde(default)]
    pub(super) dir: bool,
    #[serde(default)]
    pub(super) nodes: Vec<Node>,
    #[serde(default)]
    pub(super) modified_index: Revision,
    /// The end of the TTL by the server's clock, which may differ from ours. So only its presence counts.
    pub(super) expiration: Option<String>,
}

/// A refusal in the words of the keys API.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    #[serde(rename = "errorCode")]
    pub(super) code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    /// The index of the store when it refused.
    #[serde(default)]
    pub(super) index: Revision,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault.code {
            fault::NO_KEY => Self::NotFound(quote(&fault.cause)),
            fault::COMPARE_FAILED => Self::Conflict,
            fault::EXISTS => Self::Exists,
            fault::INDEX_CLEARED => Self::Compacted,
            fault::UNAUTHENTICATED => Self::Denied(quote(&fault.message)),
            code => {
                let (message, cause) = (quote(&fault.message), quote(&fault.cause));
                Self::Invalid(format!("etcd error {code}: {message}: {cause}"))
            }
        }
    }
}

/// A whole answer of the keys API.
#[derive(Debug)]
pub(super) enum Answer {
    Done { action: String, node: Node, index: Option<Revision> },
    Failed(Fault),
}

/// Why nothing can be made of an answer.
#[derive(Debug)]
pub(super) enum Unusable {
    /// The server has no keys API: it answers 404 without an error code.
    NoKeysApi,
    /// The answer fails for any other reason.
    Failed(Error),
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::NoKeysApi => Self::Invalid(NO_KEYS_API.to_owned()),
            Unusable::Failed(error) => error,
        }
    }
}

/// Reads the body of an answer; `index` is its `X-Etcd-Index`.
pub(super) fn read(status: StatusCode, index: Option<Revision>, body: &[u8]) -> Result<Answer, Unusable> {
    #[derive(Deserialize)]
    struct Done {
        action: String,
        node: Node,
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    if status.is_success() {
        let Done { action, node } = serde_json::from_slice(body).map_err(|error| {
            let reason = quote(&error.to_string());
            Unusable::Failed(Error::Invalid(format!("an answer that is not the keys API's: {reason}")))
        })?;
        return Ok(Answer::Done { action, node, index });
    }
    if let Ok(fault) = serde_json::from_slice::<Fault>(body) {
        return Ok(Answer::Failed(fault));
    }
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(Message { message }) => quote(&message),
        // This is often the page of a proxy.
        Err(_) => quote(&String::from_utf8_lossy(&body[..body.len().min(1000)])),
    };
    Err(Unusable::Failed(match status {
        StatusCode::NOT_FOUND => return Err(Unusable::NoKeysApi),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied(format!("{status}: {text}")),
        status if status.is_server_error() => Error::Unavailable(format!("{status}: {text}")),
        status => Error::Invalid(format!("{status}: {text}")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_node_index_and_action() {
        let body = br#"{"action":"set","node":{"key":"/n/subnets/10.1.5.0-24","value":"x",
            "expiration":"2026-01-01T00:00:00Z","ttl":9,"modifiedIndex":7,"createdIndex":7}}"#;
        let Ok(Answer::Done { action, node, index }) = read(StatusCode::OK, Some(9), body) else {
            panic!("not read")
        };
        assert_eq!((action.as_str(), index, node.modified_index), ("set", Some(9), 7));
        assert!(node.expiration.is_some() && !node.dir);
    }

    #[test]
    fn refusals_are_told_apart() {
        let read = |status, body: &str| read(status, None, body.as_bytes()).map_err(Error::from);
        let gone = read(StatusCode::BAD_REQUEST, r#"{"errorCode":401,"message":"m","cause":"c","index":2}"#);
        assert!(matches!(gone, Ok(Answer::Failed(Fault { code: fault::INDEX_CLEARED, index: 2, .. }))));
        let auth = read(StatusCode::UNAUTHORIZED, r#"{"message":"Insufficient credentials"}"#);
        assert!(matches!(auth, Err(Error::Denied(text)) if text.contains("Insufficient")));
        let none = read(StatusCode::NOT_FOUND, "404 page not found\n");
        assert!(matches!(none, Err(Error::Invalid(text)) if text.contains("--enable-v2=true")));
        assert!(matches!(read(StatusCode::BAD_GATEWAY, "<html>"), Err(Error::Unavailable(_))));
        assert!(matches!(read(StatusCode::OK, "<html>"), Err(Error::Invalid(_))));
    }

    #[test]
    fn what_a_server_says_fits_on_a_line() {
        let odd = format!("a\r\nb \x1b[2J{}", "x".repeat(1 << 20));
        let json = serde_json::Value::from(odd.as_str());
        let faults =
            [0, 100, 110].map(|code| format!(r#"{{"errorCode":{code},"message":{json},"cause":{json}}}"#));
        let bodies =
            [format!(r#"{{"message":{json}}}"#), format!(r#"{{"action":{json},"node":{json}}}"#), odd];
        for body in faults.iter().chain(&bodies) {
            for status in [StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::BAD_GATEWAY] {
                let text = match read(status, None, body.as_bytes()) {
                    Ok(Answer::Failed(fault)) => Error::from(fault).to_string(),
                    other => Error::from(other.unwrap_err()).to_string(),
                };
                assert!(!text.contains(char::is_control) && text.len() < 600, "{text:.600}");
            }
        }
    }
}
