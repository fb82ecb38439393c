#!/usr/bin/env bash
# Builds a real InfluxDB 2 (influxd, of Go modules) into the cache, for tests, once a version.
# What cannot be had here is said, and left to the tests to skip or (under CI) to fail.
set -euo pipefail
version=2.7.12
pkg_config_version=v0.2.7
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}
program="$cache/influxdb-$version/influxd"

[ -x "$program" ] && exit
for needed in go cargo cc pkg-config; do
    if ! command -v "$needed" >/dev/null; then
        echo "no $needed here: InfluxDB is not installed" >&2
        exit
    fi
done
echo "building InfluxDB $version (some minutes)"
mkdir -p "$cache"
build=$(mktemp -d "$cache/influxdb.XXXXXX")
trap 'rm -rf "$build"' EXIT

# Flux, its query engine, is written in Rust: this stand-in for pkg-config compiles it and tells cgo where it is. It asks
# for a Rust of its own, which is old; the one of this machine does, once warnings are no errors any more.
cat >"$build/rustc" <<'END'
#!/bin/sh
exec "$@" --cap-lints allow
END
chmod +x "$build/rustc"
if command -v rustup >/dev/null; then
    RUSTUP_TOOLCHAIN=${RUSTUP_TOOLCHAIN:-$(cd / && rustup show active-toolchain | cut -d ' ' -f 1)}
    export RUSTUP_TOOLCHAIN
fi
export RUSTC_WRAPPER="$build/rustc" PKG_CONFIG="$build/pkg-config" CGO_ENABLED=1 GOFLAGS=-mod=mod

# The name and the version of what answers: the linker's variables.
names="-s -w -X main.version=v$version -X main.commit=opsplane -X main.date=1970-01-01T00:00:00Z"
make_influxd() (
    cd "$build" &&
        GOBIN="$build" nice go install "github.com/influxdata/pkg-config@$pkg_config_version" &&
        go mod init opsplane/influxd &&
        go get "github.com/influxdata/influxdb/v2/cmd/influxd@v$version" &&
        nice go build -tags sqlite_foreign_keys,sqlite_json -ldflags "$names" -o "$build/done/influxd" \
            github.com/influxdata/influxdb/v2/cmd/influxd
)
make_influxd >"$cache/influxdb.log" 2>&1 || { cat "$cache/influxdb.log" >&2; exit 1; }
# Another run may have been quicker.
mv -T "$build/done" "$cache/influxdb-$version" 2>/dev/null || [ -x "$program" ]
