//! The etcd of the lab. curl (v2) and etcdctl (v3) read and write its keys.

#[path = "../support/etcd.rs"]
mod etcd;

use super::{Lab, Proc, eventually, secs};
use serde_json::Value;
use std::collections::BTreeMap;

const URL: &str = "http://10.77.0.254:2379";
const PREFIX: &str = "/coreos.com/network";

/// The API of etcd that a test uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    V2,
    V3,
}

impl Api {
    /// The flag of flanneld that chooses it.
    pub fn flag(self) -> &'static str {
        match self {
            Api::V2 => "--etcd-api=v2",
            Api::V3 => "--etcd-api=v3",
        }
    }
}

/// The value of a lease of ours as flannel would have written it, and the NodeID that follows. A value without one
/// gives an empty NodeID.
pub fn named(value: &str) -> (String, String) {
    let Some((flannels, rest)) = value.split_once(",\"NodeID\":\"") else {
        return (value.to_owned(), String::new());
    };
    let node = rest.strip_suffix("\"}").unwrap_or_else(|| panic!("NodeID is not the last field: {value}"));
    (format!("{flannels}}}"), node.to_owned())
}

impl Lab {
    /// Starts etcd. A second start finds the data of the first.
    pub fn start_etcd(&mut self) {
        let line =
            etcd::command_line(etcd::Release::Installed, URL, "http://127.0.0.1:2380", &self.path("etcd"));
        let mut line: Vec<&str> = line.iter().map(String::as_str).collect();
        line.extend(["--heartbeat-interval=20", "--election-timeout=200"]);
        let log = self.path("etcd.log");
        self.etcd = Some(Proc::start(&self.ns("sw"), &line, &[], &log));
        eventually(secs(20), "etcd", || {
            let health = self.try_run(&self.ns("sw"), &["curl", "-fsSm2", &format!("{URL}/health")]);
            (health.status.success() && etcd::serves(&String::from_utf8_lossy(&health.stdout))).then_some(())
        });
    }

    /// Ends etcd at once. Its data stay.
    pub fn stop_etcd(&mut self) {
        self.etcd = None;
    }

    fn curl(&self, args: &[&str], key: &str) -> Value {
        let url = format!("{URL}/v2/keys{PREFIX}/{key}");
        let out = self.run(&self.ns("sw"), &[&["curl", "-sSm10", &url], args].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{url}: {e}: {out}"))
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        self.run(&self.ns("sw"), &[&["etcdctl", "--endpoints", URL], args].concat())
    }

    /// Writes a key under the prefix, without a TTL.
    pub fn put(&self, api: Api, key: &str, value: &str) {
        match api {
            Api::V2 => {
                let body = format!("value={value}");
                let answer = self.curl(&["-XPUT", "--data-urlencode", &body], key);
                assert!(answer.get("errorCode").is_none(), "{answer}");
            }
            Api::V3 => drop(self.etcdctl(&["put", &format!("{PREFIX}/{key}"), value])),
        }
    }

    /// Writes the network config.
    pub fn put_config(&self, api: Api, json: &str) {
        self.put(api, "config", json);
    }

    /// Registers a peer, such as `10.1.9.0-24` at `10.77.0.2`. It is a reservation, since it has no TTL.
    pub fn put_lease(&self, api: Api, key: &str, public_ip: &str) {
        self.put(api, &format!("subnets/{key}"), &format!("{{\"PublicIP\":\"{public_ip}\"}}"));
    }

    /// Deletes the lease of that key.
    pub fn delete_lease(&self, api: Api, key: &str) {
        match api {
            Api::V2 => drop(self.curl(&["-XDELETE"], &format!("subnets/{key}"))),
            Api::V3 => drop(self.etcdctl(&["del", &format!("{PREFIX}/subnets/{key}")])),
        }
    }

    /// All leases: the last element of each key, and the value as it stands in the store.
    pub fn leases(&self, api: Api) -> BTreeMap<String, String> {
        let short = |key: &str| key.strip_prefix(&format!("{PREFIX}/subnets/")).unwrap().to_owned();
        match api {
            Api::V2 => {
                let answer = self.curl(&[], "subnets");
                let nodes = answer["node"]["nodes"].as_array().cloned().unwrap_or_default();
                let pair =
                    |n: &Value| (short(n["key"].as_str().unwrap()), n["value"].as_str().unwrap().to_owned());
                nodes.iter().map(pair).collect()
            }
            Api::V3 => {
                let out = self.etcdctl(&["get", "--prefix", &format!("{PREFIX}/subnets/")]);
                let lines: Vec<_> = out.lines().collect();
                lines.chunks(2).map(|pair| (short(pair[0]), pair[1].to_owned())).collect()
            }
        }
    }

    /// The seconds that a lease has left; `None` for a reservation.
    pub fn ttl(&self, api: Api, key: &str) -> Option<i64> {
        match api {
            Api::V2 => self.curl(&[], &format!("subnets/{key}"))["node"]["ttl"].as_i64(),
            Api::V3 => {
                let full = format!("{PREFIX}/subnets/{key}");
                let entry: Value =
                    serde_json::from_str(&self.etcdctl(&["get", &full, "-w", "json"])).unwrap();
                let lease = entry["kvs"][0]["lease"].as_i64().filter(|id| *id != 0)?;
                let text = self.etcdctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
                serde_json::from_str::<Value>(&text).unwrap()["ttl"].as_i64()
            }
        }
    }

    /// Deletes all leases and the config, for tests that use one lab several times.
    pub fn clear(&self, api: Api) {
        match api {
            Api::V2 => drop(self.curl(&["-XDELETE", "-G", "-drecursive=true"], "")),
            Api::V3 => drop(self.etcdctl(&["del", "--prefix", PREFIX])),
        }
    }
}
