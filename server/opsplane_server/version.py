"""The version that runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def server_version() -> str:
    """The version of the installed package; `unreleased` where the source runs without being installed."""
    try:
        return version("opsplane-server")
    except PackageNotFoundError:
        return "unreleased"
