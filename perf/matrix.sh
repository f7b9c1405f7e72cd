#!/usr/bin/env bash
# The matrix: native routing, kernel VXLAN and flanneld in several forms, alternating in one sitting, in namespaces of
# a random name that go away however the script ends. Writes raw.csv, summary.md and plots to
# perf/results/<date>-<commit>/.
#
# Usage: perf/matrix.sh [options]
#   --rounds N        rounds; each runs every cell of every variant once (default 5)
#   --seconds S       length of one run (default 2)
#   --underlay X      A: plain veth; B: like a NIC without tunnel offload; both (default)
#   --variants LIST   of: native vxlan classic uring1 uring2 poll1 poll2 uring1-off poll1-off (default: all)
#   --variant N=ARGS  one more variant, named N, with these flags; if the first word is a path, of that binary
#   --cells LIST      names or patterns of: tcp{1,4}-{cubic,bbr}-{fwd,rev} udp{64,512,1400}-{half,flat}
#                     ping-{idle,load} syscalls (default: all)
#   --quick           one round of one second, a few cells
#   --out DIR         where results go
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh
. perf/pair.sh
. perf/measure.sh

rounds=5 seconds=2 underlays="A B" out=
variants=(native vxlan classic uring1 uring2 poll1 poll2 uring1-off poll1-off)
cells='*'
OFF="--tun-offload=off --udp-offload=off"
declare -A flags=(
    # What flannel does: no offload, one packet a call, poll.
    [classic]="--engine=poll --workers=1 $OFF --batch=1 --buffers=4 --moderation=0"
    [uring1]="--engine=uring --workers=1" [uring2]="--engine=uring --workers=2"
    [poll1]="--engine=poll --workers=1" [poll2]="--engine=poll --workers=2"
    [uring1-off]="--engine=uring --workers=1 $OFF" [poll1-off]="--engine=poll --workers=1 $OFF"
)
all_cells=()
for cc in cubic bbr; do for n in 1 4; do for way in fwd rev; do all_cells+=("tcp$n-$cc-$way"); done; done; done
for size in 64 512 1400; do all_cells+=("udp$size-half" "udp$size-flat"); done
all_cells+=(ping-idle ping-load syscalls)

while [ $# -gt 0 ]; do
    case "$1" in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case "$1" in
    --rounds) rounds="${2:?}"; shift ;;
    --seconds) seconds="${2:?}"; shift ;;
    --underlay) underlays="${2:?}"; [ "$2" != both ] || underlays="A B"; shift ;;
    --variants) IFS=', ' read -ra variants <<<"${2:?}"; shift ;;
    --variant) variants+=("${2%%=*}"); flags[${2%%=*}]="${2#*=}"; shift ;;
    --cells) cells="${2:?}"; shift ;;
    --quick) rounds=1 seconds=1 cells='tcp1-cubic-fwd,tcp4-bbr-rev,udp64-*,ping-*,syscalls' ;;
    --out) out="${2:?}"; shift ;;
    -h | --help) sed -n '2,17s/^# \{0,1\}//p' perf/matrix.sh; exit 0 ;;
    *) die "unknown option $1 (see --help)" ;;
    esac
    shift
done
for v in "${variants[@]}"; do
    case "$v" in native | vxlan) ;; *) [ -n "${flags[$v]:-}" ] || die "no variant $v (see --help)" ;; esac
done

pair_need strace:strace python3:python3
pair_build
commit="$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
[ -z "$(git status --porcelain -- src Cargo.toml Cargo.lock 2>/dev/null)" ] || commit+=-dirty
out="${out:-perf/results/$(date +%Y%m%dT%H%M)-$commit}"
mkdir -p "$out"
csv="$out/raw.csv"
{
    echo "# machine: $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sort -u | head -1), $(awk '/MemTotal/ { printf "%.1f", $2 / 1048576 }' /proc/meminfo) GiB"
    echo "# kernel: $(uname -sr)"
    echo "# commit: $commit, $(date -u +%FT%TZ)"
    echo "# settings: $rounds rounds of $seconds s, $(iperf3 --version | head -1)"
    echo "# congestion control: as the cell's name says; the machine's default is $(cat /proc/sys/net/ipv4/tcp_congestion_control)"
    for v in "${variants[@]}"; do echo "# variant $v: ${flags[$v]:-}"; done
    echo "underlay,round,variant,cell,metric,value"
} >"$csv"

# chosen CELL: whether --cells takes it.
chosen() {
    local pattern
    IFS=', ' read -ra patterns <<<"$cells"
    # shellcheck disable=SC2053 # patterns
    for pattern in "${patterns[@]}"; do [[ $1 == $pattern ]] && return; done
    return 1
}

# record VARIANT CELL: turns `metric value` lines into rows.
record() { awk -v head="$underlay,$round,$1,$2" '{ print head "," $1 "," $2 }' >>"$csv"; }

# address VARIANT I: of container I in that variant's network.
address() {
    case "$1" in native) echo "172.31.$2.2" ;; vxlan) echo "10.100.$2.2" ;; *) echo "${PAIR_ADDR[$1,$2]}" ;; esac
}

# run_cell VARIANT CELL: one run, and its figures.
run_cell() {
    local v="$1" cell="$2" from=1 to size rest bytes
    case "$cell" in *-rev) from=2 ;; esac
    to="$(address "$v" $((3 - from)))"
    snapshot "$v" >"$LAB_DIR/before"
    case "$cell" in
    tcp*)
        IFS=- read -r rest cc _ <<<"$cell"
        iperf_tcp "$from" "$to" "$seconds" "${rest#tcp}" "$cc" | tcp_figures >"$LAB_DIR/got"
        ;;
    udp*)
        size="${cell%%-*}" size="${size#udp}"
        rest=0
        [ "${cell#*-}" = flat ] || rest="${half[$size]}"
        iperf_udp "$from" "$to" "$seconds" "$size" "$rest" | udp_figures "$size" >"$LAB_DIR/got"
        ;;
    ping-*)
        if [ "$cell" = ping-load ]; then
            iperf_tcp 1 "$to" $((seconds + 1)) 1 cubic >"$LAB_DIR/load" & rest=$!
            sleep 0.5
        fi
        in_ns c1 ping -c $((seconds * 250)) -i 0.003 -W1 "$to" 2>/dev/null | ping_figures >"$LAB_DIR/got" || true
        [ "$cell" = ping-idle ] || { wait "$rest" && tcp_figures <"$LAB_DIR/load" | sed -n 's/^mbps/load_mbps/p' >>"$LAB_DIR/got"; }
        ;;
    syscalls) count_syscalls "$v" "$to" >"$LAB_DIR/got" ;;
    esac
    snapshot "$v" >"$LAB_DIR/after"
    bytes="$(awk '$1 == "bytes" { print $2 }' "$LAB_DIR/got")"
    record "$v" "$cell" <"$LAB_DIR/got"
    # These figures would hold strace's own work.
    [ "$cell" = syscalls ] || figures "$LAB_DIR/before" "$LAB_DIR/after" "$from" "${bytes:-0}" | record "$v" "$cell"
    [ -z "${flags[$v]:-}" ] || echo "rss_kib $(rss_of "$v")" | record "$v" "$cell"
}

# count_syscalls VARIANT ADDRESS: system calls of the sending daemon per 64 KiB, by strace. strace slows the daemon, so
# this is a run of its own; compare it with `turns_per_64k_sender` of the other cells.
count_syscalls() {
    local v="$1" from_bytes to_bytes load
    iperf_tcp 1 "$2" 3 1 cubic >"$LAB_DIR/load" & load=$!
    sleep 1
    from_bytes="$(report_of "$v" 1 | awk '/^count tun_bytes/ { print $3 }')"
    timeout -s INT 1 strace -f -c -o "$LAB_DIR/strace" -p "${PAIR_PID[$v,1]}" 2>/dev/null || true
    to_bytes="$(report_of "$v" 1 | awk '/^count tun_bytes/ { print $3 }')"
    wait "$load"
    awk -v bytes=$((to_bytes - from_bytes)) 'bytes > 0 && $4 ~ /^[0-9]+$/ {
        print ($NF == "total" ? "syscalls" : "calls_" $NF) "_per_64k", $4 * 65536 / bytes }' "$LAB_DIR/strace"
}

# calibrate: VXLAN's flat-out rate for each size; half of it is the fixed load that every variant gets.
declare -A half
calibrate() {
    local size tries=3
    [ "$rounds" -gt 1 ] || tries=1
    for size in 64 512 1400; do
        chosen "udp$size-half" || continue
        for _ in $(seq "$tries"); do
            iperf_udp 1 10.100.2.2 1 "$size" 0 | udp_figures "$size" | awk '$1 == "received_pps" { print $2 }'
        done | sort -n | awk -v size="$size" '{ r[NR] = $1 } END { printf "%.0f\n", r[int((NR + 1) / 2)] / 2 * size * 8 }' >"$LAB_DIR/half"
        half[$size]="$(cat "$LAB_DIR/half")"
        [ "${half[$size]}" -gt 0 ] || die "VXLAN carried no UDP of $size bytes"
        echo "fixed load at $size B: $((half[$size] / 8 / size)) packets a second"
        echo "offered_pps $((half[$size] / 8 / size))" | round=0 record vxlan "udp$size-half"
    done
}

# check_aggregation: on B the receiver's kernel must join datagrams, or the figures describe no network card.
check_aggregation() {
    local v="$1" kind
    for kind in tcp udp; do
        snapshot "$v" >"$LAB_DIR/before"
        if [ "$kind" = tcp ]; then
            iperf_tcp 1 "$(address "$v" 2)" 1 1 cubic >/dev/null
        else
            iperf_udp 1 "$(address "$v" 2)" 1 1400 0 >/dev/null
        fi
        snapshot "$v" >"$LAB_DIR/after"
        figures "$LAB_DIR/before" "$LAB_DIR/after" 1 1 | sed -n "s/^segments_per_receive /aggregation_$kind /p" | tee "$LAB_DIR/got"
        round=0 record "$v" check <"$LAB_DIR/got"
        awk -v kind="$kind" '{ if ($2 > 4) exit; print "the receiver joins only " $2 " datagrams (" kind ")"; exit 1 }' "$LAB_DIR/got" >&2 ||
            [ "$kind" = udp ] || die "underlay B does not aggregate"
    done
}

# check_sleep: with nothing to carry, every daemon sleeps (CPU below 1 % over two seconds).
check_sleep() {
    local v i ticks hz
    hz="$(getconf CLK_TCK)"
    sleep 1
    for v in "${!flags[@]}"; do
        for i in 1 2; do [ -z "${PAIR_PID[$v,$i]:-}" ] || echo "$v $i $(cpu_of "${PAIR_PID[$v,$i]}")"; done
    done >"$LAB_DIR/before"
    sleep 2
    while read -r v i ticks; do
        ticks=$(($(cpu_of "${PAIR_PID[$v,$i]}") - ticks))
        echo "idle_cpu_pct $((ticks * 50 / hz))" | round=0 record "$v" check
        [ "$ticks" -lt $((hz / 50)) ] || echo "warning: $v on host $i is not asleep: $ticks ticks in 2 s" >&2
    done <"$LAB_DIR/before"
    echo "after the load: checked that $(wc -l <"$LAB_DIR/before") daemons sleep"
}

# run_underlay: all rounds on one underlay.
run_underlay() {
    local k=101 v cell i ours=()
    say "underlay $underlay"
    pair_open "$underlay"
    pair_vxlan 100
    for v in "${variants[@]}"; do
        [ -n "${flags[$v]:-}" ] || continue
        local binary="$PAIR_DAEMON" words
        read -ra words <<<"${flags[$v]}"
        case "${words[0]}" in */*) binary="${words[0]}"; words=("${words[@]:1}") ;; esac
        pair_overlay $((k++)) "$v" "$binary" "${words[@]}"
        ours+=("$v")
    done
    pair_servers
    calibrate
    [ "$underlay" = A ] || [ "${#ours[@]}" -eq 0 ] || check_aggregation "$(printf '%s\n' "${ours[@]}" | grep -m1 -Ev 'off|classic' || echo "${ours[0]}")"
    for round in $(seq "$rounds"); do
        for cell in "${all_cells[@]}"; do
            chosen "$cell" || continue
            # Each round starts with another variant, so that none always follows the same one.
            for i in "${!variants[@]}"; do
                v="${variants[$(((i + round - 1) % ${#variants[@]}))]}"
                [ "$cell" != syscalls ] || [ -n "${flags[$v]:-}" ] || continue
                run_cell "$v" "$cell"
                printf '%s round %s %-15s %-11s %s\n' "$underlay" "$round" "$cell" "$v" "$(head -2 "$LAB_DIR/got" | paste -sd' ')"
            done
        done
    done
    check_sleep
    lab_end
}

started=$SECONDS round=0
for underlay in $underlays; do run_underlay; done
say "report"
python3 perf/report.py "$out"
say "done in $((SECONDS - started)) s: $out/summary.md"
