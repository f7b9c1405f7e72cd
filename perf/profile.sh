#!/usr/bin/env bash
# Where a worker's time goes: perf record on the worker threads of both hosts while iperf3 runs, and a flame graph of
# each. perf/PROFILING.md tells how to read them. Writes to perf/out/.
# Usage: perf/profile.sh [--seconds S] [--underlay A|B] [--streams N] [--cc NAME] [--udp SIZE] [-- FLANNELD FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh
. perf/pair.sh
. perf/measure.sh

seconds=5 underlay=A streams=1 cc=cubic udp=
while [ $# -gt 0 ]; do
    case "$1" in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case "$1" in
    --seconds) seconds="${2:?}"; shift ;;
    --underlay) underlay="${2:?}"; shift ;;
    --streams) streams="${2:?}"; shift ;;
    --cc) cc="${2:?}"; shift ;;
    --udp) udp="${2:?}"; shift ;;
    --) shift; break ;;
    *) sed -n '2,4s/^# \{0,1\}//p' perf/profile.sh; exit 2 ;;
    esac
    shift
done
pair_need perf:linux-perf python3:python3
pair_build
out="perf/out/profile-$(date +%Y%m%dT%H%M%S)"
mkdir -p "$out"
pair_open "$underlay"
pair_overlay 101 ours "$PAIR_DAEMON" "$@"
pair_servers

say "recording $seconds s"
if [ -n "$udp" ]; then
    iperf_udp 1 "${PAIR_ADDR[ours,2]}" $((seconds + 2)) "$udp" 0 >"$LAB_DIR/load" & load=$!
else
    iperf_tcp 1 "${PAIR_ADDR[ours,2]}" $((seconds + 2)) "$streams" "$cc" >"$LAB_DIR/load" & load=$!
fi
sleep 1
recorders=()
for i in 1 2; do
    threads="$(grep -l '^fl-w' /proc/"${PAIR_PID[ours,$i]}"/task/*/comm | cut -d/ -f5 | paste -sd,)"
    [ -n "$threads" ] || die "host $i has no worker threads"
    # cpu-clock, because virtual machines seldom have a cycle counter; 999 Hz does not beat with the timer tick.
    perf record -q -e cpu-clock -F 999 -g --call-graph fp -t "$threads" -o "$out/host$i.data" -- sleep "$seconds" \
        >"$LAB_DIR/perf$i.log" 2>&1 & recorders+=($!)
done
for pid in "${recorders[@]}"; do wait "$pid" || { cat "$LAB_DIR"/perf?.log >&2; die "perf record failed"; }; done
wait "$load"
for i in 1 2; do
    role=sender
    [ "$i" = 1 ] || role=receiver
    perf script -i "$out/host$i.data" -F comm,ip,sym 2>/dev/null >"$out/host$i.txt"
    python3 perf/flamegraph.py --title "$role (host $i), $(date -u +%F), underlay $underlay" \
        "$out/host$i.txt" "$out/$role.svg" | tee "$out/$role-top.txt"
done
say "load: $(if [ -n "$udp" ]; then udp_figures "$udp" <"$LAB_DIR/load"; else tcp_figures <"$LAB_DIR/load"; fi | head -3 | paste -sd' '); see $out/sender.svg, $out/receiver.svg"
