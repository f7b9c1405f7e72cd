#!/usr/bin/env bash
# etcd-client 0.21.1 (crates.io) with etcd 3.4.23 (Debian bookworm), 2026-11-27.
# Source: https://docs.rs/etcd-client/0.21.1/etcd_client/struct.Client.html#method.connect (several endpoints);
#   tonic's Channel::balance_list below it.
# Behaviour: a client that is given a live endpoint and one whose port is closed fails about every third call with
#   "tcp connect error", and goes on so for as long as it lives. The closed endpoint is tried again for each of these
#   calls; it is never left out, and the call is not repeated at the live one.
# Guess: a member that refuses connections is skipped after the first error, as etcd's own Go client does.
set -euo pipefail

dir="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q -o APT::Sandbox::User=root etcd-server=3.4.23-4+b4 >/dev/null
dpkg -x etcd-server_*.deb root
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "closed-endpoint"
version = "0.0.0"
edition = "2021"

[dependencies]
etcd-client = "=0.21.1"
tokio = { version = "=1.54.1", features = ["rt", "macros", "time"] }
TOML
cat >src/main.rs <<'RUST'
use etcd_client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let mut client = Client::connect(&endpoints, None).await.expect("a client");
    // Two rounds: the second shows that the client has learnt nothing from the first.
    for _ in 0..2 {
        let mut failed = 0;
        for _ in 0..300 {
            if let Err(error) = client.get("key", None).await {
                failed += 1;
                if failed == 1 {
                    eprintln!("first error of a round: {error}");
                }
            }
        }
        println!("{failed}");
    }
}
RUST
port_of() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
live="http://127.0.0.1:$(port_of)"
peer="http://127.0.0.1:$(port_of)"
closed="http://127.0.0.1:$(port_of)"
root/usr/bin/etcd --data-dir data --listen-client-urls "$live" --advertise-client-urls "$live" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" >log 2>&1 &
server=$!
cargo build --quiet
for _ in $(seq 100); do curl -fs "$live/health" >/dev/null && break; sleep 0.1; done

run() { target/debug/closed-endpoint "$@" | tr '\n' ' '; }
alone="$(run "$live")"
both="$(run "$live" "$closed")"
echo "of twice 300 calls failed: with the live endpoint alone $alone, with a closed port beside it $both"
[ "$alone" = "0 0 " ] || { echo "changed: the live endpoint alone fails"; exit 1; }
for failed in $both; do
    [ "$failed" -ge 30 ] || { echo "changed: fewer than a tenth of the calls fail"; exit 1; }
done
