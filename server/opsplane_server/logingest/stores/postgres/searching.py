"""Searching records in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.logingest.ports import TooLong
from opsplane_server.logingest.queries import Day, Found, LogQuery, Place, Span, TimeRange, Way
from opsplane_server.logingest.stores.postgres.conditions import bind, where_query, words_of
from opsplane_server.logingest.stores.postgres.counting import COUNTED
from opsplane_server.logingest.stores.postgres.indexing import INDEXED_DAYS
from opsplane_server.logingest.stores.postgres.pages import first_rows, found
from opsplane_server.logingest.stores.postgres.partitions import partition_name
from opsplane_server.storage.database import Connection, Database

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = _EPOCH.date()
_MINUTE_US: Final = 60_000_000
_DAY_US: Final = 86_400_000_000
_DAY_MINUTES: Final = 1440

# Plans are made for the values at hand, and never read all of a partition where an index could help: what the planner
# believes of summaries (BRIN) is too little.
_SETTINGS: Final = (
    "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; SET LOCAL jit = off; "
)

_TOTALS: Final = f"""
    SELECT start, sum(count)::bigint AS total,
           coalesce(sum(count) FILTER (
               WHERE ($4::smallint[] IS NULL OR level = ANY ($4)) AND ($5::text[] IS NULL OR service = ANY ($5))
           ), 0)::bigint AS matching
    FROM ({COUNTED}) AS counted GROUP BY start ORDER BY start DESC
"""


class PostgresRecordSearch:
    """`ports.RecordSearch` on PostgreSQL. Up to `concurrency` statements at a time; others wait for their turn.

    statement_seconds: how long the search of a slice may take.
    """

    def __init__(self, database: Database, *, concurrency: int = 4, statement_seconds: float = 3.0) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(concurrency)
        self._statement_seconds = statement_seconds

    async def days(self, query: LogQuery, start_us: int, end_us: int) -> list[Day]:
        """See the port."""
        first, last = start_us // _DAY_US, -(-end_us // _DAY_US)
        async with self._reading() as connection:
            rows = await self._totals(connection, query, _DAY_MINUTES, first * _DAY_MINUTES, last * _DAY_MINUTES)
            indexed = set(await connection.fetchval(INDEXED_DAYS))
        days = [(_EPOCH_DAY + timedelta(minutes=row["start"]), row["total"], row["matching"]) for row in rows]
        return [Day(day, total, matching, partition_name(day) in indexed) for day, total, matching in days]

    async def hours(self, query: LogQuery, start_us: int, end_us: int) -> list[Span]:
        """See the port."""
        return await self._spans(query, 60, start_us, end_us)

    async def minutes(self, query: LogQuery, start_us: int, end_us: int) -> list[Span]:
        """See the port."""
        return await self._spans(query, 1, start_us, end_us)

    async def find(
        self,
        query: LogQuery,
        day: date,
        ranges: Sequence[TimeRange],
        before: Place,
        way: Way,
        *,
        limit: int,
        max_bytes: int,
    ) -> Found:
        """See the port."""
        # The planner knows too little of summaries to choose. Bounds of the time alone apply to those of the time; with
        # bounds of rows the indexes for what is looked for are the only ones that apply.
        args: list[object] = [_moment(before.time_us), before.id]
        if way is Way.TIME:
            within = _within(ranges, args)
        else:
            within = f"(timestamp, id) >= ({bind(args, _moment(ranges[-1].start_us))}, 0)"
        try:
            async with self._reading() as connection:
                asked = where_query(query, await words_of(connection, query), args, indexed=way is Way.WORDS)
                statement = first_rows(
                    f"logingest.{partition_name(day)}",
                    f"{within} AND (timestamp, id) < ($1, $2) AND {asked}",
                    order=("timestamp DESC", "id DESC"),
                    args=args,
                    limit=limit,
                    max_bytes=max_bytes,
                )
                return found(await connection.fetch(statement, *args))
        except asyncpg.UndefinedTableError:  # the day has been removed meanwhile
            return Found([], complete=True)
        except Unavailable as error:
            if isinstance(error.__cause__, asyncpg.QueryCanceledError):
                raise TooLong from error
            raise

    async def _spans(self, query: LogQuery, width: int, start_us: int, end_us: int) -> list[Span]:
        width_us = width * _MINUTE_US
        start, end = start_us // width_us * width, -(-end_us // width_us) * width
        async with self._reading() as connection:
            rows = await self._totals(connection, query, width, start, end)
        return [Span(row["start"] * _MINUTE_US, width_us, row["total"], row["matching"]) for row in rows]

    async def _totals(
        self, connection: Connection, query: LogQuery, width: int, start: int, end: int
    ) -> list[asyncpg.Record]:
        levels = None if query.levels is None else sorted(query.levels)
        return await connection.fetch(_TOTALS, [width], [start], [end], levels, list(query.services) or None)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        async with self._turns, self._database.transaction() as connection:
            await connection.execute(
                f"{_SETTINGS} SET LOCAL statement_timeout = {round(self._statement_seconds * 1000)}"
            )
            yield connection


def _within(ranges: Sequence[TimeRange], args: list[object]) -> str:
    bounds = [(bind(args, _moment(start_us)), bind(args, _moment(end_us))) for start_us, end_us in ranges]
    return "(" + " OR ".join(f"(timestamp >= {start} AND timestamp < {end})" for start, end in bounds) + ")"


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)
