#!/usr/bin/env bash
# iptables 1.8.9 (nf_tables) beside nftables 1.0.6, both of Debian bookworm, 2026-11-27; needs root.
# Source: iptables-save(8), nft(8); `iptables-nft` and `nft` share the kernel's tables.
# Behaviour: once a regular chain of the table "ip nat" holds one native masquerade rule, as nft writes it, iptables-save prints
#   nothing of that whole table but the comment "# Table `nat' is incompatible, use 'nft' tool.", and ends with status
#   0. The other chains of the table, iptables' own among them, are gone from its output, while iptables -N still says
#   that they exist.
# Guess: it prints what it can and skips the one rule, or it fails with a status; a program that reads a list with
#   status 0 may conclude that the chains are not there.
set -euo pipefail

dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
(
    cd "$dir"
    apt-get download -q -o APT::Sandbox::User=root iptables=1.8.9-2 libxtables12=1.8.9-2 \
        nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 >/dev/null
    for deb in *.deb; do dpkg -x "$deb" root; done
)
lib="$dir/root/usr/lib/$(uname -m)-linux-gnu"
export LD_LIBRARY_PATH="$lib" XTABLES_LIBDIR="$lib/xtables"
bin="$dir/root/usr/sbin"

# The namespace of network goes with the shell.
seen="$(unshare --net bash -euc '
    ipt="$0/xtables-nft-multi"
    "$ipt" iptables -t nat -N MINE
    "$ipt" iptables -t nat -A MINE -s 10.5.0.0/16 -j RETURN
    echo "before: $("$ipt" iptables-save -t nat | grep -c MINE)"
    "$0/nft" "add chain ip nat theirs"
    "$0/nft" "add rule ip nat theirs ip saddr 192.0.2.0/24 masquerade"
    status=0; out="$("$ipt" iptables-save -t nat 2>&1)" || status=$?
    echo "after: status $status, lines with MINE: $(grep -c MINE <<<"$out" || true)"
    echo "after: $(grep incompatible <<<"$out")"
    "$ipt" iptables -t nat -N MINE 2>&1 || true
' "$bin")"
echo "$seen"
for line in "before: 2" "after: status 0, lines with MINE: 0" "iptables: Chain already exists."; do
    grep -qxF "$line" <<<"$seen" || { echo "changed: \"$line\" was not seen"; exit 1; }
done
grep -q "is incompatible" <<<"$seen" || { echo "changed: the comment was not seen"; exit 1; }
