//! The checked values of the flags become the daemon's [`Settings`].

use super::flags::{FLAGS, Flag, Kind, Standing, find};
use super::value::Value;
use super::{Origins, Refusal, spelled};
use crate::daemon::settings::{Carrier, Engine, Log, PeerFilter, TunOffload, UdpOffload};
use crate::daemon::{Networks, Settings, StatusAddress};
use crate::lease::{self, OnLost};
use crate::subnet::NodeId;
use crate::{etcd, iface, masq};
use clap::ArgMatches;
use clap::parser::ValueSource;
use percent_encoding::percent_decode_str;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// The values of all flags, and where they came from.
pub(super) struct Given<'a> {
    matches: &'a ArgMatches,
    origins: &'a Origins,
}

impl<'a> Given<'a> {
    pub(super) fn new(matches: &'a ArgMatches, origins: &'a Origins) -> Self {
        Self { matches, origins }
    }

    fn value(&self, flag: &str) -> Option<&Value> {
        debug_assert!(find(flag).is_some(), "-{flag} is not in the table");
        self.matches.try_get_one(flag).ok().flatten()
    }

    /// Every value of every flag, defaults included.
    pub(super) fn values(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let values = |flag: &Flag| self.matches.try_get_many::<Value>(flag.name).ok().flatten();
        FLAGS.iter().map(|flag| (flag.name, values(flag).into_iter().flatten().cloned().collect())).collect()
    }

    fn is_explicit(&self, flag: &str) -> bool {
        debug_assert!(find(flag).is_some(), "-{flag} is not in the table");
        self.matches.value_source(flag).is_some_and(|source| source != ValueSource::DefaultValue)
    }

    /// The text as typed; empty if unset.
    fn text(&self, flag: &str) -> &str {
        match self.value(flag) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// The trimmed text; `None` if unset or blank.
    fn filled(&self, flag: &str) -> Option<&str> {
        Some(self.text(flag).trim()).filter(|text| !text.is_empty())
    }

    fn list(&self, flag: &str) -> Vec<&str> {
        debug_assert!(find(flag).is_some_and(|flag| flag.kind == Kind::List), "-{flag} is no list");
        let values = self.matches.try_get_many::<Value>(flag).ok().flatten().into_iter().flatten();
        values
            .filter_map(|value| match value {
                Value::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()),
                _ => None,
            })
            .collect()
    }

    fn int(&self, flag: &str) -> Option<i64> {
        match self.value(flag) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    fn is_true(&self, flag: &str) -> bool {
        debug_assert!(find(flag).is_some_and(|flag| flag.kind == Kind::Bool), "-{flag} is no boolean");
        matches!(self.value(flag), Some(Value::Bool(true)))
    }

    fn size(&self, flag: &str, default: usize) -> usize {
        self.int(flag).and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
    }

    fn duration(&self, flag: &str, default: Duration) -> Duration {
        let is_time = find(flag).is_some_and(|flag| matches!(flag.kind, Kind::Time(..)));
        debug_assert!(is_time, "-{flag} is no length of time");
        match self.value(flag) {
            Some(Value::Duration(duration)) => *duration,
            _ => default,
        }
    }

    fn setting(&self, flag: &str, reason: impl std::fmt::Display) -> Refusal {
        Refusal::setting(format!("{}: {reason}", spelled(flag, self.origins)))
    }

    fn ipv4(&self, flag: &str) -> Result<Option<Ipv4Addr>, Refusal> {
        let Some(text) = self.filled(flag) else { return Ok(None) };
        let ip = text.parse().map_err(|_| self.setting(flag, format!("{text:?} is no IPv4 address")))?;
        Ok(Some(ip))
    }

    /// The path of a file of etcd's, which must be readable.
    fn file(&self, flag: &str) -> Result<Option<PathBuf>, Refusal> {
        let Some(path) = self.filled(flag) else { return Ok(None) };
        match etcd::first_read(path.as_ref()) {
            Ok(()) => Ok(Some(path.into())),
            Err(error) => Err(self.setting(flag, unreadable(path, &error))),
        }
    }
}

/// Says that a file cannot be read, and what helps under a unit that sees neither /root and /home nor, since it lacks
/// CAP_DAC_OVERRIDE, what belongs to other users.
pub(super) fn unreadable(path: &str, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => {
            "; a unit of systemd is passed such a file by LoadCredential= in a drop-in, see flanneld.service"
        }
        _ => "",
    };
    format!("cannot read {path}: {error}{remedy}")
}

pub(super) fn settings(given: &Given<'_>) -> Result<Settings, Refusal> {
    refuse_what_is_not_served(given)?;
    let subnet_file =
        given.filled("subnet-file").ok_or_else(|| given.setting("subnet-file", "no file named"))?;
    Ok(Settings {
        etcd: etcd_settings(given)?,
        iface: iface_choice(given)?,
        subnet_file: subnet_file.into(),
        node_id: node_id(given)?,
        state_dir: given.filled("state-dir").map(PathBuf::from),
        masq: masq_settings(given),
        lease: lease_settings(given)?,
        engine: engine_settings(given),
        status: status_address(given)?,
        networks: networks(given)?,
        log: Log { v: given.int("v").map_or(0, |v| u8::try_from(v.clamp(0, 255)).unwrap_or(u8::MAX)) },
    })
}

/// Flags of flannel's logging that were given and have no effect here, a sentence each. What asks for stderr is obeyed.
pub(super) fn remarks(given: &Given<'_>) -> Vec<String> {
    let is_idle = |flag: &Flag| flag.standing == Standing::Logging && flag.name != "v";
    let asks_for_stderr = |flag: &Flag| flag.name.ends_with("logtostderr") && given.is_true(flag.name);
    FLAGS
        .iter()
        .filter(|flag| is_idle(flag) && given.is_explicit(flag.name) && !asks_for_stderr(flag))
        .map(|flag| format!("{} has no effect: the log goes to stderr", spelled(flag.name, given.origins)))
        .collect()
}

fn status_address(given: &Given<'_>) -> Result<Option<StatusAddress>, Refusal> {
    let flag = "healthz-ip";
    // As in Go, an empty address means all addresses.
    let host = given.filled(flag).unwrap_or("0.0.0.0").to_owned();
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.parse::<IpAddr>().is_err() && !host.chars().all(in_name) {
        return Err(given.setting(flag, format!("{host:?} is neither an IP address nor a host's name")));
    }
    let port = given.int("healthz-port").and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    Ok((port != 0).then_some(StatusAddress { host, port }))
}

/// The settings of several networks, if `-networks` names some or `-watch-networks` asks for all.
fn networks(given: &Given<'_>) -> Result<Option<Networks>, Refusal> {
    let names: BTreeSet<String> = given
        .text("networks")
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    if let Some(name) = names.iter().find(|name| !Networks::is_name(name)) {
        return Err(given.setting("networks", format!("{name:?} is no name of a network")));
    }
    if names.is_empty() && !given.is_true("watch-networks") {
        return Ok(None);
    }
    let dir = given.filled("subnet-dir").ok_or_else(|| given.setting("subnet-dir", "no directory named"))?;
    Ok(Some(Networks { names, dir: dir.into() }))
}

fn refuse_what_is_not_served(given: &Given<'_>) -> Result<(), Refusal> {
    for flag in FLAGS {
        let Standing::NotServed(inactive, instead) = flag.standing else { continue };
        let Some(value) = given.value(flag.name) else { continue };
        let value = value.to_string();
        if given.is_explicit(flag.name) && !inactive.contains(&value.as_str()) {
            let mut shown = spelled(flag.name, given.origins);
            // Texts are not quoted, since a URL can hold a password.
            if flag.kind != Kind::Text {
                shown = format!("{shown}={value}");
            }
            return Err(Refusal::usage(format!("{shown} is not supported yet: {instead}")));
        }
    }
    Ok(())
}

fn etcd_settings(given: &Given<'_>) -> Result<etcd::Settings, Refusal> {
    let ca_file = given.file("etcd-cafile")?;
    let cert_file = given.file("etcd-certfile")?;
    let key_file = given.file("etcd-keyfile")?;
    if cert_file.is_some() != key_file.is_some() {
        let (missing, present) = if key_file.is_none() {
            ("etcd-keyfile", "etcd-certfile")
        } else {
            ("etcd-certfile", "etcd-keyfile")
        };
        return Err(given.setting(present, format!("needs -{missing} too")));
    }
    let scheme = if ca_file.is_some() || cert_file.is_some() { "https" } else { "http" };
    let (endpoints, url_user) = endpoints(given, scheme)?;
    Ok(etcd::Settings {
        endpoints,
        prefix: prefix(given)?,
        api: match given.text("etcd-api") {
            "v2" => etcd::Api::V2,
            "v3" => etcd::Api::V3,
            _ => etcd::Api::Auto,
        },
        ca_file,
        cert_file,
        key_file,
        // As in flannel, the flags outweigh the URL.
        credentials: credentials(given)?.or(url_user),
        timeout: given.duration("etcd-timeout", Duration::from_secs(5)),
    })
}

/// The endpoints as URLs, and the user that they name. Later flannels take `host:port` without a scheme too. No error
/// quotes an endpoint that may hold a password.
fn endpoints(
    given: &Given<'_>,
    default_scheme: &str,
) -> Result<(Vec<String>, Option<etcd::Credentials>), Refusal> {
    let flag = "etcd-endpoints";
    let (mut endpoints, mut users) = (Vec::new(), Vec::new());
    for text in given.text(flag).split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let (scheme, rest) = text.split_once("://").unwrap_or((default_scheme, text));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if !matches!(scheme, "http" | "https") || host.is_empty() || path.contains('@') {
            let shown = if text.contains('@') { "an endpoint".to_owned() } else { format!("{text:?}") };
            return Err(given.setting(flag, format!("{shown} is no http:// or https:// URL")));
        }
        if let Some(user) = user.map(url_user) {
            users.push(user.ok_or_else(|| given.setting(flag, "an endpoint names no user before its @"))?);
        }
        endpoints.push(format!("{scheme}://{host}{path}"));
    }
    if endpoints.is_empty() {
        return Err(given.setting(flag, "no endpoint named"));
    }
    if users.iter().any(|user| *user != users[0]) {
        return Err(given.setting(flag, "the endpoints name different users: give one with -etcd-username"));
    }
    Ok((endpoints, users.pop()))
}

/// The `user:password` of a URL, whose odd characters are escaped.
fn url_user(text: &str) -> Option<etcd::Credentials> {
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let (username, password) = (decoded(username)?, decoded(password)?);
    let password = etcd::Password::Typed(password);
    (!username.is_empty()).then_some(etcd::Credentials { username, password })
}

/// The prefix as typed: etcd v3 has keys of bytes, and flannel adds no slash. [`crate::store::keyspace`] joins the keys.
fn prefix(given: &Given<'_>) -> Result<String, Refusal> {
    let prefix = given.text("etcd-prefix");
    if prefix.trim().is_empty() {
        return Err(given.setting("etcd-prefix", "no prefix named"));
    }
    Ok(prefix.to_owned())
}

fn credentials(given: &Given<'_>) -> Result<Option<etcd::Credentials>, Refusal> {
    let typed = given.text("etcd-password");
    let file = given.filled("etcd-password-file");
    let (flag, password) = match file {
        Some(_) if !typed.is_empty() => {
            return Err(given.setting("etcd-password-file", "give it or -etcd-password, not both"));
        }
        Some(path) => {
            etcd::first_read(path.as_ref())
                .map_err(|error| given.setting("etcd-password-file", unreadable(path, &error)))?;
            ("etcd-password-file", etcd::Password::File(path.into()))
        }
        None => ("etcd-password", etcd::Password::Typed(typed.to_owned())),
    };
    // It is read again for every connection; what is wrong with the file is said here, once.
    password.read().map_err(|error| given.setting(flag, error))?;
    match given.filled("etcd-username") {
        Some(username) => Ok(Some(etcd::Credentials { username: username.to_owned(), password })),
        None if file.is_none() && typed.is_empty() => Ok(None),
        None => Err(given.setting(flag, "needs -etcd-username too")),
    }
}

fn iface_choice(given: &Given<'_>) -> Result<iface::Choice, Refusal> {
    let mut regexes = Vec::new();
    for pattern in given.list("iface-regex") {
        let regex = Regex::new(pattern).map_err(|error| {
            // The regex crate draws an arrow over several lines; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            given.setting("iface-regex", format!("{pattern:?}: {reason}"))
        })?;
        regexes.push(regex);
    }
    Ok(iface::Choice {
        names: given.list("iface").into_iter().map(str::to_owned).collect(),
        regexes,
        can_reach: given.ipv4("iface-can-reach")?,
        public_ip: given.ipv4("public-ip")?,
    })
}

fn lease_settings(given: &Given<'_>) -> Result<lease::Settings, Refusal> {
    let flag = "subnet-lease-renew-margin";
    let minutes = given.int(flag).unwrap_or(60);
    let minutes = u64::try_from(minutes).ok().filter(|m| (1..=1439).contains(m));
    let minutes = minutes.ok_or_else(|| given.setting(flag, "must be between 1 and 1439 minutes"))?;
    let ttl = given.duration("lease-ttl", lease::DEFAULT_TTL);
    if ttl.subsec_nanos() != 0 {
        return Err(given.setting("lease-ttl", "etcd counts whole seconds"));
    }
    let margin = given.is_explicit(flag).then(|| Duration::from_secs(minutes * 60));
    let on_lost: OnLost =
        given.text("on-lease-lost").parse().map_err(|error| given.setting("on-lease-lost", error))?;
    let mut settings =
        lease::Settings::new(ttl, margin, on_lost).map_err(|error| given.setting(flag, error))?;
    settings.force_takeover = given.is_true("force-takeover");
    Ok(settings)
}

fn node_id(given: &Given<'_>) -> Result<Option<NodeId>, Refusal> {
    let id = given.filled("node-id").map(str::parse::<NodeId>);
    id.transpose().map_err(|error| given.setting("node-id", error))
}

fn masq_settings(given: &Given<'_>) -> masq::Settings {
    let default = masq::Settings::default();
    let seconds = given.int("iptables-resync").and_then(|seconds| u64::try_from(seconds).ok());
    masq::Settings {
        masquerade: given.is_true("ip-masq"),
        random_fully: !given.is_true("ip-masq-fully-random-disable"),
        forward: given.is_true("iptables-forward-rules"),
        guard: given.is_true("port-guard"),
        // With 0 flannel looks again and again without any pause.
        resync: seconds.map_or(default.resync, |seconds| Duration::from_secs(seconds.max(1))),
        blackhole: given.is_true("ip-blackhole-route"),
        cleanup_on_exit: given.is_true("cleanup-on-exit"),
    }
}

/// The packet path. Another flag of it is a row in `flags.rs`, a line here, and a field with its default and range in
/// `engine/settings.rs`. What concerns a worker takes effect in `engine/start.rs`; what concerns the TUN, the sockets or
/// the number of workers, in `backend/udp/`. `daemon/settings.rs` passes ranges and choices on to this room, and
/// `docs/flags.md` wants a row too.
fn engine_settings(given: &Given<'_>) -> Engine {
    let default = Engine::default();
    Engine {
        workers: given.int("workers").and_then(|n| usize::try_from(n).ok()),
        cores: match given.value("cores") {
            Some(Value::Cores(cores)) => cores.clone(),
            _ => Vec::new(),
        },
        reads_per_turn: given.size("batch", default.reads_per_turn),
        buffers: given.size("buffers", default.buffers),
        spin: given.duration("spin", default.spin),
        moderation: given.duration("moderation", default.moderation),
        receive_buffer: given.size("receive-buffer", default.receive_buffer),
        send_buffer: given.size("send-buffer", default.send_buffer),
        carrier: match given.text("engine") {
            "uring" => Carrier::Uring,
            "poll" => Carrier::Poll,
            _ => Carrier::Auto,
        },
        tun_offload: match given.text("tun-offload") {
            "tso" => TunOffload::Tso,
            "off" => TunOffload::Off,
            _ => TunOffload::Auto,
        },
        udp_offload: match given.text("udp-offload") {
            "send" => UdpOffload::Send,
            "receive" => UdpOffload::Receive,
            "off" => UdpOffload::Off,
            _ => UdpOffload::Auto,
        },
        peer_filter: match given.text("peer-filter") {
            "inner" => PeerFilter::Inner,
            "off" => PeerFilter::Off,
            _ => PeerFilter::Strict,
        },
        one_source_port: given.text("source-port") == "one",
    }
}
