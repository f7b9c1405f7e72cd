//! The lines that the daemon prints on SIGUSR1 and at its end.

use super::{DataPath, Lease, State, Worker};
use std::fmt;

/// A state as lines: `worker N CARRIER`, `peers N`, and a line for each sample. Samples of value zero have lines too,
/// so a reader need not know which exist. The fields without a line are logged when they change.
#[derive(Debug)]
pub struct Lines<'a>(pub &'a State);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State {
            network,
            alive: _,
            ready: _,
            degraded: _,
            hindrance: _,
            upkeep,
            backend: _,
            store_up: _,
            lease: Lease { held: _, expiry: _, from_cache: _, samples: of_lease },
            rules_in_place: _,
            data_path,
        } = self.0;
        if !network.is_empty() {
            writeln!(f, "network {network}")?;
        }
        if let Some(DataPath { workers, peers, samples }) = data_path {
            for (index, Worker { carrier }) in workers.iter().enumerate() {
                writeln!(f, "worker {index} {carrier}")?;
            }
            writeln!(f, "peers {peers}")?;
            for sample in samples {
                writeln!(f, "{sample}")?;
            }
        }
        for sample in upkeep.iter().chain(of_lease) {
            writeln!(f, "{sample}")?;
        }
        Ok(())
    }
}

/// The state as one line: what [`Lines`] prints, without the values that are zero.
#[derive(Debug)]
pub struct Summary<'a>(pub &'a State);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = Lines(self.0).to_string();
        let telling: Vec<&str> = lines.lines().filter(|line| !line.ends_with(" 0")).collect();
        f.write_str(&telling.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Sample, metric};

    #[test]
    fn a_state_is_a_line_for_each_value() {
        let data_path = DataPath {
            workers: vec![Worker { carrier: "uring".to_owned() }],
            peers: 3,
            samples: vec![
                Sample::new(&metric::TURNS, "turns", 9),
                Sample::labelled(&metric::DROPPED_PACKETS, "ttl", ("reason", "ttl"), 2),
                Sample::labelled(&metric::KERNEL_DROPPED_PACKETS, "tun_queue_full", ("reason", "q"), 4),
                Sample::new(&metric::PAUSES, "pauses", 0),
            ],
        };
        let samples = vec![Sample::new(&metric::LOST_EVENTS, "lost_events", 1)];
        let mut state = State {
            lease: Lease { samples, ..Lease::default() },
            data_path: Some(data_path),
            ..State::default()
        };
        let lines = "worker 0 uring\npeers 3\ncount turns 9\ndrop ttl 2\nkernel tun_queue_full 4\ncount pauses 0\ncount lost_events 1\n";
        assert_eq!(Lines(&state).to_string(), lines);
        assert_eq!(
            Summary(&state).to_string(),
            "worker 0 uring, peers 3, count turns 9, drop ttl 2, kernel tun_queue_full 4, count lost_events 1"
        );
        state.network = "blue".to_owned();
        assert_eq!(Lines(&state).to_string(), format!("network blue\n{lines}"));
    }
}
