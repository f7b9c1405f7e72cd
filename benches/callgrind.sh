#!/usr/bin/env bash
# Instructions of the pure operations, counted by callgrind: figures that do not wobble with the machine.
# Each operation runs N and 3N times; the difference, divided by 2N, leaves start-up and preparation out.
# Usage: benches/callgrind.sh [PATTERN]
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh

pattern="${1:-}"
need_build
need valgrind:valgrind jq:jq
say "building"
binary="$(cargo_bench_binary count)"

# instructions NAME TIMES
instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$1" "$2" 2>&1 |
        awk '/Collected/ { n = $NF } END { if (n == "") exit 1; print n }'
}

printf '| operation | instructions a packet | instructions a KB |\n|---|--:|--:|\n'
"$binary" | while read -r name packets bytes; do
    [[ $name == *"$pattern"* ]] || continue
    times=20
    few="$(instructions "$name" $times)" many="$(instructions "$name" $((3 * times)))"
    awk -v name="$name" -v n=$((many - few)) -v runs=$((2 * times)) -v packets="$packets" -v bytes="$bytes" 'BEGIN {
        printf "| %s | %.1f | %s |\n", name, n / runs / packets, (bytes > 0 ? sprintf("%.0f", n / runs / bytes * 1000) : "") }'
done
