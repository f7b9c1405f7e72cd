//! The Prometheus text format (prometheus.io, "Exposition formats", text version 0.0.4).

use crate::report::{DataPath, Kind, Lease, Metric, Sample, State, Worker, metric};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::UNIX_EPOCH;

/// The text of all metrics of all networks.
pub(super) fn text(networks: &[State]) -> String {
    let mut families = Families::default();
    families.add(&metric::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], "1");
    families.process();
    for network in networks {
        families.network(network);
    }
    families.text()
}

/// The samples of one name, which the format wants together.
#[derive(Debug)]
struct Family {
    kind: Kind,
    help: &'static str,
    samples: Vec<String>,
}

/// Families by name.
#[derive(Debug, Default)]
struct Families(BTreeMap<&'static str, Family>);

impl Families {
    /// Adds a sample of `metric`, also under the name that the metric had before.
    fn add(&mut self, metric: &'static Metric, labels: &[(&str, &str)], value: &str) {
        self.add_named(metric.name, metric.kind, metric.help, labels, value);
        if let Some(old) = metric.formerly {
            // Readers of the old name expect the kind that it says.
            let kind = if old.ends_with("_total") { Kind::Counter } else { Kind::Gauge };
            self.add_named(old, kind, metric.help, labels, value);
        }
    }

    fn add_named(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        labels: &[(&str, &str)],
        value: &str,
    ) {
        let mut sample = name.to_owned();
        let labels: Vec<String> = labels
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        if !labels.is_empty() {
            let _ = write!(sample, "{{{}}}", labels.join(","));
        }
        let _ = write!(sample, " {value}");
        let family = self.0.entry(name).or_insert_with(|| Family { kind, help, samples: Vec::new() });
        debug_assert_eq!(family.kind, kind, "a name has one kind");
        debug_assert_eq!(family.help, help, "a name has one help text");
        family.samples.push(sample);
    }

    /// Adds the samples of a network. Every field is named, so that a new one cannot be forgotten.
    fn network(&mut self, state: &State) {
        let State {
            network,
            alive,
            ready,
            backend,
            store_up,
            lease,
            rules_in_place,
            data_path,
            degraded: _,
            hindrance: _,
            upkeep,
        } = state;
        let of = ("network", network.as_str());
        self.add(&metric::READY, &[of], flag(*ready));
        self.add(&metric::WORKERS_ALIVE, &[of], flag(*alive));
        self.add(&metric::STORE_UP, &[of], flag(*store_up));
        if let Some(in_place) = rules_in_place {
            self.add(&metric::RULES_IN_PLACE, &[of], flag(*in_place));
        }
        if !backend.is_empty() {
            self.add(&metric::BACKEND_INFO, &[of, ("backend", backend)], "1");
        }
        self.samples(of, upkeep);
        self.lease(of, lease);
        if let Some(data_path) = data_path {
            self.data_path(of, data_path);
        }
    }

    fn lease(&mut self, of: (&str, &str), lease: &Lease) {
        let Lease { held, expiry, from_cache, samples } = lease;
        for (state, value) in [("held", *held), ("none", !*held)] {
            self.add(&metric::LEASE_STATE, &[of, ("state", state)], flag(value));
        }
        if let Some(since) = expiry.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            self.add(&metric::LEASE_EXPIRY, &[of], &since.as_secs().to_string());
        }
        self.add(&metric::FROM_CACHE, &[of], flag(*from_cache));
        self.samples(of, samples);
    }

    fn data_path(&mut self, of: (&str, &str), data_path: &DataPath) {
        let DataPath { workers, peers, samples } = data_path;
        self.add(&metric::PEERS, &[of], &peers.to_string());
        for (index, Worker { carrier }) in workers.iter().enumerate() {
            let labels = [of, ("worker", &index.to_string()), ("engine", carrier)];
            self.add(&metric::WORKER_INFO, &labels, "1");
        }
        self.samples(of, samples);
    }

    fn samples(&mut self, of: (&str, &str), samples: &[Sample]) {
        for Sample { metric, name: _, label, value } in samples {
            debug_assert!(label.is_none_or(|(name, _)| name != of.0), "a label is named once");
            let labels: Vec<(&str, &str)> = std::iter::once(of).chain(*label).collect();
            self.add(metric, &labels, &value.to_string());
        }
    }

    /// Adds time and memory of this process, under the names that Prometheus' own clients use.
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
            self.add(&metric::PROCESS_CPU, &[], &seconds);
            let resident = pages * rustix::param::page_size() as u64;
            self.add(&metric::PROCESS_MEMORY, &[], &resident.to_string());
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.add(&metric::PROCESS_FDS, &[], &open.count().to_string());
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, Family { kind, help, samples }) in &self.0 {
            let _ = writeln!(text, "# HELP {name} {help}");
            let _ = writeln!(text, "# TYPE {name} {kind}");
            for sample in samples {
                let _ = writeln!(text, "{sample}");
            }
        }
        text
    }
}

fn flag(value: bool) -> &'static str {
    if value { "1" } else { "0" }
}

/// A label's value as the format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn network(name: &str, data_path: DataPath) -> State {
        State { network: name.to_owned(), alive: true, data_path: Some(data_path), ..State::default() }
    }

    fn peers(peers: usize) -> DataPath {
        DataPath { peers, ..DataPath::default() }
    }

    #[test]
    fn values_become_samples() {
        let data_path = DataPath {
            workers: vec![Worker { carrier: "uring".to_owned() }],
            peers: 3,
            samples: vec![
                Sample::labelled(&metric::RX_PACKETS, "tun_packets", ("dir", "tun_to_udp"), 7),
                Sample::new(&metric::TURNS, "turns", 9),
                Sample::labelled(&metric::DROPPED_PACKETS, "ttl", ("reason", "ttl"), 2),
                Sample::labelled(&metric::KERNEL_DROPPED_PACKETS, "x", ("reason", "socket_overflow"), 4),
                Sample::new(&metric::REFUSED_ENTRIES, "refused_entries", 5),
            ],
        };
        let mut state = network("", data_path);
        state.rules_in_place = Some(true);
        state.lease.samples = vec![Sample::new(&metric::LOST_EVENTS, "lost_events", 6)];
        let text = text(&[state]);
        for line in [
            "flanneld_worker_info{worker=\"0\",engine=\"uring\"} 1",
            "flanneld_peers 3",
            "flanneld_rx_packets_total{dir=\"tun_to_udp\"} 7",
            "# TYPE flanneld_turns_total counter\nflanneld_turns_total 9",
            "# TYPE flanneld_dropped_packets_total counter\nflanneld_dropped_packets_total{reason=\"ttl\"} 2",
            "flanneld_kernel_dropped_packets_total{reason=\"socket_overflow\"} 4",
            "# TYPE flanneld_ready gauge\nflanneld_ready 0",
            "flanneld_lease_state{state=\"none\"} 1",
            "flanneld_lost_events_total 6",
            "flanneld_rules_in_place 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
        assert!(text.contains("process_cpu_seconds_total ") && text.contains("process_open_fds "), "{text}");
    }

    #[test]
    fn a_name_that_has_changed_is_there_beside_the_new_one() {
        let data_path = DataPath {
            samples: vec![Sample::new(&metric::REFUSED_ENTRIES, "refused_entries", 5)],
            ..DataPath::default()
        };
        let text = text(&[State { store_up: true, ..network("", data_path) }]);
        for line in [
            "# TYPE flanneld_store_up gauge\nflanneld_store_up 1",
            "# TYPE flanneld_etcd_up gauge\nflanneld_etcd_up 1",
            "# TYPE flanneld_refused_entries gauge\nflanneld_refused_entries 5",
            "# TYPE flanneld_refused_entries_total counter\nflanneld_refused_entries_total 5",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
    }

    #[test]
    fn networks_are_told_apart_and_families_stay_together() {
        let mut second = network("b\"\\\n", peers(2));
        second.lease.expiry = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        let text = text(&[network("a", peers(1)), second]);
        let together = "# TYPE flanneld_peers gauge\nflanneld_peers{network=\"a\"} 1\n\
                        flanneld_peers{network=\"b\\\"\\\\\\n\"} 2\n";
        assert!(text.contains(together), "{text}");
        assert_eq!(text.matches("# TYPE flanneld_peers ").count(), 1);
        assert!(text.contains("flanneld_lease_expiry_timestamp_seconds{network=\"b\\\"\\\\\\n\"} 60\n"));
    }
}
