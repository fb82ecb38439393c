"""Records in the order of their commit, from PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from opsplane_server.errors import InvalidArgument, OutOfRange
from opsplane_server.logingest.queries import Found, Group, LogQuery
from opsplane_server.logingest.stores.postgres.conditions import where_query, words_of
from opsplane_server.logingest.stores.postgres.pages import first_rows, found
from opsplane_server.storage.database import Connection, Database
from opsplane_server.storage.followers import SETTLED, Position

# A group's id with its records': the low bits count the records.
_GROUP_BITS: Final = 20
_LAST_ID: Final = 2**63 - 1
_GROUP: Final = f"(id >> {_GROUP_BITS}) << {_GROUP_BITS}"

_GROUP_COLUMNS: Final = """
    g.xid, g.id, g.record_count, g.first_time, g.last_time, g.services, g.levels
"""
_SETTINGS: Final = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; SET LOCAL jit = off"


class PostgresGroupReader:
    """`ports.GroupReader` on PostgreSQL. Up to `concurrency` statements at a time; others wait for their turn."""

    def __init__(self, database: Database, *, concurrency: int = 2) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(concurrency)

    async def now(self) -> Position:
        """See the port."""
        async with self._database.connection() as connection:
            oldest_running = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        return Position(oldest_running - 1, _LAST_ID)

    async def check(self, after: Position) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            known = await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
            if after.xid >= known:
                raise InvalidArgument.of("cursor", "is not one of this server")
            await _require_kept(connection, after)

    async def read_groups(self, after: Position, limit: int) -> list[Group]:
        """See the port."""
        # Groups and what is pruned are read at the same instant.
        async with self._database.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await _require_kept(connection, after)
            rows = await connection.fetch(
                f"""SELECT {_GROUP_COLUMNS} FROM logingest.groups AS g
                    WHERE (g.xid, g.id) >= ($1::xid8, $2)
                      AND (g.xid, g.id + g.record_count - 1) > ($1::xid8, $3) AND g.{SETTLED}
                    ORDER BY g.xid, g.id LIMIT $4""",
                after.xid,
                _group_id(after.id),
                after.id,
                limit,
            )
        return [_group(row) for row in rows]

    async def read_groups_before(self, before: Position, limit: int) -> list[Group]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT {_GROUP_COLUMNS} FROM logingest.groups AS g
                    WHERE (g.xid, g.id) < ($1::xid8, $2) AND g.{SETTLED} ORDER BY g.xid DESC, g.id DESC LIMIT $3""",
                before.xid,
                before.id,
                limit,
            )
        return [_group(row) for row in rows]

    async def read_records(
        self, query: LogQuery, groups: Sequence[Group], after: Position, *, limit: int, max_bytes: int
    ) -> Found:
        """See the port."""
        async with self._reading() as connection:
            args, condition = await _condition(connection, query, groups, after)
            statement = first_rows(
                "logingest.records",
                condition,
                order=(f"array_position($1::bigint[], {_GROUP})", "id"),
                args=args,
                limit=limit,
                max_bytes=max_bytes,
            )
            return found(await connection.fetch(statement, *args))

    async def count_records(self, query: LogQuery, groups: Sequence[Group], after: Position) -> int:
        """See the port."""
        async with self._reading() as connection:
            args, condition = await _condition(connection, query, groups, after)
            count = await connection.fetchval(f"SELECT count(*) FROM logingest.records WHERE {condition}", *args)
        return int(count)

    async def newest(self, query: LogQuery, groups: Sequence[Group], limit: int) -> list[Position]:
        """See the port."""
        transactions = {group.position.id: group.position.xid for group in groups}
        async with self._reading() as connection:
            args, condition = await _condition(connection, query, groups, Position.START)
            rows = await connection.fetch(
                f"""SELECT id FROM logingest.records WHERE {condition}
                    ORDER BY array_position($1::bigint[], {_GROUP}) DESC, id DESC LIMIT ${len(args) + 1}""",
                *args,
                limit,
            )
        return [Position(transactions[_group_id(row["id"])], row["id"]) for row in rows]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        async with self._turns, self._database.transaction() as connection:
            await connection.execute(_SETTINGS)
            yield connection


def _group_id(record_id: int) -> int:
    return record_id >> _GROUP_BITS << _GROUP_BITS


def _group(row: asyncpg.Record) -> Group:
    return Group(
        position=Position(row["xid"], row["id"]),
        record_count=row["record_count"],
        first_time=row["first_time"],
        last_time=row["last_time"],
        services=frozenset(row["services"]),
        levels=frozenset(row["levels"]),
    )


async def _require_kept(connection: Connection, after: Position) -> None:
    pruned = await connection.fetchrow("SELECT xid, id FROM logingest.positions WHERE name = 'pruned'")
    if pruned is not None and after < Position(pruned["xid"], pruned["id"]):
        raise OutOfRange("the records after the cursor are no longer kept for following", reason="CURSOR_EXPIRED")


async def _condition(
    connection: Connection, query: LogQuery, groups: Sequence[Group], after: Position
) -> tuple[list[object], str]:
    """The condition for the records of groups (in their order) after a place, and its arguments; $1 are the groups."""
    left = [group for group in groups if group.end > after]
    ids = [group.position.id for group in left]
    args: list[object] = [ids]
    if not ids:
        return args, "FALSE AND $1::bigint[] IS NOT NULL"
    args += [min(ids), max(group.end.id for group in left)]
    args += [min(group.first_time for group in left), max(group.last_time for group in left)]
    # Bounds of id and time find the pages; between them there may be records of groups that settle later.
    condition = f"id >= $2 AND id <= $3 AND timestamp >= $4 AND timestamp <= $5 AND {_GROUP} = ANY ($1::bigint[])"
    begun = [group.position.id for group in left if group.position <= after]
    if begun:
        args += [begun[0], after.id]
        condition += f" AND (id > $7 OR {_GROUP} <> $6)"
    return args, f"{condition} AND {where_query(query, await words_of(connection, query), args)}"
