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

go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.3
