# shellcheck shell=bash
# Shell functions that tests/run.sh and perf/*.sh share: what must be installed, and a lab of two hosts in
# network namespaces. Source it from bash; nothing happens until a function is called.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_root: ends the script unless root runs it; namespaces and TUN devices take root.
need_root() { [ "$(id -u)" -eq 0 ] || die "this needs root (network namespaces, TUN)"; }

# is_here COMMAND|/FILE: whether this machine has it.
is_here() {
    case "$1" in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# need COMMAND:PACKAGE|/FILE:PACKAGE...: installs the Debian packages of what is missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        is_here "${pair%%:*}" || missing+=("${pair#*:}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || echo "apt-get update failed; trying with the lists that are here" >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
    hash -r
    for pair in "$@"; do
        is_here "${pair%%:*}" || die "${pair%%:*} is still missing (package ${pair#*:})"
    done
}

# need_tun: makes the device node where it is missing; many containers lack it and have the right to make it.
need_tun() {
    [ -c /dev/net/tun ] && return 0
    mkdir -p /dev/net
    mknod -m 0666 /dev/net/tun c 10 200 2>/dev/null || modprobe tun 2>/dev/null || true
    [ -c /dev/net/tun ] || die "/dev/net/tun is missing and cannot be made here"
}

# need_build: installs what the build takes. etcd-client's build script needs protoc and the files that protoc looks
# for in ../include, which are another package.
need_build() {
    local include
    command -v cargo >/dev/null 2>&1 || { [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; } || true
    command -v cargo >/dev/null 2>&1 || die "cargo is missing: install Rust first (https://rustup.rs)"
    need cc:gcc /usr/include/stdlib.h:libc6-dev protoc:protobuf-compiler pkg-config:pkg-config \
        /usr/include/openssl/ssl.h:libssl-dev
    include="$(realpath "$(dirname "$(realpath "$(command -v protoc)")")/..")/include"
    need "$include/google/protobuf/descriptor.proto:libprotobuf-dev"
}

# lab_begin: a random name and a directory for a lab, and a trap that removes its namespaces and ends every process
# that lab_spawn started, however the script ends.
lab_begin() {
    LAB="fl$(od -An -N4 -tx4 /dev/urandom | tr -d ' ')"
    LAB_DIR="$(mktemp -d)"
    LAB_PIDS=()
    LAB_NAMES=()
    trap lab_close EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# lab_ns NAME: the namespace $LAB-NAME.
lab_ns() {
    LAB_NAMES+=("$1")
    ip netns add "$LAB-$1"
    ip -n "$LAB-$1" link set lo up
}

# lab_switch: the namespace $LAB-sw with a bridge at 10.77.0.254, for etcd.
lab_switch() {
    lab_ns sw
    ip -n "$LAB-sw" link add br0 type bridge
    ip -n "$LAB-sw" addr add 10.77.0.254/24 dev br0
    ip -n "$LAB-sw" link set br0 up
}

# lab_open: namespaces $LAB-sw (etcd), $LAB-h1, $LAB-h2 (hosts), $LAB-c1, $LAB-c2 (containers).
lab_open() {
    lab_begin
    local i
    lab_switch
    for i in 1 2; do
        lab_ns "h$i"
        lab_ns "c$i"
        ip -n "$LAB-h$i" link add eth0 type veth peer name "p$i" netns "$LAB-sw"
        ip -n "$LAB-sw" link set "p$i" master br0 up
        ip -n "$LAB-h$i" addr add "10.77.0.$i/24" dev eth0
        ip -n "$LAB-h$i" link set eth0 up
        ip -n "$LAB-h$i" route add default via 10.77.0.254
        in_ns "h$i" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
            for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >"$f"; done'
    done
}

# lab_close: the trap.
lab_close() {
    local rc=$?
    lab_end
    exit "$rc"
}

# lab_end: ends what this lab started and nothing else. Another lab_begin may follow.
lab_end() {
    local pid i
    trap - EXIT
    trap '' INT TERM
    for pid in "${LAB_PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for i in $(seq 20); do
        for pid in "${LAB_PIDS[@]}"; do kill -0 "$pid" 2>/dev/null && break 1; pid=; done
        [ -n "${pid:-}" ] || break
        sleep 0.1
    done
    for pid in "${LAB_PIDS[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for i in "${LAB_NAMES[@]}"; do ip netns del "$LAB-$i" 2>/dev/null || true; done
    rm -rf "$LAB_DIR"
    trap - INT TERM
}

# in_ns NAME COMMAND...: runs a command in one of the lab's namespaces.
in_ns() { local ns="$1"; shift; ip netns exec "$LAB-$ns" "$@"; }

# lab_spawn NAME LOGFILE COMMAND...: the same in the background; lab_close ends it. Its pid is in $LAB_PID.
lab_spawn() {
    local ns="$1" log="$2"; shift 2
    ip netns exec "$LAB-$ns" "$@" >>"$log" 2>&1 </dev/null &
    LAB_PID=$!
    LAB_PIDS+=("$LAB_PID")
}

# wait_for SECONDS WHAT COMMAND...: tries the command every 50 ms; says what it missed and fails after SECONDS.
wait_for() {
    local limit="$1" what="$2"; shift 2
    local end=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "waited ${limit} s in vain for $what" >&2; return 1; }
        sleep 0.05
    done
}

# lab_etcd: a real etcd with both APIs on 10.77.0.254:2379.
lab_etcd() {
    lab_spawn sw "$LAB_DIR/etcd.log" etcd --name lab --data-dir "$LAB_DIR/etcd" --enable-v2=true \
        --listen-client-urls http://10.77.0.254:2379 --advertise-client-urls http://10.77.0.254:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster lab=http://127.0.0.1:2380
    wait_for 20 etcd in_ns sw curl -fsS http://10.77.0.254:2379/health
}

# lab_container I: a container namespace behind host I's bridge, as Docker makes it with --bip=FLANNEL_SUBNET and
# --mtu=FLANNEL_MTU. Beside it a second link `n0` (MTU 1500) whose traffic is routed over eth0 without the
# overlay: 172.31.I.2, the native path to compare with. Prints nothing; the container's address is in $LAB_ADDR.
lab_container() {
    local i="$1" j=$((3 - $1)) h="$LAB-h$1" c="$LAB-c$1"
    # shellcheck disable=SC1090
    . "$LAB_DIR/subnet$i.env"
    LAB_ADDR="${FLANNEL_SUBNET%.*}.2"
    ip -n "$h" link add cbr0 type bridge
    ip -n "$h" link set cbr0 mtu "$FLANNEL_MTU" up
    ip -n "$h" addr add "$FLANNEL_SUBNET" dev cbr0
    ip -n "$c" link add eth0 mtu "$FLANNEL_MTU" type veth peer name vc mtu "$FLANNEL_MTU" netns "$h"
    ip -n "$h" link set vc master cbr0 up
    ip -n "$c" addr add "$LAB_ADDR/${FLANNEL_SUBNET#*/}" dev eth0
    ip -n "$c" link set eth0 up
    ip -n "$c" route add default via "${FLANNEL_SUBNET%/*}"
    ip -n "$c" link add n0 type veth peer name vn netns "$h"
    ip -n "$h" addr add "172.31.$i.1/24" dev vn
    ip -n "$h" link set vn up
    ip -n "$c" addr add "172.31.$i.2/24" dev n0
    ip -n "$c" link set n0 up
    ip -n "$c" route add 172.31.0.0/16 via "172.31.$i.1"
    ip -n "$h" route add "172.31.$j.0/24" via "10.77.0.$j"
}

# cargo_bench_binary NAME: builds a bench and prints where it is.
cargo_bench_binary() {
    cargo bench --locked --bench "$1" --no-run --message-format=json |
        jq -r --arg name "$1" 'select(.target.name? == $name and .executable) | .executable' | tail -1
}
