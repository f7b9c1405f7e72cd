//! Promise: the networks below a prefix are found, whatever other keys lie there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use flanneld::etcd::Api;
use flanneld::store::Registry;
use support::{Etcd, Options, run};

fn put_v2(etcd: &Etcd, key: &str, value: &str) {
    let body = format!("value={value}");
    let path = format!("/v2/keys{}", key.replace(' ', "%20"));
    let answer = etcd.curl(&path, &["-XPUT", "--data-urlencode", &body]);
    assert!(answer.contains("\"action\":\"set\""), "{answer}");
}

fn put_v3(etcd: &Etcd, key: &str, value: &str) {
    etcd.etcdctl(&["put", key, "--", value]);
}

/// The keys are a network with leases but without a config, one whose name is the beginning of another name, one that
/// is only a key, one whose `config` has children, and a sibling of the prefix.
#[test]
fn networks_are_found_among_other_keys() {
    let etcd = Etcd::start();
    for (api, put) in [(Api::V2, put_v2 as fn(&Etcd, &str, &str)), (Api::V3, put_v3)] {
        put(&etcd, "/n/a/subnets/10.1.5.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
        put(&etcd, "/n/c", "plain");
        for network in ["b.c", "d e", "b"] {
            put(&etcd, &format!("/n/{network}/config"), "{}");
        }
        put(&etcd, "/n/z/config/below", "{}");
        put(&etcd, "/n-sibling/x/config", "{}");
        for subnet in 0..20 {
            put(&etcd, &format!("/n/b/subnets/10.2.{subnet}.0-24"), r#"{"PublicIP":"192.0.2.1"}"#);
        }
        for asked in [api, Api::Auto] {
            let names = run(support::store(&etcd.settings(asked, "/n")).networks()).unwrap();
            assert_eq!(names, ["b", "b.c", "d e"], "{asked:?}, {api:?}");
        }
    }
}

/// Each API holds networks that the other does not hold, and one network is in both. A server without the keys API holds
/// none in v2.
#[test]
fn auto_finds_the_networks_of_both_apis() {
    let etcd = Etcd::start();
    let names = |etcd: &Etcd| run(support::store(&etcd.settings(Api::Auto, "/n")).networks());
    put_v2(&etcd, "/n/old/config", "{}");
    assert_eq!(names(&etcd), Ok(vec!["old".to_owned()]));
    for network in ["both", "new"] {
        put_v3(&etcd, &format!("/n/{network}/config"), "{}");
    }
    put_v2(&etcd, "/n/both/config", "{}");
    assert_eq!(names(&etcd), Ok(["both", "new", "old"].map(str::to_owned).to_vec()));

    let flags = vec!["--enable-v2=false".to_owned()];
    let etcd = Etcd::with(Options { flags, ..Options::default() });
    assert_eq!(names(&etcd), Ok(Vec::new()));
    put_v3(&etcd, "/n/new/config", "{}");
    assert_eq!(names(&etcd), Ok(vec!["new".to_owned()]));
}
