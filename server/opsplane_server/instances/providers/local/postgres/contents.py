"""What users have in a server, for the record of a copy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.providers.local.engine import LocalNode

_SECONDS = 30.0
_AT_ONCE = 4

# One whose removal was broken off (-2) takes no connections.
_DATABASES = """
SELECT datname FROM pg_database
WHERE datallowconn AND datconnlimit <> -2 AND NOT datistemplate AND datname <> 'postgres' ORDER BY datname
"""
_USERS = """
SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname !~ '^pg_' AND rolname <> ALL ($1) ORDER BY rolname
"""
# Statistics count as rows come and go but are lost in a crash; the planner's estimate survives, but is older. Unlogged
# tables are empty in a copy.
_TABLES = """
SELECT format('%s.%s', n.nspname, c.relname) AS name,
       CASE WHEN c.relpersistence = 'u' THEN 0
            ELSE coalesce(nullif(pg_stat_get_live_tuples(c.oid), 0), greatest(c.reltuples, 0)::bigint) END AS rows
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """tables: rows as the server estimates them, by `database.schema.table`."""

    databases: tuple[str, ...]
    users: tuple[str, ...]
    tables: Mapping[str, int]

    def also_in(self, other: Contents) -> Contents:
        """What both have: read before and after a moment, that is there at that moment."""
        return Contents(
            tuple(name for name in self.databases if name in other.databases),
            tuple(name for name in self.users if name in other.users),
            {name: rows for name, rows in self.tables.items() if name in other.tables},
        )


async def read(node: LocalNode) -> Contents:
    """Unavailable."""
    try:
        connection = await _connect(node, "postgres")
        try:
            databases = [row["datname"] for row in await connection.fetch(_DATABASES)]
            users = [row["rolname"] for row in await connection.fetch(_USERS, [ADMIN_USER, REPLICATION_USER])]
        finally:
            connection.terminate()
        limit = asyncio.Semaphore(_AT_ONCE)
        tables = await asyncio.gather(*(_tables(node, database, limit) for database in databases))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable(f"{node.id} does not answer: {error or type(error).__name__}") from error
    return Contents(tuple(databases), tuple(users), {name: rows for part in tables for name, rows in part.items()})


async def _tables(node: LocalNode, database: str, limit: asyncio.Semaphore) -> dict[str, int]:
    async with limit:
        try:
            connection = await _connect(node, database)
        except asyncpg.InvalidCatalogNameError:
            return {}  # dropped meanwhile
        try:
            return {f"{database}.{row['name']}": int(row["rows"]) for row in await connection.fetch(_TABLES)}
        finally:
            connection.terminate()


async def _connect(node: LocalNode, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=str(node.folder.run),
        port=node.port,
        user=ADMIN_USER,
        database=database,
        timeout=_SECONDS,
        command_timeout=_SECONDS,
        server_settings={"application_name": "opsplane"},
    )
