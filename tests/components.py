"""Real components that the scripts of this repository put into the cache."""

import os
from pathlib import Path
from typing import NoReturn

import pytest


def cache_folder() -> Path:
    """Where they are, as the Makefile says too."""
    configured = os.environ.get("OPSPLANE_CACHE")
    return Path(configured or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsplane")


def lacking(problem: str) -> NoReturn:
    """Skips the test for want of a component; under CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(problem)
    pytest.skip(problem)
