#!/usr/bin/env bash
# Makes the virtual environment of the checkout: venv.sh PYTHON FOLDER
# Installs the locked packages by hash, then this repository's two distributions as editable ones.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Opsplane needs Python 3.11 or newer; set PYTHON=python3.11 or the like" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships venv apart from Python.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    else
        echo "Python's venv module is missing; install it (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing Python packages into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -e clients/python -e .
