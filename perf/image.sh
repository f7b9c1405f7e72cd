#!/bin/sh
# Makes a small container image out of this machine's files, since a lab reaches no registry: busybox (sh, ping,
# ip, cat), iperf3 and the libraries that they load. Writes a tar for `docker import`.
#
# Usage: perf/image.sh FILE.tar
set -eu
out=${1:?usage: perf/image.sh FILE.tar}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/tmp" "$root/etc"
for program in busybox iperf3; do
    path=$(command -v "$program") || { echo "$program is missing" >&2; exit 1; }
    cp -L "$path" "$root/bin/$program"
    # A static program has no libraries, and ldd then fails.
    libraries=$(ldd "$path" 2>/dev/null | grep -o '/[^ )]*' || true)
    for library in $libraries; do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
done
for applet in sh ping ip cat; do ln -s busybox "$root/bin/$applet"; done
tar -C "$root" -cf "$out" .
