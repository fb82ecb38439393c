#!/usr/bin/env bash
# Unpacks the FTP servers that tests and benchmarks run into the cache: vsftpd and proftpd of this machine's distribution.
# They are unpacked and not installed: Debian lets only one of them be installed, and starts it as a service. Needs no root
# where the package lists are at hand. What cannot be had here is said, and left to the tests to skip or (under CI) to fail.
set -euo pipefail
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}
folder="$cache/ftp-servers"

# unpack SERVER PACKAGE...: the packages and the libraries of theirs that this machine lacks
unpack() {
    local server=$1 packages missing work
    shift
    [ -x "$folder/$server/usr/sbin/$server" ] && return
    missing=$(apt-get install --simulate --no-install-recommends "$@" 2>/dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    packages=$(printf '%s\n' "$@" $missing | sort -u)
    work=$(mktemp -d)
    echo "fetching $server"
    # shellcheck disable=SC2086 # a list of words
    if ! (cd "$work" && apt-get download $packages >apt.log 2>&1); then
        echo "$server cannot be fetched, the FTP tests that need it do not run:" >&2
        tail -n 3 "$work/apt.log" >&2
        rm -rf "$work"
        return
    fi
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
    mkdir -p "$folder"
    rm -rf "${folder:?}/$server"
    chmod 755 "$work/root"
    mv "$work/root" "$folder/$server"
    rm -rf "$work"
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no apt-get here: vsftpd and proftpd are not fetched, the FTP tests that need them do not run" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ] && ! apt-cache show vsftpd >/dev/null 2>&1; then
    apt-get update >/dev/null
fi
unpack vsftpd vsftpd
unpack proftpd proftpd-core proftpd-mod-crypto
