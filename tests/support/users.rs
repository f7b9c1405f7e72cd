//! Users and passwords of an etcd, in both of its APIs.

use super::Etcd;
use flanneld::etcd::{Credentials, Password};

pub(crate) fn credentials(username: &str, password: &str) -> Option<Credentials> {
    let password = Password::Typed(password.to_owned());
    Some(Credentials { username: username.to_owned(), password })
}

/// Makes the users of etcd v2: root, and flannel, who may only touch `/n`. A request without a user may touch nothing.
pub(crate) fn enable_v2_auth(etcd: &Etcd) {
    let root = ["--user", "root:top"];
    let put = |path: &str, body: &str| {
        let answer = etcd.curl(path, &["-XPUT", root[0], root[1], "--data", body]);
        assert!(!answer.contains("\"message\""), "{path}: {answer}");
    };
    put("/v2/auth/users/root", r#"{"user":"root","password":"top"}"#);
    put("/v2/auth/enable", "");
    put(
        "/v2/auth/roles/net",
        r#"{"role":"net","permissions":{"kv":{"read":["/n/*","/n"],"write":["/n/*","/n"]}}}"#,
    );
    put("/v2/auth/users/flannel", r#"{"user":"flannel","password":"secret word","roles":["net"]}"#);
    put("/v2/auth/roles/guest", r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#);
}

/// Makes the users of etcd v3: root, and flannel, who may only touch `/n/`.
pub(crate) fn enable_v3_auth(etcd: &Etcd) {
    for command in [
        "user add root:top",
        "user grant-role root root",
        "role add net",
        "role grant-permission net --prefix=true readwrite /n/",
        "user add flannel:secret",
        "user grant-role flannel net",
        "auth enable",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        if command == "user grant-role root root" {
            etcd.etcdctl(&["role", "add", "root"]);
        }
        etcd.etcdctl(&words);
    }
}
