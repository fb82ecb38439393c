"""The MariaDB and MySQL programs of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import Engine
from opsplane_server.storage.accounts import Account, create_folder
from opsplane_server.storage.binaries import environment, run_as

log = structlog.get_logger(__name__)

OLDEST: Final = {Engine.MARIADB: (10, 5), Engine.MYSQL: (8, 0, 17)}
"""From these on there is what is used here: MariaDB's privileges of their own names, MySQL's CLONE and verifiers."""

_SERVERS: Final = ("mariadbd", "mysqld")
_FOLDERS_OF_PROGRAMS: Final = ("sbin", "bin", "libexec", "scripts")
_SYSTEM: Final = (
    ("/", "usr"), ("/usr", "local"), ("/usr/local", "mariadb*"), ("/usr/local", "mysql*"),
    ("/opt", "mariadb*"), ("/opt", "mysql*"),
)  # fmt: skip
_VERSION: Final = re.compile(r"\bVer (\d+)\.(\d+)\.(\d+)")
_WHAT_TO_INSTALL: Final = {
    Engine.MARIADB: "install MariaDB (on Debian and Ubuntu: the packages mariadb-server and mariadb-backup)",
    Engine.MYSQL: "install MySQL (where the distribution has it: the package mysql-server)",
}
# Warnings count where the server would take another value than the one that it was given.
_COMPLAINTS: Final = re.compile(
    r"\[(?:ERROR|Warning(?=\](?: \[[\w-]+\])* (?:Buffered warning: )?option '))\](?: \[[\w-]+\])*"
    r" (?:Buffered (?:error|warning): )?(.*)"
)
_CHARSET_COMPLAINT: Final = re.compile(r"(Character set '.*?' is not a compiled character set)")


@dataclass(frozen=True, slots=True)
class Installation:
    """Programs of one version. folder: with `bin`, `lib` and `share`, and the server in `bin` or `sbin`."""

    engine: Engine
    version: str
    folder: Path

    @property
    def series(self) -> str:
        """`10.11` of `10.11.6`: data of one are those of the others of its series."""
        return series(self.version)

    @property
    def server(self) -> str:
        """The path of the server."""
        return self.program("mariadbd", "mysqld") if self.engine is Engine.MARIADB else self.program("mysqld")

    def program(self, *names: str) -> str:
        """The path of the first of these that is there: some have an old name and a new one. FailedPrecondition."""
        for name in names:
            for folder in _FOLDERS_OF_PROGRAMS:
                path = self.folder / folder / name
                if os.access(path, os.X_OK):
                    return str(path)
        raise FailedPrecondition(
            f"{self.folder} has no {names[0]}: {_WHAT_TO_INSTALL[self.engine]}",
            reason="ENGINE_NOT_INSTALLED",
            metadata={"engine": self.engine, "program": names[0]},
        )

    def has_plugin(self, name: str) -> bool:
        """Whether it has this loadable library."""
        return any(self.folder.glob(f"lib*/**/plugin/{name}.so"))

    @property
    def options(self) -> frozenset[str]:
        """The names of all options of the server, with `_` for `-`. Blocks for a moment the first time."""
        return _options(self.server, str(self.folder))

    def complaint(self, parameters: Mapping[str, str]) -> str | None:
        """What the server says against these values, None for nothing. It reads them only; nothing is started."""
        command = [self.server, "--no-defaults", f"--basedir={self.folder}"]
        if self.engine is Engine.MYSQL:
            command += ["--validate-config", "--log-error-verbosity=2", "--secure-file-priv=NULL"]
        else:
            command += ["--help", "--verbose"]
        if os.geteuid() == 0:
            command.append("--user=root")  # nothing is run, and the account of servers may not reach the programs
        command += [f"--{name}={value}" for name, value in parameters.items()]
        result = _run(command)
        said = result.stderr.splitlines() + [line for line in result.stdout.splitlines() if "[ERROR]" in line]
        for line in said:
            match = _COMPLAINTS.search(line) or _CHARSET_COMPLAINT.search(line)
            if match:
                return match[1].removeprefix(f"{self.server}: ")
        return "the server does not take it" if result.returncode != 0 else None


class Installations:
    """Those found; looked for once. folders: install trees besides the usual ones, which win over them."""

    def __init__(self, folders: Iterable[Path], copies: Path) -> None:
        self._folders = tuple(folders)
        self._copies = copies  # of programs that the servers' account can not reach
        self._found: Mapping[Engine, Mapping[str, Installation]] | None = None
        self._reachable: dict[tuple[Engine, str, str], Installation] = {}

    def all(self, engine: Engine) -> Mapping[str, Installation]:
        """Those of an engine by exact version, newest first. Blocks for a moment the first time."""
        if self._found is None:
            found: dict[Engine, dict[str, Installation]] = {Engine.MARIADB: {}, Engine.MYSQL: {}}
            for installation in self._look():
                found[installation.engine].setdefault(installation.version, installation)
            self._found = {
                engine: dict(sorted(those.items(), key=lambda item: number(item[0]), reverse=True))
                for engine, those in found.items()
            }
        return self._found[engine]

    def of(self, engine: Engine, version: str) -> Installation:
        """That of the exact version, else the newest of the same series. FailedPrecondition (ENGINE_NOT_INSTALLED)."""
        those = self.all(engine)
        if version in those:
            return those[version]
        for installation in those.values():
            if installation.series == series(version):
                return installation
        raise FailedPrecondition(
            f"{engine} {version} is not on this machine: {_WHAT_TO_INSTALL[engine]}",
            reason="ENGINE_NOT_INSTALLED",
            metadata={"engine": engine, "version": version},
        )

    def reachable(self, engine: Engine, version: str, account: Account) -> Installation:
        """The same, copied to where `account` can run it if it must be. Blocks."""
        installation = self.of(engine, version)
        key = (engine, installation.version, account.name)
        if key not in self._reachable:
            self._reachable[key] = self._copied(installation, account)
        return self._reachable[key]

    def _copied(self, installation: Installation, account: Account) -> Installation:
        if _runs(installation, account):
            return installation
        target = self._copies / f"{installation.engine.lower()}-{installation.version}"
        if not target.exists():
            log.info("copying programs", source=str(installation.folder), target=str(target), user=account.name)
            create_folder(self._copies)
            _copy(installation.folder, target)
        copy = Installation(installation.engine, installation.version, target)
        if not _runs(copy, account):
            raise FailedPrecondition(
                f"the user '{account.name}' can run {installation.engine} neither in {installation.folder}"
                f" nor in {target}",
                reason="ENGINE_NOT_RUNNABLE",
            )
        return copy

    def _look(self) -> Iterator[Installation]:
        system = (path for folder, pattern in _SYSTEM for path in sorted(Path(folder).glob(pattern)))
        for folder in (*self._folders, *system):
            for name in _SERVERS:
                for place in _FOLDERS_OF_PROGRAMS:
                    if os.access(folder / place / name, os.X_OK):
                        installation = _identify(folder, folder / place / name)
                        if installation is not None:
                            yield installation


def series(version: str) -> str:
    """The first two numbers."""
    return ".".join(version.split(".")[:2])


def number(version: str) -> tuple[int, ...]:
    """For comparing."""
    return tuple(int(part) for part in version.split("."))


def _identify(folder: Path, server: Path) -> Installation | None:
    """Asked of the server: `mysqld` may be either."""
    try:
        said = _run([str(server), "--no-defaults", "--version"]).stdout
    except OSError as error:
        log.warning("server not usable", program=str(server), error=str(error))
        return None
    match = _VERSION.search(said)
    if match is None:
        return None
    engine = Engine.MARIADB if "MariaDB" in said else Engine.MYSQL
    version = ".".join(match.groups())
    return Installation(engine, version, folder) if number(version) >= OLDEST[engine] else None


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd="/",
        env=environment(),
    )  # fmt: skip


@lru_cache
def _options(server: str, folder: str) -> frozenset[str]:
    command = [server, "--no-defaults", f"--basedir={folder}", "--verbose", "--help"]
    if os.geteuid() == 0:
        command.append("--user=root")
    lines = iter(_run(command).stdout.splitlines())
    for line in lines:
        if line.startswith("-----"):  # the head of the table of values
            break
    names = set()
    for line in lines:
        if not line.strip():
            break
        names.add(line.split()[0].replace("-", "_"))
    return frozenset(names)


def _runs(installation: Installation, account: Account) -> bool:
    """Whether the account can run it, with its libraries; asked by doing it."""
    try:
        return run_as(account, [installation.server, "--no-defaults", "--version"]).returncode == 0
    except OSError:
        return False


def _copy(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="binaries-new-", dir=target.parent) as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("doc", "man", "mysql-test"))
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        copy.rename(target)
