#!/bin/sh
# The image's entry point. flannel's images were started in both ways: with flags alone, and with the program before
# them; the program's name must not become a stray word.
set -eu
case ${1:-} in
flanneld | */flanneld) shift ;;
mk-docker-opts.sh | */mk-docker-opts.sh) exec "$@" ;;
esac
exec /usr/bin/flanneld "$@"
