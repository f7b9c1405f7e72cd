//! The table of all flags, which are flannel's and ours. Flannel's are those of v0.6.2 to v0.28.9 that concern etcd
//! mode or must be refused by name.

use super::value::{self, MAX_CORES, Value};
use crate::daemon::settings::{
    BUFFERS_RANGE, LONGEST_MODERATION, LONGEST_SPIN, MAX_WORKERS, READS_PER_TURN_RANGE,
};
use clap::{Arg, ArgAction, Command};
use std::time::Duration;

/// The form of a flag's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A boolean, which may stand bare and never takes the next word.
    Bool,
    /// A whole number in this range.
    Int(i64, i64),
    /// Any text, also an empty one.
    Text,
    /// Any text; the flag may be given several times.
    List,
    /// Any text, which is never shown.
    Secret,
    /// A word out of these.
    Choice(&'static [&'static str]),
    /// A length of time in this range.
    Time(Duration, Duration),
    /// A list of cores, or empty.
    Cores,
    /// `auto` or a whole number from 1 to this.
    AutoOr(i64),
}

/// Who a flag belongs to, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The flag is flannel's, and does what it does there.
    Flannel,
    /// The flag belongs to flannel's logging library.
    Logging,
    /// The flag is of this daemon alone.
    Ours,
    /// The flag is flannel's, and refused unless it has one of these values, with which it does nothing. The text says
    /// what to do instead.
    NotServed(&'static [&'static str], &'static str),
}

/// One flag of the command line.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) standing: Standing,
    default: &'static str,
    help: &'static str,
}

impl Flag {
    /// Whether the environment may set the flag. `-help` and `-version` are read before the environment.
    pub(super) fn takes_env(&self) -> bool {
        !matches!(self.name, "help" | "version")
    }

    pub(super) fn is_secret(&self) -> bool {
        self.kind == Secret
    }
}

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

const fn flag(
    standing: Standing,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, standing, default, help }
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The shortest TTL: etcd's floor is 1.5 times its election timeout, and we need time for a renewal.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);
const LONGEST_LEASE: Duration = DAY.saturating_mul(3650);
const TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_millis(100), SECOND.saturating_mul(300));
#[allow(clippy::cast_possible_wrap)] // small constants
const fn number(n: usize) -> i64 {
    assert!(n <= i32::MAX as usize);
    n as i64
}
const _: () = assert!(SHORTEST_LEASE.as_secs() < LONGEST_LEASE.as_secs());
const _: () = assert!(TIMEOUT_RANGE.0.as_millis() < TIMEOUT_RANGE.1.as_millis());
const _: () = assert!(MAX_WORKERS <= MAX_CORES, "every worker can have a core of its own");
const BATCH: Kind = Int(number(*READS_PER_TURN_RANGE.start()), number(*READS_PER_TURN_RANGE.end()));
/// The range of a socket buffer in bytes: from what two datagrams need to what the kernel can count.
const SOCKET_BUFFER: Kind = Int(128 << 10, 1 << 30);
const BUFFERS: Kind = Int(number(*BUFFERS_RANGE.start()), number(*BUFFERS_RANGE.end()));
/// The range of the resync period in seconds. flannel takes 0 too.
const RESYNC: Kind = Int(0, 24 * 3600);
const PORT: Kind = Int(0, u16::MAX as i64);
const ANY_INT: Kind = Int(i32::MIN as i64, i32::MAX as i64);

const NO_KUBERNETES: &str = "leases come from etcd only";
const NO_SERVER: &str =
    "there is no lease server: start flanneld on every node with -etcd-endpoints naming etcd itself";

use Kind::{AutoOr, Bool, Choice, Cores, Int, List, Secret, Text, Time};
use Standing::{Flannel, Logging, NotServed, Ours};

/// All flags, in the order of the help text.
#[rustfmt::skip]
pub(super) const FLAGS: &[Flag] = &[
    flag(Flannel, "etcd-endpoints", Text, "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd endpoints, separated by commas"),
    flag(Flannel, "etcd-prefix", Text, "/coreos.com/network", "Key prefix in etcd"),
    flag(Flannel, "etcd-keyfile", Text, "", "Client key (PEM) for etcd, with -etcd-certfile"),
    flag(Flannel, "etcd-certfile", Text, "", "Client certificate (PEM) for etcd, with -etcd-keyfile"),
    flag(Flannel, "etcd-cafile", Text, "", "CA bundle (PEM) that verifies etcd"),
    flag(Flannel, "etcd-username", Text, "", "User for etcd"),
    flag(Flannel, "etcd-password", Secret, "", "Password for etcd; others on this host can read it, see --etcd-password-file"),
    flag(Flannel, "iface", List, "", "Interface by name or IPv4 address for traffic between hosts; repeat it to give alternatives"),
    flag(Flannel, "iface-regex", List, "", "Pattern for the interface's address, else its name; tried after all -iface; may be repeated"),
    flag(Flannel, "iface-can-reach", Text, "", "Take the interface and source address by which the kernel reaches this IPv4 address"),
    flag(Flannel, "public-ip", Text, "", "IPv4 address that peers send to; alone it also names the interface that has it"),
    flag(Flannel, "subnet-file", Text, "/run/flannel/subnet.env", "Where the subnet, MTU and so on are written"),
    flag(Flannel, "subnet-lease-renew-margin", ANY_INT, "60", "Minutes before a lease's end to renew it, 1 to 1439"),
    flag(Flannel, "ip-masq", Bool, "false", "Masquerade what leaves the overlay"),
    flag(Flannel, "ip-masq-fully-random-disable", Bool, "false", "Masquerade without random source ports"),
    flag(Flannel, "iptables-forward-rules", Bool, "true", "Accept forwarded packets of the overlay; with nftables too"),
    flag(Flannel, "iptables-resync", RESYNC, "5", "Seconds between checks of these rules and of the blackhole route; 0 is 1"),
    flag(Flannel, "ip-blackhole-route", Bool, "false", "Keep a blackhole route for this node's own subnet"),
    flag(Flannel, "networks", Text, "", "Several networks, separated by commas: children of the prefix with a config of their own"),
    flag(Flannel, "watch-networks", Bool, "false", "All networks below the prefix, as they come and go"),
    flag(Flannel, "subnet-dir", Text, "/run/flannel/networks", "Directory of several networks' subnet files, NAME.env"),
    flag(Flannel, "healthz-ip", Text, "0.0.0.0", "Address or name to serve /healthz, /readyz and /metrics on"),
    flag(Flannel, "healthz-port", PORT, "0", "Its port; 0: no server"),
    flag(Flannel, "help", Bool, "false", "Print this text"),
    flag(Flannel, "version", Bool, "false", "Print the version"),

    flag(Logging, "v", ANY_INT, "0", "Verbosity; 1 adds our debug messages, 10 those of the libraries too"),
    flag(Logging, "vmodule", Text, "", "Accepted without effect: it names flannel's source files"),
    flag(Logging, "log_backtrace_at", Text, "", "Accepted without effect: it names flannel's source files"),
    flag(Logging, "logtostderr", Bool, "true", "Accepted; =false has no effect: all goes to stderr"),
    flag(Logging, "alsologtostderr", Bool, "true", "Accepted without effect: all goes to stderr"),
    flag(Logging, "stderrthreshold", Text, "", "Accepted without effect: all goes to stderr"),
    flag(Logging, "log_dir", Text, "", "Accepted without effect: all goes to stderr"),

    flag(Ours, "engine", Choice(&["auto", "uring", "poll"]), "auto", "How packets cross the kernel's boundary"),
    flag(Ours, "workers", AutoOr(number(MAX_WORKERS)), "auto", "Workers of the packet path, at most one a core makes sense"),
    flag(Ours, "cores", Cores, "", "Cores to pin workers to, such as 0,2-5; empty: no pinning"),
    flag(Ours, "batch", BATCH, "64", "Reads that a worker takes from one descriptor before it turns to the next"),
    flag(Ours, "buffers", BUFFERS, "16", "Receive buffers of each direction and worker"),
    flag(Ours, "spin", Time(Duration::ZERO, LONGEST_SPIN), "0", "How long an idle worker looks for packets before it sleeps, such as 20us; costs its core"),
    flag(Ours, "moderation", Time(Duration::ZERO, LONGEST_MODERATION), "50us", "How long a worker lets small packets gather that come fast and from one side only; 0: never"),
    flag(Ours, "receive-buffer", SOCKET_BUFFER, "8388608", "Bytes of receive buffer for each UDP socket"),
    flag(Ours, "send-buffer", SOCKET_BUFFER, "8388608", "Bytes of send buffer for each UDP socket"),
    flag(Ours, "tun-offload", Choice(&["auto", "tso", "off"]), "auto", "Offloads at the TUN device: all, TSO only, none"),
    flag(Ours, "udp-offload", Choice(&["auto", "send", "receive", "off"]), "auto", "Offloads at the UDP socket: both, UDP_SEGMENT only, UDP_GRO only, none"),
    flag(Ours, "source-port", Choice(&["spread", "one"]), "spread", "Workers but the first send from ports of their own, or all from the network's port"),
    flag(Ours, "peer-filter", Choice(&["strict", "inner", "off"]), "strict", "Let in packets from peers' addresses and subnets; by inner addresses only; all"),
    flag(Ours, "etcd-api", Choice(&["auto", "v2", "v3"]), "auto", "etcd's API; auto takes the one that holds the network config"),
    flag(Ours, "etcd-password-file", Text, "", "File whose first line is the password for etcd"),
    flag(Ours, "etcd-timeout", Time(TIMEOUT_RANGE.0, TIMEOUT_RANGE.1), "5s", "Deadline of a call to etcd"),
    flag(Ours, "lease-ttl", Time(SHORTEST_LEASE, LONGEST_LEASE), "24h", "How long a lease lives without renewal, in seconds or as 24h, 90m"),
    flag(Ours, "state-dir", Text, "", "Directory of what must outlive this process: by it a start without etcd is possible; empty: none"),
    flag(Ours, "env-file", List, "", "File with variables of flags, read again on SIGHUP; -FILE: it may be missing; may be repeated"),
    flag(Ours, "node-id", Text, "", "Name of this host in its lease; empty: the one kept in --state-dir, else one derived from the machine id"),
    flag(Ours, "force-takeover", Bool, "false", "Take the lease of our public IP or node id from another host, even if that lives"),
    flag(Ours, "cleanup-on-exit", Bool, "false", "Remove rules and blackhole route at the end; else they stay, as flannel's do"),
    flag(Ours, "port-guard", Bool, "true", "Drop what containers send to the overlay's port of a host; else one can forge packets of this host"),
    flag(Ours, "on-lease-lost", Choice(&["exit", "keep", "reacquire"]), "exit", "When another node took our subnet: exit non-zero, go on with it, take another"),

    flag(NotServed(&[""], "the overlay is IPv4 only"), "public-ipv6", Text, "", "IPv6 address that peers send to"),
    flag(NotServed(&[""], NO_SERVER), "listen", Text, "", "Serve leases to other nodes"),
    flag(NotServed(&[""], NO_SERVER), "remote", Text, "", "Get leases from another flanneld"),
    flag(NotServed(&[""], NO_SERVER), "remote-keyfile", Text, "", "Key for -listen and -remote"),
    flag(NotServed(&[""], NO_SERVER), "remote-certfile", Text, "", "Certificate for -listen and -remote"),
    flag(NotServed(&[""], NO_SERVER), "remote-cafile", Text, "", "CA bundle for -listen and -remote"),
    flag(NotServed(&["false"], NO_KUBERNETES), "kube-subnet-mgr", Bool, "false", "Leases from Kubernetes"),
    flag(NotServed(&[""], NO_KUBERNETES), "kube-api-url", Text, "", "Kubernetes API server"),
    flag(NotServed(&[""], NO_KUBERNETES), "kubeconfig-file", Text, "", "Kubernetes client config"),
    flag(NotServed(&["", "flannel.alpha.coreos.com"], NO_KUBERNETES), "kube-annotation-prefix", Text, "flannel.alpha.coreos.com", "Prefix of node annotations"),
    flag(NotServed(&["", "/etc/kube-flannel/net-conf.json"], "the network config is read from etcd"), "net-config-path", Text, "/etc/kube-flannel/net-conf.json", "Network config file of Kubernetes mode"),
    flag(NotServed(&["true", "false"], ""), "set-node-network-unavailable", Bool, "true", "Accepted: means something only with -kube-subnet-mgr"),
    flag(NotServed(&["false"], NO_KUBERNETES), "use-multi-cluster-cidr", Bool, "false", "Several cluster networks"),
];

/// The command line as clap sees it.
pub(super) fn command() -> Command {
    Command::new("flanneld")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .max_term_width(110)
        .help_template("{all-args}{after-help}")
        .after_help(
            "One dash or two; -flag=value or -flag value, but booleans only as -flag or -flag=false.\n\
             Each flag may also be given as FLANNELD_FLAG_NAME in the environment, or in a file that --env-file\n\
             names; the command line wins, then the environment.",
        )
        .args(FLAGS.iter().map(argument))
}

fn argument(flag: &'static Flag) -> Arg {
    let heading = match flag.standing {
        Flannel => "Flags of flannel",
        Logging => "Flags of flannel's logging",
        Ours => "Flags of this flanneld",
        NotServed(..) => {
            "Flags of flannel that are not served yet, and are refused with any value but the default"
        }
    };
    if let NotServed(accepted, _) = flag.standing {
        debug_assert!(accepted.contains(&flag.default), "-{} is refused by default", flag.name);
    }
    let help = match flag.kind {
        Choice(names) => format!("{} [one of {}]", flag.help, names.join(", ")),
        _ => flag.help.to_owned(),
    };
    let argument = Arg::new(flag.name)
        .long(flag.name)
        .help(help)
        .help_heading(heading)
        .require_equals(true)
        .value_parser(move |text: &str| read(flag.kind, text))
        .action(if flag.kind == List { ArgAction::Append } else { ArgAction::Set });
    let argument = match flag.kind {
        Bool => argument.value_name("BOOL").num_args(0..=1).default_missing_value("true"),
        Int(..) => argument.value_name("N"),
        Text | List | Secret => argument.value_name("TEXT"),
        Choice(_) => argument.value_name("WORD"),
        Time(..) => argument.value_name("TIME"),
        Cores => argument.value_name("LIST"),
        AutoOr(_) => argument.value_name("auto|N"),
    };
    if flag.default.is_empty() || flag.default == "false" {
        argument
    } else {
        argument.default_value(flag.default)
    }
}

fn read(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Bool => value::bool(text).map(Value::Bool),
        Int(min, max) => value::int(text, min, max).map(Value::Int),
        Text | List | Secret => Ok(Value::Text(text.to_owned())),
        Choice(names) if names.contains(&text) => Ok(Value::Text(text.to_owned())),
        Choice(names) => Err(format!("one of {}", names.join(", "))),
        Time(min, max) => value::duration(text, min, max).map(Value::Duration),
        Cores if text.trim().is_empty() => Ok(Value::Cores(Vec::new())),
        Cores => value::cores(text).map(Value::Cores),
        AutoOr(_) if text == "auto" => Ok(Value::Text(text.to_owned())),
        AutoOr(max) => value::int(text, 1, max).map(Value::Int).map_err(|form| format!("auto, or {form}")),
    }
}
