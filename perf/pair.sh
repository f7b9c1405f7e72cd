# shellcheck shell=bash
# shellcheck disable=SC2034 # the arrays are for those who source this
# A lab to measure in: two hosts joined by one veth, a container behind each, all routed, no bridge on the way.
#
#   c1 ── veth ── h1 ══ eth0, the underlay ══ h2 ── veth ── c2          sw: etcd, on a link of its own
#
# Several overlays live in it at once, told apart by address, so that runs of one can alternate with runs of
# another without a restart; one that carries nothing sleeps. Source it after lab.sh.
set -euo pipefail

PAIR_ETCD=http://10.77.0.254:2379

# pair_need [COMMAND:PACKAGE...]: what the lab takes, and more.
pair_need() {
    need_root
    need_build
    need etcd:etcd-server etcdctl:etcd-client ip:iproute2 ss:iproute2 sysctl:procps iperf3:iperf3 \
        ping:iputils-ping curl:curl jq:jq ethtool:ethtool "$@"
    need_tun
    modprobe -qa tcp_bbr vxlan 2>/dev/null || true
}

# pair_build: the daemon, into $PAIR_DAEMON.
pair_build() {
    say "building (release)"
    cargo build --release --locked --bin flanneld
    PAIR_DAEMON="$(realpath "${CARGO_TARGET_DIR:-target}/release/flanneld")"
}

# pair_open A|B: the namespaces, the underlay of that kind, etcd, and the native path, 172.31.I.2.
pair_open() {
    local i
    lab_begin
    lab_switch
    for i in 1 2; do
        lab_ns "h$i"
        lab_ns "c$i"
        # Nobody speaks IPv6 here, but the kernel would solicit routers.
        for ns in "h$i" "c$i"; do in_ns "$ns" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; done
        in_ns "h$i" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
        ip -n "$LAB-h$i" link add mgmt type veth peer name "p$i" netns "$LAB-sw"
        ip -n "$LAB-sw" link set "p$i" master br0 up
        ip -n "$LAB-h$i" addr add "10.77.0.$i/24" dev mgmt
        ip -n "$LAB-h$i" link set mgmt up
    done
    ip -n "$LAB-h1" link add eth0 numtxqueues 1 numrxqueues 1 type veth \
        peer name eth0 netns "$LAB-h2" numtxqueues 1 numrxqueues 1
    for i in 1 2; do
        pair_underlay "$1" "h$i"
        ip -n "$LAB-h$i" addr add "10.9.0.$i/24" dev eth0
        ip -n "$LAB-h$i" link set eth0 up
        pair_container "$i"
    done
    # Nothing here depends on the store's fsyncs.
    lab_spawn sw "$LAB_DIR/etcd.log" etcd --name lab --data-dir "$LAB_DIR/etcd" --unsafe-no-fsync \
        --listen-client-urls "$PAIR_ETCD" --advertise-client-urls "$PAIR_ETCD" \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster lab=http://127.0.0.1:2380 --max-txn-ops 1024
    wait_for 20 etcd in_ns sw curl -fsS "$PAIR_ETCD/health"
}

# pair_underlay A|B HOST: A leaves the veth as it comes: 64 KiB super-packets cross it whole. B makes it behave like a
# NIC without tunnel offload: the sender cuts in software, the receiver's NAPI joins again. veth takes that receive
# path only if every TSO bit of its peer is off. Without a queue before its 256-entry ring it drops and reorders.
pair_underlay() {
    [ "$1" = B ] || return 0
    in_ns "$2" ethtool -K eth0 tso off tx-udp-segmentation off gro on
    # Whether veth has these depends on the kernel.
    in_ns "$2" ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off >/dev/null 2>&1 || true
    ! in_ns "$2" ethtool -k eth0 | grep -E '^(tx-tcp|tx-udp).*: on' || die "underlay B still segments in the veth"
    in_ns "$2" tc qdisc replace dev eth0 root pfifo limit 3000
}

# pair_container I: c$I with one link to h$I; its gateway is an address that every host's end answers for.
pair_container() {
    local i="$1" j=$((3 - $1)) h="$LAB-h$1" c="$LAB-c$1"
    ip -n "$h" link add vc type veth peer name eth0 netns "$c"
    ip -n "$h" addr add 169.254.1.1/32 dev vc
    ip -n "$h" link set vc up
    ip -n "$c" link set eth0 up
    ip -n "$c" route add 169.254.1.1 dev eth0
    pair_address "$i" "172.31.$i.2" 172.31.0.0/16 1500
    ip -n "$h" route add "172.31.$j.0/24" via "10.9.0.$j"
}

# pair_address I ADDRESS NETWORK MTU: gives container I an address, whose traffic to NETWORK has that MTU.
pair_address() {
    ip -n "$LAB-c$1" addr add "$2/32" dev eth0
    ip -n "$LAB-h$1" route add "$2/32" dev vc
    ip -n "$LAB-c$1" route add "$3" via 169.254.1.1 dev eth0 src "$2" mtu "$4"
}

# pair_vxlan K: kernel VXLAN as flannel sets it up (VNI 1, port 8472, no learning, static ARP and FDB), on
# 10.K.0.0/16.
pair_vxlan() {
    local k="$1" i j
    for i in 1 2; do
        ip -n "$LAB-h$i" link add flannel.1 address "0e:00:00:00:00:0$i" type vxlan id 1 dstport 8472 \
            local "10.9.0.$i" dev eth0 nolearning
        ip -n "$LAB-h$i" link set flannel.1 mtu 1450 up
        ip -n "$LAB-h$i" addr add "10.$k.$i.0/32" dev flannel.1
    done
    for i in 1 2; do
        j=$((3 - i))
        in_ns "h$i" bridge fdb append "0e:00:00:00:00:0$j" dev flannel.1 dst "10.9.0.$j" self permanent
        ip -n "$LAB-h$i" neigh add "10.$k.$j.0" lladdr "0e:00:00:00:00:0$j" dev flannel.1 nud permanent
        ip -n "$LAB-h$i" route add "10.$k.$j.0/24" via "10.$k.$j.0" dev flannel.1 onlink
        pair_address "$i" "10.$k.$i.2" "10.$k.0.0/16" 1450
    done
}

# pair_overlay K NAME BINARY [FLAGS...]: starts a flanneld with these flags on each host, in the network $PAIR_NETWORK
# (10.K.0.0/16 if unset). PAIR_MORE is more of the config; FLAGS1 and FLAGS2, if set, are more flags for one host
# (words, split at blanks).
# Fills PAIR_PID[NAME,I], PAIR_ADDR[NAME,I], PAIR_DEV[NAME,I] and PAIR_SUBNET[NAME,I].
declare -gA PAIR_PID PAIR_ADDR PAIR_DEV PAIR_SUBNET
pair_overlay() {
    local k="$1" name="$2" binary="$3" network="${PAIR_NETWORK:-10.$1.0.0/16}" i more
    shift 3
    in_ns sw etcdctl --endpoints "$PAIR_ETCD" put "/perf/$name/config" \
        "{\"Network\":\"$network\",\"SubnetLen\":24${PAIR_MORE:-},\"Backend\":{\"Type\":\"udp\",\"Port\":$((7000 + k))}}" >/dev/null
    for i in 1 2; do
        more="FLAGS$i"
        # shellcheck disable=SC2086 # split on purpose
        lab_spawn "h$i" "$LAB_DIR/$name.$i.log" "$binary" --etcd-endpoints="$PAIR_ETCD" --etcd-api=v3 \
            --etcd-prefix="/perf/$name" --iface=eth0 --subnet-file="$LAB_DIR/$name.$i.env" "$@" ${!more:-}
        PAIR_PID[$name,$i]=$LAB_PID
    done
    for i in 1 2; do
        wait_for 15 "$name on host $i" test -e "$LAB_DIR/$name.$i.env" || {
            cat "$LAB_DIR/$name.$i.log" >&2
            die "$name did not come up on host $i"
        }
        # shellcheck disable=SC1090
        . "$LAB_DIR/$name.$i.env"
        PAIR_ADDR[$name,$i]="${FLANNEL_SUBNET%.*}.2"
        PAIR_SUBNET[$name,$i]="${FLANNEL_SUBNET%.*}.0/24"
        PAIR_DEV[$name,$i]="$(ip -j -n "$LAB-h$i" addr show to "${FLANNEL_SUBNET%.*}.0/32" | jq -r '.[0].ifname')"
        pair_address "$i" "${PAIR_ADDR[$name,$i]}" "$network" "$FLANNEL_MTU"
    done
    # The first packet may race the peer's lease.
    wait_for 10 "$name to carry a ping" in_ns c1 ping -c1 -W1 "${PAIR_ADDR[$name,2]}"
}

# pair_servers: an iperf3 server in each container; it gives up a test that hangs.
pair_servers() {
    local i
    for i in 1 2; do lab_spawn "c$i" "$LAB_DIR/iperf$i.log" iperf3 -s --rcv-timeout 5000; done
    for i in 1 2; do wait_for 5 iperf3 in_ns "c$i" sh -c 'ss -ltn | grep -q :5201'; done
}
