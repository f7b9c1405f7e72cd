#!/usr/bin/env bash
# etcd 3.7.3 (go.etcd.io/etcd/server/v3, built with Go 1.26), beside etcd 3.4.23 (Debian bookworm), 2026-11-27.
# Source: https://etcd.io/docs/v3.5/learning/api/ ("Watch streams": "a progress notification ... will be sent");
#   `progressIfSync` in server/storage/mvcc/watchable_store.go. etcd 3.5.35 and 3.6.16 do as 3.7.3 does.
# Behaviour: a progress request on a watch that starts at the next revision (last known + 1, as the documents advise)
#   is not answered for as long as nothing is written anywhere in the store; 3.4.23 answers at once. A client that
#   takes it for a sign of life sees a quiet, healthy store as dead, or must do without that sign.
# Guess: a watch that has seen all there is counts as synced, and the request is answered.
set -euo pipefail

dir="$(mktemp -d)"
servers=()
trap 'for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q -o APT::Sandbox::User=root etcd-server=3.4.23-4+b4 >/dev/null
dpkg -x etcd-server_*.deb root
mkdir etcd ask
cat >etcd/main.go <<'GO'
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
GO
cat >ask/main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ask tells whether a progress request is answered within 3 s on a watch that starts at the revision + ahead.
func ask(client *clientv3.Client, ahead int64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	now, err := client.Put(ctx, "key", "value")
	if err != nil {
		panic(err)
	}
	watch := client.Watch(ctx, "key", clientv3.WithRev(now.Header.Revision+ahead), clientv3.WithCreatedNotify())
	<-watch
	time.Sleep(500 * time.Millisecond) // the watch has surely caught up
	if err := client.RequestProgress(ctx); err != nil {
		panic(err)
	}
	for {
		select {
		case answer := <-watch:
			if answer.IsProgressNotify() {
				return true
			}
		case <-time.After(3 * time.Second):
			return false
		}
	}
}

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:]})
	if err != nil {
		panic(err)
	}
	fmt.Printf("at_known=%v at_next=%v\n", ask(client, 0), ask(client, 1))
}
GO
for part in etcd:server ask:client; do
    (cd "${part%%:*}" && go mod init part 2>/dev/null && go get "go.etcd.io/etcd/${part#*:}/v3@v3.7.3" 2>/dev/null &&
        go mod tidy 2>/dev/null && go build -o part .)
done
port_of() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# seen PROGRAM: what a fresh etcd of that program answers.
seen() {
    local url peer
    url="http://127.0.0.1:$(port_of)"
    peer="http://127.0.0.1:$(port_of)"
    "$1" --data-dir "$(mktemp -d -p .)" --listen-client-urls "$url" --advertise-client-urls "$url" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" >log 2>&1 &
    servers+=($!)
    for _ in $(seq 100); do curl -fs "$url/health" >/dev/null && break; sleep 0.1; done
    ask/part "$url" 2>/dev/null
}
old="$(seen root/usr/bin/etcd)"
new="$(seen etcd/part)"
echo "3.4.23: $old; 3.7.3: $new"
[ "$old" = "at_known=true at_next=true" ] && [ "$new" = "at_known=true at_next=false" ]
