# shellcheck shell=bash
# shellcheck disable=SC2154 # perf/scale.sh, which sources this, sets the rest
# The case `store` of perf/scale.sh: etcd under many daemons.
set -euo pipefail

# sent: bytes that etcd has sent to clients over gRPC since its start.
sent() { in_ns sw curl -fsS "$PAIR_ETCD/metrics" | awk '$1 == "etcd_network_client_grpc_sent_bytes_total" { printf "%.0f\n", $2 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f\n", a / b }'; }
# daemon I [FLAGS...]: the daemon number I, with an address and a log of its own.
daemon() {
    : >"$LAB_DIR/store-$1.log"
    lab_spawn h1 "$LAB_DIR/store-$1.log" "${binary[$variant]}" --etcd-endpoints="$PAIR_ETCD" --etcd-api=v3 \
        --etcd-prefix=/scale/store --iface=10.77.0.1 --public-ip="10.77.1.$1" \
        --subnet-file="$LAB_DIR/store-$1.env" "${@:2}"
    fleet+=("$LAB_PID")
}
# all_say TEXT: whether the log of each daemon says so.
all_say() { [ "$(grep -lF -- "$1" "$LAB_DIR"/store-*.log | wc -l)" -eq "${#fleet[@]}" ]; }
# fleet_up [FLAGS...]: all daemons at once, until each has its lease and knows the others.
fleet_up() {
    local i
    fleet=()
    rm -f "$LAB_DIR"/store-*
    for i in $(seq "$daemons"); do daemon "$i" "$@"; done
    wait_for 120 "$daemons leases" all_say "Wrote subnet file"
}
fleet_down() {
    kill "${fleet[@]}"
    wait "${fleet[@]}" 2>/dev/null || true
    in_ns sw env ETCDCTL_API=3 etcdctl --endpoints "$PAIR_ETCD" del --prefix /scale/store/subnets/10.128. >/dev/null
}

# one_list: what one list costs, by etcdctl, which asks for what a daemon asks for.
one_list() {
    local bytes cpu n=10
    bytes="$(sent)" cpu="$(cpu_us "$etcd")"
    for _ in $(seq "$n"); do
        in_ns sw env ETCDCTL_API=3 etcdctl --endpoints "$PAIR_ETCD" get --prefix /scale/store/subnets/ >/dev/null
    done
    list=$((($(sent) - bytes) / n))
    note list_kb "$(ratio "$list" 1000)"
    note list_cpu_ms "$(ms "$(($(cpu_us "$etcd") - cpu))" "$n")"
}
fan_out() {
    local bytes cpu events=100
    bytes="$(sent)" cpu="$(cpu_us "$etcd")"
    leases store nodes "$nodes" "$events" 0.02 86400 >/dev/null
    sleep 1
    note event_bytes "$(ratio $(($(sent) - bytes)) $((events * daemons)))"
    note event_cpu_us "$(ratio $(($(cpu_us "$etcd") - cpu)) $((events * daemons)))"
}
restart() {
    local begin last
    kill -9 "$etcd"
    wait "$etcd" 2>/dev/null || true
    sleep 1
    etcd_up
    sleep 10
    note restart_lists "$(ratio "$(sent)" "$list")"
    note restart_cpu_ms "$(ms "$(cpu_us "$etcd")" 1)"
    begin="$(now_ms)" last=$((nodes + 100))
    leases store nodes "$last" 1 0 86400 >/dev/null
    # Each new line of a peer is that of this node, whose address is 10.64.1.0 + its number.
    wait_for 30 "the new node" all_say "via 10.64.$((1 + last / 256)).$((last % 256))"
    note restart_late_s "$(ratio $(($(now_ms) - begin)) 1000)"
    leases store leave "$nodes" 101
}
# renewals: the second write of each lease, as a watch of etcd tells it.
renewals() {
    local begin ttl=120 margin=60
    in_ns sw env ETCDCTL_API=3 etcdctl --endpoints "$PAIR_ETCD" watch --prefix /scale/store/subnets/10.128. |
        while read -r line; do case "$line" in */subnets/*) echo "$(now_ms) $line" ;; esac; done >"$LAB_DIR/writes" &
    LAB_PIDS+=($!)
    begin="$(now_ms)"
    fleet_up --lease-ttl="${ttl}s" --subnet-lease-renew-margin=$((margin / 60))
    sleep $((ttl - margin + 8))
    awk -v begin="$begin" -v due=$((ttl - margin)) '
        seen[$2]++ == 0 { made[$2] = $1; next }
        seen[$2] == 2 {
            if (!first || $1 < first) first = $1
            if ($1 > last) last = $1
            late = ($1 - made[$2]) / 1000 - due
            if (!n++ || late > latest) latest = late
        }
        END { printf "%.1f %.1f %d\n", (last - first) / 1000, latest, n }' "$LAB_DIR/writes" >"$LAB_DIR/got"
    read -r spread late count <"$LAB_DIR/got"
    [ "$count" -eq "$daemons" ] || die "$count of $daemons daemons have renewed"
    note renew_spread_s "$spread"
    note renew_late_s "$late"
    fleet_down
}
case_store() {
    local list begin fleet spread late count
    one_list
    begin="$(sent)"
    fleet_up
    sleep 5
    note start_kb "$(ratio $(($(sent) - begin)) $((daemons * 1000)))"
    fan_out
    begin="$(sent)"
    sleep "$quiet"
    note quiet_kb "$(ratio $(($(sent) - begin)) $((daemons * 1000)))"
    restart
    fleet_down
    renewals
}
