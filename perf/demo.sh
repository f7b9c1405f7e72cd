#!/usr/bin/env bash
# flannel's tutorial on one machine: real etcd, two hosts in network namespaces with a container each, the
# tutorial's config, ping and iperf3 both ways, and a table of native routing against the overlay.
# Everything happens in namespaces of a random name; they go away however the script ends.
#
# Usage: perf/demo.sh [--docker] [--engine uring|poll|auto] [--cc NAME] [--seconds N] [-- FLANNELD OPTIONS]
#   --docker   the same with real Docker on both hosts, over udp and then over vxlan
#   --engine   the overlay's I/O engine (default: auto)
#   --cc       TCP congestion control of the measurement (default: cubic; bbr paces itself and hides the CPU cost)
#   --seconds  length of one iperf3 run (default: 3; twelve runs)
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh

engine=auto cc=cubic seconds=3 with_docker=
while [ $# -gt 0 ]; do
    case "$1" in
    --docker) with_docker=1 ;;
    --engine=*) engine="${1#*=}" ;;
    --engine) engine="${2:?}"; shift ;;
    --cc=*) cc="${1#*=}" ;;
    --cc) cc="${2:?}"; shift ;;
    --seconds=*) seconds="${1#*=}" ;;
    --seconds) seconds="${2:?}"; shift ;;
    --) shift; break ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' perf/demo.sh; exit 0 ;;
    *) die "unknown option $1 (see --help)" ;;
    esac
    shift
done

need_root
need_build
need etcd:etcd-server etcdctl:etcd-client ip:iproute2 iperf3:iperf3 ping:iputils-ping curl:curl jq:jq
need_tun
if [ -n "$with_docker" ]; then
    . perf/demo-docker.sh
    docker_need
fi
say "building (release)"
cargo build --release --locked --bin flanneld
flanneld="${CARGO_TARGET_DIR:-target}/release/flanneld"
started=$SECONDS
lab_open
if [ -n "$with_docker" ]; then
    docker_open
    docker_demo "$@"
    exit
fi

say "etcd $(etcd --version | sed -n 's/^etcd Version: //p') and the tutorial's config, through the v2 API"
lab_etcd
config='{ "Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0", "Backend": { "Type": "udp", "Port": 7890 } }'
in_ns sw curl -fsS http://10.77.0.254:2379/v2/keys/coreos.com/network/config -XPUT -d value="$config" | jq -r .node.value

for i in 1 2; do
    say "host $i: flanneld"
    lab_spawn "h$i" "$LAB_DIR/flanneld$i.log" "$flanneld" --etcd-endpoints=http://10.77.0.254:2379 \
        --iface=eth0 --subnet-file="$LAB_DIR/subnet$i.env" --engine="$engine" "$@"
    daemon=$LAB_PID
    wait_for 15 "host $i's subnet file" test -e "$LAB_DIR/subnet$i.env" && kill -0 "$daemon" || {
        cat "$LAB_DIR/flanneld$i.log" >&2
        die "flanneld did not come up on host $i"
    }
    cat "$LAB_DIR/subnet$i.env"
    in_ns "h$i" ip addr show flannel0
    lab_container "$i"
    eval "container$i=$LAB_ADDR"
done
say "leases in etcd"
in_ns sw curl -fsS http://10.77.0.254:2379/v2/keys/coreos.com/network/subnets |
    jq -r '.node.nodes[] | "\(.key) \(.value) ttl=\(.ttl)"'

say "ping, container to container, both ways"
# The first packet may race the peer's lease; flannel's users know that too.
wait_for 5 "the overlay to carry a ping" in_ns c1 ping -c1 -W1 "$container2"
in_ns c1 ping -c3 -i0.2 -W1 "$container2"
in_ns c2 ping -c3 -i0.2 -W1 "$container1"

# run_iperf FROM TO_ADDRESS: one run from container FROM, prints Mbit/s received.
run_iperf() {
    in_ns "c$1" iperf3 -c "$2" -t "$seconds" -C "$cc" -J | jq -r '.end.sum_received.bits_per_second / 1e6 | floor'
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

say "iperf3, container to container, one TCP stream, congestion control $cc (the default here: $(cat /proc/sys/net/ipv4/tcp_congestion_control)), $seconds s a run, alternating, median of 3, $(nproc) cores for everything"
for i in 1 2; do lab_spawn "c$i" "$LAB_DIR/iperf$i.log" iperf3 -s; done
for i in 1 2; do wait_for 5 "iperf3" in_ns "c$i" sh -c 'ss -ltn | grep -q :5201'; done
declare -A result
for round in 1 2 3; do
    for i in 1 2; do
        j=$((3 - i)) peer="container$((3 - i))"
        result[native$i]+=" $(run_iperf "$i" "172.31.$j.2")"
        result[overlay$i]+=" $(run_iperf "$i" "${!peer}")"
    done
    echo "round $round: native ${result[native1]##* } and ${result[native2]##* }, overlay ${result[overlay1]##* } and ${result[overlay2]##* } Mbit/s"
done

printf '\n| direction | native Mbit/s | overlay Mbit/s | ratio |\n|---|--:|--:|--:|\n'
for i in 1 2; do
    # shellcheck disable=SC2086 # the list is split on purpose
    native=$(median ${result[native$i]}) overlay=$(median ${result[overlay$i]})
    printf '| host %s → host %s | %s | %s | %s |\n' "$i" $((3 - i)) "$native" "$overlay" \
        "$(jq -n "$overlay / $native * 100 | round / 100")"
done
carriers=$(grep -ho 'carrier=[a-z_]*' "$LAB_DIR"/flanneld?.log | sort -u | tr '\n' ' ' || true)
say "packets were carried by ${carriers:-(the log does not say)}; $((SECONDS - started)) s after the build"
