#!/usr/bin/env bash
# Builds the releases of etcd that the tests run beside the installed one, once, into target/parts/. Each folder here is
# a Go module that pins one release by go.mod and go.sum; a built one is left alone until its module changes.
# Usage: tests/parts/build.sh. Code 3: this machine has no Go that can build them.
set -euo pipefail
cd "$(dirname "$0")"
out="$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/parts"

# A Go older than the one that go.mod asks for fetches a newer toolchain itself, unless GOTOOLCHAIN=local forbids it.
minor="$( (go version 2>/dev/null || true) | sed -nE 's/^go version go1\.([0-9]+).*/\1/p')"
[ "${minor:-0}" -ge 24 ] || { echo "no Go 1.24 or newer is here" >&2; exit 3; }

mkdir -p "$out"
for module in etcd-*/; do
    name="${module%/}"
    newer="$(find "$module" -type f -newer "$out/$name" 2>/dev/null || echo all)"
    [ -n "$newer" ] || continue
    echo "building $name"
    # It is moved into its place whole, since another build or a test may look at the same time.
    (cd "$module" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -mod=readonly -o "$out/$name.$$" .)
    mv "$out/$name.$$" "$out/$name"
done
