"""The database that the server stands on: its own PostgreSQL, or one that the configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import asyncpg
import structlog

from opsplane_server.config import Settings
from opsplane_server.errors import FailedPrecondition, OpsplaneError
from opsplane_server.storage.database import Database
from opsplane_server.storage.embedded import EmbeddedPostgres
from opsplane_server.storage.migrations import Migrations, migrate

log = structlog.get_logger(__name__)

# Connections beyond the pools: one for signals a worker, and those of migrations, backups and people.
_SPARE_CONNECTIONS = 20
_RESTART_SECONDS = (0.1, 10.0)  # first, longest pause


def rooms(services: Sequence[str]) -> list[Migrations]:
    """The schemas of these services and of what they share: each has the name of its package."""
    return [Migrations(name, f"opsplane_server.{name}") for name in ("platform", *services)]


class EmbeddedDatabase:
    """Runs PostgreSQL, and again when it dies. `restarts` counts these times, `up` says whether it runs now."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        connections = settings.server.workers * (settings.database.pool_max_size + 1) + _SPARE_CONNECTIONS
        self._postgres = EmbeddedPostgres(folder, max_connections=max(100, connections))
        self.restarts = 0
        self.up = False

    async def __aenter__(self) -> Self:
        await self._postgres.start()
        self.up = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.up = False
        await self._postgres.stop()

    @property
    def dsn(self) -> str:
        """Its address, which stays the same over restarts."""
        return self._postgres.dsn

    @property
    def pids(self) -> list[int]:
        """Its main process."""
        return [self._postgres.pid]

    async def keep(self) -> NoReturn:
        """Starts it again whenever it has died."""
        while True:
            await self._postgres.watch()
            self.up = False
            log.error("postgres died")
            await self._restart()
            self.up = True

    async def _restart(self) -> None:
        delay, longest = _RESTART_SECONDS
        while True:
            self.restarts += 1
            try:
                await self._postgres.start()
            except OpsplaneError as error:
                log.error("postgres not restarted", error=error.message, retry_seconds=delay)
            else:
                log.info("postgres restarted")
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)


class ExternalDatabase:
    """A PostgreSQL of somebody else's. Entering it makes sure that it answers: Unavailable, FailedPrecondition."""

    restarts = 0
    up = True

    def __init__(self, settings: Settings) -> None:
        self.dsn = settings.database.dsn
        self.pids: list[int] = []

    async def __aenter__(self) -> Self:
        async with Database(self.dsn, min_size=1, max_size=1) as database, database.connection() as connection:
            await connection.execute("SELECT 1")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of it is ours to end."""

    async def keep(self) -> None:
        """It is kept by others."""


async def prepare(database: EmbeddedDatabase | ExternalDatabase, services: Sequence[str]) -> None:
    """Brings the schemas up to date. FailedPrecondition if they are newer, or the user lacks a privilege."""
    try:
        await migrate(database.dsn, rooms(services))
    except asyncpg.InsufficientPrivilegeError as error:
        raise FailedPrecondition(
            f"the database user may not create what the server needs: {error}", reason="DATABASE_REFUSED"
        ) from error
