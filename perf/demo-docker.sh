# shellcheck shell=bash disable=SC2154
# The part of perf/demo.sh that runs real Docker: source it after perf/lab.sh. It uses the demo's $flanneld,
# $engine, $cc, $seconds and the lab's etcd.
set -euo pipefail

# docker_need: what it takes beside the demo's own tools.
docker_need() {
    need dockerd:docker.io docker:docker.io busybox:busybox-static nsenter:util-linux iptables:iptables
    [ -n "$(ls /sys/fs/cgroup)" ] || die "no control groups are mounted on /sys/fs/cgroup"
}

# docker_open: call it right after lab_open; it makes sure that dockerd goes as everything else does.
docker_open() {
    DOCKER_PIDS=()
    trap docker_close EXIT
}

# docker_close: the trap.
docker_close() {
    local rc=$?
    trap '' INT TERM
    set +e
    docker_stop KILL
    (exit "$rc")
    lab_close
}

# docker_stop SIGNAL: ends both dockerd, waits for them, and removes their control groups.
docker_stop() {
    local pid child
    for pid in "${DOCKER_PIDS[@]}"; do
        # unshare ignores signals; its only child is dockerd.
        child=$(tr -d ' ' <"/proc/$pid/task/$pid/children") 2>/dev/null || continue
        kill "-$1" "${child:-$pid}" 2>/dev/null || true
    done
    for pid in "${DOCKER_PIDS[@]}"; do
        wait_for 15 "the end of dockerd" docker_ended "$pid" || kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    DOCKER_PIDS=()
    for pid in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/fs/cgroup -mindepth 1 -maxdepth 4 -depth -path "*/$LAB-docker*" -type d -exec rmdir {} + \
            2>/dev/null && break
        sleep 0.1
    done
}
docker_ended() { ! kill -0 "$1" || grep -q '^State:.Z' "/proc/$1/status"; }

# on I ARGUMENTS...: the Docker client of host I.
on() { local i="$1"; shift; DOCKER_CONFIG="$LAB_DIR/client" docker --host "unix://$LAB_DIR/docker$i/sock" "$@"; }

# docker_host I: flanneld, then dockerd with the options that mk-docker-opts.sh makes of the subnet file.
docker_host() {
    local i="$1" file="$LAB_DIR/subnet$1.env" options="$LAB_DIR/docker_opts$1.env"
    shift
    rm -f "$file"
    lab_spawn "h$i" "$LAB_DIR/flanneld$i.log" "$flanneld" --etcd-endpoints=http://10.77.0.254:2379 \
        --iface=eth0 --subnet-file="$file" --engine="$engine" "$@"
    DEMO_DAEMONS+=("$LAB_PID")
    wait_for 15 "host $i's subnet file" test -e "$file" || { cat "$LAB_DIR/flanneld$i.log" >&2; return 1; }
    in_ns "h$i" packaging/mk-docker-opts.sh -f "$file" -d "$options" -c
    # shellcheck disable=SC1090
    DOCKER_OPTS='' && . "$options"
    echo "host $i: dockerd$DOCKER_OPTS"
    mkdir -p "$LAB_DIR/docker$i"
    # shellcheck disable=SC2086 # the options are split on purpose
    perf/dockerd.sh "$LAB-h$i" "$LAB_DIR/docker$i" "$LAB-docker$i" $DOCKER_OPTS \
        >>"$LAB_DIR/dockerd$i.log" 2>&1 </dev/null &
    DOCKER_PIDS+=("$!")
}

# docker_iperf I ADDRESS: one run from the container on host I, prints Mbit/s received.
docker_iperf() {
    on "$1" exec web iperf3 -c "$2" -t "$seconds" -C "$cc" -J |
        jq -r '.end.sum_received.bits_per_second / 1e6 | floor'
}

# docker_round TYPE CONFIG [FLANNELD OPTIONS]: the tutorial with one backend; adds a line to $DEMO_TABLE.
docker_round() {
    local type="$1" config="$2" i out rtt mtu
    shift 2
    local addrs=('') rates=('')
    say "$type: the tutorial's config, flanneld and dockerd on both hosts"
    in_ns sw curl -fsS http://10.77.0.254:2379/v2/keys/coreos.com/network/config -XPUT -d value="$config" |
        jq -r .node.value
    DEMO_DAEMONS=()
    for i in 1 2; do docker_host "$i" "$@"; done
    for i in 1 2; do
        wait_for 20 "dockerd on host $i" on "$i" version || { tail "$LAB_DIR/dockerd$i.log" >&2; return 1; }
        [ -n "$(on "$i" images -q lab)" ] || on "$i" import "$LAB_DIR/image.tar" lab >/dev/null
        # NET_ADMIN allows any congestion control; without it a container may use only those that the machine allows to all.
        on "$i" run -d --rm --name web --cap-add NET_ADMIN lab iperf3 -s >/dev/null
        addrs[i]=$(on "$i" inspect --format '{{.NetworkSettings.IPAddress}}' web)
        on "$i" exec web ip addr show dev eth0
    done
    mtu=$(on 1 exec web cat /sys/class/net/eth0/mtu)
    say "$type: Docker's policy and our rules on host 1"
    in_ns h1 iptables -S FORWARD
    in_ns h1 iptables -S FLANNEL-FWD
    say "$type: docker exec web ping, both ways"
    wait_for 5 "the overlay to carry a ping" on 1 exec web ping -c1 -W1 "${addrs[2]}"
    out=$(on 1 exec web ping -c5 -i0.2 -W1 "${addrs[2]}")
    echo "$out"
    rtt=$(sed -n 's#^round-trip.*= [^/]*/\([^/]*\)/.*#\1#p' <<<"$out")
    on 2 exec web ping -c5 -i0.2 -W1 "${addrs[1]}"
    say "$type: docker exec web iperf3, both ways"
    for i in 1 2; do
        rates[i]=$(docker_iperf "$i" "${addrs[3 - i]}")
        echo "container $i to container $((3 - i)): ${rates[i]} Mbit/s"
    done
    DEMO_TABLE+="| $type | $mtu | $rtt | ${rates[1]} | ${rates[2]} |"$'\n'
    docker_stop TERM
    kill "${DEMO_DAEMONS[@]}"
    for i in "${DEMO_DAEMONS[@]}"; do wait "$i" || die "flanneld ended with code $?"; done
}

# docker_native: the hosts' own addresses without an overlay, for comparison; adds a line to $DEMO_TABLE.
docker_native() {
    local i rtt rates=('')
    say "between the hosts, without overlay"
    rtt=$(in_ns h1 ping -c5 -i0.2 10.77.0.2 | sed -n 's#^rtt.*= [^/]*/\([^/]*\)/.*#\1#p')
    for i in 1 2; do lab_spawn "h$i" "$LAB_DIR/iperf$i.log" iperf3 -s; done
    for i in 1 2; do
        wait_for 5 iperf3 in_ns "h$i" sh -c 'ss -ltn | grep -q :5201'
    done
    for i in 1 2; do
        rates[i]=$(in_ns "h$i" iperf3 -c "10.77.0.$((3 - i))" -t "$seconds" -C "$cc" -J |
            jq -r '.end.sum_received.bits_per_second / 1e6 | floor')
        echo "host $i to host $((3 - i)): ${rates[i]} Mbit/s"
    done
    DEMO_TABLE+="| hosts, no overlay | 1500 | $rtt | ${rates[1]} | ${rates[2]} |"$'\n'
}

# docker_demo [FLANNELD OPTIONS]: both rounds and the table.
docker_demo() {
    local range='"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"'
    local i
    say "etcd, $(dockerd --version), and an image made of this machine's busybox and iperf3"
    lab_etcd
    perf/image.sh "$LAB_DIR/image.tar"
    # On a new host dockerd turns this on, and only then also sets the FORWARD policy to DROP.
    for i in 1 2; do in_ns "h$i" sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'; done
    DEMO_TABLE=''
    docker_native
    docker_round udp "{$range,\"Backend\":{\"Type\":\"udp\",\"Port\":7890}}" "$@"
    docker_round vxlan "{$range,\"Backend\":{\"Type\":\"vxlan\",\"VNI\":100,\"Port\":8472}}" "$@"
    printf '\n| path | MTU | ping ms | 1 → 2 Mbit/s | 2 → 1 Mbit/s |\n|---|--:|--:|--:|--:|\n%s' "$DEMO_TABLE"
    say "containers of real Docker over both backends; $((SECONDS - started)) s after the build"
}
