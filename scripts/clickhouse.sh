#!/usr/bin/env bash
# Unpacks the ClickHouse that tests run into the cache: that of this machine's distribution. It is unpacked and not
# installed: Debian starts it as a service. Needs no root where the package lists are at hand. What cannot be had here is
# said, and left to the tests to skip or (under CI) to fail.
#
#   $OPSPLANE_CACHE/clickhouse    usr/sbin, and in usr/lib and lib the libraries that this machine lacks (for LD_LIBRARY_PATH)
set -euo pipefail
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}
[ -x "$cache/clickhouse/usr/sbin/clickhouse-server" ] && exit 0
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no apt-get here: ClickHouse is not fetched, the tests that need it do not run" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ] && ! apt-cache show clickhouse-server >/dev/null 2>&1; then
    apt-get update >/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching ClickHouse"
missing=$(apt-get install --simulate --no-install-recommends clickhouse-server 2>/dev/null |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p')
# shellcheck disable=SC2046 # a list of words
if ! (cd "$work" && apt-get -q download $(printf '%s\n' clickhouse-server clickhouse-common $missing | sort -u) \
    >apt.log 2>&1); then
    echo "ClickHouse cannot be fetched, the tests that need it do not run:" >&2
    tail -n 3 "$work/apt.log" >&2
    exit 0
fi
for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
done
rm -rf "$work/root/usr/share" "$work/root/etc"
chmod 755 "$work/root"
mkdir -p "$cache"
rm -rf "${cache:?}/clickhouse"
mv "$work/root" "$cache/clickhouse"
