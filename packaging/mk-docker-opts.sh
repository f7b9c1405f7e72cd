#!/bin/sh
# Turns flanneld's subnet file into options for the Docker daemon: an environment file with one variable for
# each option, one with all of them, or both. Same options and output as flannel's script of this name.
set -eu
export LC_ALL=C

usage() {
    cat >&2 <<END
Usage: $0 [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]
Writes options for the Docker daemon from flanneld's subnet file.

    -f FILE   the subnet file; default /run/flannel/subnet.env
    -d FILE   where to write; default /run/docker_opts.env
    -i        one variable for each option (DOCKER_OPT_...)
    -c        one variable with all options; with neither -i nor -c, both forms
    -k NAME   that variable's name; default DOCKER_OPTS
    -m        leave --ip-masq out
Variables DOCKER_OPT_... of the environment are taken along, and NAME's value comes first.
END
    exit 1
}

flannel_env=/run/flannel/subnet.env
docker_env=/run/docker_opts.env
name=DOCKER_OPTS
individual=false
combined=false
ip_masq=true

while getopts f:d:icmk:h option; do
    case $option in
    f) flannel_env=$OPTARG ;;
    d) docker_env=$OPTARG ;;
    i) individual=true ;;
    c) combined=true ;;
    m) ip_masq=false ;;
    k) name=$OPTARG ;;
    *) usage ;;
    esac
done
if [ $individual = $combined ]; then
    individual=true
    combined=true
fi
case $name in
'' | [0-9]* | *[!A-Za-z0-9_]*)
    echo "$0: -k $name: no name of a variable" >&2
    exit 1
    ;;
esac

if [ -f "$flannel_env" ]; then
    # Without a slash the shell would look for it in PATH.
    case $flannel_env in
    */*) . "$flannel_env" ;;
    *) . "./$flannel_env" ;;
    esac
fi

if [ -n "${FLANNEL_SUBNET:-}" ]; then
    DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"
fi
if [ -n "${FLANNEL_MTU:-}" ]; then
    DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"
fi
if $ip_masq; then
    # Only one of flanneld and Docker may masquerade.
    case ${FLANNEL_IPMASQ:-} in
    true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
    false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
    '') ;;
    *)
        echo "$0: FLANNEL_IPMASQ=$FLANNEL_IPMASQ: neither true nor false" >&2
        exit 1
        ;;
    esac
fi

# A value may hold a line that looks like a variable, so first see whether there is such a variable.
options=$(set | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | sort -u)
eval "all=\${$name:-}"
all=${all:+$all }
write() {
    for option in $options; do
        eval "set=\${$option+set} value=\${$option:-}"
        [ -n "$set" ] || continue
        all="$all $value"
        ! $individual || printf '%s="%s"\n' "$option" "$value"
    done
    ! $combined || printf '%s="%s"\n' "$name" "$all"
}
if [ -e "$docker_env" ] && [ ! -f "$docker_env" ] || [ -L "$docker_env" ]; then
    write >"$docker_env"
else
    # Whoever watches the file learns of a change only if there is one, and never reads a half.
    new=$docker_env.$$
    trap 'rm -f "$new"' EXIT
    write >"$new"
    if [ -f "$docker_env" ] && [ "$(cat "$docker_env")" = "$(cat "$new")" ]; then
        rm -f "$new"
    else
        mv -f "$new" "$docker_env"
    fi
    trap - EXIT
fi

# If another host routes our subnet to itself, containers here will not get their packets.
if [ -n "${FLANNEL_SUBNET:-}" ] && command -v ip >/dev/null 2>&1; then
    case $(ip -4 route show exact "$FLANNEL_SUBNET" 2>/dev/null || :) in
    *' via '*)
        echo "$0: there is a route to $FLANNEL_SUBNET via another host: two hosts claim this subnet" >&2
        exit 1
        ;;
    esac
fi
