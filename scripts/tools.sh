#!/usr/bin/env bash
# Installs the command-line tools that tests use into the cache, each once a version.
# What cannot be had here is said, and left to the tests to skip or (under CI) to fail.
set -euo pipefail
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}

# go_tool NAME MODULE VERSION
go_tool() {
    local stamp="$cache/$1-$3.installed"
    [ -e "$stamp" ] && return
    if ! command -v go >/dev/null; then
        echo "no Go here: $1 is not installed" >&2
        return
    fi
    echo "building $1 $3"
    mkdir -p "$cache/bin"
    GOBIN="$cache/bin" GOFLAGS=-mod=mod go install "$2@$3" 2>"$cache/$1.log" || { cat "$cache/$1.log" >&2; return 1; }
    touch "$stamp"
}

# otel_collector VERSION PROVIDER_VERSION
# A collector with what a test needs and nothing else: it tails files and exports OTLP.
otel_collector() {
    local stamp="$cache/otelcol-$1.installed" work
    [ -e "$stamp" ] && return
    go_tool ocb-builder go.opentelemetry.io/collector/cmd/builder "$1"
    [ -x "$cache/bin/builder" ] || return 0
    echo "building otelcol $1 (some minutes)"
    work=$(mktemp -d)
    cat >"$work/manifest.yaml" <<END
dist: {name: otelcol, output_path: $work/build}
receivers: [{gomod: github.com/open-telemetry/opentelemetry-collector-contrib/receiver/filelogreceiver $1}]
exporters: [{gomod: go.opentelemetry.io/collector/exporter/otlpexporter $1}]
providers:
  - gomod: go.opentelemetry.io/collector/confmap/provider/envprovider $2
  - gomod: go.opentelemetry.io/collector/confmap/provider/fileprovider $2
END
    if GOFLAGS=-mod=mod "$cache/bin/builder" --config "$work/manifest.yaml" >"$cache/otelcol.log" 2>&1; then
        mv "$work/build/otelcol" "$cache/bin/otelcol"
        touch "$stamp"
    else
        cat "$cache/otelcol.log" >&2
    fi
    rm -rf "$work"
    [ -e "$stamp" ]
}

# node_postgres: the client library of Node.js that tests write with, as tests/node_postgres locks it.
node_postgres() {
    local source sum
    source=$(cd "$(dirname "$0")/.." && pwd)/tests/node_postgres
    sum=$(sha256sum "$source/package-lock.json" | cut -c1-16)
    [ -e "$cache/node-postgres/$sum.installed" ] && return
    if ! command -v npm >/dev/null; then
        echo "no npm here: node-postgres is not installed" >&2
        return
    fi
    echo "installing node-postgres"
    rm -rf "$cache/node-postgres"
    mkdir -p "$cache/node-postgres"
    cp "$source/package.json" "$source/package-lock.json" "$source/.npmrc" "$cache/node-postgres/"
    npm ci --ignore-scripts --prefix "$cache/node-postgres" >"$cache/node-postgres.log" 2>&1 || {
        cat "$cache/node-postgres.log" >&2
        return 1
    }
    touch "$cache/node-postgres/$sum.installed"
}

node_postgres
go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.3
otel_collector v0.149.0 v1.55.0
