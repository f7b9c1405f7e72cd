//! The Prometheus text format (prometheus.io, "Exposition formats", text version 0.0.4).

use super::Network;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::UNIX_EPOCH;

/// All metrics of all networks.
pub(super) fn text(networks: &[Network]) -> String {
    let mut families = Families::default();
    families.add("build_info", &[("version", env!("CARGO_PKG_VERSION"))], "1");
    families.process();
    for network in networks {
        families.network(network);
    }
    families.text()
}

/// Samples by family: the format wants those of one family together.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Vec<String>>);

impl Families {
    /// A sample of the family `flanneld_<name>`.
    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.add_whole(&format!("flanneld_{name}"), labels, value);
    }

    fn add_whole(&mut self, family: &str, labels: &[(&str, &str)], value: &str) {
        let mut sample = family.to_owned();
        let labels: Vec<String> = labels
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        if !labels.is_empty() {
            let _ = write!(sample, "{{{}}}", labels.join(","));
        }
        let _ = write!(sample, " {value}");
        self.0.entry(family.to_owned()).or_default().push(sample);
    }

    fn network(&mut self, network: &Network) {
        let of = ("network", network.name.as_str());
        self.add("ready", &[of], flag(network.ready));
        self.add("workers_alive", &[of], flag(network.alive));
        self.add("etcd_up", &[of], flag(network.etcd_up));
        for (state, value) in [("held", network.leased), ("none", !network.leased)] {
            self.add("lease_state", &[of, ("state", state)], flag(value));
        }
        if let Some(since) = network.lease_expiry.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            self.add("lease_expiry_timestamp_seconds", &[of], &since.as_secs().to_string());
        }
        if !network.backend.is_empty() {
            self.add("backend_info", &[of, ("backend", &network.backend)], "1");
        }
        for line in network.report.lines() {
            self.line(of, line);
        }
    }

    /// A line of the daemon's report, if it is one that we know the form of.
    fn line(&mut self, of: (&str, &str), line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["peers", n] if is_number(n) => self.add("peers", &[of], n),
            ["worker", worker, carrier] if is_number(worker) => {
                self.add("worker_info", &[of, ("worker", worker), ("engine", carrier)], "1");
            }
            ["drop", reason, n] if is_number(n) => {
                self.add("dropped_packets_total", &[of, ("reason", reason)], n);
            }
            ["kernel", queue, n] if is_number(n) => {
                self.add("kernel_dropped_packets_total", &[of, ("reason", queue)], n);
            }
            ["count", name, n] if is_number(n) && is_name(name) => {
                let (name, labels): (&str, &[(&str, &str)]) = match *name {
                    "tun_packets" => ("rx_packets", &[of, ("dir", "tun_to_udp")]),
                    "tun_bytes" => ("rx_bytes", &[of, ("dir", "tun_to_udp")]),
                    "udp_packets" => ("rx_packets", &[of, ("dir", "udp_to_tun")]),
                    "udp_bytes" => ("rx_bytes", &[of, ("dir", "udp_to_tun")]),
                    "repairs" => ("reconcile_repairs", &[of]),
                    other => (other, &[of]),
                };
                self.add(&format!("{name}_total"), labels, n);
            }
            _ => {}
        }
    }

    /// Time and memory of this process, under the names that Prometheus' own clients use.
    fn process(&mut self) {
        // pid (comm) state ppid …: utime, stime and rss are the 14th, 15th and 24th fields (proc(5)).
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, tail)| tail).split_whitespace().collect();
        let field = |n: usize| fields.get(n - 3).and_then(|field| field.parse::<u64>().ok());
        if let (Some(user), Some(system), Some(pages)) = (field(14), field(15), field(24)) {
            let ticks = rustix::param::clock_ticks_per_second().max(1);
            let hundredths = (user + system) * 100 / ticks;
            let seconds = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            self.add_whole("process_cpu_seconds_total", &[], &seconds);
            let resident = pages * rustix::param::page_size() as u64;
            self.add_whole("process_resident_memory_bytes", &[], &resident.to_string());
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.add_whole("process_open_fds", &[], &open.count().to_string());
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (family, samples) in &self.0 {
            if let Some((_, help)) = HELP.iter().find(|(name, _)| *name == family) {
                let _ = writeln!(text, "# HELP {family} {help}");
            }
            let kind = if family.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(text, "# TYPE {family} {kind}");
            for sample in samples {
                let _ = writeln!(text, "{sample}");
            }
        }
        text
    }
}

/// What the names do not say.
const HELP: &[(&str, &str)] = &[
    ("flanneld_build_info", "Always 1; the version is a label."),
    ("flanneld_dropped_packets_total", "Packets lost in this daemon, by reason."),
    ("flanneld_etcd_up", "Whether the last call to etcd was answered."),
    ("flanneld_kernel_dropped_packets_total", "Packets lost in the kernel's queues before this daemon."),
    (
        "flanneld_lease_expiry_timestamp_seconds",
        "When the lease ends unless renewed; absent for a reservation.",
    ),
    ("flanneld_lease_state", "1 for the state that the lease is in."),
    ("flanneld_peers", "Other nodes whose subnets are routed."),
    ("flanneld_ready", "Whether the subnet is up and the subnet file written."),
    (
        "flanneld_reconcile_repairs_total",
        "Times that a device, address or route was missing and was put back.",
    ),
    ("flanneld_rx_bytes_total", "Bytes of the packets of flanneld_rx_packets_total, IPv4 headers included."),
    ("flanneld_rx_packets_total", "Packets read and passed on, by direction."),
    ("flanneld_worker_info", "Always 1; how the worker makes its system calls is a label."),
    ("flanneld_workers_alive", "0 if a worker has ended by itself."),
];

fn flag(value: bool) -> &'static str {
    if value { "1" } else { "0" }
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_name(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A label's value as the format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn network(name: &str, report: &str) -> Network {
        Network { name: name.to_owned(), alive: true, report: report.to_owned(), ..Network::default() }
    }

    #[test]
    fn lines_of_the_report_become_samples() {
        let report = "worker 0 uring\npeers 3\ncount tun_packets 7\ncount turns 9\ndrop ttl 2\nkernel socket_overflow 4\nodd line\n\
                      count bad-name 1\ncount turns x\n";
        let text = text(&[network("", report)]);
        for line in [
            "flanneld_worker_info{worker=\"0\",engine=\"uring\"} 1",
            "flanneld_peers 3",
            "flanneld_rx_packets_total{dir=\"tun_to_udp\"} 7",
            "# TYPE flanneld_turns_total counter\nflanneld_turns_total 9",
            "# TYPE flanneld_dropped_packets_total counter\nflanneld_dropped_packets_total{reason=\"ttl\"} 2",
            "flanneld_kernel_dropped_packets_total{reason=\"socket_overflow\"} 4",
            "# TYPE flanneld_ready gauge\nflanneld_ready 0",
            "flanneld_lease_state{state=\"none\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
        assert!(!text.contains("bad-name") && !text.contains("odd"), "{text}");
        assert!(text.contains("process_cpu_seconds_total ") && text.contains("process_open_fds "), "{text}");
    }

    #[test]
    fn networks_are_told_apart_and_families_stay_together() {
        let mut second = network("b\"\\\n", "peers 2\n");
        second.lease_expiry = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        let text = text(&[network("a", "peers 1\n"), second]);
        let together = "# TYPE flanneld_peers gauge\nflanneld_peers{network=\"a\"} 1\n\
                        flanneld_peers{network=\"b\\\"\\\\\\n\"} 2\n";
        assert!(text.contains(together), "{text}");
        assert_eq!(text.matches("# TYPE flanneld_peers ").count(), 1);
        assert!(text.contains("flanneld_lease_expiry_timestamp_seconds{network=\"b\\\"\\\\\\n\"} 60\n"));
    }
}
