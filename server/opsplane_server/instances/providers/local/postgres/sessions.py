"""How far servers are, asked as the admin over their sockets; errors of the driver become Unavailable."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres import queries
from opsplane_server.instances.providers.local.postgres.queries import Connection

_DO_YOU_SPEAK_TLS = struct.pack("!ii", 8, 80877103)  # the shortest question that the protocol has
_STANDING = """
SELECT pg_is_in_recovery() AS recovering,
       coalesce(CASE WHEN pg_is_in_recovery()
                     THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                     ELSE pg_current_wal_flush_lsn() END, '0/0') - '0/0'::pg_lsn AS position,
       coalesce(pg_last_wal_replay_lsn(), '0/0') - '0/0'::pg_lsn AS replayed,
       EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS streaming
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """position: end of the log that is safe on this node's disk. replayed: up to where a replica has replayed it, the
    end of a record. streaming: whether a replica receives more.
    """

    recovering: bool
    position: int
    replayed: int
    streaming: bool


@asynccontextmanager
async def session(node: LocalNode, *, timeout: float = queries.TIMEOUT) -> AsyncIterator[Connection]:
    """A connection for a block that takes `timeout` seconds at most. Unavailable."""
    try:
        async with asyncio.timeout(timeout), queries.connected(node, timeout) as connection:
            yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise Unavailable(
            f"{node.id} does not answer: {str(error) or type(error).__name__}", reason="SERVER_UNAVAILABLE"
        ) from error


async def standing(node: LocalNode, *, timeout: float = queries.TIMEOUT) -> Standing:
    """How far it is. Unavailable."""
    async with session(node, timeout=timeout) as connection:
        row = await connection.fetchrow(_STANDING)
    assert row is not None
    return Standing(row["recovering"], int(row["position"]), int(row["replayed"]), row["streaming"])


async def standings(nodes: Iterable[LocalNode], *, timeout: float = queries.TIMEOUT) -> dict[str, Standing]:
    """How far those are that answer, all asked at once."""

    async def one(node: LocalNode) -> tuple[str, Standing] | None:
        try:
            return node.id, await standing(node, timeout=timeout)
        except Unavailable:
            return None

    found = await asyncio.gather(*(one(node) for node in nodes))
    return dict(answer for answer in found if answer is not None)


async def reacts(node: LocalNode, timeout: float) -> bool:
    """Whether the main process takes connections, were it only to say that it is still recovering."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(node.folder.run / f".s.PGSQL.{node.port}"))
            try:
                writer.write(_DO_YOU_SPEAK_TLS)
                return bool(await reader.read(1))
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False
