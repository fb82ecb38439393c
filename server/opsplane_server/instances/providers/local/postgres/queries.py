"""What a PostgreSQL server of this machine is asked, over its unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER, NodeRole
from opsplane_server.instances.providers.local.engine import LocalNode, NodeView

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

TIMEOUT = 5.0
"""Seconds. Whoever does not answer such questions by then hangs."""

_SETTINGS = {
    "application_name": "opsplane",
    "search_path": "pg_catalog",
    "default_transaction_read_only": "off",
    "statement_timeout": "30s",
    "log_min_duration_statement": "-1",
    # Our own little changes need not wait for replicas, least of all while there are none.
    "synchronous_commit": "local",
}

_VIEW = """
SELECT pg_is_in_recovery() AS recovering, current_setting('server_version') AS version,
    ARRAY(SELECT name FROM pg_settings WHERE pending_restart ORDER BY name) AS pending,
    CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_flush_lsn() END
        - '0/0'::pg_lsn AS position,
    coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'::pg_lsn AS received,
    clock_timestamp() - pg_last_xact_replay_timestamp() AS replayed_before,
    ARRAY(SELECT application_name FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS synchronous
"""


@asynccontextmanager
async def connected(node: LocalNode, timeout: float = TIMEOUT) -> AsyncIterator[Connection]:
    """A connection as the admin, whom the system account proves; errors of the driver pass."""
    connection = await asyncpg.connect(
        host=str(node.folder.run),
        port=node.port,
        user=ADMIN_USER,
        database="postgres",
        timeout=timeout,
        command_timeout=None,
        statement_cache_size=0,
        server_settings=_SETTINGS,
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def answers(node: LocalNode) -> bool:
    """Whether it takes connections."""
    try:
        async with connected(node):
            return True
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return False


async def view(node: LocalNode) -> NodeView:
    """What it says of itself. Unavailable."""
    try:
        async with asyncio.timeout(TIMEOUT), connected(node) as connection:
            row = await connection.fetchrow(_VIEW)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise Unavailable(f"{node.id} does not answer: {error}", reason="SERVER_UNAVAILABLE") from error
    assert row is not None
    received = int(row["received"])
    behind = row["recovering"] and received > int(row["position"])
    return NodeView(
        role=NodeRole.REPLICA if row["recovering"] else NodeRole.PRIMARY,
        version=row["version"].split()[0],
        pending_restart=tuple(row["pending"]),
        position=int(row["position"]),
        received=received,
        lag=max(timedelta(), row["replayed_before"] or timedelta()) if behind else timedelta(),
        synchronous=frozenset(row["synchronous"]),
    )


async def set_own_passwords(connection: Connection, admin: str, replication: str) -> None:
    """Of the server's own two accounts, as verifiers; makes the one for replication."""
    if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", REPLICATION_USER):
        await connection.execute(f"CREATE ROLE {REPLICATION_USER} LOGIN REPLICATION NOINHERIT")
    await connection.execute(f"ALTER ROLE {ADMIN_USER} PASSWORD '{admin}'")
    await connection.execute(f"ALTER ROLE {REPLICATION_USER} PASSWORD '{replication}'")
