"""One process of all for what one does for all, by a lock that PostgreSQL holds for a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.storage.database import Connection, Database


class PostgresLeadership:
    """Chooses one of all processes for the work called `name`. It keeps a connection for as long as it leads."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._connection: Connection | None = None

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[bool]:
        """Whether this process is the one, at the beginning of the block; from then on `check` tells."""
        async with self._database.connection() as connection:
            # Given up with the connection, or when the pool takes it back.
            leads = await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", self._name)
            self._connection = connection if leads else None
            if leads:
                try:
                    yield True
                finally:
                    self._connection = None
                return
        yield False

    async def check(self) -> None:
        """Raises Unavailable when it is no longer the one."""
        if self._connection is None:
            raise Unavailable("another process leads", reason="NOT_LEADING")
        try:
            await self._connection.execute("SELECT 1")
        except asyncpg.InterfaceError as error:
            raise Unavailable("the connection to the database was lost", reason="NOT_LEADING") from error
