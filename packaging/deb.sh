#!/usr/bin/env bash
# Builds the Debian package with dpkg-deb from the list in Cargo.toml ([package.metadata.deb]), for machines
# without cargo-deb; `cargo deb` makes the same package.
# Usage: packaging/deb.sh [BINARY [DIRECTORY]]: of this binary (default target/release/flanneld), into this
# directory (default target/debian). Prints the package's path.
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$(realpath "${1:-target/release/flanneld}")"
mkdir -p "${2:-target/debian}"
out="$(realpath "${2:-target/debian}")"

package="$(cargo metadata --format-version 1 --no-deps --offline | jq '.packages[] | select(.name == "flanneld")')"
field() { jq -r "$1" <<<"$package"; }
version="$(field .version)-$(field '.metadata.deb.revision')"
arch="$(dpkg --print-architecture)"
tree="$(mktemp -d)"
work="$(mktemp -d)"
trap 'rm -rf "$tree" "$work"' EXIT
chmod 755 "$tree"

while IFS=$'\t' read -r from to mode; do
    case "$to" in */) to+="$(basename "$from")" ;; esac
    [ "$from" != target/release/flanneld ] || from="$binary"
    install -D -m "$mode" "$from" "$tree/$to"
done < <(field '.metadata.deb.assets[] | @tsv')
strip --strip-debug "$tree/usr/bin/flanneld"

# `$auto` stands for the packages of the libraries that the binary is linked with. cargo-deb asks the same program, which
# wants a source package around it.
mkdir -p "$work/debian"
: >"$work/debian/control"
auto="$(cd "$work" && dpkg-shlibdeps -O -e "$tree/usr/bin/flanneld" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')"
[ -n "$auto" ] || { echo "deb.sh: dpkg-shlibdeps (package dpkg-dev) names no libraries of $binary" >&2; exit 1; }
depends="$(field .metadata.deb.depends)"

mkdir "$tree/DEBIAN"
scripts="$(field '.metadata.deb["maintainer-scripts"]')"
install -m 755 "$scripts"/* "$tree/DEBIAN/"
field '.metadata.deb["conf-files"][]' >"$tree/DEBIAN/conffiles"
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
cat >"$tree/DEBIAN/control" <<END
Package: flanneld
Version: $version
Architecture: $arch
Maintainer: $(field '.metadata.deb.maintainer')
Section: $(field '.metadata.deb.section')
Priority: $(field '.metadata.deb.priority')
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: ${depends//\$auto/$auto}
Recommends: $(field '.metadata.deb.recommends')
Conflicts: $(field '.metadata.deb.conflicts')
Description: $(field .description)
$(field '.metadata.deb["extended-description"]' | sed 's/^/ /')
END
deb="$out/flanneld_${version}_$arch.deb"
dpkg-deb --root-owner-group -Zgzip --build "$tree" "$deb" >/dev/null
echo "$deb"
