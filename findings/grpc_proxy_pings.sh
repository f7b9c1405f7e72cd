#!/usr/bin/env bash
# etcd-client 0.21.1 (crates.io; with tonic 0.14.9, h2 0.4.20) and etcd 3.4.23 (Debian bookworm), 2026-11-27.
# Source: https://pkg.go.dev/google.golang.org/grpc/keepalive#EnforcementPolicy (MinTime, 5 minutes by default);
#   https://www.rfc-editor.org/rfc/rfc9113#section-6.8 (GOAWAY).
# Behaviour: etcd allows its clients a ping every 5 s, its own grpc-proxy one in 5 minutes. A client that pings every
#   10 s and only waits on a watch loses its connection after 40 s. The proxy says "too_many_pings" in a GOAWAY frame,
#   but the watch ends with "stream closed because of a broken pipe": the reason goes to the connection's task alone,
#   because the frame's last stream id covers the stream of the watch.
# Guess: a proxy of etcd allows what etcd allows; and whoever reads from the stream learns why the connection ended.
set -euo pipefail

dir="$(mktemp -d)"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q -o APT::Sandbox::User=root etcd-server=3.4.23-4+b4 >/dev/null
dpkg -x etcd-server_*.deb root
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "pings"
version = "0.0.0"
edition = "2021"

[dependencies]
etcd-client = "=0.21.1"
tokio = { version = "=1.54.1", features = ["rt", "macros", "time"] }
TOML
cat >src/main.rs <<'RUST'
use etcd_client::{Client, ConnectOptions};
use std::time::{Duration, Instant};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let pings = ConnectOptions::new().with_keep_alive(Duration::from_secs(10), Duration::from_secs(5));
    let client = Client::connect([std::env::args().nth(1).expect("a URL")], Some(pings)).await.expect("a client");
    let mut watch = client.watch_client().watch("key", None).await.expect("a watch");
    let since = Instant::now();
    let limit = Duration::from_secs(60);
    let end = loop {
        match tokio::time::timeout(limit, watch.message()).await {
            Err(_) => break "still open".to_owned(),
            Ok(Ok(Some(_))) => {}
            Ok(end) => break format!("{end:?}"),
        }
    };
    println!("after {} s: {end}", since.elapsed().as_secs());
}
RUST
cargo build -q
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
etcd="http://127.0.0.1:$(port)"
proxy="127.0.0.1:$(port)"
peer="http://127.0.0.1:$(port)"
root/usr/bin/etcd --data-dir data --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" >etcd.log 2>&1 &
pids+=($!)
sleep 3
root/usr/bin/etcd grpc-proxy start --listen-addr="$proxy" --endpoints="${etcd#http://}" >proxy.log 2>&1 &
pids+=($!)
sleep 1
direct="$(target/debug/pings "$etcd")"
through="$(target/debug/pings "http://$proxy")"
echo "etcd itself, $direct"
echo "through grpc-proxy, $through"
grep -o 'Got too many pings from the client' proxy.log | head -1
[[ $direct == *"still open"* && $through == *"broken pipe"* && $through != *too_many_pings* ]]
grep -q 'too many pings' proxy.log
