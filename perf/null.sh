#!/usr/bin/env bash
# Null tests: what each leg of a packet's way costs with nothing done to the packet, and which share of the daemon's
# cost the legs make up (one TCP stream, cubic): sum of the legs ÷ daemon.
# Usage: perf/null.sh [--seconds S] [--underlay A|B] [-- FLANNELD FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh
. perf/pair.sh
. perf/measure.sh

seconds=3 underlay=A
while [ $# -gt 0 ]; do
    case "$1" in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case "$1" in
    --seconds) seconds="${2:?}"; shift ;;
    --underlay) underlay="${2:?}"; shift ;;
    --) shift; break ;;
    *) sed -n '2,4s/^# \{0,1\}//p' perf/null.sh; exit 2 ;;
    esac
    shift
done
pair_need ss:iproute2
pair_build
legs="$(cargo_bench_binary legs)"
pair_open "$underlay"
pair_overlay 101 ours "$PAIR_DAEMON" --workers=1 "$@"
pair_servers

# cost FILE: CPU seconds per GB in a leg's output.
cost() { awk '$1 == "cpu_s_per_gb" { print $2 }' "$1"; }
# leg NAME NS KEYS...: runs a leg to its end.
leg() { in_ns "$2" "$legs" "$1" "seconds=$seconds" "${@:3}" >"$LAB_DIR/$1"; }
# leg_spawn NAME NS KEYS...: the same in the background; its pid is in $LAB_PID.
leg_spawn() { : >"$LAB_DIR/$1"; lab_spawn "$2" "$LAB_DIR/$1" "$legs" "$1" "seconds=$seconds" "${@:3}"; }

say "TUN read and discard (source: UDP super-packets of the same host)"
# The reader outlasts its source; waiting adds nothing to processor time for each GB.
: >"$LAB_DIR/tun-read"
lab_spawn h1 "$LAB_DIR/tun-read" "$legs" tun-read "seconds=$((seconds + 1))" dev=legs0
reader=$LAB_PID
wait_for 5 "the TUN device" ip -n "$LAB-h1" link show legs0
ip -n "$LAB-h1" link set legs0 mtu 1472 up
ip -n "$LAB-h1" route add 198.18.2.0/24 dev legs0 src 10.9.0.1
leg blast h1 to=198.18.2.2:9000 segments=45 size=1400
wait "$reader"

say "UDP blast and sink, host to host, in trains of 44"
leg_spawn sink h2 port=9000
sink=$LAB_PID
wait_for 5 "the sink" in_ns h2 sh -c 'ss -lun | grep -q :9000'
leg blast h1 to=10.9.0.2:9000 segments=44 size=1472
wait "$sink"

say "TUN write, forwarded into the container and discarded there"
cp "$LAB_DIR/sink" "$LAB_DIR/udp-sink"
leg_spawn sink c2 port=9000
sink=$LAB_PID
leg_spawn tun-write h2 dev=legs0 from=198.18.1.2 "to=172.31.2.2:9000" segments=45 size=1400
writer=$LAB_PID
wait_for 5 "the TUN device" ip -n "$LAB-h2" link show legs0
ip -n "$LAB-h2" link set legs0 mtu 1472 up
wait "$writer" "$sink"

say "copy and sum"
for name in copy sum; do leg "$name" h1; done

say "the daemon, $seconds s of one TCP stream"
snapshot ours >"$LAB_DIR/before"
iperf_tcp 1 "${PAIR_ADDR[ours,2]}" "$seconds" 1 cubic | tcp_figures >"$LAB_DIR/got"
snapshot ours >"$LAB_DIR/after"
bytes="$(awk '$1 == "bytes" { print $2 }' "$LAB_DIR/got")"
figures "$LAB_DIR/before" "$LAB_DIR/after" 1 "${bytes:-0}" >"$LAB_DIR/total"
total() { awk -v key="cpu_s_per_gb_$1" '$1 == key { print $2 }' "$LAB_DIR/total"; }

printf '\nCPU seconds per GB, underlay %s, %s\n\n| | sending host | receiving host |\n|---|--:|--:|\n' "$underlay" \
    "$(sed -n 's/^mbps //p' "$LAB_DIR/got" | cut -d. -f1) Mbit/s"
awk -v read="$(cost "$LAB_DIR/tun-read")" -v send="$(cost "$LAB_DIR/blast")" -v copy="$(cost "$LAB_DIR/copy")" \
    -v receive="$(cost "$LAB_DIR/udp-sink")" -v write="$(cost "$LAB_DIR/tun-write")" -v sum="$(cost "$LAB_DIR/sum")" \
    -v sender="$(total sender)" -v receiver="$(total receiver)" 'BEGIN {
        printf "| TUN read, UDP receive | %.3f | %.3f |\n", read, receive
        printf "| copy and sum, sum | %.3f | %.3f |\n", copy, sum
        printf "| UDP send, TUN write | %.3f | %.3f |\n", send, write
        printf "| sum of the legs | %.3f | %.3f |\n", read + copy + send, receive + sum + write
        printf "| the daemon | %.3f | %.3f |\n", sender, receiver
        printf "| legs ÷ daemon | %.2f | %.2f |\n", (read + copy + send) / sender, (receive + sum + write) / receiver
        printf "\nlegs ÷ daemon, both hosts: %.2f\n", (read + copy + send + receive + sum + write) / (sender + receiver) }'
