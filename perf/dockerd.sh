#!/bin/sh
# Runs dockerd on a host of a lab: in the host's network namespace, and in namespaces of mounts and of processes
# that are made for it, as a host of its own would have. However it ends, the kernel then ends every process
# under it and lets go of every mount. The machine's own Docker (/etc/docker, /run/docker,
# /run/containerd) is out of its sight. What remains are control groups, which the caller removes.
#
# Usage: perf/dockerd.sh NETNS DIR CGROUP [DOCKERD OPTIONS]
#   NETNS    the host's network namespace
#   DIR      for its data, its log of containers and its socket, DIR/sock
#   CGROUP   name of the parent of its containers' control groups
# The process becomes unshare, which ignores every signal but KILL; its only child is dockerd.
set -eu
[ $# -ge 3 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
netns=$1 dir=$2 cgroup=$3
shift 3

# What runs inside the namespaces: covers the machine's Docker, then becomes dockerd.
# shellcheck disable=SC2016 # it expands in there
inside='for dir in /etc/docker /run/docker /run/containerd; do
    mkdir -p "$dir"
    mount -t tmpfs -o mode=0711 tmpfs "$dir"
done
exec dockerd "$@"'

# `ip netns exec` will not do: it mounts /sys anew and so hides the control groups.
# The driver is cgroupfs, because there may be no systemd to ask for a control group.
exec nsenter --net="/run/netns/$netns" unshare --mount --pid --fork --kill-child --mount-proc \
    sh -euc "$inside" dockerd --host "unix://$dir/sock" --pidfile "$dir/pid" \
    --data-root "$dir/data" --exec-root "$dir/exec" \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$cgroup" "$@"
