#!/usr/bin/env bash
# Formatting, lints, documentation, build and every test, on a machine with only Rust, Debian and root.
# Usage: tests/run.sh [arguments for `cargo test`]. FLANNELD_TEST_LONG=1 runs the long forms of the tests too.
set -euo pipefail
cd "$(dirname "$0")/.."
. perf/lab.sh

need_root
need_build
need etcd:etcd-server etcdctl:etcd-client ip:iproute2 iperf3:iperf3 ping:iputils-ping ethtool:ethtool \
    tcpdump:tcpdump curl:curl openssl:openssl jq:jq iptables:iptables nft:nftables strip:binutils dpkg-shlibdeps:dpkg-dev setpriv:util-linux \
    busybox:busybox-static systemd-analyze:systemd mmdebstrap:mmdebstrap \
    dockerd:docker.io docker:docker.io
need_tun
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 && continue
    case "$part" in fmt) component=rustfmt ;; *) component=clippy ;; esac
    rustup component add "$component" || die "cargo $part is missing"
done

# A test that cannot run here is a failure here, not a skip.
export FLANNELD_TEST_REQUIRE=1
started=$SECONDS

# Newer releases of etcd than Debian's are built from their Go modules. Where that cannot be, the last line says which
# tests did not run; CI has to have them all.
say "newer releases of etcd"
not_run=""
if ! tests/parts/build.sh; then
    [ "${CI:-}" != true ] || die "the newer releases of etcd cannot be built; CI skips no test"
    export FLANNELD_TEST_WITHOUT_PARTS=1
    not_run="$(grep -hoE 'fn [a-z0-9_]+_on_newer_etcds\(' tests/etcd_*.rs | sed 's/^fn //; s/($//' | sort | paste -sd' ')"
fi

say "formatting"
cargo fmt --check
say "lints"
cargo clippy --locked --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
say "build"
cargo build --locked
say "tests"
cargo test --locked --no-fail-fast "$@"
if [ -z "$not_run" ]; then
    say "all passed in $((SECONDS - started)) s"
else
    say "all that ran passed in $((SECONDS - started)) s; not run, because they need Go 1.24 or newer: $not_run"
fi
