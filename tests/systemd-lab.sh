#!/usr/bin/env bash
# A real systemd as PID 1 of namespaces of its own, for tests of the unit on machines whose PID 1 is something else.
# It takes root, overlayfs, a mounted cgroup v2, and mmdebstrap for the first tree.
#
#   systemd-lab.sh up DIR NETNS   boots Debian in the network namespace NETNS; DIR holds what this host writes
#   systemd-lab.sh run DIR CMD…   runs CMD in it as root, for 100 s at most, and ends with its exit code
#   systemd-lab.sh root DIR       prints where its files are seen from outside
#   systemd-lab.sh down DIR       powers it off, within 10 s or by SIGKILL
#
# The tree below the overlays is $SYSTEMD_TREE (default target/systemd-tree): half a minute to make, once.
# Inside: /dev has net/tun and no disk; /proc/sys is read-only but for net, /sys whole, so that udevd stays away.
# dbus, iptables and nftables are installed, and nothing starts by itself. Limits are those of the caller.
set -euo pipefail

me="$(realpath "$0")"
tree="${SYSTEMD_TREE:-$(dirname "$me")/../target/systemd-tree}"
packages=systemd,systemd-sysv,dbus,iproute2,iputils-ping,iptables,nftables,procps
# Changed whenever the tree is made in another way, so that an older one is made anew.
edition="1 $packages"
die() { echo "systemd-lab: $*" >&2; exit 1; }

# Debian with systemd, in which nothing starts by itself but journald and dbus.
make_tree() {
    local unit
    mkdir -p "$(dirname "$tree")"
    tree="$(realpath "$tree")"
    exec 9>"$tree.lock"
    flock 9
    [ "$(cat "$tree/.edition" 2>/dev/null)" != "$edition" ] || return 0
    command -v mmdebstrap >/dev/null || die "mmdebstrap is missing"
    rm -rf --one-file-system "$tree"
    timeout 300 mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$tree" </dev/null
    for unit in console-getty getty@tty1 systemd-logind systemd-update-utmp systemd-udev-trigger; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit.service"
    done
    for unit in apt-daily apt-daily-upgrade dpkg-db-backup systemd-tmpfiles-clean e2scrub_all fstrim; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit.timer"
    done
    for unit in sys-kernel-debug sys-kernel-tracing sys-fs-fuse-connections dev-hugepages dev-mqueue; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit.mount"
    done
    rm -f "$tree/etc/hostname" "$tree/etc/resolv.conf" "$tree/usr/sbin/policy-rc.d"
    : >"$tree/etc/machine-id"
    echo "$edition" >"$tree/.edition"
}

# In the new namespaces, before systemd: the overlay becomes the root.
inside() {
    local at="$1" new="$1/root" node name major minor
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$tree,upperdir=$at/upper,workdir=$at/work" "$new"
    mount -t proc proc "$new/proc" -o nosuid,nodev,noexec
    mount --bind "$new/proc/sys" "$new/proc/sys"
    mount -o remount,bind,ro "$new/proc/sys"
    # The mount of /proc before it went read-only is the one below.
    mount -t proc proc "$new/mnt" -o nosuid,nodev,noexec
    mount --bind "$new/mnt/sys/net" "$new/proc/sys/net"
    umount -l "$new/mnt"
    mount -t sysfs sysfs "$new/sys" -o nosuid,nodev,noexec
    mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup" -o nosuid,nodev,noexec
    mount -o remount,bind,ro "$new/sys"
    mount -t tmpfs tmpfs "$new/dev" -o mode=755,size=1m
    mkdir "$new/dev/net" "$new/dev/pts" "$new/dev/shm"
    for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 console:1:3 net/tun:10:200; do
        IFS=: read -r name major minor <<<"$node"
        mknod -m 666 "$new/dev/$name" c "$major" "$minor"
    done
    ln -s /proc/self/fd "$new/dev/fd"
    ln -s fd/0 "$new/dev/stdin"; ln -s fd/1 "$new/dev/stdout"; ln -s fd/2 "$new/dev/stderr"
    mount -t devpts devpts "$new/dev/pts" -o newinstance,ptmxmode=666,mode=620
    ln -s pts/ptmx "$new/dev/ptmx"
    mount -t tmpfs tmpfs "$new/dev/shm"
    mount -t tmpfs tmpfs "$new/run" -o mode=755
    mount -t tmpfs tmpfs "$new/tmp" -o mode=1777
    cd "$new"
    mkdir -p .old
    pivot_root . .old
    # The mounts are shared, as on a real host and in nspawn: without that a unit's LoadCredential= gives no file.
    exec env -i container=systemd-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb chroot . /bin/sh -c \
        'umount -l /.old && rmdir /.old; mount --make-rshared /; exec /lib/systemd/systemd --unit=multi-user.target --show-status=no \
         --log-target=journal </dev/null >/dev/null 2>&1'
}

up() {
    local at="$1" netns="$2" cgroup v2 outer init='' state='' i
    v2="$(findmnt -nt cgroup2 -o TARGET | head -1)"
    [ -n "$v2" ] || die "no cgroup v2 is mounted"
    make_tree
    mkdir -p "$at/upper" "$at/work" "$at/root"
    at="$(realpath "$at")"
    trap '[ $? = 0 ] || down "$at"' EXIT
    cgroup="$v2/flanneld-lab-$$"
    mkdir "$cgroup"
    echo "$cgroup" >"$at/cgroup"
    # A cgroup namespace's root is where the process is when the namespace is made.
    SYSTEMD_TREE="$tree" setsid sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$cgroup" \
        nsenter --net="/run/netns/$netns" \
        unshare --pid --fork --kill-child --mount --uts --ipc --cgroup -- bash "$me" --inside "$at" \
        </dev/null >"$at/log" 2>&1 9>&- &
    outer=$!
    echo "$outer" >"$at/outer"
    for ((i = 0; i < 300; i++)); do
        [ -d "/proc/$outer" ] || die "it did not start: $(cat "$at/log")"
        # The outer process is `unshare` by now and has one child.
        init="$(tr -d ' ' <"/proc/$outer/task/$outer/children")"
        if [ -n "$init" ] && [ "$(cat "/proc/$init/comm")" = systemd ]; then
            echo "$init" >"$at/init"
            state="$(enter "$at" systemctl is-system-running 2>/dev/null || :)"
            case $state in running | degraded) break ;; esac
        fi 2>/dev/null
        sleep 0.1
    done
    [ "$state" = running ] || die "it did not come up: $state $(enter "$at" systemctl --failed --no-legend) $(cat "$at/log")"
    trap - EXIT
}

enter() {
    local init
    init="$(cat "$1/init" 2>/dev/null)" || die "$1 is not up"
    shift
    timeout -k 5 100 nsenter -t "$init" -m -u -i -n -p -C -r -w -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 SYSTEMD_PAGER= SYSTEMD_COLORS=0 "$@"
}

down() {
    local at="$1" outer init i cgroup
    outer="$(cat "$at/outer" 2>/dev/null || :)" init="$(cat "$at/init" 2>/dev/null || :)"
    if [ -n "$outer" ] && [ -d "/proc/$outer" ]; then
        # SIGRTMIN+4: power off. In a pid namespace that ends its PID 1.
        [ -z "$init" ] || kill -s RTMIN+4 "$init" 2>/dev/null || :
        for ((i = 0; i < 100; i++)); do
            [ -d "/proc/$outer" ] && [ -n "$init" ] || break
            sleep 0.1
        done
        # With its PID 1 the whole namespace goes, and so do its mounts.
        [ ! -d "/proc/$outer" ] || kill -9 ${init:+"$init"} "$outer" 2>/dev/null || :
    fi
    if cgroup="$(cat "$at/cgroup" 2>/dev/null)" && [ -d "$cgroup" ]; then
        for ((i = 0; i < 20; i++)); do
            find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || :
            [ -d "$cgroup" ] || break
            sleep 0.1
        done
    fi
    rm -rf --one-file-system "$at/upper" "$at/work" "$at/root" "$at/init" "$at/outer" "$at/cgroup"
}

command="${1:-}"
shift || :
case $command in
up) up "$@" ;;
run) enter "$@" ;;
root) echo "/proc/$(cat "$1/init")/root" ;;
down) down "$@" ;;
--inside) inside "$@" ;;
*) sed -n '2,/^set /s/^# \{0,1\}//p' "$me" >&2; exit 2 ;;
esac
