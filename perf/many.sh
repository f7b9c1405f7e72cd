#!/usr/bin/env bash
# What many peers, many flows, mixed sizes and moving routes cost. Levels of a case alternate, and medians are compared
# with the case's first level.
#
#   peers    datagrams to every one of 1, 100, 10 000 peers in turn; and one TCP stream to one, beside so many
#   flows    1, 64, 4 096 flows of datagrams to one peer, and 1 and 64 TCP streams
#   sizes    512-byte datagrams against IMIX (64, 576, 1400 bytes as 7:4:1)
#   churn    leases that come and go, 1000 a second, under TCP: in another prefix (the store's own cost) and in ours
#   workers  one and two workers, 64 flows of datagrams to 8 subnets, and 64 TCP streams
#
# All peers are one far host, whose container takes every address: it runs with --peer-filter=off.
# Usage: perf/many.sh [--rounds N] [--seconds S] [--cases LIST] [-- FLANNELD FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh
. perf/pair.sh
. perf/measure.sh

rounds=3 seconds=2 cases="peers flows sizes churn workers"
while [ $# -gt 0 ]; do
    case "$1" in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case "$1" in
    --rounds) rounds="${2:?}"; shift ;;
    --seconds) seconds="${2:?}"; shift ;;
    --cases) cases="${2//,/ }"; shift ;;
    --) shift; break ;;
    *) sed -n '2,12s/^# \{0,1\}//p' perf/many.sh; exit 2 ;;
    esac
    shift
done
pair_need python3:python3
pair_build
legs="$(cargo_bench_binary legs)"
mkdir -p perf/out
out="perf/out/many-$(date +%Y%m%dT%H%M%S).txt"

pair_open A
# The far host delivers whatever comes for the overlay's upper part to its container, which takes it.
for net in 10.129.0.0/16 10.130.0.0/15 10.132.0.0/14 10.136.0.0/13 10.144.0.0/12 10.160.0.0/11; do
    ip -n "$LAB-h2" route add "$net" via 172.31.2.2 dev vc
    ip -n "$LAB-c2" route add local "$net" dev lo
done
# Real leases below the fillers, which start at 10.129.0.0.
# shellcheck disable=SC2034 # for pair_overlay
PAIR_NETWORK=10.128.0.0/9 PAIR_MORE=',"SubnetMin":"10.128.1.0","SubnetMax":"10.128.9.0"' FLAGS2=--peer-filter=off

# overlay WORKERS: the only overlay, anew, with that many workers.
overlay() {
    local i
    if [ -n "${PAIR_PID[ours,1]:-}" ]; then
        kill "${PAIR_PID[ours,1]}" "${PAIR_PID[ours,2]}"
        wait "${PAIR_PID[ours,1]}" "${PAIR_PID[ours,2]}" 2>/dev/null || true
        for i in 1 2; do
            ip -n "$LAB-c$i" addr del "${PAIR_ADDR[ours,$i]}/32" dev eth0
            ip -n "$LAB-c$i" route del 10.128.0.0/9 2>/dev/null || true
            ip -n "$LAB-h$i" route del "${PAIR_ADDR[ours,$i]}/32" dev vc
            rm "$LAB_DIR/ours.$i.env"
        done
    fi
    pair_overlay 890 ours "$PAIR_DAEMON" --workers="$1" "${daemon_flags[@]}"
}
daemon_flags=("$@")
leases() { in_ns sw python3 perf/leases.py "$PAIR_ETCD" "$@"; }
knows() { report_of ours 1 | grep -qx "peers $1"; }
# peers N: the table holds the real peer and N fillers.
peers() {
    leases /perf/ours set "$1" 10.9.0.2 >/dev/null
    wait_for 30 "$1 peers in the daemon" knows $(($1 + 1))
}

# note CASE LEVEL: `metric value` lines become rows of the result.
note() { awk -v head="$1 $2" '{ print head, $1, $2 }' | tee -a "$out" | grep -E ' (mbps|received_pps|cpu_us_per_packet|cpu_s_per_gb_daemons) ' || true; }
daemon_ticks() { echo $(($(cpu_of "${PAIR_PID[ours,1]}") + $(cpu_of "${PAIR_PID[ours,2]}"))); }
# datagrams CASE LEVEL KEYS...: blasts flat out from container 1, counts in container 2.
datagrams() {
    local ticks sink
    : >"$LAB_DIR/sink"
    lab_spawn c2 "$LAB_DIR/sink" "$legs" sink port=9000
    sink=$LAB_PID
    wait_for 5 "the sink" in_ns c2 sh -c 'ss -lun | grep -q :9000'
    ticks="$(daemon_ticks)"
    in_ns c1 "$legs" blast "seconds=$seconds" to=10.129.0.2:9000 "${@:3}" >"$LAB_DIR/blast"
    wait "$sink"
    ticks=$(($(daemon_ticks) - ticks))
    {
        awk '$1 == "pps" { print "sent_pps", $2 }' "$LAB_DIR/blast"
        awk -v ticks="$ticks" -v hz="$(getconf CLK_TCK)" '
            $1 == "pps" { print "received_pps", $2 }
            $1 == "packets" && $2 > 0 { print "cpu_us_per_packet", ticks / hz * 1e6 / $2 }' "$LAB_DIR/sink"
    } | note "$1" "$2"
}
# stream CASE LEVEL STREAMS: TCP, cubic, to the real peer.
stream() {
    local ticks
    ticks="$(daemon_ticks)"
    iperf_tcp 1 "${PAIR_ADDR[ours,2]}" "$seconds" "$3" cubic | tcp_figures >"$LAB_DIR/got"
    ticks=$(($(daemon_ticks) - ticks))
    awk -v ticks="$ticks" -v hz="$(getconf CLK_TCK)" '{ print }
        $1 == "bytes" { print "cpu_s_per_gb_daemons", ticks / hz / ($2 / 1e9) }' "$LAB_DIR/got" | note "$1" "$2"
}

case_peers() {
    local n
    for n in 1 100 10000; do
        peers "$n"
        datagrams peers-datagrams "$n" "count=$n" stride=256 size=512
        stream peers-tcp "$n" 1
    done
}
case_flows() {
    local n
    peers 16
    for n in 1 64 4096; do datagrams flows-datagrams "$n" "count=$n" stride=1 size=512; done
    for n in 1 64; do stream flows-tcp "$n" "$n"; done
}
case_sizes() {
    peers 16
    datagrams sizes 512 count=64 stride=1 size=512
    datagrams sizes imix count=64 stride=1 size=imix
}
case_churn() {
    local where prefix pid changed
    peers 100
    for where in elsewhere ours; do
        prefix="/perf/$where"
        changed="$(report_of ours 1 | awk '$2 == "route_changes" { print $3 }')"
        leases "$prefix" churn 1000 $((seconds + 1)) 10.9.0.2 >"$LAB_DIR/churn" & pid=$!
        sleep 0.5
        stream churn "$where" 1
        wait "$pid"
        {
            cat "$LAB_DIR/churn"
            echo "route_changes $(($(report_of ours 1 | awk '$2 == "route_changes" { print $3 }') - changed))"
        } | note churn "$where"
        grep changes_per_s "$LAB_DIR/churn"
    done
}
case_workers() {
    local n
    for n in 1 2; do
        overlay "$n"
        peers 16
        datagrams workers-datagrams "$n" count=64 stride=32 size=512
        stream workers-tcp "$n" 64
    done
    overlay 1
}

overlay 1
pair_servers
for round in $(seq "$rounds"); do
    for name in $cases; do
        say "round $round: $name"
        "case_$name"
    done
done
say "medians over $rounds rounds of $seconds s, $(nproc) cores; ratio to the case's first level"
printf '| case | level | metric | median | min–max | ratio |\n|---|---|---|--:|--:|--:|\n'
sort -s -k1,1 -k3,3 -k2,2V -k4,4g "$out" | awk '
    function flush() {
        if (!n) return
        middle = n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
        if (!(series in first)) first[series] = middle
        printf "| %s | %s | %s | %.4g | %.4g–%.4g | %s |\n", part[1], part[2], part[3], middle, v[1], v[n],
            (first[series] > 0 ? sprintf("%.2f", middle / first[series]) : "")
        n = 0
    }
    { key = $1 " " $2 " " $3 }
    key != last { flush(); last = key; split(key, part, " "); series = $1 " " $3 }
    { v[++n] = $4 }
    END { flush() }'
say "raw values: $out"
