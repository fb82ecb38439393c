"""How many records there are of which time, service and level: kept up as groups settle, read without any scan."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Final

from opsplane_server.logingest.queries import ServiceCount, Stats
from opsplane_server.logingest.rollups import pieces
from opsplane_server.storage.database import Connection, Database
from opsplane_server.storage.followers import SETTLED

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MINUTES: Final = 1440

COUNTED: Final = """
    SELECT r.start, r.service, r.level, r.count FROM unnest($1::smallint[], $2::integer[], $3::integer[])
        AS piece (width, first, past)
    JOIN logingest.rollups AS r ON r.width = piece.width AND r.start >= piece.first AND r.start < piece.past
    UNION ALL
    SELECT u.minute - u.minute % piece.width, u.service, u.level, u.count
    FROM logingest.positions AS p
    JOIN logingest.groups AS g ON (g.xid, g.id) > (p.xid, p.id)
    CROSS JOIN unnest(g.minutes, g.services, g.levels, g.counts) AS u (minute, service, level, count)
    JOIN unnest($1::smallint[], $2::integer[], $3::integer[]) AS piece (width, first, past)
        ON u.minute >= piece.first AND u.minute < piece.past
    WHERE p.name = 'folded'
"""
"""Counts of the minutes that pieces ($1 to $3, see `rollups.pieces`) make up, with groups that are not folded yet."""

_BY_LEVEL: Final = f"""
    SELECT service, level, sum(count)::bigint AS count FROM ({COUNTED}) AS counted
    WHERE $4::text[] IS NULL OR service = ANY ($4) GROUP BY service, level
"""
# The edge of what is kept: by day first, so that few minutes are looked at.
_EDGE: Final = f"""
    SELECT {{edge}}(start) FROM ({COUNTED}) AS counted WHERE $4::text[] IS NULL OR service = ANY ($4)
"""
_FOLD: Final = f"""
    WITH folding AS (
        SELECT g.xid, g.id, g.minutes, g.services, g.levels, g.counts FROM logingest.groups AS g
        WHERE (g.xid, g.id) > ($1::xid8, $2) AND g.{SETTLED} ORDER BY g.xid, g.id LIMIT $3
    ), added AS (
        INSERT INTO logingest.rollups AS r (width, start, service, level, count)
        SELECT width, u.minute - u.minute % width, u.service, u.level, sum(u.count)
        FROM folding CROSS JOIN unnest(minutes, services, levels, counts) AS u (minute, service, level, count)
        CROSS JOIN (VALUES (1::smallint), (60::smallint), (1440::smallint)) AS grain (width)
        GROUP BY 1, 2, 3, 4
        ON CONFLICT (width, start, service, level) DO UPDATE SET count = r.count + excluded.count
    ), last AS (
        SELECT xid, id, count(*) OVER () AS folded FROM folding ORDER BY xid DESC, id DESC LIMIT 1
    )
    UPDATE logingest.positions AS p SET xid = last.xid, id = last.id FROM last WHERE p.name = 'folded' RETURNING folded
"""


class PostgresRollups:
    """`ports.Rollups` and `ports.StatsReader` on PostgreSQL. The size on disk is read every `size_seconds`."""

    def __init__(self, database: Database, *, size_seconds: float = 10.0) -> None:
        self._database = database
        self._size_seconds = size_seconds
        self._size: tuple[float, int] | None = None

    async def fold(self, limit: int) -> int:
        """See the port."""
        async with self._database.transaction() as connection:
            # Whoever folds holds the position: a twin goes on where the first one ended.
            place = await connection.fetchrow(
                "SELECT xid, id FROM logingest.positions WHERE name = 'folded' FOR UPDATE"
            )
            assert place is not None
            return await connection.fetchval(_FOLD, place["xid"], place["id"], limit) or 0

    async def remove_before(self, day: date, limit: int) -> int:
        """See the port."""
        async with self._database.connection() as connection:
            status = await connection.execute(
                """DELETE FROM logingest.rollups WHERE ctid = ANY (ARRAY(
                       SELECT ctid FROM logingest.rollups
                       WHERE width = ANY ('{1, 60, 1440}'::smallint[]) AND start < $1 LIMIT $2))""",
                _minute(datetime(day.year, day.month, day.day, tzinfo=UTC)),
                limit,
            )
        return int(status.split()[-1])

    async def stats(self, services: Collection[str], start_us: int, end_us: int) -> Stats:
        """See the port."""
        chosen = list(services) or None
        async with self._database.transaction() as connection:
            # One snapshot, so that a group is neither in both of rollups and groups nor in none of them.
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            as_of: datetime = await connection.fetchval("SELECT now()")
            now = _minute(as_of)
            rows = await connection.fetch(
                f"{_BY_LEVEL} ORDER BY service, level", *_columns(start_us // 60_000_000, end_us // 60_000_000), chosen
            )
            recent = await connection.fetch(_BY_LEVEL, *_columns(now - _DAY_MINUTES, now + 1), chosen)
            oldest = await _edge(connection, "min", chosen)
            newest = await _edge(connection, "max", chosen)
            size = await self._stored_bytes(connection)
        levels: dict[str, dict[int, int]] = {}
        for row in rows:
            levels.setdefault(row["service"], {})[row["level"]] = row["count"]
        counts = [ServiceCount(service, of) for service, of in levels.items()]
        return Stats(
            services=sorted(counts, key=lambda count: (-count.count, count.service)),
            last_24h_count=sum(row["count"] for row in recent),
            oldest=oldest,
            newest=newest,
            stored_bytes=size,
            as_of=as_of,
        )

    async def _stored_bytes(self, connection: Connection) -> int:
        if self._size is None or self._size[0] < time.monotonic():
            size = await connection.fetchval(
                """SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits
                   WHERE inhparent = 'logingest.records'::regclass"""
            )
            self._size = (time.monotonic() + self._size_seconds, size)
        return self._size[1]


def _minute(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(minutes=1)


def _columns(first: int, past: int) -> tuple[list[int], list[int], list[int]]:
    found = pieces(first, past)
    return [p.width for p in found], [p.first for p in found], [p.past for p in found]


async def _edge(connection: Connection, edge: str, services: list[str] | None) -> datetime | None:
    statement = _EDGE.format(edge=edge)
    day = await connection.fetchval(statement, [_DAY_MINUTES], [0], [2**31 - 1], services)
    if day is None:
        return None
    minute = await connection.fetchval(statement, [1], [day], [day + _DAY_MINUTES], services)
    return _EPOCH + timedelta(minutes=minute)
