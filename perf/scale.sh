#!/usr/bin/env bash
# What a network of many nodes costs one node, in the kernel's tables, and what it costs etcd. The leases of N nodes
# stand in a real etcd; the daemons of all variants start in turn in one namespace, and medians are compared with those
# of the first variant.
#
#   vxlan    every peer behind the tunnel: a route, an ARP and a forwarding entry each
#   direct   DirectRouting with every peer on the link: a route each
#   foreign  vxlan with 100 peers, beside 200 000 routes of another program
#
# start_ms      from the start of the process to the last route
# start_cpu_ms  processor time of the start, and of a second of rest after it
# join_ms       processor time of one more peer
# look_ms       processor time of a look at all tables, which a foreign route brings about
# rss_mib       resident memory afterwards, and at its highest (peak_mib)
# health_ms     the slowest answer of /healthz while all is programmed, in a start of its own
# health_bad    answers other than 200 meanwhile
#
#   store    etcd under 40 daemons (alloc) that start together, each of which lists all nodes
#
# list_kb       bytes that etcd sends for one list
# list_cpu_ms   processor time of etcd for one list
# start_kb      bytes that etcd sends to each daemon until all of them are quiet
# event_bytes   bytes that etcd sends to each daemon for one node that joins
# event_cpu_us  processor time of etcd for each daemon and each node that joins
# quiet_kb      bytes that etcd sends to each daemon in the --quiet seconds (600) after that
# restart_lists bytes that etcd sends in the 10 s after it was killed and started again, in lists of a daemon each
# restart_cpu_ms  processor time of etcd in those 10 s
# restart_late_s  from then until each daemon knows of one more node
# renew_spread_s  from the first renewal to the last, of daemons with a margin of 60 s
# renew_late_s  how much later than the margin the last renewal is; less than 0 is earlier
#
# Usage: perf/scale.sh [--rounds N] [--nodes N] [--joins N] [--daemons N] [--quiet SECONDS] [--cases LIST]
#                      [--variant NAME=PATH]... [--out FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh
. perf/pair.sh

rounds=3 nodes=10000 joins=10 daemons=40 quiet=600 cases="vxlan direct foreign store" out=
variants=()
declare -A binary
while [ $# -gt 0 ]; do
    case "$1" in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case "$1" in
    --rounds) rounds="${2:?}"; shift ;;
    --nodes) nodes="${2:?}"; shift ;;
    --joins) joins="${2:?}"; shift ;;
    --daemons) daemons="${2:?}"; shift ;;
    --quiet) quiet="${2:?}"; shift ;;
    --cases) cases="${2//,/ }"; shift ;;
    --variant) variants+=("${2%%=*}"); binary[${2%%=*}]="$(realpath "${2#*=}")"; shift ;;
    --out) out="${2:?}"; shift ;;
    -h | --help) sed -n '2,36s/^# \{0,1\}//p' perf/scale.sh; exit 0 ;;
    *) die "unknown option $1 (see --help)" ;;
    esac
    shift
done
need_root
need_build
need etcd:etcd-server etcdctl:etcd-client ip:iproute2 curl:curl python3:python3
modprobe -q vxlan 2>/dev/null || true
pair_build
variants+=(ours) binary[ours]="$PAIR_DAEMON"
out="${out:-perf/out/scale-$(date +%Y%m%dT%H%M%S).txt}"
mkdir -p "$(dirname "$out")"

lab_begin
# A build meanwhile changes nothing.
cp "$PAIR_DAEMON" "$LAB_DIR/flanneld"
binary[ours]="$LAB_DIR/flanneld"
lab_switch
lab_ns h1
ip -n "$LAB-h1" link add eth0 type veth peer name p1 netns "$LAB-sw"
ip -n "$LAB-sw" link set p1 master br0 up
ip -n "$LAB-h1" addr add 10.77.0.1/24 dev eth0
ip -n "$LAB-h1" link set eth0 up
# Every node is on the link, at an address that the kernel need not ask for.
ip -n "$LAB-h1" addr add 10.64.0.1/16 dev eth0
# etcd_up: etcd, in $etcd; a second start finds the data of the first.
etcd_up() {
    lab_spawn sw "$LAB_DIR/etcd.log" etcd --name lab --data-dir "$LAB_DIR/etcd" --unsafe-no-fsync \
        --listen-client-urls "$PAIR_ETCD" --advertise-client-urls "$PAIR_ETCD" \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster lab=http://127.0.0.1:2380 --max-txn-ops 1024
    etcd="$LAB_PID"
    wait_for 20 etcd in_ns sw curl -fsS "$PAIR_ETCD/health"
}
etcd_up

leases() { in_ns sw python3 perf/leases.py "$PAIR_ETCD" "/scale/$1" "${@:2}"; }
# network NAME BACKEND COUNT: a network of that many nodes.
network() {
    in_ns sw env ETCDCTL_API=3 etcdctl --endpoints "$PAIR_ETCD" put "/scale/$1/config" \
        "{\"Network\":\"10.128.0.0/9\",\"SubnetMin\":\"10.128.1.0\",\"SubnetMax\":\"10.128.250.0\",\"Backend\":$2}" >/dev/null
    leases "$1" nodes 0 "$3"
}
# start NAME VARIANT [FLAGS...]: the daemon, in $pid.
start() {
    : >"$LAB_DIR/daemon.log"
    lab_spawn h1 "$LAB_DIR/daemon.log" "${binary[$2]}" --etcd-endpoints="$PAIR_ETCD" --etcd-api=v3 \
        --etcd-prefix="/scale/$1" --iface=10.77.0.1 --subnet-file="$LAB_DIR/subnet.env" "${@:3}"
    pid="$LAB_PID"
}
# stop: ends it, and removes what it has left in the kernel.
stop() {
    kill "$pid"
    wait "$pid" 2>/dev/null || true
    ip -n "$LAB-h1" link del flannel.1 2>/dev/null || true
    ip -n "$LAB-h1" route flush proto 78
}
# routes: how many of its routes there are. Each peer has one, which is set last.
routes() { ip -n "$LAB-h1" route show proto 78 | wc -l; }
has_routes() { [ "$(routes)" -ge "$1" ]; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
# cpu_us [PID]: processor time of all its threads so far, as the scheduler counts it.
cpu_us() { cat "/proc/${1:-$pid}"/task/*/schedstat | awk '{ sum += $1 } END { printf "%.0f\n", sum / 1000 }'; }
# work: processor time that the daemon needs for a command, less what it needs in as long a time without.
work() {
    local begin idle before after
    before="$(cpu_us)" begin="$(now_ms)"
    "$@"
    after="$(cpu_us)"
    sleep "$(awk -v ms=$(($(now_ms) - begin)) 'BEGIN { print ms / 1000 }')"
    idle="$(cpu_us)"
    echo $((2 * after - before - idle))
}
# note METRIC VALUE: a row of the result.
note() { echo "$case $variant $1 $2" | tee -a "$out"; }
ms() { awk -v us="$1" -v n="$2" 'BEGIN { printf "%.2f\n", us / n / 1000 }'; }
memory() { awk -v key="$1" '$1 == key ":" { printf "%.1f\n", $2 / 1024 }' "/proc/$pid/status"; }

# A foreign route into the network, and its end: two looks.
look() {
    ip -n "$LAB-h1" route add 10.255.255.0/25 via 10.77.0.254 proto static
    sleep 1
    ip -n "$LAB-h1" route del 10.255.255.0/25
    sleep 1
}
join() { leases "$case" nodes "$1" "$joins" 0.3; sleep 0.5; }

# figures COUNT: one start of a variant, and what the network costs it then.
figures() {
    local begin
    begin="$(now_ms)"
    start "$case" "$variant"
    wait_for 60 "$1 routes" has_routes "$1"
    note start_ms $(($(now_ms) - begin))
    sleep 1
    note start_cpu_ms "$(ms "$(cpu_us)" 1)"
    sleep 1
    note join_ms "$(ms "$(work join "$nodes")" "$joins")"
    has_routes $(($1 + joins)) || die "$variant has $(routes) routes after $joins joins"
    note look_ms "$(ms "$(work look)" 2)"
    note rss_mib "$(memory VmRSS)"
    note peak_mib "$(memory VmHWM)"
    stop
    leases "$case" leave "$nodes" "$joins"
}
# health COUNT: one start under the eyes of a probe every 20 ms.
health() {
    local probe
    start "$case" "$variant" --healthz-port=8111
    wait_for 10 "/healthz" in_ns h1 curl -s -o /dev/null -m1 http://127.0.0.1:8111/healthz
    in_ns h1 sh -c 'while :; do curl -s -o /dev/null -w "%{http_code} %{time_total}\n" -m5 http://127.0.0.1:8111/healthz; sleep 0.02; done' \
        >"$LAB_DIR/health" & probe=$!
    LAB_PIDS+=("$probe")
    wait_for 60 "$1 routes" has_routes "$1"
    sleep 1
    kill "$probe"
    wait "$probe" 2>/dev/null || true
    awk '{ if ($2 > most) most = $2; bad += $1 != 200 } END { printf "%.0f %d\n", most * 1000, bad }' "$LAB_DIR/health" >"$LAB_DIR/got"
    note health_ms "$(cut -d' ' -f1 "$LAB_DIR/got")"
    note health_bad "$(cut -d' ' -f2 "$LAB_DIR/got")"
    stop
}

case_vxlan() { figures "$nodes"; health "$nodes"; }
case_direct() { figures "$nodes"; health "$nodes"; }
case_foreign() { figures 100; }
. perf/scale-store.sh

say "leases of $nodes nodes"
network vxlan '{"Type":"vxlan"}' "$nodes"
network direct '{"Type":"vxlan","DirectRouting":true}' "$nodes"
network foreign '{"Type":"vxlan"}' 100
network store '{"Type":"alloc"}' 0
leases store nodes 0 "$nodes" 0 86400
for round in $(seq "$rounds"); do
    for case in $cases; do
        if [ "$case" = foreign ]; then
            for n in $(seq 0 199999); do echo "route add $((20 + n / 65536)).$((n / 256 % 256)).$((n % 256)).0/24 via 10.77.0.254 proto bird"; done |
                ip -n "$LAB-h1" -batch -
        fi
        for variant in "${variants[@]}"; do
            say "round $round: $case, $variant"
            "case_$case"
        done
        [ "$case" != foreign ] || ip -n "$LAB-h1" route flush proto bird
    done
done
say "medians of $rounds rounds, $nodes nodes, $(nproc) cores; ratio to ${variants[0]}"
printf '| case | figure | variant | median | min–max | ratio |\n|---|---|---|--:|--:|--:|\n'
# Sorted by case and figure, then in the order of the variants.
awk -v order="${variants[*]}" 'BEGIN { n = split(order, name); for (i = 1; i <= n; i++) rank[name[i]] = i } { print $1, $3, rank[$2], $2, $4 }' "$out" |
    sort -k1,2 -k3n -k5g | awk '
    function flush(middle) {
        if (!n) return
        middle = n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
        if (part[3] == 1) first = middle
        printf "| %s | %s | %s | %s | %s–%s | %s |\n", part[1], part[2], part[4], middle, v[1], v[n],
            (first > 0 ? sprintf("%.3f", middle / first) : "")
        n = 0
    }
    { key = $1 " " $2 " " $3 " " $4 }
    key != last { flush(); last = key; split(key, part, " ") }
    { v[++n] = $5 }
    END { flush() }'
say "raw values: $out"
