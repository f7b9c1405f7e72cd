//! Flags that say where etcd is, and as whom it is asked.

use super::{refused, run};
use crate::etcd;

/// As with Go's HTTP client, an endpoint may hold a user, and the flags outweigh it.
#[test]
fn an_endpoint_may_hold_the_user_and_the_password() {
    let etcd = |words: &[&str]| run(words, &[]).unwrap().etcd;
    let pair =
        |etcd: etcd::Settings| etcd.credentials.map(|user| (user.username, user.password.read().unwrap()));
    let user = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
    let url = "-etcd-endpoints=http://u%40x:hunter2%2C%3a%25@a:1/etcd,b:2";
    let one = etcd(&[url]);
    assert_eq!(one.endpoints, ["http://a:1/etcd", "http://b:2"]);
    assert!(!format!("{one:?}").contains("hunter2"));
    assert_eq!(pair(one), user("u@x", "hunter2,:%"));
    assert_eq!(pair(etcd(&["-etcd-endpoints=u@a:1,http://u@b:2"])), user("u", ""));
    assert_eq!(pair(etcd(&[url, "-etcd-username=v", "-etcd-password=w"])), user("v", "w"));
    assert_eq!(refused(&["-etcd-endpoints=http://u:p@a:1,http://v:p@b:1"], &[]).0, 1);
}

#[test]
fn endpoints_and_prefix_are_put_in_form() {
    let options = run(&["-etcd-endpoints= https://a:1 ,b:2,", "-etcd-prefix=a//b/"], &[]).unwrap();
    assert_eq!(options.etcd.endpoints, ["https://a:1", "http://b:2"]);
    assert_eq!(options.etcd.prefix, "a//b/", "the prefix stays as typed: v3 keys are bytes");
    assert_eq!(run(&["-etcd-prefix=/"], &[]).unwrap().etcd.prefix, "/");
    assert_eq!(refused(&["-etcd-prefix="], &[]).0, 1);
    let secure = run(&["-etcd-endpoints=a:1", "-etcd-cafile=/proc/version"], &[]).unwrap();
    assert_eq!(secure.etcd.endpoints, ["https://a:1"]);
    assert_eq!(refused(&["-etcd-endpoints="], &[]).0, 1);
    assert_eq!(refused(&["-etcd-endpoints=http://"], &[]).0, 1);
    assert_eq!(refused(&["-etcd-certfile=/proc/version"], &[]).0, 1);
    assert_eq!(refused(&["-etcd-keyfile=/proc/version"], &[]).0, 1);
    let default = run(&[], &[]).unwrap().etcd;
    assert_eq!(default.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!((default.prefix.as_str(), default.api), ("/coreos.com/network", etcd::Api::Auto));
}
