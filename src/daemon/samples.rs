//! What is counted around the lease, as samples of the report.

use crate::lease::{Counters, Status};
use crate::report::{Sample, metric};

/// The counters of the lease and of what is kept of it, and the number of detours.
pub(super) fn of(status: Option<Status>, cache_failures: u64, detours: usize) -> Vec<Sample> {
    let counters = status.map(|status| status.counters).unwrap_or_default();
    let Counters { skipped, rejected, repairs, conflicts, withheld, lists, proofs, handovers, overwrites } =
        counters;
    let is_read_only = status.is_some_and(|status| status.read_only);
    let has_drifted = status.is_some_and(|status| status.config_drift);
    vec![
        Sample::new(&metric::SKIPPED_KEYS, "skipped_keys", skipped),
        Sample::new(&metric::REJECTED_LEASES, "rejected_leases", rejected),
        Sample::new(&metric::UNDERLAY_CONFLICTS, "underlay_conflicts", conflicts),
        Sample::new(&metric::LOST_EVENTS, "lost_events", repairs),
        Sample::new(&metric::WITHHELD_LISTS, "withheld_lists", withheld),
        Sample::new(&metric::STORE_LISTS, "store_lists", lists),
        Sample::new(&metric::STORE_PROOFS, "store_proofs", proofs),
        Sample::new(&metric::LEASE_HANDOVERS, "lease_handovers", handovers),
        Sample::new(&metric::LEASE_OVERWRITES, "lease_overwrites", overwrites),
        Sample::new(&metric::CACHE_WRITE_ERRORS, "cache_write_errors", cache_failures),
        Sample::new(&metric::CONFIG_DRIFT, "config_drift", u64::from(has_drifted)),
        Sample::new(&metric::STORE_READ_ONLY, "store_read_only", u64::from(is_read_only)),
        Sample::new(&metric::DETOURS, "detours", detours as u64),
    ]
}
