"""Following transfers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opsplane_server.ftptransfer.model import Counts, Transfer
from opsplane_server.ftptransfer.stores.postgres import rows
from opsplane_server.ftptransfer.stores.postgres.listing import matching
from opsplane_server.rpc.filters import Condition
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import SETTLED, Position

_COUNTS: Final = f"""
SELECT count(*) FILTER (WHERE q.state = 'PENDING') AS pending, count(*) FILTER (WHERE q.state = 'RUNNING') AS running,
       count(*) FILTER (WHERE q.state = 'WAITING') AS waiting,
       count(*) FILTER (WHERE e.state = 'SUCCEEDED') AS succeeded, count(*) FILTER (WHERE e.state = 'FAILED') AS failed,
       count(*) FILTER (WHERE e.state = 'CANCELLED') AS cancelled, count(*) FILTER (WHERE e.skipped) AS skipped,
       COALESCE(sum(COALESCE(q.size_bytes, e.size_bytes)) FILTER (WHERE t.selection = 'FILE'), 0)::bigint AS size_bytes,
       COALESCE(sum(COALESCE(q.bytes_transferred, e.bytes_transferred)) FILTER (WHERE t.selection = 'FILE'), 0)::bigint
           AS bytes_transferred,
       COALESCE(sum(q.bytes_per_second) FILTER (WHERE q.state = 'RUNNING'), 0) AS bytes_per_second
{rows.FROM}"""


class PostgresTransferFollowing:
    """`ports.TransferFollowing` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def position(self) -> Position:
        """See the port."""
        async with self._database.connection() as connection:
            oldest: int = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        return Position(oldest - 1, 2**63 - 1)

    async def changes(self, after: Position, limit: int, *, settled_only: bool) -> list[tuple[Position, Sequence[int]]]:
        """See the port."""
        settled = SETTLED if settled_only else "TRUE"
        async with self._database.connection() as connection:
            found = await connection.fetch(
                f"""SELECT xid::text::bigint AS xid, id, keys FROM ftptransfer.changes
                    WHERE (xid, id) > ($1::text::xid8, $2) AND {settled} ORDER BY xid, id LIMIT $3""",
                str(after.xid),
                after.id,
                limit,
            )
        return [(Position(row["xid"], row["id"]), row["keys"]) for row in found]

    async def by_ids(self, ids: Sequence[str]) -> list[Transfer]:
        """See the port."""
        return await self._read("t.id = ANY ($1::text[]) ORDER BY t.key", list(ids))

    async def by_keys(self, keys: Sequence[int], conditions: Sequence[Condition]) -> list[Transfer]:
        """See the port."""
        args: list[object] = [list(keys)]
        return await self._read(f"t.key = ANY ($1::bigint[]) AND {matching(conditions, args)} ORDER BY t.key", *args)

    async def active(self, conditions: Sequence[Condition], after: int, limit: int) -> list[Transfer]:
        """See the port."""
        args: list[object] = [after, limit]
        return await self._read(f"q.key > $1 AND {matching(conditions, args)} ORDER BY q.key LIMIT $2", *args)

    async def running(self, conditions: Sequence[Condition]) -> list[Transfer]:
        """See the port."""
        args: list[object] = []
        return await self._read(
            f"""t.key IN (SELECT key FROM ftptransfer.queue WHERE worker IS NOT NULL UNION ALL
                          SELECT key FROM ftptransfer.queue WHERE state = 'RUNNING' AND worker IS NULL)
                AND {matching(conditions, args)} ORDER BY t.key""",
            *args,
        )

    async def counts(self, conditions: Sequence[Condition]) -> Counts:
        """See the port."""
        args: list[object] = []
        query = f"{_COUNTS} WHERE {matching(conditions, args)}"
        async with self._database.connection() as connection:
            row = await connection.fetchrow(query, *args)
        assert row is not None
        return Counts(**dict(row))

    async def _read(self, condition: str, *args: object) -> list[Transfer]:
        async with self._database.connection() as connection:
            return await rows.read(connection, f"{rows.SELECT} WHERE {condition}", *args)
