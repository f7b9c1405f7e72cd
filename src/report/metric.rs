//! Every metric of the daemon, with name, kind, unit and help. The names follow Prometheus' conventions (base units,
//! `_total` for counters). A name that has changed stays for one release beside the new one.

use std::fmt;

/// How a metric's values behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The value only grows, from 0 at the start of the process, the device or the socket.
    Counter,
    /// The value goes up and down.
    Gauge,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        })
    }
}

/// Something that the daemon counts or knows of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name, as monitors see it.
    pub name: &'static str,
    /// The name that it had one release ago, if another one.
    pub formerly: Option<&'static str>,
    /// How its values behave.
    pub kind: Kind,
    /// The unit of its values; `0 or 1` for something that is or is not, `1` for a value that is always 1.
    pub unit: &'static str,
    /// The text that explains what the name does not say.
    pub help: &'static str,
    /// The first word of its lines on SIGUSR1.
    pub word: &'static str,
}

/// Makes the metrics, and [`ALL`] of them.
macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal $(formerly $old:literal)?, $unit:literal $(as $word:literal)?, $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            ///
            /// This is one of [`ALL`].
            pub static $id: Metric = Metric {
                name: $name,
                formerly: metrics!(@option $($old)?),
                kind: Kind::$kind,
                unit: $unit,
                help: $help,
                word: metrics!(@word $($word)?),
            };
        )*
        /// Every metric, in the order of this file.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
    (@option) => { None };
    (@option $old:literal) => { Some($old) };
    (@word) => { "count" };
    (@word $word:literal) => { $word };
}

metrics! {
    BUILD_INFO: Gauge "flanneld_build_info", "1", "Always 1; the version is a label.";
    READY: Gauge "flanneld_ready", "0 or 1", "Whether the subnet is up, the subnet file written, and nothing keeps peers from reaching this host.";
    WORKERS_ALIVE: Gauge "flanneld_workers_alive", "0 or 1", "0 if a worker has ended by itself.";
    STORE_UP: Gauge "flanneld_store_up" formerly "flanneld_etcd_up", "0 or 1",
        "Whether the last call to the store of the leases was answered, and the last write taken.";
    BACKEND_INFO: Gauge "flanneld_backend_info", "1", "Always 1; the backend's type is a label.";
    WORKER_INFO: Gauge "flanneld_worker_info", "1",
        "Always 1; how the worker makes its system calls is a label.";
    PEERS: Gauge "flanneld_peers", "nodes", "Other nodes whose subnets are routed.";
    RULES_IN_PLACE: Gauge "flanneld_rules_in_place", "0 or 1",
        "Whether the masquerade and forward rules were in place at the last look; absent if none are wanted.";

    CONFIG_DRIFT: Gauge "flanneld_config_drift", "0 or 1",
        "1 if the network config in the store asks for what only a restart takes over, or cannot be used.";
    STORE_READ_ONLY: Gauge "flanneld_store_read_only", "0 or 1",
        "1 if the store answers, but refuses to write this host's lease.";
    LEASE_STATE: Gauge "flanneld_lease_state", "0 or 1", "1 for the state that the lease is in.";
    LEASE_EXPIRY: Gauge "flanneld_lease_expiry_timestamp_seconds", "seconds",
        "When the lease ends unless renewed, in seconds since 1970; absent for a reservation.";
    FROM_CACHE: Gauge "flanneld_from_cache", "0 or 1",
        "Whether config, lease and peers are those of the state directory, since the store has not answered since the start.";
    CACHE_WRITE_ERRORS: Counter "flanneld_cache_write_errors_total", "writes",
        "Writes to the state directory that failed.";
    SKIPPED_KEYS: Counter "flanneld_skipped_keys_total", "keys",
        "Keys and values of the store that could not be read, each counted once as long as it stands.";
    REJECTED_LEASES: Counter "flanneld_rejected_leases_total", "leases",
        "Leases outside the network, over our subnet, or with an address that nobody can send to.";
    UNDERLAY_CONFLICTS: Counter "flanneld_underlay_conflicts_total", "leases",
        "Leases refused or given up because their subnets hold an address of this host.";
    DETOURS: Gauge "flanneld_detours", "routes",
        "Host routes that lead outer addresses past the overlay, which would swallow them.";
    LOST_EVENTS: Counter "flanneld_lost_events_total", "events",
        "Differences that a list beside a running watch found, which the watch had not told.";
    WITHHELD_LISTS: Counter "flanneld_withheld_lists_total", "lists",
        "Lists that lacked more than half of the peers and were not believed at once.";
    STORE_LISTS: Counter "flanneld_store_lists_total", "lists",
        "Lists of all leases that the store was asked for.";
    STORE_PROOFS: Counter "flanneld_store_proofs_total", "watches",
        "Watches by which the store has shown after a failure that it is the same, so that it was not listed.";
    LEASE_HANDOVERS: Counter "flanneld_lease_handovers_total", "leases",
        "Leases of peers that changed hands: the same subnet with another PublicIP or NodeID.";
    LEASE_OVERWRITES: Counter "flanneld_lease_overwrites_total", "times",
        "Times that another host wrote our own lease as its own, and we took it back.";

    RX_PACKETS: Counter "flanneld_rx_packets_total", "packets", "Packets read and passed on, by direction.";
    RX_BYTES: Counter "flanneld_rx_bytes_total", "bytes",
        "Bytes of the packets of flanneld_rx_packets_total, IPv4 headers included.";
    TUN_READS: Counter "flanneld_tun_reads_total", "frames",
        "Frames read from the TUN; one may hold many packets.";
    TUN_WRITES: Counter "flanneld_tun_writes_total", "frames",
        "Frames written to the TUN; one may hold many packets.";
    UDP_SENDS: Counter "flanneld_udp_sends_total", "sends",
        "Sends on the socket; one may hold many packets.";
    UDP_RECEIVES: Counter "flanneld_udp_receives_total", "receives",
        "Receives from the socket; one may hold many packets.";
    ICMP_SENT: Counter "flanneld_icmp_sent_total", "packets", "ICMP errors sent.";
    ICMP_LIMITED: Counter "flanneld_icmp_limited_total", "packets",
        "ICMP errors not sent, because of the rate limit or because a turn had no room.";
    RESENT: Counter "flanneld_resent_total", "sends",
        "Segmented sends that the kernel refused and that were sent again packet by packet.";
    SEGMENTATION_OFF: Counter "flanneld_segmentation_off_total", "times",
        "Segmentation was switched off for ten minutes because the kernel refused it.";
    TURNS: Counter "flanneld_turns_total", "turns", "Turns of the workers; each has one wait at most.";
    PAUSES: Counter "flanneld_pauses_total" formerly "flanneld_rests_total", "turns",
        "Turns whose wait began with a pause of moderation.";
    STARVED: Counter "flanneld_starved_total", "times",
        "The kernel had a packet and no buffer to put it in; the packet waits in the kernel's queue.";
    RECEIVE_ERRORS: Counter "flanneld_receive_errors_total", "errors",
        "Errors of reading from the TUN and of receiving, other than the deletion of the device.";
    ROUTE_CHANGES: Counter "flanneld_route_changes_total", "changes",
        "Route changes applied, summed over workers.";
    ROUTE_ERRORS: Counter "flanneld_route_errors_total", "changes",
        "Route changes refused, summed over workers.";
    DROPPED_PACKETS: Counter "flanneld_dropped_packets_total", "packets" as "drop",
        "Packets lost in this daemon, by reason.";
    KERNEL_DROPPED_PACKETS: Counter "flanneld_kernel_dropped_packets_total", "packets" as "kernel",
        "Packets lost in the kernel's queues before this daemon.";

    RECONCILE_REPAIRS: Counter "flanneld_reconcile_repairs_total", "times",
        "Times that a device, address or route was missing and was put back.";
    OTHER_BACKEND_PEERS: Gauge "flanneld_other_backend_peers", "nodes",
        "Peers whose nodes run another backend, so that nothing leads to them from here.";
    FOREIGN_LEASES: Counter "flanneld_foreign_leases_total", "leases",
        "Leases of nodes of another backend, ignored.";
    UNUSABLE_LEASES: Counter "flanneld_unusable_leases_total", "leases",
        "Leases of this backend that it cannot use.";
    REFUSED_ENTRIES: Gauge "flanneld_refused_entries" formerly "flanneld_refused_entries_total", "entries",
        "Table entries that the kernel refused in the last pass.";
    OFF_LINK_PEERS: Gauge "flanneld_off_link_peers" formerly "flanneld_off_link_peers_total", "nodes",
        "Peers that are not on the external interface's own link, which host-gw cannot reach.";
    EXTERNAL_CHANGES: Counter "flanneld_external_interface_changes_total", "changes",
        "Times that another interface or address took the place of the external one and was followed.";
    EXTERNAL_TROUBLE: Gauge "flanneld_external_interface_trouble", "0 or 1",
        "1 while the external interface's address or link is away, so that no peer is reached.";
    REPAIR_FAILING: Gauge "flanneld_repair_failing", "0 or 1",
        "1 while a device, address, route or socket cannot be put right.";
    FAILED_COMMANDS: Counter "flanneld_failed_commands_total", "commands",
        "Commands for peers that failed, of the extension backend.";

    PROCESS_CPU: Counter "process_cpu_seconds_total", "seconds", "Processor time of this process.";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes", "bytes", "Memory of this process.";
    PROCESS_FDS: Gauge "process_open_fds", "descriptors", "Open descriptors of this process.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} twice", metric.name);
            assert!(metric.formerly.is_none_or(|old| names.insert(old)), "{} twice", metric.name);
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("flanneld_") || metric.name.starts_with("process_"));
            assert!(metric.help.ends_with('.') && !metric.unit.is_empty(), "{}", metric.name);
        }
    }
}
