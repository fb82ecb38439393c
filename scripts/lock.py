"""Writes `requirements.lock`: every Python package with its version and hashes, for one reproducible environment.

    python scripts/lock.py [--upgrade]

The input is what both distributions (server and client) and the development group ask for in their pyproject files, so
that no list of packages is written twice. The lock names no index: it works with whichever one pip is set up with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = {"opsplane", "opsplane-server"}
# Editable installs are built with these, without build isolation.
BUILD = ["hatchling>=1.27", "editables>=0.5"]


def wanted() -> list[str]:
    """All direct requirements but our own distributions."""
    server = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text(encoding="utf-8"))
    found = {
        *server["project"]["dependencies"],
        *server["dependency-groups"]["dev"],
        *client["project"]["dependencies"],
        *BUILD,
    }
    return sorted(found - OWN)


def main() -> int:
    """Runs as the module docstring says."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requirements.in"
        source.write_text("\n".join(wanted()) + "\n", encoding="utf-8")
        return subprocess.run(
            [
                *(sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras", "--allow-unsafe"),
                *("--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
                *("--no-header", "--no-annotate", "--output-file", str(ROOT / "requirements.lock"), str(source)),
                *sys.argv[1:],
            ],
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
