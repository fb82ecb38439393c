#!/usr/bin/env bash
# Unpacks the database servers that tests run into the cache: MariaDB of this machine's distribution, and MySQL, which Debian
# has in its distribution "sid" alone. They are unpacked and not installed: the two packages exclude each other, and Debian
# starts them as services. Needs no root where the package lists are at hand. What cannot be had here is said, and left to the
# tests to skip or (under CI) to fail.
#
#   $OPSPLANE_CACHE/mariadb/usr      bin, sbin, lib, share; runs from anywhere
#                  /mysql/usr        the same with all its libraries, and their loader in usr/lib64
#                  /patchelf         which gives programs their libraries: tests need it where they put MySQL elsewhere
set -euo pipefail
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
libraries="\$ORIGIN/../lib/$(uname -m)-linux-gnu"

# unpack NAME FOLDER PACKAGE...: downloads packages by the apt-get of `apt` and puts their files into FOLDER of the cache
unpack() {
    local name=$1 folder=$2
    shift 2
    mkdir -p "$work/$folder"
    echo "fetching $name"
    if ! (cd "$work/$folder" && apt download "$@" >"$work/apt.log" 2>&1); then
        echo "$name cannot be fetched, the tests that need it do not run:" >&2
        tail -n 3 "$work/apt.log" >&2
        return 1
    fi
    for package in "$work/$folder"/*.deb; do
        dpkg-deb --extract "$package" "$work/$folder/root"
    done
    rm -rf "$work/$folder/root"/usr/share/{doc,man,locale}
    chmod 755 "$work/$folder/root"
}

# keep FOLDER: what was unpacked becomes visible when it is whole
keep() {
    mkdir -p "$cache"
    rm -rf "${cache:?}/$1"
    mv "$work/$1/root" "$cache/$1"
}

apt() { apt-get "${options[@]}" "$@"; }

# missing PACKAGE...: these and what they need that this machine, or the apt-get of `apt`, does not have
missing() {
    apt install --simulate --no-install-recommends "$@" 2>/dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

options=(-q)
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no apt-get here: MariaDB and MySQL are not fetched, the tests that need them do not run" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ] && ! apt-cache show mariadb-server-core >/dev/null 2>&1; then
    apt-get update >/dev/null
fi

if [ ! -x "$cache/patchelf" ]; then
    unpack patchelf patchelf-root patchelf || exit 0
    mkdir -p "$cache"
    cp "$work/patchelf-root/root/usr/bin/patchelf" "$cache/patchelf"
fi

if [ ! -x "$cache/mariadb/usr/sbin/mariadbd" ]; then
    packages=(mariadb-server-core mariadb-client-core mariadb-backup)
    # shellcheck disable=SC2046 # a list of words
    if unpack MariaDB mariadb $(printf '%s\n' "${packages[@]}" $(missing "${packages[@]}") | sort -u); then
        for program in sbin/mariadbd bin/mariadb bin/mariadb-backup; do
            "$cache/patchelf" --set-rpath "$libraries" "$work/mariadb/root/usr/$program"
        done
        keep mariadb
    fi
fi

if [ ! -x "$cache/mysql/usr/sbin/mysqld" ]; then
    # A package list of its own, and no package installed there: what this system has is too old for these programs.
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # The mirror that this system takes its own packages from.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/\?$' || true)
    if [ ! -r "$keyring" ] || [ -z "$mirror" ]; then
        echo "this is no Debian: MySQL is not fetched, the tests that need it do not run" >&2
        exit 0
    fi
    mkdir -p "$work"/sid/{lists/partial,cache/archives/partial,parts}
    : >"$work/sid/status"
    echo "deb [signed-by=$keyring] $mirror sid main" >"$work/sid/sources.list"
    options=(-q -o "Dir::Etc::sourcelist=$work/sid/sources.list" -o "Dir::Etc::sourceparts=$work/sid/parts"
        -o "Dir::State::lists=$work/sid/lists" -o "Dir::Cache=$work/sid/cache" -o "Dir::State::status=$work/sid/status"
        -o "APT::Sandbox::User=$(id -un)")
    if ! apt update >"$work/apt.log" 2>&1; then
        echo "no package list of sid: MySQL is not fetched, the tests that need it do not run" >&2
        exit 0
    fi
    # Perl is for programs that are not used.
    # shellcheck disable=SC2046
    if unpack MySQL mysql $(missing mysql-server-core mysql-client-core | grep -vE '^(perl|libperl|gcc-|libgdbm|libdb)'); then
        keep mysql
    fi
fi
